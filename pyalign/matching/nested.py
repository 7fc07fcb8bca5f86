"""Blocks within mixed blocks: query heads that share a key and a value (grouped-query attention).

Block k of A and block l of B are compared under one matrix T for the block, and each unit i of k with each unit j of l
by its rows under that matrix: an assignment for every pair (k, l), then one of the blocks. The products are made
where the models are; what they say of matrices is worked out on the host (`pyalign.matching.products` says why).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyalign.matching.assign import in_blocks
from pyalign.matching.nearest import Grams, circuit_table, nearest
from pyalign.symmetry import AxisBinding, Group, Side, SymmetrySpec, Wreath

__all__ = ["Nested", "carriers", "flat"]

State = Mapping[str, Tensor]


def carriers(spec: SymmetrySpec, group: Group, plain: Sequence[Group]) -> dict[AxisBinding, tuple[str, Tensor]]:
    """The bindings of a mixing group whose entries another group moves within the blocks, and where they are.

    Args:
        spec: The symmetry.
        group: A group that mixes units within blocks.
        plain: The groups of units within the same blocks that are only reordered.

    Returns:
        For each such binding the name of the other group, and positions of shape (blocks, units in a block, rows of
        the matrix, runs).
    """
    assert isinstance(group.structure, Wreath)
    blocks, found = group.structure.blocks, {}
    for b in spec.of(group.name):
        for c in plain:
            for d in spec.of(c.name):
                if (d.tensor, d.axis) == (b.tensor, b.axis) and isinstance(c.structure, Wreath):
                    places = _carried(b.positions, d.positions, blocks)
                    if places is not None:
                        found[b] = (c.name, places)
    return found


def _carried(mixed: Tensor, moved: Tensor, blocks: int) -> Tensor | None:
    """Positions of a mixing binding by (block, unit, row, run), None where they are not those of the units."""
    unit = torch.full((int(max(mixed.max(), moved.max())) + 1,), -1)
    unit[moved] = torch.arange(len(moved)).unsqueeze(1)
    rows, inside = len(mixed) // blocks, len(moved) // blocks
    owner = unit[mixed].reshape(blocks, rows, -1)
    if bool((owner < 0).any()) or bool((owner != owner[:, :1]).any()) or owner.shape[2] % inside:
        return None
    order = owner[:, 0].argsort(dim=1, stable=True).unsqueeze(1).expand_as(owner)
    placed = mixed.reshape(blocks, rows, -1).gather(2, order)
    return placed.reshape(blocks, rows, inside, -1).transpose(1, 2)


@dataclass
class Nested:
    """What is compared of one mixing group whose blocks hold units that change places.

    Args:
        spec: The symmetry.
        group: The mixing group.
        carried: What `carriers` found.
        names: The tensors that count.
    """

    spec: SymmetrySpec
    group: Group
    carried: Mapping[AxisBinding, tuple[str, Tensor]]
    names: frozenset[str]

    def circuits(self, a: State, b: State) -> dict[str, Tensor]:
        r"""How alike the circuits of units are in any bases, \(\langle Q_i^T K_k, Q_j^T K_l \rangle\), by carrier."""
        shared, units = self._shared(a, b), self._units(a, b)
        own, inside = self._shared(b, b), self._units(b, b)
        found = {}
        for name, sides in units.items():
            table = sum((self._circuit(sides[s], shared[1 - s]) for s in (0, 1)), torch.zeros(()))
            size = sum((self._circuit(inside[name][s], own[1 - s]) for s in (0, 1)), torch.zeros(()))
            found[name] = table / _trace(size).clamp_min(1e-300)
        return found

    def _circuit(self, units: Tensor, shared: Tensor) -> Tensor:
        k, _, n, _, rows, _ = units.shape
        both = torch.broadcast_tensors(units.reshape(k * k, n * n, rows, rows), shared.reshape(k * k, 1, rows, rows))
        return circuit_table(both[0], both[1], self.group.kind).reshape(k, k, n, n)

    def gains(self, a: State, b: State) -> tuple[Tensor, dict[str, Tensor]]:
        """What blocks gain by the matrix that is best for what they share, and units by the same matrix."""
        shared, own, units, inside = self._shared(a, b), self._shared(b, b), self._units(a, b), self._units(b, b)
        k, rows = shared[0].shape[0], shared[0].shape[-1]
        here = torch.arange(k)
        fixed = [m[here, here].expand(k, k, rows, rows).reshape(-1, rows, rows) for m in own]
        grams = Grams(*(m.reshape(-1, rows, rows) for m in shared), *fixed)
        t = nearest(grams, self.group.kind)
        u = torch.linalg.inv(t).mT
        outer = -0.5 * grams.cost(t).reshape(k, k)
        t, u = t.reshape(k, k, rows, rows), u.reshape(k, k, rows, rows)
        found = {}
        for name, sides in units.items():
            found[name] = sum((side * m[:, :, None, None]).sum((-2, -1)) for side, m in zip(sides, (t, u), strict=True))
            for s, m in ((0, t), (1, u)):
                whole = inside[name][s][here, here].diagonal(dim1=1, dim2=2).sum(-1)
                outer = outer - 0.5 * ((m @ whole) * m).sum((-2, -1))
        return outer, found

    def plain(self, a: State, b: State) -> dict[str, Tensor]:
        """How alike units are as they stand."""
        return {
            name: torch.stack([side.diagonal(dim1=-2, dim2=-1).sum(-1) for side in sides]).sum(0)
            for name, sides in self._units(a, b).items()
        }

    def _shared(self, a: State, b: State) -> list[Tensor]:
        """Products of what all units of a block share, produced and consumed, each (k, k, rows, rows)."""
        assert isinstance(self.group.structure, Wreath)
        sums = [torch.zeros(self.group.size, self.group.size, dtype=torch.float64) for _ in range(2)]
        for x in self.spec.of(self.group.name):
            if x.tensor in self.names and x not in self.carried:
                sums[x.side is Side.CONTRAVARIANT] += (x.unfold(a[x.tensor]) @ x.unfold(b[x.tensor]).T).cpu()
        return [in_blocks(m, self.group.structure.blocks) for m in sums]

    def _units(self, a: State, b: State) -> dict[str, list[Tensor]]:
        """Products of the units' own rows by carrier, produced and consumed, each (k, k, units, units, rows, rows)."""
        found: dict[str, list[Tensor]] = {}
        for x, (name, places) in self.carried.items():
            if x.tensor not in self.names:
                continue
            k, n, rows, _ = places.shape
            one, two = (_rows(s[x.tensor], x.axis, places) for s in (a, b))
            product = (one @ two.T).cpu().reshape(k, n, rows, k, n, rows).permute(0, 3, 1, 4, 2, 5)
            sides = found.setdefault(name, [torch.zeros(()).double().expand_as(product) for _ in range(2)])
            side = int(x.side is Side.CONTRAVARIANT)
            sides[side] = sides[side] + product
        return found


def _rows(tensor: Tensor, axis: int, places: Tensor) -> Tensor:
    """Entries at `places` of an axis, shape (all but the runs, features)."""
    here = places.reshape(-1).to(tensor.device)
    return tensor.index_select(axis, here).movedim(axis, 0).reshape(places[..., 0].numel(), -1)


def _trace(table: Tensor) -> Tensor:
    """The sum over blocks and units of what they have in common with themselves."""
    return table.diagonal(dim1=0, dim2=1).diagonal(dim1=0, dim2=1).sum()


def flat(table: Tensor) -> Tensor:
    """(k, k, units, units) as a table of all units, shape (k units, k units)."""
    k, _, n, _ = table.shape
    return table.transpose(1, 2).reshape(k * n, k * n)
