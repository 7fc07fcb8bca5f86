"""What the rules share: operators as elementwise maps in an index space, sums over some of its axes, pins."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from pyalign.symmetry.kinds import Kind
from pyalign.symmetry.tracing.labels import Operand, Plane, as_array
from pyalign.symmetry.tracing.mixing import Mixing
from pyalign.symmetry.tracing.rules.repeating import served
from pyalign.symmetry.tracing.ties import Ties

if TYPE_CHECKING:
    from pyalign.symmetry.tracing.tracer import Call, Trace

__all__ = ["Rule", "combine", "note_mixing", "pin", "reduce_symmetric", "restrict"]

Rule = Callable[["Trace", "Call"], "list[tuple[Plane, ...]] | None"]
Planes = tuple[Plane, ...]


def combine(
    trace: Trace,
    operands: Sequence[Operand],
    mode: str,
    reason: str,
    summed: frozenset[int] = frozenset(),
    judged: bool = False,
) -> Planes:
    """An elementwise map of several operands: planes that meet are tied.

    Args:
        trace: The trace.
        operands: The operands, in one index space.
        mode: What happens to scales: "add", "mul", "norm" (the last two operands, weight and bias, give theirs; the
            others lose it), "length" (the same without a mean: signs of the first stay), "pin" (all are lost).
        reason: Why units are told apart where an operand without units meets one that has them.
        summed: Axes that the product is summed over afterwards ("mul" of two operands): scales cancel there.
        judged: Whether it has been noted already (or is to be, by what follows) which units may be mixed.

    Returns:
        The planes of the result.
    """
    if summed:
        operands = _served(trace.ties, operands, summed)
    if not judged:
        note_mixing(trace.ties.mixing, operands, mode, reason, summed)
    for i, operand in enumerate(operands):
        rest = [other for j, other in enumerate(operands) if j != i]
        others = {d for other in rest for d in other.fixed if d not in other.places}
        others |= {d for other in rest for q in other.planes if not trace.ties.moves(q) for d in q.dims}
        for plane in operand.planes:
            if plane.along(others):
                trace.ties.distinguish(plane, others, reason)
            for other in rest:
                for d in (other.fixed & other.places.keys()) - others:
                    if plane.along({d}):
                        trace.ties.distinguish_places(plane, d, other.places[d], reason)
    operands = [
        Operand(tuple(p for p in o.planes if trace.ties.moves(p) or trace.ties.mixes(p)), o.fixed, o.zero)
        for o in operands
    ]
    ranked = [(i, plane) for i, operand in enumerate(operands) for plane in operand.planes]
    for n, (i, p) in enumerate(ranked):
        for j, q in ranked[n + 1 :]:
            meet = i != j and set(p.dims) & set(q.dims) and trace.ties.moves(p) and trace.ties.moves(q)
            if meet and not _shared(trace.ties, p, q, summed):
                trace.ties.tie(*np.broadcast_arrays(as_array(p.atoms), as_array(q.atoms)))
    if summed:
        operands = _scales_contracted(trace.ties, operands, summed)
    kept = _SCALES[mode](trace.ties, operands, reason)
    result = _widest(trace.ties, kept)
    if mode == "mul":
        trace.ties.mixing.part(_unseen(kept, result, summed), reason)
        for plane in kept:
            if plane.scaled and plane.dims and plane not in result:  # nothing that follows would tell of its scale
                trace.ties.limit_scale(plane, Kind.PERMUTATION, "multiplied with values of other units")
    return result


def _unseen(planes: Sequence[Plane], result: Planes, summed: frozenset[int]) -> list[Plane]:
    """Planes with entries in the result that its planes do not tell apart: what follows is not noted there."""
    seen = {d for plane in result for d in plane.dims} | summed
    return [p for p in planes if p not in result and not set(p.dims) <= seen]


def _served(ties: Ties, operands: Sequence[Operand], summed: frozenset[int]) -> list[Operand]:
    """Planes of one factor of a product that serve several units of the other are repeated, one for each of those.

    So it is with keys and values that several query heads share, where the code keeps their axes apart.
    """
    planes = [list(operand.planes) for operand in operands]
    for one, two in ((0, 1), (1, 0)):
        for n, narrow in enumerate(planes[one]):
            for wide in planes[two]:
                if set(narrow.dims) < set(wide.dims) and set(narrow.dims) <= summed:
                    ties.served[as_array(wide.atoms)] = True  # a key for all heads
                if _serves(ties, narrow, wide, summed):
                    planes[one][n] = narrow = served(ties, narrow, wide)
                    ties.served[as_array(wide.atoms)] = ties.served[as_array(narrow.atoms)] = True
    return [Operand(tuple(ps), o.fixed, o.zero, o.places) for ps, o in zip(planes, operands, strict=True)]


def _serves(ties: Ties, narrow: Plane, wide: Plane, summed: frozenset[int]) -> bool:
    """Whether one plane has the blocks of another: a key for several queries, or a value for their attention."""
    inside, blocks = set(narrow.dims) & summed, set(narrow.dims) & set(wide.dims) - summed
    if inside:
        return bool(blocks) and set(narrow.dims) < set(wide.dims)
    apart = set(wide.dims) - set(narrow.dims), set(narrow.dims) - set(wide.dims)
    known = ties.served[as_array(wide.atoms)].all() and not ties.served[as_array(narrow.atoms)].any()
    return bool(blocks) and all(apart) and not set(wide.dims) & summed and bool(known)


def _shared(ties: Ties, p: Plane, q: Plane, summed: frozenset[int]) -> bool:
    """Whether one operand serves all blocks of the other alike, entry by entry: blocks may move, their inside may not.

    So it is with a scale inside every head (QK-norm), or a key that all heads read.
    """
    narrow, wide = (p, q) if len(p.dims) < len(q.dims) else (q, p)
    inside = set(narrow.dims)
    if not inside < set(wide.dims) or not (inside <= summed or ties.one_inside(wide, inside)):
        return False
    reason = "it serves the inside of all blocks alike"
    ties.distinguish(wide, inside, reason)
    ties.pin(np.unique(as_array(narrow.atoms)), reason, mixing=False)
    return True


def note_mixing(mixing: Mixing, operands: Sequence[Operand], mode: str, reason: str, summed: frozenset[int]) -> None:
    """Note which entries of the operands' planes the operator does not tell apart."""
    terms = [operand for operand in operands if mode != "add" or not operand.zero]
    for i, operand in enumerate(terms):
        others = [other for j, other in enumerate(terms) if j != i]
        for p in operand.planes:
            if mode == "add":
                _added(mixing, p, others, reason)
            elif mode == "mul":
                _multiplied(mixing, p, others[0] if others else Operand(()), reason, summed)
            else:
                mixing.part([p], reason)


