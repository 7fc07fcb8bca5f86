"""Sums of products: matrix products and convolutions. Units are tied where they are summed over."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pyalign.symmetry.kinds import Kind
from pyalign.symmetry.tracing.labels import Operand, Plane, as_array, place
from pyalign.symmetry.tracing.rules.base import Planes, Rule, combine, reduce_symmetric
from pyalign.symmetry.tracing.rules.fibres import fibre_atoms

if TYPE_CHECKING:
    from pyalign.symmetry.tracing.tracer import Call, Trace

__all__ = ["KERNEL", "RULES", "SIGHTS"]

KERNEL = "kernel positions"
"""Why the axes of a convolution's weight that lie in space stay."""


def contract(trace: Trace, x: Operand, y: Operand, summed: set[int], reason: str) -> Planes:
    """`sum over summed of x * y`, in one index space."""
    planes = combine(trace, [x, y], "mul", reason, frozenset(summed))
    return reduce_symmetric(trace, planes, summed, False, f"{reason}; the order inside each unit stays", product=True)


def matrix_product(trace: Trace, call: Call) -> list[Planes]:
    """mm, bmm, mv, dot, addmm, baddbmm, addmv: index space (batch, rows, columns, summed)."""
    added = call.args[0] if call.name.startswith(("add", "badd")) else None
    x, y = call.args[1:3] if added is not None else call.args[:2]
    batch = x.dim() - 2 if x.dim() == 3 else 0
    rank = batch + 3
    lead = list(range(batch))
    xs = trace.operand(x, [*lead, batch, batch + 2] if x.dim() > 1 else [batch + 2], rank)
    ys = trace.operand(y, [*lead, batch + 2, batch + 1] if y.dim() > 1 else [batch + 2], rank)
    planes = contract(
        trace, xs, ys, {batch + 2}, f"product with values that belong to no unit, in {call.place or 'the model'}"
    )
    planes = _drop_axes(planes, [d for d, t in ((batch + 1, y), (batch, x)) if t.dim() < 2])
    if call.name == "bmm":
        trace.repeat([_repeats_of_batch(trace, x, y)])
        met = _met(trace, x, y, f"product over two kinds of units, in {call.place or 'the model'}")
        trace.cross([*_crossed(trace, x, 1, met), *_crossed(trace, y, 2, met)])
    if added is None or call.kwargs.get("beta", 1) == 0:
        return [planes]
    rank = call.out.dim()
    product = Operand(planes, _unexplained(call.out, planes, rank))
    return [combine(trace, [product, trace.broadcast(added, rank)], "add", f"bias in {call.place or 'the model'}")]


def _repeats_of_batch(trace: Trace, x: Tensor, y: Tensor) -> Tensor | None:
    """The repetitions in a product of matrices: where both factors are repeated along the batch alike, it is too."""
    counts = [trace.repeats(t) for t in (x, y)]
    if any(c is None or c.numel() != c.shape[0] for c in counts):
        return None
    one, two = counts
    return one if one is not None and two is not None and torch.equal(one, two) else None


def _met(trace: Trace, x: Tensor, y: Tensor, reason: str) -> list[Plane]:
    """Planes that share the summed axis with others, in both factors alike: they are summed over as the others are."""
    one, two = ([p for p in trace.crossed(t) if p.dims == (axis,)] for t, axis in ((x, 2), (y, 1)))
    if len(one) != 1 or len(two) != 1 or len(one[0].atoms.unique()) != len(two[0].atoms.unique()):
        return []
    xs, ys = Operand((place(one[0], [0, 1, 3], 4),)), Operand((place(two[0], [0, 3, 2], 4),))
    contract(trace, xs, ys, {3}, reason)
    return [*one, *two]


def _crossed(trace: Trace, factor: Tensor, axis: int, met: Sequence[Plane]) -> list[Plane]:
    """Planes that share an axis with others stay on it where it is not summed over."""
    kept = []
    for plane in (p for p in trace.crossed(factor) if p not in met):
        if plane.dims == (axis,):
            trace.ties.mixing.touch([plane])
            kept.append(plane)
        else:
            trace.ties.pin(as_array(plane.atoms).reshape(-1), "its axis was merged with that of finer units")
    return kept


def linear(trace: Trace, call: Call) -> list[Planes]:
    """linear: `x @ weight.T + bias` where the operator arrives whole."""
    x, weight = call.args[:2]
    rank = x.dim() + 1
    xs = trace.operand(x, [*range(rank - 2), rank - 1], rank)
    ws = trace.operand(weight, [rank - 2, rank - 1], rank)
    planes = contract(
        trace, xs, ws, {rank - 1}, f"product with values that belong to no unit, in {call.place or 'the model'}"
    )
    bias = call.get(2, "bias")
    if bias is None:
        return [planes]
    product = Operand(planes, _unexplained(call.out, planes, rank - 1))
    return [combine(trace, [product, trace.broadcast(bias, rank - 1)], "add", f"bias in {call.place}")]


