"""Operators that move data without changing it: planes move in the same way."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from pyalign.symmetry.calls import tensors_of
from pyalign.symmetry.kinds import Kind
from pyalign.symmetry.tracing.labels import FIXED, Operand, Plane, as_array, compact
from pyalign.symmetry.tracing.rules.base import Planes, Rule, combine, pin
from pyalign.symmetry.tracing.rules.repeating import distinct, merged, repeats_of
from pyalign.symmetry.tracing.ties import Ties
from pyalign.symmetry.tracing.written import blank, is_dense

if TYPE_CHECKING:
    from pyalign.symmetry.tracing.tracer import Call, Trace

__all__ = ["RULES", "indexed_axes", "settle"]


def same(trace: Trace, call: Call) -> list[Planes]:
    """A copy, an alias, another dtype: the planes of the input."""
    trace.repeat([trace.repeats(call.args[0])])
    return [trace.planes(call.args[0])]


def moved(trace: Trace, call: Call, picked: frozenset[int] = frozenset()) -> list[Planes] | None:
    """Views, reorderings, repeats: the operator is run on the planes, but for those of axes that are `picked`."""
    source = call.args[0]
    if any(trace.planes(t) for t in tensors_of([call.args[1:], call.kwargs])):
        return None
    results: list[list[Plane]] = [[] for _ in tensors_of(call.out)]
    for plane in trace.planes(source):
        if picked.issuperset(plane.dims):
            continue
        out = call.func(plane.atoms.expand(source.shape), *call.args[1:], **call.kwargs)
        for found, atoms, part in zip(results, tensors_of(out), tensors_of(call.out), strict=True):
            found.append(plane if _none_of(plane, source, part) else Plane(atoms, plane.scaled))
    counts = repeats_of(trace, call)
    trace.repeat(counts)
    return [settle(trace, planes, count) for planes, count in zip(results, counts, strict=True)]


def _none_of(plane: Plane, source: Tensor, part: Tensor) -> bool:
    """Whether no entry was taken, along axes that the plane does not vary on: an expert without tokens."""
    whole = part.dim() == source.dim() and all(part.shape[d] == source.shape[d] for d in plane.dims)
    return whole and not part.numel() and bool(source.numel())


def reordered(trace: Trace, call: Call) -> list[Planes]:
    """Axes change places: the operator is run on the planes as they are, with size 1 where they do not vary."""
    count = trace.repeats(call.args[0])
    trace.repeat([None if count is None else call.func(count, *call.args[1:], **call.kwargs)])
    return [
        settle(
            trace,
            [Plane(call.func(p.atoms, *call.args[1:], **call.kwargs), p.scaled) for p in trace.planes(call.args[0])],
        )
    ]


def settle(
    trace: Trace, planes: Sequence[Plane], repeats: Tensor | None = None, crossed: list[Plane] | None = None
) -> Planes:
    """Planes after data moved: compacted, one plane an axis, single units pinned.

    Of several on an axis the finest of those whose units may change places stays, before those that only mix.

    Args:
        trace: The trace.
        planes: The planes.
        repeats: Which repetition of one value each entry is.
        crossed: Takes the planes on axes of finer ones, which are pinned where it is None.
    """
    kept: list[Plane] = []
    settled = [Plane(_settled(trace.ties, p.atoms), p.scaled) for p in planes]
    for plane in sorted(settled, key=lambda p: (not trace.ties.moves(p), -int(torch.unique(p.atoms).numel()))):
        rivals = [n for n, other in enumerate(kept) if set(plane.dims) & set(other.dims)]
        if not plane.dims:
            pin(trace, (plane,), "a single unit is picked out")
        elif not rivals:
            kept.append(distinct(trace.ties, plane, repeats))
        elif (both := merged(trace.ties, plane, kept[rivals[0]])) is not None and len(rivals) == 1:
            kept[rivals[0]] = both
        elif crossed is not None:
            crossed.append(plane)
        elif not trace.ties.moves(plane):
            trace.ties.mixing.part([plane], "its axis was merged with that of other units")
        else:
            pin(trace, (plane,), "its axis was merged with that of finer units")
    return tuple(kept)


def _settled(ties: Ties, atoms: Tensor) -> Tensor:
    """Compacted; copies that now lie along an axis of their own are one atom again."""
    atoms = compact(atoms)
    origin = torch.from_numpy(ties.origin)[atoms]
    for d in range(atoms.dim()):
        if atoms.shape[d] > 1 and bool((origin == origin.narrow(d, 0, 1)).all()):
            atoms = origin = origin.narrow(d, 0, 1)
    return atoms


def viewed(trace: Trace, call: Call) -> list[Planes] | None:
    """`view` for planes that have no strides for it."""
    source = call.args[0]
    if not isinstance(call.args[1], (list, tuple, torch.Size)):
        return same(trace, call) if call.out.shape == source.shape else None
    before, shape = ([max(size, 1) for size in t.shape] for t in (source, call.out))  # without entries: as if of one
    if math.prod(before) != math.prod(shape):
        return None
    count = trace.repeats(source)
    count = None if count is None else compact(count.expand(before).reshape(shape))
    trace.repeat([count])
    planes = [
        Plane(p.atoms.expand(before).reshape(shape), p.scaled) for p in (*trace.planes(source), *trace.crossed(source))
    ]
    crossed: list[Plane] = []
    planes = [*settle(trace, planes, count, crossed)]
    trace.cross(crossed)
    return [tuple(planes)]


def indexed(trace: Trace, call: Call) -> list[Planes] | None:
    """Indexing by tensors: constants move planes, values of the computation only pick along axes without units."""
    source = call.args[0]
    indices = [t for t in tensors_of([call.args[1:], call.kwargs]) if trace.label(t) is not None]
    if any(trace.planes(t) for t in indices):
        return None
    axes = indexed_axes(call) if indices else set()
    for plane in trace.planes(source):
        if plane.along(axes):
            trace.ties.collapse(plane, axes, "picked by index")
    return moved(trace, call, frozenset(axes))


def indexed_axes(call: Call) -> set[int]:
    """The axes of the source that an index takes entries from."""
    if call.name in ("index", "index_put"):
        axes, axis = set(), 0
        for index in call.args[1]:
            width = index.dim() if isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) else 1
            axes |= set(range(axis, axis + width)) if index is not None else set()
            axis += width
        return axes
    return {call.args[1] % call.args[0].dim()}


def concatenated(trace: Trace, call: Call) -> list[Planes]:
    """cat: a direct sum along the axis; along all others the parts are tied."""
    axis = call.get(1, "dim", 0) % call.out.dim()
    parts = [t for t in call.args[0] if t.dim() == call.out.dim() and t.shape[axis]]
    rank = call.out.dim()
    along = _along(trace, parts, axis)
    operands = []
    for t, own in zip(parts, along, strict=True):
        o = trace.operand(t, range(rank), rank)
        rest = tuple(p for p in o.planes if not p.along({axis}) and not any(p.dims == q.dims for q in own))
        operands.append(Operand(rest, o.fixed - {axis}, o.zero))
    planes = list(combine(trace, operands, "add", f"joined with values that belong to no unit, in {call.place}"))
    counts = [trace.repeats(t) for t in parts]
    if not any(along) or all(count is None for count in counts):
        return [settle(trace, [*planes, *([_joined(trace, parts, along, axis)] if any(along) else [])])]
    known = [torch.zeros([1] * rank, dtype=torch.int64) if count is None else count for count in counts]
    count = compact(torch.cat([c.expand(t.shape) for c, t in zip(known, parts, strict=True)], axis))
    trace.repeat([count])
    return [settle(trace, [*planes, _joined(trace, parts, along, axis)], count)]


def _along(trace: Trace, parts: Sequence[Tensor], axis: int) -> list[list[Plane]]:
    """The planes of each part along the axis; one of length 1 has that of blocks whose inside the others have too."""
    found = [[p for p in trace.planes(t) if p.along({axis})] for t in parts]
    blocks = {tuple(d for d in p.dims if d != axis) for planes in found for p in planes}
    if len(blocks) == 1 and (shape := next(iter(blocks))):
        for n, t in enumerate(parts):
            if t.shape[axis] == 1:
                found[n] = [p for p in trace.planes(t) if p.dims == shape]
    return found


def _joined(trace: Trace, parts: Sequence[Tensor], along: Sequence[Sequence[Plane]], axis: int) -> Plane:
    pieces = []
    for t, planes in zip(parts, along, strict=True):
        o = trace.operand(t, range(t.dim()), t.dim())
        atoms = (
            planes[0].atoms
            if planes
            else _nobody(
                trace.ties, t.shape[axis], axis, t.dim(), trace.label(t) is not None or axis in o.fixed, o.zero
            )
        )
        pieces.append(atoms.expand([t.shape[axis] if d == axis else size for d, size in enumerate(atoms.shape)]))
    widest = [max(piece.shape[d] for piece in pieces) for d in range(parts[0].dim())]
    full = [piece.expand([piece.shape[d] if d == axis else widest[d] for d in range(piece.dim())]) for piece in pieces]
    scaled = all(
        planes[0].scaled if planes else trace.operand(t, range(t.dim()), t.dim()).zero
        for t, planes in zip(parts, along, strict=True)
    )
    if not scaled:
        for planes in along:
            for plane in planes:
                trace.ties.limit_scale(plane, Kind.PERMUTATION, "joined with values of fixed scale")
    return Plane(torch.cat(full, axis), scaled)


def _nobody(ties: Ties, size: int, axis: int, rank: int, fixed: bool, zeros: bool = False) -> Tensor:
    """Atoms of entries that belong to no parameter: interchangeable when they are all alike, else fixed."""
    shape = [1] * rank
    shape[axis] = size
    return torch.full(shape, FIXED) if fixed else torch.from_numpy(ties.new_group(size, zeros)).reshape(shape)


def stacked(trace: Trace, call: Call) -> list[Planes]:
    """stack: cat along a new axis."""
    rank = call.out.dim()
    axis = call.get(1, "dim", 0) % rank
    planes = [trace.planes(t) for t in call.args[0]]
    common = [p for p in planes[0] if all(any(_same(p, q) for q in ps) for ps in planes)]
    own = [[p for p in ps if not any(_same(p, q) for q in common)] for ps in planes]
    alike = all(len(ps) == 1 and ps[0].dims == own[0][0].dims and ps[0].scaled for ps in own)
    if alike and _of_one(trace, own):
        whole = Plane(torch.stack([ps[0].atoms for ps in own], axis))
        return [settle(trace, [whole, *(Plane(p.atoms.unsqueeze(axis), p.scaled) for p in common)])]
    dims = [d for d in range(rank) if d != axis]
    operands = [trace.operand(t, dims, rank) for t in call.args[0]]
    return [combine(trace, operands, "add", f"stacked with values that belong to no unit, in {call.place}")]


def _same(p: Plane, q: Plane) -> bool:
    return p.scaled == q.scaled and p.atoms.shape == q.atoms.shape and torch.equal(p.atoms, q.atoms)


def _of_one(trace: Trace, planes: Sequence[Sequence[Plane]]) -> bool:
    """Whether parts were cut from one axis of a parameter (pairs of neighbours): then they are put back, not tied."""
    number = trace.ties.axis_of(np.concatenate([as_array(p.atoms).reshape(-1) for ps in planes for p in ps]))
    return bool((number == number[0]).all() and number[0] >= 0)


def padded(trace: Trace, call: Call) -> list[Planes]:
    """constant_pad_nd: new entries belong to no unit; along other axes than the units' nothing changes."""
    source, pad = call.args[0], call.args[1]
    value = call.get(2, "value", 0)
    planes = []
    for plane in trace.planes(source):
        atoms, scaled = plane.atoms, plane.scaled
        if value != 0:
            scaled = trace.ties.limit_scale(plane, Kind.PERMUTATION, "padded with a number other than zero").scaled
            trace.ties.mixing.part([plane], "padded with a number other than zero")
        for k in range(len(pad) // 2):
            axis = source.dim() - 1 - k
            if atoms.shape[axis] > 1:
                atoms = _extended(trace.ties, atoms, axis, pad[2 * k], pad[2 * k + 1])
        planes.append(Plane(atoms, scaled))
    count = trace.repeats(source)
    wider = [source.dim() - 1 - k for k in range(len(pad) // 2) if pad[2 * k] or pad[2 * k + 1]]
    trace.repeat([None if count is None or any(count.shape[d] > 1 for d in wider) else count])
    return [settle(trace, planes)]


def _extended(ties: Ties, atoms: Tensor, axis: int, before: int, after: int) -> Tensor:
    cut = atoms.narrow(axis, max(-before, 0), atoms.shape[axis] - max(-before, 0) - max(-after, 0))
    ends = [_nobody(ties, max(width, 0), axis, atoms.dim(), False) for width in (before, after)]
    full = [end.expand([end.shape[d] if d == axis else size for d, size in enumerate(cut.shape)]) for end in ends]
    return torch.cat([full[0], cut, full[1]], axis)


def strided(trace: Trace, call: Call) -> list[Planes] | None:
    """as_strided: entries by their place in memory; windows that overlap hold the same units."""
    source = call.args[0]
    if call.out.shape == source.shape:
        return same(trace, call)
    start = call.out.storage_offset() - source.storage_offset()
    last = start + sum((size - 1) * step for size, step in zip(call.out.shape, call.out.stride(), strict=True))
    if not is_dense(source, whole=False) or start < 0 or last >= source.numel():
        return None
    planes = []
    for plane in trace.planes(source):
        full = blank(source, torch.int64).copy_(plane.atoms.expand(source.shape))
        planes.append(Plane(full.as_strided(call.out.shape, call.out.stride(), start), plane.scaled))
    return [settle(trace, planes)]


def triangle(trace: Trace, call: Call) -> list[Planes]:
    """tril, triu: entries become zero by their place on the last two axes."""
    rank, planes = call.args[0].dim(), trace.planes(call.args[0])
    places = {rank - 2, rank - 1}
    trace.ties.mixing.touch(planes, places)
    for plane in planes:
        if plane.along(places):
            trace.ties.distinguish(plane, places, f"{call.name} keeps some places")
    return [planes]


def copied(trace: Trace, call: Call) -> list[Planes]:
    """copy_: the target becomes the source."""
    target, source = call.args[0], call.args[1]
    rank = target.dim()
    count = trace.repeats(source) if isinstance(source, Tensor) else None
    trace.repeat([None if count is None else count.reshape([1] * (rank - count.dim()) + list(count.shape))])
    return [trace.broadcast(source, rank).planes]


def unfolded(trace: Trace, call: Call) -> list[Planes] | None:
    """im2col (`F.unfold`): patches become the channel axis; padding is made of zeros, which belong to nobody."""
    source, kernel, dilation, padding, stride = call.args[:5]
    wide = [padding[1], padding[1], padding[0], padding[0]]
    planes = []
    for plane in trace.planes(source):
        full = plane.atoms.expand(source.shape).double()
        full = torch.nn.functional.pad(full, wide, mode="replicate") if any(wide) else full
        planes.append(Plane(torch.nn.functional.unfold(full, kernel, dilation, 0, stride).long(), plane.scaled))
    return [settle(trace, planes)]


_REORDERED = ("permute", "transpose", "t", "movedim", "swapaxes", "permute_copy", "transpose_copy", "t_copy")
_MOVED = """
    expand unsqueeze squeeze slice select narrow split split_with_sizes unbind chunk
    unsafe_split unsafe_split_with_sizes unsafe_chunk diagonal unfold flip roll repeat tile
    pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle reflection_pad1d reflection_pad2d
    reflection_pad3d replication_pad1d replication_pad2d replication_pad3d rot90 repeat_interleave squeeze_copy
    expand_copy slice_copy unfold_copy
""".split()  # noqa: SIM905 (a list literal fills a page)
_SAME = """
    clone detach alias contiguous _to_copy lift_fresh lift lift_fresh_copy dropout native_dropout to positive
    view_as _assert_async requires_grad rename resolve_conj resolve_neg feature_dropout _fused_dropout
""".split()  # noqa: SIM905 (a list literal fills a page)

RULES: dict[str, Rule] = {
    **dict.fromkeys(("tril", "triu"), triangle),
    **dict.fromkeys(_REORDERED, reordered),
    **dict.fromkeys(_MOVED, moved),
    **dict.fromkeys(_SAME, same),
    **dict.fromkeys(("view", "_unsafe_view", "reshape", "_reshape_alias", "view_copy", "_reshape_copy"), viewed),
    **dict.fromkeys(("index", "index_select", "gather", "take_along_dim"), indexed),
    **dict.fromkeys(("cat", "concat", "concatenate"), concatenated),
    "stack": stacked,
    "as_strided": strided,
    "constant_pad_nd": padded,
    "copy": copied,
    "im2col": unfolded,
}
