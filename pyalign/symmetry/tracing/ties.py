"""What a trace collects about atoms: which move together or not at all, which differ in role or share a scale."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from pyalign.symmetry.kinds import Kind
from pyalign.symmetry.tracing.hashing import HashArray, IntArray, mix
from pyalign.symmetry.tracing.labels import FIXED, Plane, as_array
from pyalign.symmetry.tracing.mixing import Mixing

__all__ = ["ParameterAxis", "Ties", "rank"]


@dataclass(frozen=True)
class ParameterAxis:
    """Atoms `start .. start + size - 1` are the positions of this axis (a fibre over row blocks when blocks > 1)."""

    tensor: str
    axis: int
    blocks: int
    start: int
    size: int
    buffer: bool


@dataclass
class Ties:
    """Relations between atoms, appended as a model is traced and solved at the end.

    Args:
        axes: The axes of parameters.
        edges: Atoms of one unit.
        pins: Atoms that cannot move, and why.
        keeps: Atoms that only move among equals, or whose order inside a unit stays, and why.
        parents: Atoms, and the atoms of the blocks they sit in.
        repeats: Atoms of repeated values, the atoms of their blocks, and the atoms of what they repeat.
        scale_edges: Atoms whose scales are equal (power +1) or inverse (-1).
        scale_limits: Atoms, the class of their signs and scales, and why.
        shifts: The scale and the bias of norms.
        offsets: For the first atom of a parameter to which a number is added: atoms of the sum, and the number.
        rewritten: Whether parameters may be rewritten, so that such a sum has a scale of its own.
        factors: The first atoms of what values were multiplied with, entry by entry.
        mixing: What may become sums.
        signature: What happened to each atom.
        pinned: Atoms known not to move.
        unscaled: Atoms known to have neither signs nor scales.
        leader: The first atom of the unit that an atom was put into.
        origin: The atom that an atom is a copy of.
        served: Atoms of heads that share a key or a value.
        summed: Atoms of what is left of units whose inside was summed.
        reached: Atoms that went into a computation.
        squared: Atoms of values that were squared.
        events: How many events were recorded.
    """

    axes: list[ParameterAxis] = field(default_factory=list)
    edges: list[tuple[IntArray, IntArray]] = field(default_factory=list)
    pins: list[tuple[IntArray, str]] = field(default_factory=list)
    keeps: list[tuple[IntArray, str, bool]] = field(default_factory=list)
    parents: list[tuple[IntArray, IntArray]] = field(default_factory=list)
    repeats: list[tuple[IntArray, IntArray, IntArray]] = field(default_factory=list)
    scale_edges: list[tuple[IntArray, IntArray, int]] = field(default_factory=list)
    scale_limits: list[tuple[IntArray, Kind, str]] = field(default_factory=list)
    shifts: list[tuple[IntArray, IntArray]] = field(default_factory=list)
    offsets: dict[int, tuple[IntArray, float]] = field(default_factory=dict)
    rewritten: bool = False
    factors: set[int] = field(default_factory=set)
    mixing: Mixing = field(default_factory=lambda: Mixing())
    signature: HashArray = field(default_factory=lambda: np.zeros(1, np.uint64))
    pinned: npt.NDArray[np.bool_] = field(default_factory=lambda: np.ones(1, bool))
    unscaled: npt.NDArray[np.bool_] = field(default_factory=lambda: np.zeros(1, bool))
    leader: IntArray = field(default_factory=lambda: np.zeros(1, np.int64))
    origin: IntArray = field(default_factory=lambda: np.zeros(1, np.int64))
    served: npt.NDArray[np.bool_] = field(default_factory=lambda: np.zeros(1, bool))
    summed: npt.NDArray[np.bool_] = field(default_factory=lambda: np.zeros(1, bool))
    reached: npt.NDArray[np.bool_] = field(default_factory=lambda: np.zeros(1, bool))
    squared: npt.NDArray[np.bool_] = field(default_factory=lambda: np.zeros(1, bool))
    events: int = 0
    _bounds: tuple[IntArray, IntArray] = field(default_factory=lambda: (np.zeros(0, np.int64), np.zeros(0, np.int64)))

    @property
    def atoms(self) -> int:
        """How many atoms there are, the fixed one included."""
        return len(self.signature)

    def new_atoms(self, count: int) -> IntArray:
        """Numbers of `count` new atoms."""
        start = self.atoms
        self.signature = np.concatenate([self.signature, np.zeros(count, np.uint64)])
        self.pinned = np.concatenate([self.pinned, np.zeros(count, bool)])
        self.leader = np.concatenate([self.leader, np.zeros(count, np.int64)])
        self.unscaled = np.concatenate([self.unscaled, np.zeros(count, bool)])
        self.served = np.concatenate([self.served, np.zeros(count, bool)])
        self.summed = np.concatenate([self.summed, np.zeros(count, bool)])
        self.reached = np.concatenate([self.reached, np.zeros(count, bool)])
        self.squared = np.concatenate([self.squared, np.zeros(count, bool)])
        self.mixing.grow(count)
        atoms = np.arange(start, start + count)
        self.origin = np.concatenate([self.origin, atoms])
        return atoms

    def multiplied(self, planes: Iterable[Plane]) -> None:
        """These planes were factors of a product entry by entry."""
        self.factors |= {int(as_array(p.atoms).reshape(-1)[0]) for p in planes}

    def axis_of(self, atoms: IntArray) -> IntArray:
        """Number of the parameter axis of each atom, -1 for atoms of none."""
        if len(self._bounds[0]) != len(self.axes):
            starts = np.array([axis.start for axis in self.axes])
            self._bounds = starts, starts + np.array([axis.size for axis in self.axes])
        starts, ends = self._bounds
        number = np.searchsorted(starts, atoms, side="right") - 1
        return np.where((number >= 0) & (atoms < ends[number]), number, -1)

    def new_copies(self, atoms: IntArray) -> IntArray:
        """Further atoms of the same units, one for each of `atoms`."""
        copies = self.new_atoms(len(atoms))
        self.origin[copies] = self.origin[atoms]
        self.served[copies], self.summed[copies] = self.served[atoms], self.summed[atoms]
        return copies

    def new_repeats(self, atoms: IntArray, scaled: bool = True) -> IntArray:
        """Units that all have the value of another: they change places among each other, and move where it moves.

        Args:
            atoms: The atom that each repeats.
            scaled: Whether they carry its scale.
        """
        own = self.new_atoms(len(atoms))
        self.reach(atoms)
        sources, block = np.unique(atoms, return_inverse=True)
        blocks = self.new_group(len(sources))
        self.pinned[own] = self.pinned[atoms]
        self.mark(own, np.zeros(len(own), np.int64))
        self.repeats.append((own, blocks[block], atoms.copy()))
        self.parents.append((own, blocks[block]))
        self.mixing.join(own, atoms)
        if scaled:
            self.tie_scale(own, atoms, 1)
        return own

    def new_group(self, count: int, zeros: bool = False) -> IntArray:
        """Atoms of things that are no parameters but alike: blocks of other atoms, entries of a constant.

        Args:
            count: How many.
            zeros: Whether all values are zero, and stay so under any matrix.
        """
        blocks = self.new_atoms(count)
        if not zeros:
            self.mixing.forbid(blocks, "values that belong to no parameter")
        self.mark(blocks, np.zeros(count, np.int64))
        return blocks

    def new_axis(self, tensor: str, axis: int, size: int, blocks: int = 1, buffer: bool = False) -> IntArray:
        """The atoms of a parameter's axis."""
        for known in self.axes:
            if (known.tensor, known.axis, known.blocks) == (tensor, axis, blocks):
                return np.arange(known.start, known.start + known.size)
        atoms = self.new_atoms(size)
        self.axes.append(ParameterAxis(tensor, axis, blocks, int(atoms[0]), size, buffer))
        self.mark(atoms, np.zeros(size, np.int64))
        return atoms

    def tie(self, x: IntArray, y: IntArray) -> None:
        """Atoms at equal positions of two arrays belong to one unit."""
        x, y = (flat.reshape(-1) for flat in np.broadcast_arrays(x, y))
        self.edges.append((x.copy(), y.copy()))
        self.reach(np.concatenate([x, y]))
        # A partner's signature is part of one's role: it tells the copies of a unit apart.
        seen_by_x, seen_by_y = self.signature[y], self.signature[x]
        self.mark(x, rank(y), seen_by_x)
        self.mark(y, rank(x), seen_by_y)

    def pin(self, atoms: Iterable[int] | IntArray, reason: str, mixing: bool = True) -> None:
        """These atoms cannot move (nor, if `mixing`, become sums of each other)."""
        found = np.unique(np.asarray(atoms, np.int64))
        if mixing:
            self.mixing.forbid(found, reason)
        self.pinned[found] = True
        self.pins.append((found, reason))
        self.edges.append((found, np.full(len(found), FIXED)))

    def distinguish(self, plane: Plane, dims: set[int], reason: str) -> None:
        """Entries at different places along `dims` are treated differently: units only move among equals."""
        if set(plane.dims) <= dims:
            self.pin(as_array(plane.atoms).reshape(-1), reason, mixing=False)
            return
        self.keeps.append((np.unique(as_array(plane.atoms)), reason, False))
        self._mark_places(plane, dims)

    def distinguish_places(self, plane: Plane, axis: int, places: IntArray, reason: str) -> None:
        """Entries along an axis are treated differently, but alike at places of equal number."""
        atoms = as_array(plane.atoms)
        self.keeps.append((np.unique(atoms), reason, False))
        shape = [1] * atoms.ndim
        shape[axis] = len(places)
        self.mark(atoms.reshape(-1), np.broadcast_to(places.reshape(shape), atoms.shape).reshape(-1))

    def collapse(self, plane: Plane, dims: set[int], reason: str, linear: bool = False) -> None:
        """Entries along `dims` are mixed in order: those at one place of the other axes become one unit.

        Args:
            plane: What is mixed.
            dims: The axes along which it is.
            reason: What mixes it.
            linear: Whether the mixing has been noted as a sum of products already.
        """
        atoms = as_array(plane.atoms)
        if not linear:
            self.mixing.part([plane], reason)
        varying = [d for d in plane.dims if d in dims]
        if len(varying) == len(plane.dims):
            self.pin(atoms.reshape(-1), reason, mixing=False)
            return
        first = atoms[tuple(slice(0, 1) if d in varying else slice(None) for d in range(atoms.ndim))]
        leader = np.broadcast_to(first, atoms.shape).reshape(-1).copy()
        self.edges.append((leader, atoms.reshape(-1)))
        self.leader[atoms.reshape(-1)] = leader
        if plane.scaled:
            self.tie_scale(leader, atoms.reshape(-1), 1)
        self.keeps.append((np.unique(atoms), reason, True))
        self._mark_places(plane, dims)

    def one_inside(self, plane: Plane, dims: set[int]) -> bool:
        """Whether entries along `dims` are one unit already, at every place of the other axes."""
        leaders = self.leader[as_array(plane.atoms)]
        first = leaders[tuple(slice(0, 1) if d in dims else slice(None) for d in range(leaders.ndim))]
        return bool((leaders == first).all() and (leaders != FIXED).all())

    def _mark_places(self, plane: Plane, dims: set[int]) -> None:
        atoms = as_array(plane.atoms)
        role = np.zeros((1,) * atoms.ndim, np.int64)
        for d in plane.dims:
            if d in dims:
                shape = [1] * atoms.ndim
                shape[d] = atoms.shape[d]
                role = role * atoms.shape[d] + np.arange(atoms.shape[d]).reshape(shape)
        self.mark(atoms.reshape(-1), np.broadcast_to(role, atoms.shape).reshape(-1))

    def representatives(self, plane: Plane) -> Plane:
        """A plane of atoms of its own, one for each unit of `plane`: what is left of units whose inside was summed."""
        atoms = as_array(plane.atoms)
        own = self.new_atoms(atoms.size)
        self.pinned[own] = self.pinned[atoms.reshape(-1)]
        self.served[own] = self.served[atoms.reshape(-1)]
        self.summed[own] = True
        self.origin[own] = own[_first_of(self.origin[atoms.reshape(-1)])]
        self.mixing.forbid(own, "what is left of units after a sum")
        self.edges.append((own, atoms.reshape(-1).copy()))
        if plane.scaled:
            self.tie_scale(own, atoms.reshape(-1), 1)
        return Plane(torch.from_numpy(own).reshape(plane.atoms.shape), plane.scaled)

    def moves(self, plane: Plane) -> bool:
        """Whether some of its atoms may still move."""
        return not bool(self.pinned[as_array(plane.atoms)].all())

    def mixes(self, plane: Plane) -> bool:
        """Whether matrices may still act on its atoms."""
        return self.mixing.active and not bool(self.mixing.barred[as_array(plane.atoms)].any())

    def reach(self, atoms: IntArray) -> None:
        """These entries went into a computation, instead of only being moved along with others."""
        self.reached[self.origin[atoms]] = True

    def see(self, plane: Plane) -> None:
        """A plane appeared in the computation: what is in it has something in common."""
        atoms = as_array(plane.atoms).reshape(-1)
        self.mark(atoms, np.zeros(len(atoms), np.int64))

    def mark(self, atoms: IntArray, role: IntArray, partner: HashArray | None = None) -> None:
        """Record one event in the signature of atoms; units with equal signatures are interchangeable."""
        self.events += 1
        hashes = mix(role.astype(np.uint64) * np.uint64(2_654_435_761) + np.uint64(self.events << 20))
        if partner is not None:
            hashes = mix(hashes + partner)
        np.add.at(self.signature, atoms, hashes)

    def block(self, members: IntArray, blocks: IntArray) -> None:
        """Atoms sit in blocks (given by their atoms) that only move as a whole."""
        self.parents.append((members.reshape(-1), np.broadcast_to(blocks, members.shape).reshape(-1)))

    def tie_scale(self, x: IntArray, y: IntArray, power: int) -> None:
        """The scale of x is that of y to the power +1 or -1."""
        x, y = (flat.reshape(-1) for flat in np.broadcast_arrays(x, y))
        self.scale_edges.append((x.copy(), y.copy(), power))

    def unscalable(self, plane: Plane) -> bool:
        """Whether all units of a plane are known to have neither signs nor scales."""
        return bool(self.unscaled[as_array(plane.atoms)].all())

    def signs_only(self, planes: Iterable[Plane]) -> None:
        """Values that were squared: of their scales signs are left, in any product with scales of parameters."""
        for plane in planes:
            self.squared[as_array(plane.atoms)] = True

    def prefers(self, plane: Plane, rival: Plane) -> bool:
        """Whether a product keeps the signs of one factor rather than the scale of the other, which is a parameter's.

        Signs of a stream tell networks apart; the scale of a norm that its readers take back does not.
        """
        one, two = (as_array(p.atoms) for p in (plane, rival))
        return bool(self.squared[one].all()) and not self.squared[two].any() and not self.unscalable(plane)

    def limit_scale(self, plane: Plane, kind: Kind, reason: str) -> Plane:
        """Units of the plane may only have the signs and scales of `kind` from here on."""
        if not plane.scaled or kind is Kind.SCALED:
            return plane
        found = np.unique(as_array(plane.atoms))
        self.scale_limits.append((found, kind, reason))
        self.unscaled[found] |= not (kind.signs or kind.scales)
        return plane if kind.signs or kind.scales else Plane(plane.atoms, scaled=False)


def _first_of(values: IntArray) -> IntArray:
    """For each entry, the place of the first one equal to it."""
    _, first, inverse = np.unique(values, return_index=True, return_inverse=True)
    return np.asarray(first[inverse], np.int64)


def rank(values: IntArray) -> IntArray:
    """For each entry, how many equal entries come before it."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]])) if len(values) else order
    counts = np.diff(np.append(starts, len(values)))
    rank = np.empty(len(values), np.int64)
    rank[order] = np.arange(len(values)) - np.repeat(starts, counts)
    return rank
