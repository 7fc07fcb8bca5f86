"""What a trace collects about sums of units: which units every operator treats as coordinates of one vector.

A matrix may act on units where every operator is linear in them and takes them as a whole. Each operator leaves a mark
on the atoms it touches, the same mark on those it does not tell apart: units whose marks agree throughout may be
mixed. Fine ties join the atoms of one coordinate; unlike the ties of reorderings they never join two coordinates.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from pyalign.symmetry.kinds import Kind
from pyalign.symmetry.tracing.hashing import HashArray, IntArray, mix
from pyalign.symmetry.tracing.labels import Plane, as_array

__all__ = ["Mixing"]


@dataclass
class Mixing:
    """Marks, fine ties and limits, appended as a model is traced.

    Args:
        marks: The sum of the marks of each atom.
        edges: Atoms that are one coordinate.
        pairs: Atoms of the real and of the imaginary parts of pairs that only rotate.
        limits: Atoms, the largest class of matrices they allow, and why.
        barred: Atoms that no matrix may act on.
        reasons: Atoms that were told apart, and why.
        events: How many marks were left.
        active: Whether anything is noted.
    """

    marks: HashArray = field(default_factory=lambda: np.zeros(1, np.uint64))
    barred: npt.NDArray[np.bool_] = field(default_factory=lambda: np.ones(1, bool))
    edges: list[tuple[IntArray, IntArray]] = field(default_factory=list)
    pairs: list[tuple[IntArray, IntArray]] = field(default_factory=list)
    limits: list[tuple[IntArray, Kind, str]] = field(default_factory=list)
    reasons: list[tuple[IntArray, str]] = field(default_factory=list)
    events: int = 0
    active: bool = True

    def grow(self, count: int) -> None:
        """There are `count` more atoms."""
        self.marks = np.concatenate([self.marks, np.zeros(count, np.uint64)])
        self.barred = np.concatenate([self.barred, np.zeros(count, bool)])

    def forbid(self, atoms: IntArray, reason: str) -> None:
        """No matrix may act on these atoms."""
        if not self.active:
            return
        self.barred[atoms] = True
        self.reasons.append((atoms, reason))

    def join(self, x: IntArray, y: IntArray) -> None:
        """Atoms at equal positions of two arrays are one coordinate."""
        if not self.active:
            return
        x, y = (flat.reshape(-1) for flat in np.broadcast_arrays(x, y))
        self.edges.append((x.copy(), y.copy()))

    def touch(
        self, planes: Iterable[Plane], broken: Collection[int] = (), kind: Kind = Kind.INVERTIBLE, reason: str = ""
    ) -> None:
        """An operator tells entries of these planes apart along `broken` only, and is linear along all other axes.

        Args:
            planes: What it touches.
            broken: Axes along which entries are treated differently.
            kind: What may act on the entries it does not tell apart.
            reason: What the operator is.
        """
        for plane in planes if self.active else ():
            atoms = as_array(plane.atoms)
            self._mark(atoms, [d for d in plane.dims if d in broken])
            if kind is not Kind.INVERTIBLE:
                self.limits.append((np.unique(atoms), kind, reason))

    def part(self, planes: Iterable[Plane], reason: str) -> None:
        """An operator that is not linear: every entry of these planes stands for itself."""
        for plane in planes if self.active else ():
            atoms = np.unique(as_array(plane.atoms))
            self.events += 1
            np.add.at(self.marks, atoms, mix(atoms.astype(np.uint64) + np.uint64(self.events << 32)))
            self.reasons.append((atoms, reason))

    def rotate(self, plane: Plane, axis: int, partner: IntArray, real: npt.NDArray[np.bool_]) -> None:
        """Pairs of entries along an axis are rotated into each other, each pair at its own speed.

        Args:
            plane: What is rotated.
            axis: The axis of the pairs.
            partner: The other entry of each entry's pair, shape (length of the axis,).
            real: Whether an entry is the real part of its pair.
        """
        if not self.active:
            return
        atoms = np.moveaxis(as_array(plane.atoms), axis, -1)
        first = np.flatnonzero(real)
        self.pairs.append((atoms[..., first].reshape(-1).copy(), atoms[..., partner[first]].reshape(-1).copy()))
        pair = np.minimum(np.arange(len(partner)), partner)
        index = np.arange(atoms[..., 0].size).reshape(atoms.shape[:-1])[..., None] * len(partner) + pair
        self.events += 1
        np.add.at(self.marks, atoms.reshape(-1), self._hash(index.reshape(-1)))
        self.limits.append((np.unique(atoms), Kind.ROTATION, "rotary embedding: pairs rotate at speeds of their own"))

    def _mark(self, atoms: IntArray, dims: list[int]) -> None:
        index = np.zeros((1,) * atoms.ndim, np.int64)
        for d in dims:
            shape = [1] * atoms.ndim
            shape[d] = atoms.shape[d]
            index = index * atoms.shape[d] + np.arange(atoms.shape[d]).reshape(shape)
        self.events += 1
        np.add.at(self.marks, atoms.reshape(-1), self._hash(np.broadcast_to(index, atoms.shape).reshape(-1)))

    def _hash(self, index: IntArray) -> HashArray:
        return mix(index.astype(np.uint64) + np.uint64(self.events << 32))
