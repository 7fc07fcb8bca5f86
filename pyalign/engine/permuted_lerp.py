"""Permuted blends: `(1 - t) a + t b[perm]` along any axes, and sums of k weighted, permuted tensors; with gradients."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pyalign import errors
from pyalign.engine import dispatch, permuted_operators

__all__ = ["permuted_dots", "permuted_lerp", "permuted_sum"]

Perms = Sequence[Tensor | None] | None


def permuted_lerp(
    a: Tensor,
    b: Tensor,
    t: float | Tensor,
    perms: Perms = None,
    out: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    r"""Blend a with a permuted b: `out = (1 - t) * a + t * b[perm_0][:, perm_1]...`.

    t = 0 gives a and t = 1 the permuted b bit for bit; then the other tensor is not read. Differentiable with
    respect to a, b and t.

    Args:
        a: Any shape; float32, float64, bfloat16 or float16 (float64 blends in float64, the others in float32).
        b: The shape and dtype of a.
        t: Position on the path, multiplies b; a number, or a 0-d tensor.
        perms: One entry per axis of b: None, or an int64 permutation of length n. The axis has n * r entries and
            each index moves a run of r (r = 1 but for an axis that holds n units of r entries each).
        out: Where to write; may be a or b itself. Without gradients.
        backend: "auto", or the implementation to use.

    Returns:
        The blend, in the shape and dtype of a; `out` when it was given.

    Raises:
        InputError: Shapes, dtypes, devices or permutations do not fit.
        BackendError: The named backend cannot run these inputs.

    Source:
        The interpolation of Ainsworth et al. (2022), arXiv 2209.04836, section 4, fused with its permutation.

    Example:
        >>> permuted_lerp(torch.zeros(3), torch.tensor([1.0, 2.0, 3.0]), 0.5, [torch.tensor([2, 0, 1])])
        tensor([1.5000, 0.5000, 1.0000])
    """
    if isinstance(t, Tensor):
        if t.dim() != 0:
            raise errors.InputError(
                "permuted_lerp takes one t",
                given=f"a tensor of shape {tuple(t.shape)}",
                expected="a number or 0-d tensor",
            )
        wide = t.to(torch.float64)
        weights: Tensor | list[float] = torch.stack((1.0 - wide, wide))
    else:
        weights = [1.0 - t, t]
    return permuted_sum((a, b), weights, (None, perms), out=out, backend=backend)


def permuted_sum(
    tensors: Sequence[Tensor],
    weights: Sequence[float] | Tensor,
    perms: Sequence[Perms] | None = None,
    out: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    r"""Sum k weighted tensors, each permuted along any of its axes: `out = sum_k weights[k] * tensors[k][perms[k]]`.

    A tensor with weight 0 is not read; one tensor with weight 1 is copied bit for bit. Differentiable with respect to
    the tensors and the weights.

    Args:
        tensors: k tensors of one shape, dtype and device.
        weights: (k,) numbers or a tensor; they need not sum to 1.
        perms: One entry per tensor, each None or as in `permuted_lerp`.
        out: Where to write; may be one of the tensors. Without gradients.
        backend: "auto", or the implementation to use.

    Returns:
        The sum, in the shape and dtype of the tensors; `out` when it was given.

    Raises:
        InputError: Shapes, dtypes, devices or permutations do not fit.
        BackendError: The named backend cannot run these inputs.

    Source:
        The uniform and weighted soups of Wortsman et al. (2022), arXiv 2203.05482, over aligned models.

    Example:
        >>> permuted_sum([torch.ones(2), torch.tensor([1.0, 5.0])], [2.0, 1.0], [None, [torch.tensor([1, 0])]])
        tensor([7., 3.])
    """
    tensors = list(tensors)
    _check_tensors(tensors)
    axes = _axes(tensors, perms)
    scales = _weights(weights, tensors)
    name = dispatch.choose("permuted_lerp", backend, tensors)
    given = tensors if isinstance(scales, list) else [*tensors, scales]
    if out is not None:
        _check_out(out, given)
        if any(_overlaps(out, tensor, moved) for tensor, moved in zip(tensors, axes, strict=True)):
            return out.copy_(permuted_sum(tensors, scales, axes, backend=name))
    if dispatch.direct(given):
        result = torch.empty_like(tensors[0], memory_format=torch.contiguous_format) if out is None else out
        listed = scales if isinstance(scales, list) else scales.tolist()
        dispatch.function("permuted_lerp", name)(result, tensors, listed, axes)
        return result
    if isinstance(scales, list):
        scales = torch.tensor(scales, dtype=torch.float64)
    return permuted_operators.permuted_sum(out, tensors, scales, axes, name)


def permuted_dots(
    factor: Tensor, tensors: Sequence[Tensor], perms: Sequence[Perms] | None = None, backend: str = "auto"
) -> Tensor:
    r"""Inner products of one tensor with permuted ones, summed in float64: what `permuted_sum` is differentiated with.

    Args:
        factor: The tensor that stays.
        tensors: k tensors of its shape, dtype and device.
        perms: One entry per tensor, each None or as in `permuted_lerp`.
        backend: "auto", or the implementation to use.

    Returns:
        (k,) float64: the sum of all entries of `factor * tensors[k][perms[k]]`. Without gradients.

    Raises:
        InputError: Shapes, dtypes, devices or permutations do not fit.
        BackendError: The named backend cannot run these inputs.

    Example:
        >>> permuted_dots(torch.tensor([1.0, 2.0]), [torch.tensor([3.0, 4.0])], [[torch.tensor([1, 0])]])
        tensor([10.], dtype=torch.float64)
    """
    _check_tensors([factor, *tensors])
    axes = _axes(tensors, perms)
    name = dispatch.choose("permuted_lerp", backend, [factor, *tensors])
    with torch.no_grad():
        sums: Tensor = dispatch.gradient("permuted_lerp", name, tensors)(factor, tensors, axes)
    return sums


def _check_tensors(tensors: Sequence[Tensor]) -> None:
    if not tensors:
        raise errors.InputError("permuted_sum has nothing to add", given="no tensors", expected="at least one")
    first = tensors[0]
    for k, tensor in enumerate(tensors):
        given = f"{tuple(tensor.shape)}, {tensor.dtype}, {tensor.device}"
        if (tensor.shape, tensor.dtype, tensor.device) != (first.shape, first.dtype, first.device):
            raise errors.InputError(
                f"permuted blend: tensor {k} does not fit tensor 0",
                given=given,
                expected=f"{tuple(first.shape)}, {first.dtype}, {first.device}",
                do="blend tensors of one shape, dtype and device",
            )
        if tensor.dtype not in dispatch.FLOATS:
            raise errors.InputError(
                "permuted blend: dtype is not supported",
                given=given,
                expected="float32, float64, bfloat16 or float16",
                do="convert it with .float()",
            )


def _axes(tensors: Sequence[Tensor], perms: Sequence[Perms] | None) -> list[list[Tensor | None]]:
    """Check the permutations by shape and list one entry per tensor and axis."""
    rank = tensors[0].dim()
    if perms is None:
        return [[None] * rank for _ in tensors]
    if len(perms) != len(tensors):
        raise errors.InputError(
            "permuted blend: wrong number of permutation lists",
            given=str(len(perms)),
            expected=f"{len(tensors)}, one per tensor (None where nothing moves)",
        )
    listed: list[list[Tensor | None]] = []
    for tensor, axes in zip(tensors, perms, strict=True):
        entries: list[Tensor | None] = [None] * rank if axes is None else list(axes)
        if len(entries) != rank:
            raise errors.InputError(
                "permuted blend: wrong number of permutations",
                given=f"{len(entries)} for a tensor of shape {tuple(tensor.shape)}",
                expected=f"{rank}, one per axis (None where nothing moves)",
            )
        for axis, perm in enumerate(entries):
            if perm is not None:
                _check_perm(perm, tensor, axis)
        listed.append(entries)
    return listed


def _check_perm(perm: Tensor, tensor: Tensor, axis: int) -> None:
    size = tensor.shape[axis]
    fits = perm.dim() == 1 and (size == 0 if perm.numel() == 0 else size % perm.numel() == 0)
    if not fits or perm.dtype != torch.int64 or perm.device != tensor.device:
        raise errors.InputError(
            f"permuted blend: the permutation of axis {axis} does not fit",
            given=f"{perm.dtype}, shape {tuple(perm.shape)}, on {perm.device}",
            expected=f"int64, one dimension, a length that divides {size}, on {tensor.device}",
            do="pass Assignment.perm or torch.as_tensor(indices)",
        )


def _weights(weights: Sequence[float] | Tensor, tensors: Sequence[Tensor]) -> Tensor | list[float]:
    shape = tuple(weights.shape) if isinstance(weights, Tensor) else (len(weights),)
    if shape != (len(tensors),):
        raise errors.InputError(
            "permuted blend: wrong number of weights",
            given=f"shape {shape}",
            expected=f"({len(tensors)},), one per tensor",
        )
    return weights.to(torch.float64) if isinstance(weights, Tensor) else [float(weight) for weight in weights]


def _check_out(out: Tensor, tensors: Sequence[Tensor]) -> None:
    first = tensors[0]
    if (out.shape, out.dtype, out.device) != (first.shape, first.dtype, first.device):
        raise errors.InputError(
            "permuted blend: out does not fit the tensors",
            given=f"{tuple(out.shape)}, {out.dtype}, {out.device}",
            expected=f"{tuple(first.shape)}, {first.dtype}, {first.device}",
        )
    if torch.is_grad_enabled() and any(x.requires_grad for x in (out, *tensors)):
        raise errors.InputError(
            "permuted blend: out= has no gradient",
            given="a tensor that requires grad",
            expected="tensors that do not",
            do="leave out= away, or run under torch.no_grad()",
        )


def _overlaps(out: Tensor, tensor: Tensor, perms: Sequence[Tensor | None]) -> bool:
    """Whether writing out could change entries of tensor that are still to be read."""
    if torch.compiler.is_compiling():  # storages cannot be compared in a trace, and the compiler plans the copy anyway
        return True
    if out.untyped_storage().data_ptr() != tensor.untyped_storage().data_ptr() or out.numel() == 0:
        return False
    same_place = out.storage_offset() == tensor.storage_offset() and out.stride() == tensor.stride()
    return not same_place or any(perm is not None for perm in perms)