def _added(mixing: Mixing, p: Plane, others: Sequence[Operand], reason: str) -> None:
    """A term of a sum is one with its likes in all other terms."""
    twins = [next((q for q in other.planes if q.dims == p.dims), None) for other in others]
    if any(q is None for q in twins):
        mixing.part([p], reason)
        return
    mixing.touch([p])
    for q in twins:
        assert q is not None
        mixing.join(as_array(p.atoms), as_array(q.atoms))


def _multiplied(mixing: Mixing, p: Plane, other: Operand, reason: str, summed: frozenset[int]) -> None:
    """A factor of a product is linear along its own axes; along summed ones where the other factor is its dual."""
    met = {d for q in other.planes for d in q.dims} | other.fixed
    along = set(p.dims) & summed
    if not along:
        mixing.touch([p], met)
        return
    dual = next((q for q in other.planes if set(q.dims) & summed == along), None)
    if dual is None or along & other.fixed:
        mixing.part([p], reason)
        return
    mixing.touch([p], set(p.dims) - summed)
    if set(dual.dims) == set(p.dims) or set(dual.dims) == along or set(p.dims) == along:
        mixing.join(as_array(p.atoms), as_array(dual.atoms))
    else:
        mixing.part([p], reason)


def _scales_added(ties: Ties, operands: Sequence[Operand], reason: str) -> list[Plane]:
    terms = [operand for operand in operands if not operand.zero]
    result = []
    for i, operand in enumerate(terms):
        for plane in operand.planes:
            partners = [_partner(plane, other) for j, other in enumerate(terms) if j != i]
            if plane.scaled and any(q is None or not q.scaled for q in partners):
                plane = ties.limit_scale(plane, Kind.PERMUTATION, "added to something with another scale")
            elif plane.scaled:
                for q in partners:
                    if q is not None:
                        ties.tie_scale(as_array(plane.atoms), as_array(q.atoms), 1)
            result.append(plane)
    if any(not plane.scaled for plane in result):
        for plane in result:
            if any(not p.scaled and set(p.dims) & set(plane.dims) for p in result):
                ties.limit_scale(plane, Kind.PERMUTATION, "added to something with another scale")
    return result


