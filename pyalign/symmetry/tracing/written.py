"""Tensors that are written into part by part: what was written where."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pyalign.symmetry.calls import tensors_of
from pyalign.symmetry.kinds import Kind
from pyalign.symmetry.tracing.labels import Label, Plane, as_array, compact
from pyalign.symmetry.tracing.solve import components
from pyalign.symmetry.tracing.ties import Ties

if TYPE_CHECKING:
    from pyalign.symmetry.tracing.tracer import Call, Trace

__all__ = ["blank", "is_dense", "part_of", "unwritten_in", "write_part"]

_VIEWS = frozenset(
    {"select", "slice", "narrow", "split", "split_with_sizes", "unbind", "alias", "transpose", "permute"}
)


def write_part(trace: Trace, target: Tensor, planes: tuple[Plane, ...], repeats: Tensor | None) -> None:
    """A view was written into: the tensor it is a view of takes over the planes of that region.

    Args:
        trace: The trace.
        target: The view.
        planes: Its planes now.
        repeats: Which repetition of one value each of its entries is.
    """
    from pyalign.symmetry.tracing.rules.moving import settle

    base, ties = target._base, trace.ties
    if base is None:
        return
    before, old = trace.label(base), trace.planes(base)
    if max(len(planes), len(old)) > 1 or not is_dense(base):
        ties.pin([int(a) for p in (*planes, *old) for a in p.atoms.unique()], "written into part of a tensor")
        return
    counts = written_repeats(base, target, trace.repeats(base), repeats)
    rest = unwritten_after(base, target, before)
    if before is None and planes and rest is not None:
        spread = spread_over(ties, base, target, planes[0], rest)
        if spread is not None:
            trace.labels[base] = Label((spread,), repeats=counts, unwritten=rest)
            return
    full = blank(base, torch.int64)
    if old:
        full.copy_(old[0].atoms.expand(base.shape))
    elif before is None and planes and len(planes[0].dims) == 1:
        full.copy_(unwritten(ties, base, target, planes[0].dims[0]))
    region = full.as_strided(target.shape, target.stride(), target.storage_offset())
    region.copy_(planes[0].atoms.expand(target.shape) if planes else torch.zeros((), dtype=torch.int64))
    known = settle(trace, [Plane(full, all(p.scaled for p in (*planes, *old)))], counts)
    if rest is None and base.shape != target.shape:
        known = tuple(same_units(ties, plane) for plane in known)
    trace.labels[base] = Label(known, repeats=counts, unwritten=rest)


def is_dense(base: Tensor, whole: bool = True) -> bool:
    """Whether a tensor fills its memory, each entry once, in whatever order of its axes.

    Args:
        base: The tensor.
        whole: Whether it must begin where its memory does.
    """
    expected = 1
    for stride, size in sorted(zip(base.stride(), base.shape, strict=True)):
        if size > 1 and stride != expected:
            return False
        expected *= size
    return not whole or base.storage_offset() == 0


def blank(base: Tensor, dtype: torch.dtype) -> Tensor:
    """Zeros laid out as `base` is, so that its views have their places in it."""
    return torch.empty_strided(base.shape, base.stride(), dtype=dtype).zero_()


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
    counts = blank(base, torch.int64)
    counts.copy_(zero if known is None else known.expand(base.shape))
    region = counts.as_strided(target.shape, target.stride(), target.storage_offset())
    region.copy_(zero if new is None else new.expand(target.shape))
    return compact(counts)


def unwritten(ties: Ties, base: Tensor, target: Tensor, axis: int) -> Tensor:
    """Atoms of entries of a constant that were not written yet: interchangeable along `axis` where alike."""
    written = blank(base, torch.bool)
    written.as_strided(target.shape, target.stride(), target.storage_offset()).fill_(True)
    others = tuple(d for d in range(base.dim()) if d != axis)
    rest = base.index_select(axis, torch.where(~(written.any(others) if others else written))[0].to(base.device))
    if target.dim() != base.dim() or not rest.numel() or not bool((rest == rest.narrow(axis, 0, 1)).all()):
        return torch.zeros((), dtype=torch.int64)
    shape = [1] * base.dim()
    shape[axis] = base.shape[axis]
    return torch.from_numpy(ties.new_atoms(base.shape[axis])).reshape(shape)


def unwritten_after(base: Tensor, target: Tensor, before: Label | None) -> Tensor | None:
    """Which entries of `base` are still those of a constant, after its view `target` was written into."""
    if before is not None and before.unwritten is None:
        return None
    rest = blank(base, torch.bool)
    rest.fill_(True) if before is None or before.unwritten is None else rest.copy_(before.unwritten.expand(base.shape))
    rest.as_strided(target.shape, target.stride(), target.storage_offset()).fill_(False)
    return compact(rest) if bool(rest.any()) else None


def unwritten_in(call: Call, source: Label | None) -> list[Tensor] | None:
    """The same for views of a tensor that was written into in part; None for all else."""
    if source is None or source.unwritten is None or call.name not in _VIEWS:
        return None
    whole = source.unwritten.expand(call.args[0].shape)
    return [compact(part) for part in tensors_of(call.func(whole, *call.args[1:], **call.kwargs))]


def same_units(ties: Ties, plane: Plane) -> Plane:
    """A plane without the axes along which all its atoms belong to one unit at every place of the other axes.

    Parts that were written one after the other (time steps) hold units that were tied on the way there.
    """
    unit, coordinate = (torch.from_numpy(components(ties.atoms, edges)) for edges in (ties.edges, ties.mixing.edges))
    atoms = plane.atoms
    for d in plane.dims:
        first = atoms.narrow(d, 0, 1)
        if len(plane.dims) > 1 and bool((unit[atoms] == unit[first]).all()):
            if bool((coordinate[atoms] != coordinate[first]).any()):
                ties.mixing.part([plane], "written part by part")
            if plane.scaled:
                ties.tie_scale(as_array(atoms), as_array(first), 1)
            atoms = first
    return Plane(atoms, plane.scaled)


def spread_over(ties: Ties, base: Tensor, target: Tensor, plane: Plane, rest: Tensor) -> Plane | None:
    """The plane of a part of a constant as one of the whole, where all else is alike for all units.

    Args:
        ties: The ties.
        base: The constant.
        target: The view of it that was written into.
        plane: The plane of the view.
        rest: What was not written.
    """
    places = list(zip(base.stride(), base.shape, strict=True))
    axes = [places.index(here) if (here := (target.stride(d), target.shape[d])) in places else -1 for d in plane.dims]
    if -1 in axes or len(set(axes)) < len(axes):
        return None
    left = torch.where(rest.to(base.device), base, torch.zeros((), dtype=base.dtype, device=base.device))
    if any(bool((left != left.narrow(d, 0, 1)).any()) for d in axes):
        return None
    if bool(left.any()):
        reason = "written among numbers other than zero"
        ties.mixing.part([plane], reason)
        plane = ties.limit_scale(plane, Kind.PERMUTATION, reason)
    order = sorted(range(len(axes)), key=lambda n: axes[n])
    atoms = plane.atoms.reshape([plane.atoms.shape[d] for d in plane.dims]).permute(order)
    shape = [size if d in axes else 1 for d, size in enumerate(base.shape)]
    return Plane(atoms.reshape(shape), plane.scaled)


def part_of(base: Tensor, view: Tensor, label: Label) -> Label | None:
    """The label of a view that is older than what was written into `base`; None where nothing was."""
    if not is_dense(base):
        return label if view.shape == base.shape else Label()
    place = (view.shape, view.stride(), view.storage_offset())
    if label.unwritten is not None:
        rest = blank(base, torch.bool).copy_(label.unwritten.expand(base.shape))
        if bool(rest.as_strided(*place).all()):
            return None
    planes = [
        Plane(compact(blank(base, torch.int64).copy_(p.atoms.expand(base.shape)).as_strided(*place)), p.scaled)
        for p in label.planes
    ]
    return Label(tuple(p for p in planes if p.dims))
