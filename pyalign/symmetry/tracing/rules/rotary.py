"""Rotary embeddings, found in the computation: x * cos + J(x) * sin, where J turns pairs by a right angle.

Other codes keep the parts apart: x * cos - y * sin and y * cos + x * sin.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from pyalign.symmetry.tracing.labels import Pending, Plane, as_array

if TYPE_CHECKING:
    from pyalign.symmetry.tracing.hashing import IntArray
    from pyalign.symmetry.tracing.tracer import Trace

__all__ = ["Half", "half_of", "half_turned", "rotate"]


@dataclass(frozen=True, eq=False)
class Half:
    """A sum of two products with constants that may be one half of a rotation.

    Args:
        one: The first product.
        two: The second product.
        sign: The sign of the second one.
        axis: The axis of the pairs.
        settle: Notes what the sum does where no other half is found.
    """

    one: Pending
    two: Pending
    sign: int
    axis: int
    settle: Callable[[], None]

    def turns(self, other: Half) -> bool:
        """Whether the other half has the same parts exchanged, the same cosine, and the sine with the other sign."""
        mine, theirs = (self.one, self.two), (other.one, other.two)
        if _same(mine[0].planes[0], theirs[0].planes[0]):
            if other.sign < 0:
                return False  # a reflection
            theirs = theirs[::-1]
        if not all(_same(p.planes[0], q.planes[0]) for p, q in zip(mine, theirs[::-1], strict=True)):
            return False
        return self.sign == -other.sign and all(
            a.factor is not None and b.factor is not None and torch.equal(a.factor, b.factor)
            for a, b in zip(mine, theirs, strict=True)
        )


def half_turned(trace: Trace, half: Half) -> bool:
    """Note the rotation if the other half is known, else wait for it; say whether the sum has the units of `two`."""
    for known in trace.halves:
        if known.axis == half.axis and known.turns(half):
            trace.halves.remove(known)
            p, q = known.one.planes[0], known.two.planes[0]
            n = p.atoms.shape[half.axis]
            both = Plane(torch.cat([p.atoms, q.atoms], half.axis), p.scaled)
            place = np.arange(2 * n)
            trace.ties.mixing.rotate(both, half.axis, (place + n) % (2 * n), (place < n) == (known.sign < 0))
            return _same(p, half.one.planes[0])
    trace.halves.append(half)
    return False


def half_of(trace: Trace, one: Pending, two: Pending, sign: int, settle: Callable[[], None]) -> Half | None:
    """What may be one half of a rotation: two parts of equal shape, each entry multiplied by a constant of its own."""
    if one.factor is None or two.factor is None:
        return None
    one, two = _apart(trace, one, two)
    if len(one.planes) != 1 or len(two.planes) != 1:
        return None
    p, q = one.planes[0], two.planes[0]
    axes = [d for d in p.dims if d in one.dims | two.dims]
    if one.source.shape != two.source.shape or p.atoms.shape != q.atoms.shape or len(axes) != 1:
        return None
    if np.intersect1d(as_array(p.atoms), as_array(q.atoms)).size:
        return None
    return Half(one, two, sign, axes[0], settle)


def _apart(trace: Trace, one: Pending, two: Pending) -> tuple[Pending, Pending]:
    """The products without the planes that stand in both as they are: positions, each with an angle of its own."""
    common = [p for p in one.planes if any(_same(p, q) for q in two.planes)]
    if len(common) == len(one.planes):
        return one, two
    trace.ties.mixing.touch(common, one.dims | two.dims)
    rest = tuple(q for q in two.planes if not any(_same(p, q) for p in common))
    return replace(one, planes=tuple(p for p in one.planes if p not in common)), replace(two, planes=rest)


def _same(p: Plane, q: Plane) -> bool:
    return p.atoms.shape == q.atoms.shape and torch.equal(p.atoms, q.atoms)


def rotate(trace: Trace, one: Pending | None, two: Pending | None) -> bool:
    """Note the rotation of pairs if the sum of two products with constants is one; say whether it is.

    Whatever the code writes (halves or neighbours, part of an axis), the same units stand in both sources, those of
    the second exchanged in pairs, one of each pair with its sign changed; both of a pair have equal factors.
    """
    if one is None or two is None or one.factor is None or two.factor is None:
        return False
    one, two = _apart(trace, one, two)
    if len(one.planes) != 1 or len(two.planes) != 1 or one.source.shape != two.source.shape:
        return False
    p, q = one.planes[0], two.planes[0]
    axes = [d for d in p.dims if d in one.dims | two.dims]
    if len(axes) != 1 or p.dims != q.dims:
        return False
    axis = axes[0]
    partner = _partners(as_array(p.atoms), as_array(q.atoms), axis)
    factors = [f for f in (one.factor, two.factor) if f is not None]
    if partner is None or not all(_equal_in_pairs(f, axis - one.source.dim(), partner) for f in factors):
        return False
    sign = _signs(one.source, two.source, axis, partner)
    if sign is None:
        return False
    trace.ties.mixing.rotate(Plane(p.atoms, p.scaled), axis, partner, sign < 0)
    return True


def _partners(x: IntArray, y: IntArray, axis: int) -> IntArray | None:
    """The place in `x` of each entry of `y` along an axis, if it exchanges entries in pairs, alike everywhere."""
    x, y = (np.moveaxis(a, axis, -1).reshape(-1, a.shape[axis]) for a in (x, y))
    place = {atom: i for i, atom in enumerate(x[0].tolist())}
    if len(place) != x.shape[1] or any(atom not in place for atom in y[0].tolist()):
        return None
    partner = np.array([place[atom] for atom in y[0].tolist()])
    here = np.arange(len(partner))
    paired = (partner != here).all() and (partner[partner] == here).all()
    return partner if paired and x.shape == y.shape and (x[:, partner] == y).all() else None


def _equal_in_pairs(factor: Tensor, axis: int, partner: IntArray) -> bool:
    """Whether both entries of each pair are multiplied by the same numbers."""
    if -axis > factor.dim() or factor.shape[axis] == 1:
        return True
    return bool((factor == factor.index_select(axis, torch.from_numpy(partner).to(factor.device))).all())


def _signs(x: Tensor, y: Tensor, axis: int, partner: IntArray) -> IntArray | None:
    """Sign with which each entry of `y` holds its partner in `x`, if one of every pair is negative."""
    turned = x.index_select(axis, torch.from_numpy(partner).to(x.device)).movedim(axis, -1).reshape(-1, len(partner))
    held = y.movedim(axis, -1).reshape(-1, len(partner))
    plus, minus = ((held == s * turned).all(0).cpu().numpy() for s in (1, -1))
    sign = np.where(plus, 1, -1)
    apart = (plus != minus).all() and (sign[partner] == -sign).all()
    return sign if apart else None
