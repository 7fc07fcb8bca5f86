"""Operators of two or three values at once: products of three, and distances between all pairs of vectors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyalign.symmetry.tracing.labels import Operand, Plane
from pyalign.symmetry.tracing.rules.base import Planes, Rule, combine, reduce_symmetric

if TYPE_CHECKING:
    from pyalign.symmetry.tracing.tracer import Call, Trace

__all__ = ["RULES"]


def trilinear(trace: Trace, call: Call) -> list[Planes] | None:
    """_trilinear, the operator of nn.Bilinear: `sum over summed of x * y * z`, in one index space."""
    factors, spread, summed = call.args[:3], call.args[3:6], set(call.args[6])
    rank = factors[0].dim() + len(spread[0])
    x, y, z = (
        trace.operand(factor, [d for d in range(rank) if d not in added], rank)
        for factor, added in zip(factors, spread, strict=True)
    )
    first = summed & set(spread[2])  # what the third factor does not have is summed before it comes in
    reason = f"product with values that belong to no unit, in {call.place or 'the model'}"
    planes = _summed(trace, [x, y], first, reason)
    explained = {d for plane in planes for d in plane.dims}
    product = Operand(planes, frozenset((x.fixed | y.fixed) - first - explained))
    found = _summed(trace, [product, z], summed - first, reason)
    for axis in sorted(summed, reverse=True):
        found = tuple(Plane(plane.atoms.squeeze(axis), plane.scaled) for plane in found)
    return [found]


def _summed(trace: Trace, factors: list[Operand], dims: set[int], reason: str) -> Planes:
    planes = combine(trace, factors, "mul", reason, frozenset(dims))
    return reduce_symmetric(trace, planes, dims, True, f"{reason}; the order inside each unit stays", product=True)


def distances(trace: Trace, call: Call) -> list[Planes]:
    """cdist: norms of all differences; index space (batch, row of x, row of y, entry of a vector)."""
    x, y = call.args[:2]
    batch = max(x.dim(), y.dim()) - 2
    rank = batch + 3
    operands = [
        trace.operand(t, [*range(batch - (t.dim() - 2), batch), batch + row, batch + 2], rank)
        for row, t in enumerate((x, y))
    ]
    reason = f"distance to values that belong to no unit, in {call.place or 'the model'}"
    planes = combine(trace, operands, "add", reason)
    euclidean = call.name == "_euclidean_dist" or call.get(2, "p", 2) == 2
    return [
        reduce_symmetric(trace, planes, {rank - 1}, False, f"reduced by {call.name}", linear=False, square=euclidean)
    ]


RULES: dict[str, Rule] = {
    "_trilinear": trilinear,
    **dict.fromkeys(("_cdist_forward", "cdist", "_euclidean_dist"), distances),
}
