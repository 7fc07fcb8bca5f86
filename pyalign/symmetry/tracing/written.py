"""Tensors that are written into part by part: what was written where."""

from __future__ import annotations

import torch
from torch import Tensor

from pyalign.symmetry.tracing.labels import compact
from pyalign.symmetry.tracing.ties import Ties

__all__ = ["unwritten", "written_repeats"]


def written_repeats(base: Tensor, target: Tensor, known: Tensor | None, new: Tensor | None) -> Tensor | None:
    """Which repetition of one value each entry of `base` is, after its view `target` was written into.

    Args:
        base: The tensor.
        target: The view.
        known: The repetitions in `base` before.
        new: The repetitions in what was written.
    """
    if known is None and new is None:
        return None
    zero = torch.zeros((), dtype=torch.int64)
    counts = torch.zeros(base.shape, dtype=torch.int64)
    counts.copy_(zero if known is None else known.expand(base.shape))
    region = counts.as_strided(target.shape, target.stride(), target.storage_offset())
    region.copy_(zero if new is None else new.expand(target.shape))
    return compact(counts)


def unwritten(ties: Ties, base: Tensor, target: Tensor, axis: int) -> Tensor:
    """Atoms of entries of a constant that were not written yet: interchangeable along `axis` where alike."""
    written = torch.zeros(base.shape, dtype=torch.bool)
    written.as_strided(target.shape, target.stride(), target.storage_offset()).fill_(True)
    others = tuple(d for d in range(base.dim()) if d != axis)
    rest = base.index_select(axis, torch.where(~(written.any(others) if others else written))[0].to(base.device))
    if target.dim() != base.dim() or not rest.numel() or not bool((rest == rest.narrow(axis, 0, 1)).all()):
        return torch.zeros((), dtype=torch.int64)
    shape = [1] * base.dim()
    shape[axis] = base.shape[axis]
    return torch.from_numpy(ties.new_atoms(base.shape[axis])).reshape(shape)
