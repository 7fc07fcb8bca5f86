"""The best group elements for given similarities: one linear assignment per group, tables of them within blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from pyalign.engine import Assignment, linear_assignment
from pyalign.matching.blocks import Blocks
from pyalign.symmetry import Group, Kind, ScaledPermutation, Wreath

__all__ = ["Evidence", "Solution", "assign_groups", "children_of", "in_blocks", "signs_of"]


@dataclass
class Evidence:
    """How alike the units of a group are in two models; the matrices lie where the models do and stay there.

    Args:
        similarity: Shape (n, n), float32 or float64: unit i of A with unit j of B, larger is better; changes sign with
            a unit.
        even: The part that does not change sign with a unit, shape (n, n), or None.
        dead_a: Units of A that carry no information, (n,) bool, or None.
        dead_b: Units of B that carry no information, (n,) bool, or None.
    """

    similarity: Tensor
    even: Tensor | None = None
    dead_a: Tensor | None = None
    dead_b: Tensor | None = None

    @property
    def parts(self) -> tuple[tuple[bool, Tensor | None], ...]:
        """What changes sign with a unit (True) and what does not."""
        return (True, self.similarity), (False, self.even)

    def gain(self, signs: bool) -> Tensor:
        """What matching i with j adds to the objective, under the better sign where signs are free."""
        odd = self.similarity.abs() if signs else self.similarity
        return odd if self.even is None else odd + self.even

    def value(self, element: ScaledPermutation, units: NDArray[Any]) -> float:
        """What these slots contribute to the objective when B's units are moved by an element without scales."""
        scale = None if element.scale is None else element.scale[units]
        odd = _entries(self.similarity, element, units)
        total = odd.sum() if scale is None else torch.dot(odd, scale.to(odd.device))
        return float(total if self.even is None else total + _entries(self.even, element, units).sum())

    def by_slot(self, element: ScaledPermutation) -> Tensor:
        """What every slot contributes, shape (n,), float64, where the matrices are."""
        perm = element.perm.to(self.similarity.device).unsqueeze(1)
        odd = self.similarity.gather(1, perm).squeeze(1).double()
        odd = odd if element.scale is None else odd * element.scale.to(odd.device)
        return odd if self.even is None else odd + self.even.gather(1, perm).squeeze(1).double()

    def preferring(self, gain: Tensor) -> Tensor:
        """The gain with a bonus that makes dead units match each other, a dead unit its own slot first."""
        if self.dead_a is None or self.dead_b is None or not bool(self.dead_a.any() & self.dead_b.any()):
            return gain
        n, size = len(self.dead_a), 1.0 + 2.0 * len(self.dead_a) * float(self.gain(False).abs().max())
        dead_a, dead_b = (torch.where(dead)[0].to(gain.device) for dead in (self.dead_a, self.dead_b))
        slots = torch.where(self.dead_a & self.dead_b)[0].to(gain.device)
        bonus = gain.clone()
        bonus[dead_a.unsqueeze(1), dead_b] += size
        bonus[slots, slots] += size / (2 * n)
        return bonus


def _entries(matrix: Tensor, element: ScaledPermutation, units: NDArray[Any]) -> Tensor:
    """The entries of some slots, each at the unit that it takes, float64."""
    slots = torch.from_numpy(units)
    return matrix[slots.to(matrix.device), element.perm[slots].to(matrix.device)].double()


@dataclass
class Solution:
    """Group elements and what certifies them.

    Args:
        elements: One element per group.
        objective: Sum of the gains of all matched pairs.
        gaps: Duality gap of every assignment.
        backend: The implementation that solved them, or "".
    """

    elements: dict[str, ScaledPermutation] = field(default_factory=dict)
    objective: float = 0.0
    gaps: list[float] = field(default_factory=list)
    backend: str = ""

    @property
    def worst_gap(self) -> float | None:
        """The largest gap, None without assignments."""
        return max(self.gaps, default=None)


