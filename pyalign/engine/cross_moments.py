"""Cross moments: running count, means and co-moments of two activation streams, merged after Chan et al. (1983)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pyalign import errors
from pyalign.engine import dispatch

__all__ = ["CrossMoments", "cross_moments"]


@dataclass(frozen=True)
class CrossMoments:
    """Sums over samples of two activation streams with n and m units; every tensor is float64.

    Attributes:
        count: () number of samples.
        mean_a: (n,) mean of each unit of the first stream.
        mean_b: (m,) mean of each unit of the second stream.
        comoment: (n, m) `sum_s (x_s - mean_a)(y_s - mean_b)^T`; divided by count it is the covariance.
        square_a: (n,) `sum_s (x_s - mean_a)^2`, or (n, n) the full co-moments within the first stream.
        square_b: (m,) or (m, m), the same for the second stream.
        backend: The implementation that ran; joined by "+" where several did.
    """

    count: Tensor
    mean_a: Tensor
    mean_b: Tensor
    comoment: Tensor
    square_a: Tensor
    square_b: Tensor
    backend: str

    @property
    def full(self) -> bool:
        """Whether the co-moments within each stream are full matrices."""
        return self.square_a.dim() == 2

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The six tensors in the order of their declaration."""
        return (self.count, self.mean_a, self.mean_b, self.comoment, self.square_a, self.square_b)


def cross_moments(
    x: Tensor,
    y: Tensor,
    *,
    axis: int | tuple[int, int] = 1,
    mask: Tensor | None = None,
    full: bool = False,
    into: CrossMoments | None = None,
    backend: str = "auto",
) -> CrossMoments:
    r"""Sum two activation streams over samples: count, means and centred products, in one pass.

    :math:`C = \sum_s (x_s - \bar x)(y_s - \bar y)^\top`. Samples are centred in flight, so the result agrees with
    float64 to 1e-6 of the units' spread also where mean / std = 1e4.

    Args:
        x: Activations with n units on `axis`, any layout and strides; float32, float64, bfloat16 or float16.
        y: Activations with m units on `axis`; the other axes equal those of x in size and order.
        axis: The unit axis, or one for x and one for y.
        mask: Samples to use: bool or 0-1, broadcastable to the shape of x without the unit axis. Excluded
            samples may hold anything, NaN too.
        full: Also sum the full co-moments within each stream.
        into: An earlier record, updated in place; memory does not grow with the number of calls.
        backend: "auto", or the implementation to use.

    Returns:
        The record; `into` itself when it was given and the same implementation ran.

    Raises:
        InputError: Axes, shapes, dtypes or devices do not fit.
        NonFiniteError: NaN or infinity in a sample that is used; `into` is then unchanged.
        BackendError: The named backend cannot run these inputs.

    Source:
        Chan, Golub and LeVeque (1983), Algorithms for computing the sample variance, eq. 2.1.

    Example:
        >>> x = torch.tensor([[1.0, 2.0], [3.0, 6.0]])
        >>> cross_moments(x, x).comoment
        tensor([[2., 4.],
                [4., 8.]], dtype=torch.float64)
    """
    axis_x, axis_y = _axes(x, y, axis)
    _check_streams(x, y, axis_x, axis_y)
    samples = x.shape[:axis_x] + x.shape[axis_x + 1 :]
    if mask is not None:
        mask = _sample_mask(mask, samples, x)
    n, m = x.shape[axis_x], y.shape[axis_y]
    name = dispatch.choose("cross_moments", backend, (x, y))
    direct = dispatch.direct((x, y))
    record = _empty(n, m, full, x.device, name, cleared=name == "reference" or not direct) if into is None else into
    _check_record(record, n, m, full, x.device)
    x, y = x.detach(), y.detach()
    if direct:
        dispatch.function("cross_moments", name)(record.tensors, x, y, axis_x, axis_y, mask, full)
    else:
        torch.ops.pyalign.cross_moments_(*record.tensors, x, y, axis_x, axis_y, mask, full, name)
    if name in record.backend.split("+"):
        return record
    return replace(record, backend=f"{record.backend}+{name}")