def triangular_solution(trace: Trace, call: Call) -> list[Planes] | None:
    """linalg_solve_triangular: the inverse of x, a function of all of it, times y; index space as in matrix_product."""
    x, y = call.args[:2]
    if not call.kwargs.get("left", True) or x.dim() != y.dim():
        return None
    rank, batch = x.dim() + 1, x.dim() - 2
    lead, inside = range(batch), {batch, batch + 2}
    reason = f"inverted, in {call.place or 'the model'}"
    trace.ties.mixing.part(trace.planes(x), reason)
    xs = trace.operand(x, [*lead, batch, batch + 2], rank)
    for plane in xs.planes:
        if plane.along(inside):
            trace.ties.pin(as_array(plane.atoms).reshape(-1), reason)
    kept = [trace.ties.limit_scale(p, Kind.PERMUTATION, reason) for p in xs.planes if not p.along(inside)]
    ys = trace.operand(y, [*lead, batch + 2, batch + 1], rank)
    return [contract(trace, Operand(tuple(kept), xs.fixed | inside), ys, {batch + 2}, reason)]


def grouped_product(trace: Trace, call: Call) -> list[Planes] | None:
    """_grouped_mm: rows of x, sorted by expert, times their expert's matrix; index space (expert, row, out, in)."""
    x, weight = call.args[:2]
    if x.dim() != 2 or weight.dim() != 3:
        return None
    xs, ws = trace.operand(x, [1, 3], 4), trace.operand(weight, [0, 3, 2], 4)
    result = []
    for plane in contract(trace, xs, ws, {3}, f"experts in {call.place or 'the model'}"):
        if plane.along({0}):
            trace.ties.collapse(plane, {0}, "experts are picked by number")
        if plane.along({1, 2}):
            result.append(Plane(plane.atoms.narrow(0, 0, 1).squeeze(0), plane.scaled))
    return [tuple(result)]