def _scales_multiplied(ties: Ties, operands: Sequence[Operand], reason: str) -> list[Plane]:
    result: list[Plane] = []
    for operand in operands:
        for plane in operand.planes:
            rival = next((p for p in result if p.scaled and set(p.dims) & set(plane.dims)), None)
            if plane.scaled and rival is not None and ties.unscalable(rival):
                result[result.index(rival)] = Plane(rival.atoms, scaled=False)
            elif plane.scaled and rival is not None and ties.prefers(plane, rival):
                why = "a scale of values that may have signs"
                result[result.index(rival)] = ties.limit_scale(rival, Kind.PERMUTATION, why)
            elif plane.scaled and rival is not None:
                plane = ties.limit_scale(plane, Kind.PERMUTATION, "multiplied with another unit's value")
            result.append(plane)
    for n, plane in enumerate(result):
        wider = [p for p in result if set(p.dims) > set(plane.dims) and not p.scaled]
        if plane.scaled and wider:
            result[n] = ties.limit_scale(plane, Kind.PERMUTATION, "multiplied with a value of finer units")
    return result


def _scales_contracted(ties: Ties, operands: Sequence[Operand], summed: frozenset[int]) -> list[Operand]:
    """Scales that meet on a summed axis cancel; what remains is an ordinary product."""
    x, y = operands
    met: list[Plane] = []
    for p in x.planes:
        q = next((q for q in y.planes if set(q.dims) & set(p.dims) & summed), None)
        if q is None:
            continue
        met += [p, q]
        if p.scaled and q.scaled:
            ties.tie_scale(as_array(p.atoms), as_array(q.atoms), -1)
        else:
            ties.limit_scale(p, Kind.PERMUTATION, "read together with values of fixed scale")
            ties.limit_scale(q, Kind.PERMUTATION, "reads values of fixed scale")
    return [
        Operand(tuple(Plane(p.atoms, p.scaled and p not in met) for p in operand.planes), operand.fixed)
        for operand in operands
    ]


def _scales_normalised(ties: Ties, operands: Sequence[Operand], reason: str) -> list[Plane]:
    x, statistics, affine = operands[0], operands[1:-2], operands[-2:]
    for operand in (x, *statistics):
        for plane in operand.planes:
            ties.limit_scale(plane, Kind.PERMUTATION, "normalised")
    weight, bias = affine
    if x.planes and not weight.planes:
        bias = Operand(tuple(ties.limit_scale(p, Kind.PERMUTATION, "added to normalised values") for p in bias.planes))
    for p in weight.planes:
        q = _partner(p, bias)
        if q is not None:
            ties.tie_scale(as_array(p.atoms), as_array(q.atoms), 1)
    return [*weight.planes, *bias.planes, *(Plane(p.atoms, scaled=False) for p in x.planes)]


def _scales_by_length(ties: Ties, operands: Sequence[Operand], reason: str) -> list[Plane]:
    """Values over their root mean square keep their signs, rather than the scale of the norm's weight."""
    x, weight, bias = operands
    if ties.rewritten or bias.planes:
        return _scales_normalised(ties, operands, reason)
    kept = tuple(ties.limit_scale(p, Kind.SIGNED, "normalised by its length") for p in x.planes)
    ties.signs_only(kept)
    return _scales_multiplied(ties, [weight, Operand(kept, x.fixed)], reason)