def children_of(groups: Mapping[str, Group]) -> dict[str, list[Group]]:
    """The groups within the blocks of each group."""
    children: dict[str, list[Group]] = {}
    for group in groups.values():
        if isinstance(group.structure, Wreath):
            children.setdefault(group.structure.outer, []).append(group)
    return children


def signs_of(similarity: Tensor, perm: Tensor, free: bool) -> Tensor | None:
    """The signs under which matched units agree best, None where none is negative."""
    if not free:
        return None
    negative = similarity.gather(1, perm.to(similarity.device).unsqueeze(1)).squeeze(1) < 0
    return torch.where(negative, -1.0, 1.0).double() if bool(negative.any()) else None


def in_blocks(matrix: Tensor, blocks: int) -> Tensor:
    """(n, n) as (blocks, blocks, n // blocks, n // blocks): entry [k, l] compares block k of A with block l of B."""
    inner = matrix.shape[0] // blocks
    return matrix.reshape(blocks, inner, blocks, inner).transpose(1, 2)


def assign_groups(
    groups: Sequence[Group],
    evidence: Mapping[str, Evidence | Blocks],
    signs: bool = True,
    backend: str = "auto",
    costs: Mapping[str, Tensor] | None = None,
) -> Solution:
    """Maximise the summed similarity of matched units exactly, group by group, blocks with what is in them.

    A group of blocks is matched by a table whose entry (k, l) is its own similarity plus the best value of matching
    what lies in block k of A with what lies in block l of B. All flat groups are solved in one call of the engine.

    Args:
        groups: The groups, those of blocks before those within them.
        evidence: Similarity by group; groups without any stay in place (within their blocks).
        signs: Whether to use signs where a group allows them.
        backend: Implementation of `pyalign.engine.linear_assignment`.
        costs: Groups of blocks that are matched by these costs alone; what is in them is matched afterwards.
    """
    search = _Search({g.name: g for g in groups}, evidence, signs, backend, costs or {})
    for group in reversed(groups):
        if isinstance(group.structure, Wreath) and group.structure.outer not in search.costs:
            search.fill_table(group, group.structure.blocks)
    search.solve_flat([g for g in groups if not isinstance(g.structure, Wreath)])
    for group in groups:
        if isinstance(group.structure, Wreath):
            search.place(group, group.structure)
    search.finish()
    return search.solution