def convolution(trace: Trace, call: Call) -> list[Planes]:
    """convolution: index space (batch, group, out in group, space, in in group)."""
    x, weight, bias, groups = call.args[0], call.args[1], call.args[2], call.args[8]
    transposed, space = call.args[6], weight.dim() - 2
    rank = 4 + space
    xs = _split(
        _channels(trace, x, "convolution moves along it"), 1, groups, [0, 1, rank - 1, *range(3, 3 + space)], rank
    )
    ws = _weight(trace, weight, groups, transposed, rank)
    if groups > 1:
        trace.ties.mixing.touch([p for p in (*xs.planes, *ws.planes) if p.along({1})], {1})
    if groups > 1 and x.shape[1] // groups > 1:
        _block(trace, [p for p in (*xs.planes, *ws.planes) if p.along({1})], groups, rank)
        xs, ws = _tie_in_blocks(trace, xs, ws, rank)
    planes = contract(
        trace, xs, ws, {rank - 1}, f"convolution of values that belong to no unit, in {call.place or 'the model'}"
    )
    merged = tuple(
        Plane(_merge(p.atoms, groups, weight.shape[1] if transposed else weight.shape[0] // groups), p.scaled)
        for p in planes
    )
    if bias is None:
        return [merged]
    product = Operand(merged, _unexplained(call.out, merged, call.out.dim()))
    return [combine(trace, [product, trace.operand(bias, [1], call.out.dim())], "add", f"bias in {call.place}")]


def _weight(trace: Trace, weight: Tensor, groups: int, transposed: bool, rank: int) -> Operand:
    """The weight in the index space of `convolution`; a grouped one has its own axis of fibre positions."""
    channels = _channels(trace, weight, KERNEL)
    first, second = (rank - 1, 2) if transposed else (2, rank - 1)
    if groups == 1:
        planes = [place(p, [first, second, *range(3, rank - 1)], rank) for p in channels.planes]
        return Operand(tuple(planes), frozenset((first, second)[d] for d in channels.fixed if d < 2))
    rows = [p for p in channels.planes if p.along({0})]
    fibres = [p for p in channels.planes if p.along({1})]
    planes = []
    fixed: set[int] = set()
    for plane in rows:
        planes.append(_spread(plane.atoms.reshape(groups, -1), [1, first], plane.scaled, rank))
    if 0 in channels.fixed:
        fixed |= {1, first}
    for plane in fibres:
        atoms = fibre_atoms(trace.ties, plane, rows, weight.shape, groups).reshape(groups, -1)
        planes.append(_spread(atoms, [1, second], plane.scaled, rank))
    if 1 in channels.fixed:
        fixed |= {second}
    return Operand(tuple(planes), frozenset(fixed))


def _spread(atoms: Tensor, dims: Sequence[int], scaled: bool, rank: int) -> Plane:
    shape = [1] * rank
    for d, size in zip(dims, atoms.shape, strict=True):
        shape[d] = size
    return Plane(atoms.reshape(shape), scaled)


def _split(operand: Operand, axis: int, groups: int, dims: Sequence[int], rank: int) -> Operand:
    """Axis `axis` split into (groups, rest); then axis d goes to axis `dims[d]` of `rank` axes."""
    planes = []
    for plane in operand.planes:
        shape = list(plane.atoms.shape)
        size = shape[axis]
        shape[axis : axis + 1] = [groups, size // groups] if size > 1 else [1, 1]
        planes.append(place(Plane(plane.atoms.reshape(shape), plane.scaled), dims, rank))
    fixed: set[int] = set()
    for d in operand.fixed:
        fixed |= {dims[d], dims[d + 1]} if d == axis else {dims[d] if d < axis else dims[d + 1]}
    return Operand(tuple(planes), frozenset(fixed))


def _on(operand: Operand, group: int, inner: int) -> list[Plane]:
    return [p for p in operand.planes if p.along({group}) and p.along({inner})]


def _block(trace: Trace, members: Sequence[Plane], groups: int, rank: int) -> None:
    """What each block holds moves with it, inputs and outputs alike."""
    shape = [1] * rank
    shape[1] = groups
    first = None
    for plane in members:
        blocks = trace.ties.new_group(groups)
        trace.ties.block(as_array(plane.atoms), blocks.reshape(shape))
        if first is not None:
            trace.ties.tie(first, blocks)
        first = blocks


def _tie_in_blocks(trace: Trace, xs: Operand, ws: Operand, rank: int) -> tuple[Operand, Operand]:
    """Tie inputs to fibres by hand: their blocks move as wholes, so the order inside a block need not stay."""
    inner = rank - 1
    x_planes, w_planes = _on(xs, 1, inner), _on(ws, 1, inner)
    if len(x_planes) != 1 or len(w_planes) != 1:
        return xs, ws
    reduced = combine(trace, [Operand(tuple(x_planes)), Operand(tuple(w_planes))], "mul", "", frozenset({inner}))
    del reduced
    rest = [
        Operand(tuple(p for p in o.planes if p not in gone), o.fixed - {1, inner})
        for o, gone in ((xs, x_planes), (ws, w_planes))
    ]
    return rest[0], rest[1]


def _merge(atoms: Tensor, groups: int, width: int) -> Tensor:
    """(batch, group, out in group, space) back to (batch, out, space)."""
    inner = atoms
    if inner.shape[1] > 1 or inner.shape[2] > 1:
        inner = inner.expand(inner.shape[0], groups, width, *inner.shape[3:])
    return inner.reshape(inner.shape[0], -1, *inner.shape[3:])


def _channels(trace: Trace, tensor: Tensor, reason: str) -> Operand:
    """Planes on the first two axes; those along space are held in place."""
    space = set(range(2, tensor.dim()))
    operand = trace.operand(tensor, range(tensor.dim()), tensor.dim())
    planes = []
    for plane in operand.planes:
        atoms = plane.atoms
        if plane.along(space):
            trace.ties.collapse(plane, space, reason)
            for d in space:
                atoms = atoms.narrow(d, 0, 1)
        if any(size > 1 for size in atoms.shape):
            planes.append(Plane(atoms, plane.scaled))
    return Operand(tuple(planes), operand.fixed)


def _unexplained(out: Tensor, planes: Planes, rank: int) -> frozenset[int]:
    explained = {d for plane in planes for d in plane.dims}
    return frozenset(d for d in range(rank) if out.shape[d] > 1 and d not in explained)


def _drop_axes(planes: Planes, axes: Sequence[int]) -> Planes:
    for axis in axes:
        planes = tuple(Plane(p.atoms.squeeze(axis), p.scaled) for p in planes)
    return planes


RULES: dict[str, Rule] = {
    **dict.fromkeys(("mm", "bmm", "mv", "dot", "vdot", "addmm", "baddbmm", "addmv"), matrix_product),
    "linear": linear,
    "linalg_solve_triangular": triangular_solution,
    **dict.fromkeys(("_grouped_mm", "grouped_mm"), grouped_product),
    **dict.fromkeys(("convolution", "_convolution", "convolution_overrideable"), convolution),
}
SIGHTS = dict.fromkeys(("mm", "addmm", "bmm", "linear", "convolution"), 3)