def _scales_lost(ties: Ties, operands: Sequence[Operand], reason: str) -> list[Plane]:
    return [ties.limit_scale(p, Kind.PERMUTATION, reason) for operand in operands for p in operand.planes]


_SCALES = {
    "add": _scales_added,
    "mul": _scales_multiplied,
    "norm": _scales_normalised,
    "length": _scales_by_length,
    "pin": _scales_lost,
}


def _partner(plane: Plane, other: Operand) -> Plane | None:
    return next((q for q in other.planes if set(q.dims) & set(plane.dims)), None)


def _widest(ties: Ties, planes: Sequence[Plane]) -> Planes:
    """One plane for each set of axes: the one that varies on most; of equals, one of parameters, then a scaled one.

    Matrices cannot be followed along axes that none of those that stay varies on.
    """
    result: list[Plane] = []
    for plane in sorted(planes, key=lambda p: (-len(p.dims), bool(ties.summed[as_array(p.atoms)].any()), not p.scaled)):
        met = [other for other in result if set(plane.dims) & set(other.dims)]
        if plane.dims and not met:
            result.append(plane)
        elif not set(plane.dims) <= {d for other in met for d in other.dims}:
            ties.mixing.part([plane], "its axis is shared with those of other units")
    return tuple(result)


def reduce_symmetric(
    trace: Trace,
    planes: Planes,
    dims: set[int],
    keepdim: bool,
    reason: str,
    linear: bool = True,
    product: bool = False,
    square: bool = False,
) -> Planes:
    """Planes after a reduction over `dims` that treats all entries alike.

    Args:
        trace: The trace.
        planes: Planes of what is reduced.
        dims: Axes reduced.
        keepdim: Whether they stay with size 1.
        reason: Why units within a reduced axis are told apart when only part of a plane is reduced.
        linear: Whether scales along the axes that remain pass through.
        product: Whether it ends a sum of products: scales along reduced axes have cancelled, mixtures too.
        square: Whether squares are summed, which orthogonal mixtures leave as they are.
    """
    result = []
    for plane in planes:
        atoms = plane.atoms
        if not product and (plane.along(dims) or not linear):
            _judge(trace.ties.mixing, plane, dims, square, reason)
        if plane.along(dims):
            if set(plane.dims) <= dims:
                if not product:
                    trace.ties.limit_scale(plane, Kind.PERMUTATION, reason)
                continue
            trace.ties.collapse(plane, dims, reason, linear=True)
            if not product:
                plane = trace.ties.limit_scale(plane, Kind.PERMUTATION, reason)
            for d in dims:
                atoms = atoms.narrow(d, 0, 1)
            atoms = trace.ties.representatives(Plane(atoms, plane.scaled)).atoms
        if not linear:
            plane = trace.ties.limit_scale(plane, Kind.PERMUTATION, reason)
        if not keepdim:
            atoms = atoms.reshape([size for d, size in enumerate(atoms.shape) if d not in dims])
        result.append(Plane(atoms, plane.scaled))
    return tuple(result)


def _judge(mixing: Mixing, plane: Plane, dims: set[int], square: bool, reason: str) -> None:
    if square and plane.along(dims):
        mixing.touch([plane], set(plane.dims) - dims, Kind.ORTHOGONAL, "normalised by its length")
    else:
        mixing.part([plane], reason)


def restrict(trace: Trace, planes: Planes, kind: Kind, reason: str, judged: bool = False) -> Planes:
    """The planes after a pointwise map that commutes with the scales of `kind` only."""
    if kind is not Kind.SCALED and not judged:
        trace.ties.mixing.part(planes, reason)
    return tuple(trace.ties.limit_scale(plane, kind, reason) for plane in planes)


def pin(trace: Trace, planes: Planes, reason: str) -> None:
    """Nothing in these planes may move."""
    for plane in planes:
        trace.ties.pin(np.unique(as_array(plane.atoms)), reason)
