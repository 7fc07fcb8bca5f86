"""Which signs and scales a group may have: one factor a unit, followed through the tensors that share it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pyalign.symmetry.kinds import Kind
from pyalign.symmetry.tracing.solve import Class, Units, components
from pyalign.symmetry.tracing.ties import Ties

__all__ = ["Scales"]

Nodes = NDArray[np.int64]


class Scales:
    """Solves the relations between scales: node a is the scale of atom a, node a + n its inverse."""

    def __init__(self, ties: Ties, units: Units) -> None:
        n = ties.atoms
        edges = []
        for x, y, power in ties.scale_edges:
            other = y if power > 0 else y + n
            edges += [(x, other), (x + n, (other + n) % (2 * n))]
        self.ties, self.units, self.count = ties, units, n
        self.node = components(2 * n, edges)
        size = int(self.node.max()) + 1
        self.signs, self.scales = np.ones(size, bool), np.ones(size, bool)
        self.limit = np.full(size, -1)
        for number, (atoms, kind, _) in reversed(list(enumerate(ties.scale_limits))):  # the first reason stays
            nodes = np.unique(self.node[np.concatenate([atoms, atoms + n])])
            self.signs[nodes] &= kind.signs
            self.scales[nodes] &= kind.scales
            self.limit[nodes] = number
        own_inverse = self.node[:n] == self.node[n:]
        self.scales[self.node[:n][own_inverse]] = False
        self.shared = self._shared_by_units()

    def of(self, c: Class) -> tuple[Kind, str, dict[int, int]]:
        """Kind of a class, what stands in the way of a larger one, and the exponent of the factor for each atom."""
        atoms = self._parameter_atoms(c)
        node, inverse = self.node[atoms], self.node[atoms + self.count]
        best = self._generator(node[0], inverse[0], atoms[0])
        if best is not None and self.shared[node[:, best]].any():
            return Kind.PERMUTATION, "its signs and scales are those of other units too", {}
        if best is None:
            return Kind.PERMUTATION, next(filter(None, map(self.reason, node[0].tolist())), ""), {}
        own = node[:, best : best + 1]
        falls, grows = atoms[node == inverse[:, best : best + 1]], atoms[node == own]
        powers = dict.fromkeys(falls.tolist(), -1) | dict.fromkeys(grows.tolist(), 1)
        signs, scales = bool(self.signs[own].all()), bool(self.scales[own].all())
        kind = (
            Kind.SCALED if signs and scales else Kind.SIGNED if signs else Kind.POSITIVE if scales else Kind.PERMUTATION
        )
        return kind, self.reason(int(own[0, 0])) or "only linear operators act on it", powers

    def _shared_by_units(self) -> NDArray[np.bool_]:
        """Whether several moving units have a factor in common, so that none of them may have it for itself."""
        moving = np.zeros(int(self.units.unit.max()) + 1, bool)
        for c in self.units.classes:
            moving[c.units] = True
        atoms = np.flatnonzero(moving[self.units.unit])
        unit = np.tile(self.units.unit[atoms], 2)
        nodes = np.concatenate([self.node[atoms], self.node[atoms + self.count]])
        least, most = np.full(len(self.signs), len(moving)), np.full(len(self.signs), -1)
        np.minimum.at(least, nodes, unit)
        np.maximum.at(most, nodes, unit)
        return np.asarray(most > least)

    def reason(self, node: int) -> str:
        """Why a node's factor is limited, or nothing."""
        limit = int(self.limit[node])
        return self.ties.scale_limits[limit][2] if limit >= 0 else ""

    def _generator(self, node: Nodes, inverse: Nodes, atoms: Nodes) -> int | None:
        """Role of the atom whose scale the group takes: free, and shared by the most tensors of the first unit.

        Of several (each norm on a residual stream has one) the first parameter's, whatever else was looked for.
        """
        best, most, own = None, 0, self.ties.axis_of(atoms) >= 0
        for role in np.argsort(atoms).tolist():
            n = int(node[role])
            alike = (node == n) | (inverse == n)
            shared = int((node == n).sum() + (inverse == n).sum()) if bool(alike[own].any()) else 0
            if (self.signs[n] or self.scales[n]) and shared > most:
                best, most = role, shared
        return best

    def _parameter_atoms(self, c: Class) -> Nodes:
        """Atoms of all units, (units, roles), each ordered by role, so that equal places mean equal roles."""
        members = [self.units.members[int(u)] for u in c.units]
        atoms = np.concatenate(members)
        unit = np.repeat(np.arange(len(members)), [len(m) for m in members])
        order = np.lexsort((atoms, self.units.signature[atoms], unit))
        return atoms[order].reshape(len(members), -1)
