"""Rotary embeddings, found in the computation: x * cos + J(x) * sin, where J turns pairs by a right angle."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from pyalign.symmetry.tracing.labels import Pending, Plane, as_array

if TYPE_CHECKING:
    from pyalign.symmetry.tracing.hashing import IntArray
    from pyalign.symmetry.tracing.tracer import Trace

__all__ = ["rotate"]


def rotate(trace: Trace, one: Pending | None, two: Pending | None) -> bool:
    """Note the rotation of pairs if the sum of two products with constants is one; say whether it is.

    Whatever the code writes (halves or neighbours, part of an axis), the same units stand in both sources, those of
    the second exchanged in pairs, one of each pair with its sign changed; both of a pair have equal factors.
    """
    if one is None or two is None or one.factor is None or two.factor is None:
        return False
    if len(one.planes) != 1 or len(two.planes) != 1 or one.source.shape != two.source.shape:
        return False
    p, q = one.planes[0], two.planes[0]
    axes = [d for d in p.dims if d in one.dims | two.dims]
    if len(axes) != 1 or p.dims != q.dims:
        return False
    axis = axes[0]
    partner = _partners(as_array(p.atoms), as_array(q.atoms), axis)
    if partner is None or not all(
        _equal_in_pairs(f, axis - one.source.dim(), partner) for f in (one.factor, two.factor)
    ):
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
