"""The weighted sum of permuted tensors in torch: index_select along each axis, then multiply and add."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pyalign.engine import outcomes

__all__ = ["permute", "permuted_dots", "permuted_sum"]


def permuted_sum(
    out: Tensor, tensors: Sequence[Tensor], weights: Sequence[float], perms: Sequence[Sequence[Tensor | None]]
) -> None:
    """Write `sum_k weights[k] * tensors[k][perms[k]]` to out; a tensor with weight zero is not read."""
    for axes in perms:
        outcomes.check_permutations(axes)
    wide = torch.float64 if out.dtype == torch.float64 else torch.float32
    total = torch.zeros((), dtype=wide, device=out.device)
    terms = [(t, w, p) for t, w, p in zip(tensors, weights, perms, strict=True) if w != 0.0]
    if len(terms) == 1 and terms[0][1] == 1.0:
        out.copy_(permute(terms[0][0], terms[0][2]))
        return
    for tensor, weight, axes in terms:
        total = total + weight * permute(tensor, axes).to(wide)
    out.copy_(total.expand(out.shape))


def permuted_dots(factor: Tensor, tensors: Sequence[Tensor], perms: Sequence[Sequence[Tensor | None]]) -> Tensor:
    """Give the (k,) float64 sums over all entries of factor times each permuted tensor."""
    wide = factor.to(torch.float64)
    return torch.stack([(wide * permute(t, p)).sum() for t, p in zip(tensors, perms, strict=True)])


def permute(tensor: Tensor, perms: Sequence[Tensor | None]) -> Tensor:
    """Take slot i of each axis from index perms[axis][i]; on an axis of n * r entries each index moves a run of r."""
    for axis, perm in enumerate(perms):
        if perm is not None and perm.numel() > 0:
            run = tensor.shape[axis] // perm.numel()
            tensor = tensor.unflatten(axis, (perm.numel(), run)).index_select(axis, perm).flatten(axis, axis + 1)
    return tensor
