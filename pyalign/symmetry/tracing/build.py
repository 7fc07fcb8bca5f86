"""Write the solution of a trace down as a spec: names, bindings, classes, sites, and what is fixed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain, count

import numpy as np
import torch
from torch import Tensor

from pyalign.symmetry.groups import AxisBinding, FixedAxis, Flat, Group, Role, Side, Site, Wreath
from pyalign.symmetry.kinds import Kind
from pyalign.symmetry.spec import SymmetrySpec
from pyalign.symmetry.tracing.hashing import IntArray
from pyalign.symmetry.tracing.mixtures import Mixture, coordinates_of, solve_mixtures
from pyalign.symmetry.tracing.scales import Scales
from pyalign.symmetry.tracing.solve import Class, Units, components
from pyalign.symmetry.tracing.ties import ParameterAxis, Ties
from pyalign.symmetry.tracing.tracer import Sight

__all__ = ["build_spec"]


def build_spec(
    ties: Ties,
    units: Units,
    sights: Sequence[Sight],
    shapes: Mapping[str, tuple[int, ...]],
    aliases: dict[str, str],
    notes: Sequence[str],
    within: Kind = Kind.INVERTIBLE,
) -> SymmetrySpec:
    """The spec of a solved trace.

    Args:
        ties: What the trace collected.
        units: Its solution.
        sights: Values that may serve as observation sites.
        shapes: Shape of every tensor of the state dict.
        aliases: Tied names.
        notes: Notes for the user.
        within: The largest class that is looked for.
    """
    slots = Slots(units)
    layout = [(axis, slots.on_axis(np.arange(axis.start, axis.start + axis.size))) for axis in ties.axes]
    layout = [(axis, found) for axis, found in layout if not (axis.blocks == 1 and _has_fibre(ties, axis))]
    bound = {key for axis, found in layout if not axis.buffer for key in found}  # what moves in buffers alone stays
    outer = {id(c.outer) for c in units.classes if id(c) in bound}
    layout = [(axis, {key: at for key, at in found.items() if key in bound | outer}) for axis, found in layout]
    units.classes[:] = [
        c for c in units.classes if id(c) in bound or any(o.outer is c and id(o) in bound for o in units.classes)
    ]
    slots = Slots(units)
    _name(units.classes, layout)
    scales = Scales(ties, units)
    mixtures = solve_mixtures(ties, units, scales)
    if not within.mixes:  # what may be mixed may also be reordered
        mixtures = [m for m in mixtures if m.alone and not m.whole and not m.kind.paired]
    whole = {id(m.holder): m for m in mixtures if m.whole}
    groups, bindings = {}, []
    acting: dict[
        str, Mapping[int, int] | None
    ] = {}  # the atoms on which signs and scales act, None where there are none
    for c in sorted(units.classes, key=lambda c: int(slots.first[c.units[0]])):
        kept = _kept(ties, units, c)
        kind, reason, power = (
            scales.of(c) if id(c) in bound else (Kind.PERMUTATION, "moves the blocks of other groups", {})
        )
        if any(m.holder is c and not m.whole for m in mixtures):
            kind, reason, kept, power = Kind.PERMUTATION, "signs and scales are those of the groups within", "", {}
        if id(c) in whole:
            kind, reason, kept, power = whole[id(c)].kind, whole[id(c)].reason, "", whole[id(c)].power
        structure = Flat() if c.outer is None else Wreath(c.outer.name, c.blocks)
        groups[c.name] = Group(c.name, len(c.units), kind, structure, kept or reason)
        acting[c.name] = power if kind.signs or kind.scales else None
        for axis, found in layout:
            if id(c) in found:
                bindings += _bindings(axis, c, found[id(c)], power)
    inside: dict[str, Mixture] = {}
    for m in mixtures:
        if not m.whole:
            group, bound_to = _mixture(m, groups)
            groups[group.name], inside[group.name] = group, m
            bindings += bound_to
    fixed = _fixed(ties, layout, {(b.tensor, b.axis) for b in bindings})
    order = {name: i for i, name in enumerate(shapes)}
    bindings.sort(key=lambda b: (order[b.tensor], b.axis, list(groups).index(b.group)))
    sites = _sites(sights, slots, units.classes, acting) + _sites_within(sights, slots, inside, coordinates_of(ties))
    place = {sight.key: i for i, sight in reversed(list(enumerate(sights)))}
    sites.sort(key=lambda s: place[s.key])
    return SymmetrySpec(groups, tuple(bindings), tuple(sites), fixed, dict(shapes), aliases, tuple(notes))


class Slots:
    """Finds the class and slot of atoms, and where the units of each class sit on an axis."""

    def __init__(self, units: Units) -> None:
        count = int(units.unit.max()) + 1
        self.units = units
        self.owner = np.full(count, -1)
        self.slot = np.zeros(count, np.int64)
        for n, c in enumerate(units.classes):
            self.owner[c.units] = n
            self.slot[c.units] = np.arange(len(c.units))
        self.first = np.full(count, len(units.unit))
        np.minimum.at(self.first, units.unit, np.arange(len(units.unit)))

    def on_axis(self, atoms: IntArray) -> dict[int, Tensor]:
        """For the atoms along an axis: id of class -> positions (units, r), of classes that are there in whole."""
        unit = self.units.unit[atoms]
        owner = self.owner[unit]
        found = {}
        for n in np.unique(owner[owner >= 0]).tolist():
            c = self.units.classes[n]
            places = np.flatnonzero(owner == n)
            slot = self.slot[unit[places]]
            order = np.lexsort((places, self.units.signature[atoms[places]], slot))
            counts = np.bincount(slot, minlength=len(c.units))
            if counts.min() == counts.max():
                positions = places[order].reshape(len(c.units), -1)
                found[id(c)] = torch.from_numpy(positions[:, np.argsort(positions[0])].copy())
        return found


def _has_fibre(ties: Ties, axis: ParameterAxis) -> bool:
    """Whether the axis was only ever used as fibres of a grouped convolution."""
    return any(o.blocks > 1 and (o.tensor, o.axis) == (axis.tensor, axis.axis) for o in ties.axes)


def _name(classes: Sequence[Class], layout: Sequence[tuple[ParameterAxis, dict[int, Tensor]]]) -> None:
    """Name each class after the module of the first tensor whose axis 0 it has, else any tensor."""
    taken: Counter[str] = Counter()
    candidates: dict[int, list[tuple[int, str]]] = {id(c): [] for c in classes}
    for axis, found in layout:
        for key in found:
            candidates[key].append((0 if axis.axis == 0 and not axis.buffer and axis.blocks == 1 else 1, axis.tensor))
    for c in (*[c for c in classes if candidates[id(c)]], *[c for c in classes if not candidates[id(c)]]):
        options = candidates[id(c)]
        if options:
            best = min(options, key=lambda option: option[0])[1]
            base = best.rsplit(".", 1)[0] if "." in best else best
            base = base.removesuffix(".parametrizations.weight")
        else:
            inner = next((o.name for o in classes if o.outer is c), "block")
            base = f"{inner}.blocks"
        taken[base] += 1
        c.name = base if taken[base] == 1 else f"{base}:{taken[base]}"


def _bindings(axis: ParameterAxis, c: Class, positions: Tensor, power: Mapping[int, int]) -> list[AxisBinding]:
    """One binding for each side: entries of a unit that scale differently are bound apart."""
    role = Role.TRANSFORMED if axis.buffer else Role.MATCHED
    sides: dict[Side, list[int]] = {}
    for run, place in enumerate(positions[0].tolist()):
        side = {1: Side.COVARIANT, -1: Side.CONTRAVARIANT, 0: Side.DIAGONAL}[power.get(axis.start + place, 0)]
        sides.setdefault(side, []).append(run)
    return [
        AxisBinding(axis.tensor, axis.axis, c.name, side, role, positions[:, runs], axis.blocks)
        for side, runs in sides.items()
    ]


def _mixture(m: Mixture, groups: Mapping[str, Group]) -> tuple[Group, list[AxisBinding]]:
    """The group of a mixture, named after its first tensor, and its bindings."""
    base = m.places[0][0].tensor.rsplit(".", 1)[0]
    name = next(n for n in (f"{base}.within{k}" for k in chain([""], count(2))) if n not in groups)
    structure = Flat() if m.holder is None else Wreath(m.holder.name, len(m.holder.units))
    bindings = []
    for axis, atoms in m.places:
        sides: dict[Side, list[int]] = {}
        for run, atom in enumerate(atoms[0].tolist()):
            side = Side.CONTRAVARIANT if m.power.get(atom, 1) < 0 else Side.COVARIANT
            sides.setdefault(side, []).append(run)
        for side, runs in sides.items():
            positions = torch.from_numpy(atoms[:, runs] - axis.start)
            placed = 1 if m.holder is None else len(m.holder.units)
            bindings.append(AxisBinding(axis.tensor, axis.axis, name, side, Role.MATCHED, positions, placed=placed))
    return Group(name, m.size, m.kind, structure, m.reason), bindings


def _kept(ties: Ties, units: Units, c: Class) -> str:
    """Why the order inside each unit of a class stays, empty when units have no inside."""
    members = set(units.members[int(c.units[0])].tolist())
    for atoms, reason, inside in ties.keeps:
        if inside and not members.isdisjoint(atoms.tolist()):
            return f"the order inside each unit stays: {reason}"
    return ""


def _fixed(
    ties: Ties, layout: Sequence[tuple[ParameterAxis, dict[int, Tensor]]], mixed: set[tuple[str, int]]
) -> tuple[FixedAxis, ...]:
    """Axes that no group moves, each with the nearest reason."""
    loose = components(
        ties.atoms,
        [
            (a[a != 0], b[a != 0]) if (a == 0).any() else (a, b)
            for a, b in ((x[y != 0], y[y != 0]) for x, y in ties.edges)
        ],
    )
    direct, why = np.full(ties.atoms, -1), np.full(ties.atoms, -1)
    for number, (atoms, _) in reversed(list(enumerate(ties.pins))):  # the first reason stays
        direct[atoms] = why[loose[atoms]] = number
    result = []
    for axis, found in layout:
        if not found and (axis.tensor, axis.axis) not in mixed:
            pin = direct[axis.start] if direct[axis.start] >= 0 else why[loose[axis.start]]
            default = "its units differ from each other" if axis.size > 1 else "a single unit"
            result.append(FixedAxis(axis.tensor, axis.axis, ties.pins[pin][1] if pin >= 0 else default))
    return tuple(result)


def _sites(
    sights: Sequence[Sight], slots: Slots, classes: Sequence[Class], acting: Mapping[str, Mapping[int, int] | None]
) -> list[Site]:
    """Observation sites: for each class the sights of the best rank that show all of its units."""
    found: dict[int, list[tuple[Sight, Tensor]]] = {id(c): [] for c in classes}
    axes: dict[tuple[str, int, str, int], set[int]] = {}
    for sight in sights:
        here = slots.on_axis(sight.plane.atoms.reshape(-1).numpy())
        axes.setdefault(sight.key, set()).update([sight.axis] if here else [])
        for key, positions in here.items():
            found[key].append((sight, positions))
    return [site for c in classes for site in _best(c.name, found[id(c)], axes, acting[c.name])]


def _sites_within(
    sights: Sequence[Sight], slots: Slots, inside: Mapping[str, Mixture], coordinates: IntArray
) -> list[Site]:
    """Observation sites of the groups within blocks: the sights of the best rank that show all of their units.

    Entries that are units of different classes besides (queries beside the keys that they share, in a fused layer) are
    sites of their own.
    """
    if not inside:
        return []
    number, unit = np.full((2, int(coordinates.max()) + 1), -1)
    for n, m in enumerate(inside.values()):
        own = coordinates[m.places[0][1][:, 0]]
        number[own], unit[own] = n, np.arange(m.size)
    sizes = [m.size for m in inside.values()]
    shown: list[list[tuple[Sight, Tensor]]] = [[] for _ in inside]
    axes: dict[tuple[str, int, str, int], set[int]] = {}
    for sight in sights:
        atoms = sight.plane.atoms.reshape(-1).numpy()
        owner, here = slots.owner[slots.units.unit[atoms]], number[coordinates[atoms]]
        axes.setdefault(sight.key, set()).update([sight.axis] if (owner >= 0).any() else [])
        places = np.flatnonzero(here >= 0)
        for n, one in np.unique(np.stack([here[places], owner[places]], 1), axis=0).tolist():
            own = places[(here[places] == n) & (owner[places] == one)]
            units = unit[coordinates[atoms[own]]]
            counts = np.bincount(units, minlength=sizes[n])
            if counts.min() == counts.max():
                order = own[np.argsort(units, kind="stable")]
                shown[n].append((sight, torch.from_numpy(order.reshape(sizes[n], -1))))
    return [site for name, found in zip(inside, shown, strict=True) for site in _best(name, found, axes)]


def _best(
    name: str,
    shown: Sequence[tuple[Sight, Tensor]],
    axes: Mapping[tuple[str, int, str, int], set[int]],
    acting: Mapping[int, int] | None = None,
) -> list[Site]:
    """The sites of a group, of the best rank among the sights that show it.

    Those where no other axis carries units come first: there the samples of two models correspond. On a first axis
    units that come again and again tell of a batch in it, whose size is another for other data.
    """
    found = [
        ((bool(axes[sight.key] - {sight.axis}), sight.rank), sight, positions)
        for sight, positions in shown
        if sight.axis or bool((positions[:, -1] - positions[:, 0] == positions.shape[1] - 1).all())
    ]
    best = min((rank for rank, _, _ in found), default=None)
    return [
        Site(
            name, *sight.key, sight.axis, sight.plane.atoms.numel(), positions, rank[1] <= 1, rank[0],
            acting is None or _acts(sight, positions, acting),
        )
        for rank, sight, positions in found
        if rank == best
    ]  # fmt: skip


def _acts(sight: Sight, positions: Tensor, acting: Mapping[int, int]) -> bool:
    """Whether the factors of a class multiply all that a sight shows of its units."""
    atoms = sight.plane.atoms.reshape(-1)[positions.reshape(-1)].tolist()
    return sight.plane.scaled and all(acting.get(atom, 0) for atom in atoms)
