"""Streaming moments of two activation streams: count, means and co-moments in float64 (Chan et al. 1983)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from pyalign.engine import CrossMoments, cross_moments
from pyalign.engine.reference.cross_moments import merge as merge_records
from pyalign.errors import DataError, InputError

__all__ = ["Moments"]

_FIELDS = ("count", "mean_a", "mean_b", "comoment", "square_a", "square_b")  # the order of CrossMoments.tensors
# a unit whose deviation lies below float32's resolution of its mean carries no information
_RESOLUTION = 2.0**-23


class Moments:
    r"""Means, covariances and correlations of two streams of activations, updated batch by batch.

    \(M_{ij} = \sum_s (x_{si} - \bar x_i)(y_{sj} - \bar y_j)\) is kept with the means and the count, so memory does not
    grow with the number of samples, and the records of two halves of the data merge into that of the whole.

    Args:
        d_a: Units of the first stream.
        d_b: Units of the second stream (None: as many as of the first).
        full: Keep the covariances within each stream too, not only the variances.
        device: Where the sums live.
        backend: Implementation of `pyalign.engine.cross_moments`, or "auto".

    Source:
        Chan, Golub and LeVeque 1983, equation 2.1.

    Example:
        >>> moments = Moments(2)
        >>> x = torch.tensor([[0.0, 1.0], [1.0, 3.0], [2.0, 2.0]])
        >>> moments.update(x, x.flip(1)).correlation()
        tensor([[0.5000, 1.0000],
                [1.0000, 0.5000]], dtype=torch.float64)
    """

    def __init__(
        self,
        d_a: int,
        d_b: int | None = None,
        full: bool = False,
        *,
        device: torch.device | str = "cpu",
        backend: str = "auto",
    ) -> None:
        n, m = int(d_a), int(d_a if d_b is None else d_b)
        if n < 0 or m < 0:
            raise InputError("a stream has a negative number of units", given=f"d_a={n}, d_b={m}", expected="0 or more")
        self.full, self._requested = full, backend
        shapes = ((), (n,), (m,), (n, m), (n, n) if full else (n,), (m, m) if full else (m,))
        count, *zeros = (torch.zeros(shape, dtype=torch.float64, device=device) for shape in shapes)
        mean_a, mean_b, comoment, square_a, square_b = zeros
        self._record = CrossMoments(count, mean_a, mean_b, comoment, square_a, square_b, backend="none")

    @staticmethod
    def size(d_a: int, d_b: int | None = None, full: bool = False) -> int:
        """Bytes of the sums for streams of these widths.

        Example:
            >>> Moments.size(1000)
            8032008
        """
        n, m = d_a, d_a if d_b is None else d_b
        return 8 * (1 + n + m + n * m + (n * n + m * m if full else n + m))

    def update(self, x: Tensor, y: Tensor, axis: int | tuple[int, int] = 1, mask: Tensor | None = None) -> Moments:
        """Add the samples of one batch.

        Args:
            x: Activations of the first stream, any float dtype and layout.
            y: Activations of the second, with the same sample axes in the same order.
            axis: The axis of the units (or one for each stream); all other axes are samples.
            mask: Optional bool tensor, broadcastable to the sample axes; False samples are left out.

        Returns:
            Itself.

        Raises:
            InputError: The widths are not those of this record, or the samples do not agree.
            NonFiniteError: NaN or infinity in a sample that counts; the record stays as it was.
        """
        axes = axis if isinstance(axis, tuple) else (axis, axis)
        given = tuple(_width(t, at) for t, at in zip((x, y), axes, strict=True))
        expected = tuple(self._record.comoment.shape)
        if given != expected:
            raise InputError(
                "activations do not fit these moments",
                given=f"{given} units: shapes {tuple(x.shape)} and {tuple(y.shape)}, axis {axis}",
                expected=f"{expected} units",
            )
        device = self._record.comoment.device
        record = cross_moments(
            x.to(device),
            y.to(device),
            axis=axis,
            mask=None if mask is None else mask.to(device),
            full=self.full,
            into=self._record,
            backend=self._requested,
        )
        self._record = replace(record, backend=record.backend.removeprefix("none+"))
        return self

    def merge(self, other: Moments) -> Moments:
        """Add the samples that `other` has seen; `other` stays as it is.

        Returns:
            Itself.

        Raises:
            InputError: The two records are of different widths, or only one has full covariances.
        """
        mine, theirs = [tuple(t.shape) for t in self._record.tensors], [tuple(t.shape) for t in other._record.tensors]
        if mine != theirs:
            raise InputError("moments of different streams", given=f"{theirs}", expected=f"{mine}")
        device = self._record.comoment.device
        merge_records(self._record.tensors, [t.to(device) for t in other._record.tensors])
        return self

    @property
    def count(self) -> int:
        """Number of samples so far."""
        return int(self._record.count)

    @property
    def mean_a(self) -> Tensor:
        """Means of the first stream, shape (d_a,), float64."""
        return self._record.mean_a

    @property
    def mean_b(self) -> Tensor:
        """Means of the second stream, shape (d_b,), float64."""
        return self._record.mean_b

    @property
    def backend(self) -> str:
        """The implementation that added the latest samples."""
        return str(self._record.backend)

    @property
    def variance_a(self) -> Tensor:
        """Variances of the first stream (divided by the count), shape (d_a,), float64."""
        return _diagonal(self._record.square_a) / self._samples()

    @property
    def variance_b(self) -> Tensor:
        """Variances of the second stream (divided by the count), shape (d_b,), float64."""
        return _diagonal(self._record.square_b) / self._samples()

    @property
    def constant_a(self) -> Tensor:
        """Which units of the first stream are dead: no variance beyond float32's rounding of their mean, (d_a,)."""
        return self.variance_a <= (_RESOLUTION * self.mean_a).square()

    @property
    def constant_b(self) -> Tensor:
        """Which units of the second stream are dead, (d_b,) bool."""
        return self.variance_b <= (_RESOLUTION * self.mean_b).square()

    def covariance(self) -> Tensor:
        """Covariance of every unit of the first stream with every unit of the second (divided by the count)."""
        return self._record.comoment / self._samples()

    def covariance_a(self) -> Tensor:
        """Covariance within the first stream, shape (d_a, d_a); needs `full`."""
        return self._within(self._record.square_a)

    def covariance_b(self) -> Tensor:
        """Covariance within the second stream, shape (d_b, d_b); needs `full`."""
        return self._within(self._record.square_b)

    def correlation(self) -> Tensor:
        """Pearson correlation, shape (d_a, d_b), float64; 0 where a unit is dead, never NaN."""
        scale_a = torch.where(self.constant_a, 0.0, self.variance_a.rsqrt())
        scale_b = torch.where(self.constant_b, 0.0, self.variance_b.rsqrt())
        product = self._record.comoment * (scale_a / self._samples()).unsqueeze(1)
        return product.mul_(scale_b).clamp_(-1.0, 1.0)

    def second_moment(self) -> Tensor:
        """Mean of the products x_i * y_j, uncentred, shape (d_a, d_b), float64."""
        return self.covariance() + torch.outer(self.mean_a, self.mean_b)

    def state_dict(self) -> dict[str, Tensor]:
        """Everything needed to continue elsewhere, as tensors; see `from_state_dict`."""
        return dict(zip(_FIELDS, (t.clone() for t in self._record.tensors), strict=True))

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Tensor], *, backend: str = "auto") -> Moments:
        """Rebuild what `state_dict` gave.

        Raises:
            InputError: An entry is missing or of the wrong shape.
        """
        missing = [name for name in _FIELDS if name not in state]
        if missing:
            raise InputError("not the state of moments", given=f"no entry {missing[0]!r}", expected=", ".join(_FIELDS))
        n, m = state["comoment"].shape
        moments = cls(n, m, state["square_a"].dim() == 2, device=state["comoment"].device, backend=backend)
        for target, name in zip(moments._record.tensors, _FIELDS, strict=True):
            if target.shape != state[name].shape:
                raise InputError(
                    f"not the state of moments: entry {name!r}",
                    given=f"shape {tuple(state[name].shape)}",
                    expected=f"{tuple(target.shape)}",
                )
            target.copy_(state[name])
        return moments

    def __repr__(self) -> str:
        n, m = self._record.comoment.shape
        return f"Moments({n}, {m}, full={self.full}, count={self.count})"

    def _samples(self) -> Tensor:
        if self.count == 0:
            raise DataError("no samples yet", expected="at least one sample", do="call update first")
        return self._record.count

    def _within(self, square: Tensor) -> Tensor:
        if not self.full:
            raise InputError("the covariances within a stream were not kept", do="make it with Moments(..., full=True)")
        return square / self._samples()


def _diagonal(square: Tensor) -> Tensor:
    return square.diagonal() if square.dim() == 2 else square


def _width(x: Tensor, axis: int) -> int:
    return x.shape[axis] if -x.dim() <= axis < x.dim() else -1
