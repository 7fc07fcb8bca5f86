"""Groups of matrices from the marks of a trace: which units may be mixed, in which blocks, and by which class."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace

import numpy as np

from pyalign.symmetry.kinds import Kind
from pyalign.symmetry.tracing.hashing import IntArray, mix
from pyalign.symmetry.tracing.scales import Scales
from pyalign.symmetry.tracing.solve import Class, Units, components
from pyalign.symmetry.tracing.ties import ParameterAxis, Ties

__all__ = ["Mixture", "coordinates_of", "solve_mixtures"]

_CONFLICT = -2


@dataclass
class Mixture:
    """Units that matrices may act on, in blocks that change places.

    Args:
        kind: ORTHOGONAL, INVERTIBLE or ROTATION.
        reason: What stands in the way of a larger class.
        holder: The class of the blocks, or of the units themselves when `whole`; None where nothing else moves them.
        slot: The place of the block in its holder, before the blocks are put together.
        whole: Whether the units are exactly those of `holder`.
        alone: Whether reorderings move none of the units by itself, but all of a block together or none at all.
        places: For each axis the atoms of the units, shape (units, runs), units block after block.
        power: +1 or -1 for each atom: whether it is multiplied by the matrix or by its inverse transpose.
        role: A hash of the roles of its atoms.
    """

    kind: Kind
    reason: str
    holder: Class | None
    slot: int
    whole: bool
    alone: bool
    places: list[tuple[ParameterAxis, IntArray]]
    power: dict[int, int]
    role: int

    @property
    def size(self) -> int:
        """Number of units in all blocks."""
        return len(self.places[0][1])

    @property
    def layout(self) -> tuple[tuple[int, int, int], ...]:
        """Which axes it is on, with how many runs."""
        return tuple((axis.start, *rows.shape) for axis, rows in self.places)


def solve_mixtures(ties: Ties, units: Units, scales: Scales) -> list[Mixture]:
    """All groups of matrices, each as large as the trace allows."""
    coordinates, slots = _Coordinates(ties), _Slots(units)
    found = []
    for atoms in coordinates.candidates():
        place = slots.of(atoms)
        one = None if place is None else _judged(ties, units, scales, coordinates, atoms)
        if one is not None and place is not None:
            one.holder, one.slot, one.whole = place
            one.alone = slots.alone(atoms)
            found.append(one)
    pairs = _joined([m for m in found if m.kind.paired], lambda m: (id(m.holder), m.slot, m.kind, m.layout))
    rest = [m for m in found if not m.kind.paired]
    alone = [m for m in (*pairs, *rest) if m.holder is None or m.whole]
    held = [m for m in (*pairs, *rest) if m.holder is not None and not m.whole]
    together = _joined(held, lambda m: (id(m.holder), m.kind, m.role, m.layout), complete=True)
    return [*alone, *together]


def coordinates_of(ties: Ties) -> IntArray:
    """The coordinate that each atom belongs to: the components of the fine ties, shape (atoms,)."""
    return components(ties.atoms, ties.mixing.edges)


class _Coordinates:
    """Components of the fine ties, and the sets of them with equal marks."""

    def __init__(self, ties: Ties) -> None:
        self.ties, mixing = ties, ties.mixing
        self.of = coordinates_of(ties)
        count = int(self.of.max()) + 1
        self.marks, barred, known = np.zeros(count, np.uint64), np.zeros(count, bool), np.zeros(count, bool)
        barred[self.of[mixing.barred]] = True
        with np.errstate(over="ignore"):
            np.add.at(self.marks, self.of, mix(mixing.marks))
            for number, axis in enumerate(ties.axes):
                here = self.of[axis.start : axis.start + axis.size]
                known[here] = True
                np.add.at(self.marks, here, mix(np.array([number + (1 << 50)], np.uint64))[0])
                if axis.buffer or axis.blocks > 1:
                    barred[here] = True
        untouched = np.flatnonzero(mixing.marks == 0)
        barred[self.of[untouched[ties.axis_of(untouched) >= 0]]] = True
        self.free = known & ~barred
        self.limits: dict[int, tuple[Kind, str]] = {}
        for atoms, kind, reason in mixing.limits:
            for c in np.unique(self.of[atoms]).tolist():
                present = self.limits.get(c, (Kind.INVERTIBLE, ""))
                if present[0] & kind is not present[0]:
                    self.limits[c] = (present[0] & kind, reason)
        self.partner: dict[int, int] = {}
        for real, imaginary in mixing.pairs:
            for one, two in set(zip(self.of[real].tolist(), self.of[imaginary].tolist(), strict=True)):
                if self.partner.setdefault(one, two) != two:
                    self.partner[one] = _CONFLICT

    def candidates(self) -> list[list[IntArray]]:
        """Sets of two or more coordinates with equal marks: the parameter atoms of each, in a fixed order."""
        own = np.concatenate([np.arange(a.start, a.start + a.size) for a in self.ties.axes] or [np.zeros(0, np.int64)])
        own = own[self.free[self.of[own]]]
        if not len(own):
            return []
        order = np.argsort(self.of[own], kind="stable")
        numbers, starts = np.unique(self.of[own][order], return_index=True)
        members = np.split(own[order], starts[1:])
        sets: dict[int, list[IntArray]] = defaultdict(list)
        for number, atoms in zip(numbers.tolist(), members, strict=True):
            sets[int(self.marks[number])].append(np.sort(atoms))
        return [sorted(atoms, key=lambda a: int(a[0])) for atoms in sets.values() if len(atoms) > 1]

    def limit(self, atoms: list[IntArray]) -> tuple[Kind, str]:
        """The largest class of matrices on these coordinates, and why it is no larger."""
        kind, reason = Kind.INVERTIBLE, "only linear operators act on it"
        for a in atoms:
            limit, why = self.limits.get(int(self.of[a[0]]), (Kind.INVERTIBLE, ""))
            if kind & limit is not kind:
                kind, reason = kind & limit, why
        return kind, reason

    def paired(self, atoms: list[IntArray]) -> list[IntArray] | None:
        """The two coordinates of a pair, the real one first; None if they are no pair."""
        one, two = (int(self.of[a[0]]) for a in atoms[:2])
        if len(atoms) == 2 and self.partner.get(one) == two and two not in self.partner:
            return atoms
        if len(atoms) == 2 and self.partner.get(two) == one and one not in self.partner:
            return atoms[::-1]
        return None


class _Slots:
    """Where a set of coordinates sits among the classes of units that reorderings move."""

    def __init__(self, units: Units) -> None:
        self.units = units
        self.where = {int(u): (c, slot) for c in units.classes for slot, u in enumerate(c.units)}

    def of(self, atoms: list[IntArray]) -> tuple[Class | None, int, bool] | None:
        """(class, slot of the block that holds them all, whether they are the class's units); None where neither."""
        own = [{int(u) for u in self.units.unit[a]} for a in atoms]
        everyone = set().union(*own)
        if not any(u in self.where for u in everyone):
            return None, 0, False
        blocks = {self._block(u) for u in everyone}
        if len(blocks) == 1:
            c, slot = self.where[blocks.pop()]
            return c, slot, False
        rows = np.stack([self.units.unit[a] for a in atoms]) if len({len(a) for a in atoms}) == 1 else None
        if rows is not None and (rows == rows[:1]).all():
            return None, 0, False  # whole runs change places, which commutes with mixing all of them alike
        first = self.where.get(next(iter(own[0])))
        if first is None or first[0].outer is not None or any(len(us) != 1 for us in own):
            return None
        return (first[0], 0, True) if everyone == {int(u) for u in first[0].units} else None

    def alone(self, atoms: list[IntArray]) -> bool:
        """Whether no class moves one of the coordinates without the others."""
        own = [{int(u) for u in self.units.unit[a]} for a in atoms]
        return all(us == own[0] or not any(u in self.where for u in us) for us in own)

    def _block(self, unit: int) -> int:
        """The outermost block that holds a unit, or the unit itself."""
        found = self.where.get(unit)
        if found is None or found[0].outer is None:
            return unit
        c, slot = found
        assert c.outer is not None
        return self._block(int(c.outer.units[slot // (len(c.units) // c.blocks)]))


def _judged(
    ties: Ties, units: Units, scales: Scales, coordinates: _Coordinates, atoms: list[IntArray]
) -> Mixture | None:
    """The class of one set, and where its units are on every axis; None where nothing may be mixed."""
    kind, reason = coordinates.limit(atoms)
    if kind.paired:
        paired = coordinates.paired(atoms)
        if paired is None:
            return None
        atoms = paired
    places = _places(ties, atoms) if kind.mixes else None
    if places is None:
        return None
    power = _powers(scales, atoms)
    if power is None and kind is Kind.ROTATION:
        return None
    if power is None and kind is Kind.INVERTIBLE:
        kind, reason = Kind.ORTHOGONAL, "it is read and written by one tensor"
    with np.errstate(over="ignore"):
        role = int(mix(units.signature[np.concatenate(atoms)]).sum())
    return Mixture(kind, reason, None, 0, False, True, places, power or {}, role)


def _places(ties: Ties, atoms: list[IntArray]) -> list[tuple[ParameterAxis, IntArray]] | None:
    """The atoms of the units on each axis, (units, runs); runs are told apart by the marks of their atoms."""
    marks = ties.mixing.marks
    if len({len(a) for a in atoms}) != 1:
        return None
    ordered = [a[np.lexsort((a, marks[a], ties.axis_of(a)))] for a in atoms]
    rows = np.stack(ordered)
    number = ties.axis_of(rows)
    if (number != number[:1]).any() or (marks[rows] != marks[rows[:1]]).any():
        return None
    result = []
    for n in np.unique(number[0]).tolist():
        here = rows[:, number[0] == n]
        result.append((ties.axes[n], here[:, np.argsort(here[0])]))
    return result


def _powers(scales: Scales, atoms: list[IntArray]) -> dict[int, int] | None:
    """Whether each atom grows or falls with its unit; None where one does neither or both."""
    every = np.concatenate(atoms)
    node, inverse = scales.node[every], scales.node[every + scales.count]
    own = np.unique(scales.node[np.array([a[0] for a in atoms])])
    grows, falls = np.isin(node, own), np.isin(inverse, own)
    if (grows == falls).any():
        return None
    return {int(a): 1 if up else -1 for a, up in zip(every, grows, strict=True)}


def _joined(parts: list[Mixture], key: Callable[[Mixture], Hashable], complete: bool = False) -> list[Mixture]:
    """Mixtures put together where their keys agree, in the order of their slots and places.

    Args:
        parts: The mixtures.
        key: What must agree.
        complete: Keep only those that then have one part for each slot of their holder.
    """
    sets: dict[Hashable, list[Mixture]] = defaultdict(list)
    for part in parts:
        sets[key(part)].append(part)
    result = []
    for several in sets.values():
        several.sort(key=lambda m: (m.slot, int(m.places[0][1][0, 0])))
        first = several[0]
        if complete and (first.holder is None or [m.slot for m in several] != list(range(len(first.holder.units)))):
            continue
        places = [(axis, np.concatenate([m.places[n][1] for m in several])) for n, (axis, _) in enumerate(first.places)]
        power = {atom: sign for m in several for atom, sign in m.power.items()}
        roles = int(mix(np.array([m.role for m in several], np.uint64)).sum()) if not complete else first.role
        result.append(replace(first, places=places, power=power, role=roles))
    return result