class _Search:
    def __init__(
        self,
        groups: dict[str, Group],
        evidence: Mapping[str, Evidence | Blocks],
        signs: bool,
        backend: str,
        costs: Mapping[str, Tensor],
    ) -> None:
        self.groups, self.signs, self.backend, self.costs = groups, signs, backend, costs
        self.evidence = {name: e for name, e in evidence.items() if isinstance(e, Evidence)}
        self.blocks = {name: e for name, e in evidence.items() if isinstance(e, Blocks)}
        self.children = children_of(groups)
        self.tables: dict[str, Tensor] = {}
        self.within: dict[str, Tensor] = {}
        self.perms: dict[str, Tensor] = {}
        self.solution = Solution()

    def gain(self, group: Group) -> Tensor | None:
        """Own gain of a group plus the tables of the groups within its units; None where nothing is known."""
        if group.name in self.costs:
            return -self.costs[group.name]
        own = self.evidence.get(group.name)
        parts = [] if own is None else [own.gain(self.free(group))]
        parts += [self.tables[c.name] for c in self.children.get(group.name, []) if c.name in self.tables]
        return sum((part.to(parts[0].device) for part in parts[1:]), start=parts[0]) if parts else None

    def free(self, group: Group) -> bool:
        return self.signs and group.kind.signs

    def preferred(self, group: Group, gain: Tensor) -> Tensor:
        own = self.evidence.get(group.name)
        return gain if own is None else own.preferring(gain)

    def solve(self, matrices: list[Tensor]) -> list[Tensor]:
        # one problem is quicker alone than as a list
        costs = matrices[0] if len(matrices) == 1 else matrices
        answer: Assignment = linear_assignment(costs, maximize=True, backend=self.backend)
        perms, gaps = ((f,) if isinstance(f, Tensor) else f for f in (answer.perm, answer.gap))
        self.solution.gaps += [float(gap.max()) for gap in gaps if gap.numel()]
        self.solution.backend = answer.backend if matrices else self.solution.backend
        return list(perms)

    def fill_table(self, group: Group, blocks: int) -> None:
        """Match every block of A with every block of B within one group."""
        if group.name in self.blocks:
            rows = [self.fill_row(group, k, torch.arange(blocks)) for k in range(blocks)]
            self.within[group.name] = torch.stack([perms for perms, _ in rows])
            self.tables[group.name] = torch.stack([values for _, values in rows])
            return
        gain = self.gain(group)
        inner = group.size // blocks
        stay = torch.arange(inner).expand(blocks, blocks, inner)
        if gain is None:
            self.within[group.name] = stay
            return
        split = in_blocks(gain, blocks)
        if group.kind is Kind.IDENTITY or inner == 1:
            self.within[group.name] = stay
        else:
            problems = in_blocks(self.preferred(group, gain), blocks).reshape(blocks * blocks, inner, inner)
            self.within[group.name] = self.solve([problems])[0].cpu().reshape(blocks, blocks, inner)
        perm = self.within[group.name].to(gain.device).unsqueeze(-1)
        self.tables[group.name] = split.gather(-1, perm).squeeze(-1).sum(-1)

    def fill_row(self, group: Group, block: int, others: Tensor) -> tuple[Tensor, Tensor]:
        """Match one block of A with blocks of B: the inner orders, and what each pair contributes."""
        gains = self.blocks[group.name].gains(block, others, self.free(group))
        perms = self.solve([gains])[0]
        return perms.cpu(), gains.gather(-1, perms.to(gains.device).unsqueeze(-1)).squeeze(-1).sum(-1).double()

    def solve_flat(self, groups: Sequence[Group]) -> None:
        gains = {g.name: self.gain(g) for g in groups if g.kind is not Kind.IDENTITY}
        known = {n: self.preferred(self.groups[n], gain) for n, gain in gains.items() if gain is not None}
        for device in dict.fromkeys(gain.device for gain in known.values()):  # some may have had to stay on the host
            here = {name: gain for name, gain in known.items() if gain.device == device}
            self.perms.update(zip(here, (perm.cpu() for perm in self.solve(list(here.values()))), strict=True))
        for group in groups:
            self.perms.setdefault(group.name, torch.arange(group.size))

    def place(self, group: Group, structure: Wreath) -> None:
        """Put the blocks where their outer group goes, each with the inner order that was best for that pair."""
        outer, inner = self.perms[structure.outer], group.size // structure.blocks
        if group.name in self.blocks and group.name not in self.within:
            chosen = torch.cat([self.fill_row(group, k, outer[k : k + 1])[0] for k in range(len(outer))])
            self.perms[group.name] = (outer.unsqueeze(1) * inner + chosen).reshape(-1)
            return
        if group.name not in self.within:
            self.fill_table(group, structure.blocks)
        chosen = self.within[group.name][torch.arange(structure.blocks), outer]
        self.perms[group.name] = (outer.unsqueeze(1) * inner + chosen).reshape(-1)

    def finish(self) -> None:
        for name, perm in self.perms.items():
            own = self.evidence.get(name)
            scale = None
            free = self.free(self.groups[name])
            if name in self.blocks:
                odd, even = self.blocks[name].along(perm)
                scale = torch.where(odd < 0, -1.0, 1.0).double() if free and bool((odd < 0).any()) else None
                self.solution.objective += float((odd.abs() if free else odd).sum() + even.sum())
            if own is not None:
                scale = signs_of(own.similarity, perm, free)
                along = perm.to(own.similarity.device).unsqueeze(1)
                self.solution.objective += float(own.gain(free).gather(1, along).sum())
            self.solution.elements[name] = ScaledPermutation(perm, scale)
