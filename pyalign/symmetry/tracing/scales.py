"""Which signs and scales a group may have: one factor a unit, followed through the tensors that share it."""

from __future__ import annotations

import numpy as np

from pyalign.symmetry.kinds import Kind
from pyalign.symmetry.tracing.solve import Class, Units, components
from pyalign.symmetry.tracing.ties import Ties

__all__ = ["Scales"]


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
        self.reasons: dict[int, str] = {}
        for atoms, kind, reason in ties.scale_limits:
            nodes = np.unique(self.node[np.concatenate([atoms, atoms + n])])
            self.signs[nodes] &= kind.signs
            self.scales[nodes] &= kind.scales
            for node in nodes.tolist():
                self.reasons.setdefault(node, reason)
        own_inverse = self.node[:n] == self.node[n:]
        self.scales[self.node[:n][own_inverse]] = False

    def of(self, c: Class) -> tuple[Kind, str, dict[int, int]]:
        """Kind of a class, what stands in the way of a larger one, and the exponent of the factor for each atom."""
        best = self._generator(c)
        members = [self._parameter_atoms(int(u)) for u in c.units]
        if best is None:
            reasons = [self.reasons[int(self.node[a])] for a in members[0] if int(self.node[a]) in self.reasons]
            return Kind.PERMUTATION, reasons[0] if reasons else "", {}
        powers: dict[int, int] = {}
        signs, scales = True, True
        for atoms in members:
            node, inverse = self.node[atoms[best]], self.node[atoms[best] + self.count]
            signs, scales = signs and bool(self.signs[node]), scales and bool(self.scales[node])
            for atom in atoms:
                if self.node[atom] == node:
                    powers[atom] = 1
                elif self.node[atom] == inverse:
                    powers[atom] = -1
        kind = (
            Kind.SCALED if signs and scales else Kind.SIGNED if signs else Kind.POSITIVE if scales else Kind.PERMUTATION
        )
        reason = self.reasons.get(int(self.node[members[0][best]]), "only linear operators act on it")
        return kind, reason, powers

    def _generator(self, c: Class) -> int | None:
        """Role of the atom whose scale the group takes: free, and shared by the most tensors."""
        atoms = self._parameter_atoms(int(c.units[0]))
        nodes = self.node[np.array(atoms, np.int64)]
        inverse = self.node[np.array(atoms, np.int64) + self.count]
        best, most = None, 0
        for role, node in enumerate(nodes.tolist()):
            shared = int((nodes == node).sum() + (inverse == node).sum())
            if (self.signs[node] or self.scales[node]) and shared > most:
                best, most = role, shared
        return best

    def _parameter_atoms(self, unit: int) -> list[int]:
        """Atoms of a unit ordered by role, so that equal places mean equal roles in all units of a class."""
        members = self.units.members[unit]
        order = np.lexsort((members, self.units.signature[members]))
        return [int(a) for a in members[order]]
