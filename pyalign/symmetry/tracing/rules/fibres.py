"""Fibres of grouped convolutions: the second axis of their weights has an order of its own in every block of rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pyalign.symmetry.tracing.hashing import IntArray
from pyalign.symmetry.tracing.labels import FIXED, Plane, as_array
from pyalign.symmetry.tracing.solve import components
from pyalign.symmetry.tracing.ties import ParameterAxis, Ties

__all__ = ["fibre_atoms"]


def fibre_atoms(ties: Ties, plane: Plane, rows: Sequence[Plane], shape: Sequence[int], groups: int) -> Tensor:
    """Atoms of (row block, entry) for the fibre axis of a grouped weight.

    What happened to the axis on its way (a norm, a mask) happened to every block of it: the axes it was tied to get
    blocks too, and the limits of its scales hold in all of them.

    Args:
        ties: What the trace has collected.
        plane: The plane along the second axis of the weight.
        rows: The plane along its first axis, none where those are fixed.
        shape: Of the weight.
        groups: How many blocks of rows there are.
    """
    atoms = as_array(plane.atoms).reshape(-1)
    found = _axes(ties, atoms, [as_array(p.atoms).reshape(-1) for p in rows], shape)
    if not found:
        ties.pin(atoms, "fibres of a grouped convolution that are computed from several tensors")
        return plane.atoms.reshape(1, -1).expand(groups, -1).reshape(-1)
    new = [ties.new_axis(axis.tensor, axis.axis, groups * axis.size, groups, axis.buffer) for axis in found]
    for axis, own in zip(found, new, strict=True):
        _inherit(ties, np.arange(axis.start, axis.start + axis.size), own.reshape(groups, -1))
        if own is not new[0]:
            ties.tie(new[0], own)
    return torch.from_numpy(new[0])


def _axes(ties: Ties, atoms: IntArray, rows: Sequence[IntArray], shape: Sequence[int]) -> list[ParameterAxis]:
    """The second axes of weights of this shape that the atoms are, none where something else is among them."""
    plain = not any(np.isin(atoms, x).any() or np.isin(atoms, y).any() for x, y in ties.edges)
    alone = _among(ties, np.arange(ties.atoms), atoms, rows, shape) if plain else []
    return alone or _among(ties, components(ties.atoms, ties.edges), atoms, rows, shape)


def _among(
    ties: Ties, unit: IntArray, atoms: IntArray, rows: Sequence[IntArray], shape: Sequence[int]
) -> list[ParameterAxis]:
    places = {axis: unit[axis.start : axis.start + axis.size] for axis in ties.axes if axis.blocks == 1}
    first = {axis.tensor: own for axis, own in places.items() if axis.axis == 0 and axis.size == shape[0]}
    found = [axis for axis, own in places.items() if np.isin(own, unit[atoms]).any()]
    still = unit[FIXED] in unit[atoms] or len(np.unique(unit[atoms])) < len(atoms)
    fits = all(axis.axis == 1 and np.array_equal(places[axis], unit[atoms]) and axis.tensor in first for axis in found)
    if still or not fits or any(not np.array_equal(first[axis.tensor], unit[row]) for axis in found for row in rows):
        return []
    return found


def _inherit(ties: Ties, old: IntArray, new: IntArray) -> None:
    """What is known of the entries of an axis holds for them in every block."""
    ties.mark(
        new.reshape(-1), np.zeros(new.size, np.int64), np.broadcast_to(ties.signature[old], new.shape).reshape(-1)
    )
    for limited, kind, reason in list(ties.scale_limits):
        if (places := np.isin(old, limited)).any():
            ties.scale_limits.append((new[:, places].reshape(-1), kind, reason))
    ties.unscaled[new] |= ties.unscaled[old]
    if ties.mixing.barred[old].any() or ties.mixing.marks[old].any():
        ties.mixing.forbid(new.reshape(-1), "fibres of a grouped convolution that something was done to")