def _axes(x: Tensor, y: Tensor, axis: int | tuple[int, int]) -> tuple[int, int]:
    axis_x, axis_y = (axis, axis) if isinstance(axis, int) else axis
    for name, tensor, given in (("x", x, axis_x), ("y", y, axis_y)):
        if not -tensor.dim() <= given < tensor.dim():
            raise errors.InputError(
                f"cross_moments: {name} has no such unit axis",
                given=f"axis {given} of a tensor of shape {tuple(tensor.shape)}",
                expected=f"an axis from {-tensor.dim()} to {tensor.dim() - 1}",
                do="pass axis=, the dimension that holds the units (1 for NCHW, -1 for NHWC and transformers)",
            )
    return axis_x % x.dim(), axis_y % y.dim()


def _check_streams(x: Tensor, y: Tensor, axis_x: int, axis_y: int) -> None:
    samples_x = x.shape[:axis_x] + x.shape[axis_x + 1 :]
    samples_y = y.shape[:axis_y] + y.shape[axis_y + 1 :]
    if samples_x != samples_y:
        raise errors.InputError(
            "cross_moments: the two streams have different samples",
            given=f"x {tuple(x.shape)} with units on axis {axis_x}, y {tuple(y.shape)} with units on axis {axis_y}",
            expected="equal shapes apart from the unit axis",
            do="feed both models the same batch, and name the unit axis of each with axis=(axis_x, axis_y)",
        )
    if x.device != y.device:
        raise errors.InputError(
            "cross_moments: the two streams are on different devices",
            given=f"{x.device} and {y.device}",
            expected="one device",
            do="move one model",
        )
    for name, tensor in (("x", x), ("y", y)):
        if tensor.dtype not in dispatch.FLOATS:
            raise errors.InputError(
                f"cross_moments: {name} has a dtype that is not supported",
                given=str(tensor.dtype),
                expected="float32, float64, bfloat16 or float16",
                do="convert it with .float()",
            )


def _sample_mask(mask: Tensor, samples: torch.Size, x: Tensor) -> Tensor:
    fits = mask.dim() <= len(samples) and all(
        size in (1, full) for size, full in zip(reversed(mask.shape), reversed(samples), strict=False)
    )
    if not fits or mask.device != x.device:
        raise errors.InputError(
            "cross_moments: the mask does not fit the samples",
            given=f"a mask of shape {tuple(mask.shape)} on {mask.device}",
            expected=f"broadcastable to {tuple(samples)} on {x.device}",
            do="give one entry per sample: the shape of x without its unit axis",
        )
    return mask.to(torch.bool).expand(samples).contiguous()


def _empty(n: int, m: int, full: bool, device: torch.device, name: str, cleared: bool) -> CrossMoments:
    def zeros(*shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.float64, device=device)

    squares = (zeros(n, n), zeros(m, m)) if full else (zeros(n), zeros(m))
    # The compiled modules do not read the co-moments of a record without samples: clearing them would cost more.
    comoment = zeros(n, m) if cleared else torch.empty((n, m), dtype=torch.float64, device=device)
    return CrossMoments(zeros(), zeros(n), zeros(m), comoment, *squares, backend=name)


def _check_record(record: CrossMoments, n: int, m: int, full: bool, device: torch.device) -> None:
    if record.comoment.shape != (n, m) or record.full != full or record.count.device != device:
        widths = f"{record.mean_a.numel()} and {record.mean_b.numel()} units"
        raise errors.InputError(
            "cross_moments: the record given as into= is for other streams",
            given=f"{n} and {m} units, full={full}, on {device}",
            expected=f"{widths}, full={record.full}, on {record.count.device}",
            do="keep one record per pair of layers, always with the same full=",
        )


@torch.library.custom_op(
    "pyalign::cross_moments_", mutates_args=("count", "mean_a", "mean_b", "comoment", "square_a", "square_b")
)
def _operator(
    count: Tensor,
    mean_a: Tensor,
    mean_b: Tensor,
    comoment: Tensor,
    square_a: Tensor,
    square_b: Tensor,
    x: Tensor,
    y: Tensor,
    axis_x: int,
    axis_y: int,
    mask: Tensor | None,
    full: bool,
    backend: str,
) -> None:
    run = dispatch.implementation("cross_moments", backend, (x, y))
    run((count, mean_a, mean_b, comoment, square_a, square_b), x, y, axis_x, axis_y, mask, full)


@_operator.register_fake
def _fake(
    count: Tensor,
    mean_a: Tensor,
    mean_b: Tensor,
    comoment: Tensor,
    square_a: Tensor,
    square_b: Tensor,
    x: Tensor,
    y: Tensor,
    axis_x: int,
    axis_y: int,
    mask: Tensor | None,
    full: bool,
    backend: str,
) -> None:
    return None
