"""Operators that write into a tensor at places that numbers or a mask name: entries there are replaced or added to."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pyalign.symmetry.calls import tensors_of
from pyalign.symmetry.tracing.labels import Operand, Plane, place
from pyalign.symmetry.tracing.rules.base import Planes, Rule, combine, pin
from pyalign.symmetry.tracing.rules.moving import indexed_axes

if TYPE_CHECKING:
    from pyalign.symmetry.tracing.tracer import Call, Trace

__all__ = ["RULES"]


def index_added(trace: Trace, call: Call) -> list[Planes] | None:
    """index_add: rows of the source are added to rows of the target; everything off that axis is a sum."""

    def mixed(plane: Plane, axis: int) -> None:
        trace.ties.collapse(plane, {axis}, "added by index")

    return _summed_off(trace, call, mixed, f"added by index to values that belong to no unit, in {call.place}")


def scattered(trace: Trace, call: Call) -> list[Planes] | None:
    """scatter, scatter_add: entries go to numbered places along an axis; everything off that axis is a sum."""

    def held(plane: Plane, axis: int) -> None:
        pin(trace, (plane,), "put to numbered places")

    return _summed_off(trace, call, held, f"put among values that belong to no unit, in {call.place}")


def _summed_off(trace: Trace, call: Call, along: Callable[[Plane, int], None], reason: str) -> list[Planes] | None:
    """Target and source, numbered along one axis, where `along` says what becomes of planes, and a sum off it."""
    target, dim, index, source = call.args[:4]
    rank, axis = target.dim(), dim % target.dim()
    if any(p.along({axis}) for p in trace.planes(index)):
        return None
    operands = []
    for t in (target, source):
        for plane in trace.planes(t) if isinstance(t, Tensor) else ():  # a number is put alike everywhere
            if plane.along({axis}):
                along(plane, axis)
        o = trace.operand(t, range(rank), rank)
        operands.append(Operand(tuple(p for p in o.planes if not p.along({axis})), o.fixed - {axis}, o.zero))
    planes = combine(trace, operands, "add", reason)
    if index.dim() < rank:  # one list of numbers for all else
        return [planes]
    numbers = trace.operand(index, range(rank), rank)
    own = tuple(Plane(p.atoms, scaled=False) for p in numbers.planes)
    return [combine(trace, [Operand(planes), Operand(own, numbers.fixed - {axis})], "mul", reason)]


def written(trace: Trace, call: Call) -> list[Planes] | None:
    """index_put: what is at an index is replaced or added to; along all other axes both are tied."""
    mask = _mask(call)
    if mask is not None and trace.planes(call.args[1][mask]):
        return _masked(trace, call, mask)
    target, values, axes = call.args[0], call.args[2], indexed_axes(call)
    before, rest = min(axes), target.dim() - max(axes) - 1
    inside = set(range(before, values.dim() - rest))
    known = any(trace.planes(t) for t in tensors_of(call.args[1]))
    if known or axes != set(range(before, max(axes) + 1)) or (before and not inside):
        return None
    operands = [_off(trace, t, own, axes, target.dim()) for t, own in ((target, axes), (values, inside))]
    return [combine(trace, operands, "add", f"written by index among values that belong to no unit, in {call.place}")]


def filled(trace: Trace, call: Call) -> list[Planes] | None:
    """masked_scatter: rows of the source replace rows of the target, where a mask says so for whole rows."""
    target, mask, source = call.args[:3]
    whole_rows = target.shape[-1] == source.shape[-1] and mask.dim() == target.dim()
    if trace.planes(mask) or not whole_rows or bool((mask != mask[..., :1]).any()):
        return None
    operands, last = [], target.dim() - 1
    for t in (target, source):
        whole, mine = trace.operand(t, range(t.dim()), t.dim()), t.dim() - 1
        pin(trace, tuple(p for p in whole.planes if p.dims != (mine,)), "rows of it are put where a mask says")
        rows = [p.atoms.reshape([1] * last + [-1]) for p in whole.planes if p.dims == (mine,)]
        scaled = [p.scaled for p in whole.planes if p.dims == (mine,)]
        planes = tuple(map(Plane, rows, scaled))
        operands.append(Operand(planes, frozenset({last} & {last + d - mine for d in whole.fixed}), whole.zero))
    return [combine(trace, operands, "add", f"put among values that belong to no unit, in {call.place}")]


def _mask(call: Call) -> int | None:
    """The place of the one index, if it is a mask whose entries all take one number: `h[h < 0] = 0`."""
    given = [n for n, index in enumerate(call.args[1]) if index is not None]
    one = len(given) == 1 and call.args[1][given[0]].dtype in (torch.bool, torch.uint8)
    return given[0] if one and call.args[2].numel() == 1 else None


def _masked(trace: Trace, call: Call, first: int) -> list[Planes]:
    """A number at the entries of a mask: pointwise, as masked_fill; scales survive only zero."""
    target, mask, value = call.args[0], call.args[1][first], call.args[2]
    rank = target.dim()
    operands = [trace.operand(target, range(rank), rank), trace.operand(mask, range(first, first + mask.dim()), rank)]
    mode = "pin" if bool(value.any()) or trace.planes(value) else "mul"
    return [combine(trace, operands, mode, f"written under a mask of values that belong to no unit, in {call.place}")]


def _off(trace: Trace, tensor: Tensor, own: set[int], axes: set[int], rank: int) -> Operand:
    """A tensor seen from the axes of an index space that are not `axes`; its own axes `own` are those of the index."""
    whole = trace.operand(tensor, range(tensor.dim()), tensor.dim())
    here = [d for d in range(tensor.dim()) if d not in own]
    there = [d for d in range(rank) if d not in axes]
    there = there[len(there) - len(here) :]
    planes = []
    for plane in whole.planes:
        if plane.along(own):
            trace.ties.collapse(plane, own, "written by index")
        else:
            atoms = plane.atoms.reshape([plane.atoms.shape[d] for d in here])
            planes.append(place(Plane(atoms, plane.scaled), there, rank))
    fixed = frozenset(there[here.index(d)] for d in whole.fixed if d in here)
    return Operand(tuple(planes), fixed, whole.zero)


RULES: dict[str, Rule] = {
    "index_add": index_added,
    "scatter": scattered,
    "scatter_add": scattered,
    "index_put": written,
    "masked_scatter": filled,
}
