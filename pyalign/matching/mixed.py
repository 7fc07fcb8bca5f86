"""Weight matching where groups mix units: coordinate descent over all classes (Theus et al. 2025, section 4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyalign.matching.assign import Evidence, assign_groups, in_blocks
from pyalign.matching.blocks import Blocks
from pyalign.matching.experts import check_experts, expert_blocks, expert_costs, expert_groups, lies_in_experts
from pyalign.matching.nearest import Grams, circuit_table, gain_table, nearest
from pyalign.symmetry import (
    BlockLinear,
    Group,
    Kind,
    Role,
    ScaledPermutation,
    Side,
    SymmetrySpec,
    Transform,
    Wreath,
)
from pyalign.symmetry.actions import act
from pyalign.symmetry.elements import composed, following

__all__ = ["MixedDescent"]

Elements = dict[str, Transform]


@dataclass(frozen=True)
class _Family:
    """A group that lies in no other, with everything within its units."""

    top: Group
    inner: tuple[Group, ...]

    @property
    def groups(self) -> tuple[Group, ...]:
        """All groups, outer ones first."""
        return (self.top, *self.inner)


class MixedDescent:
    r"""Minimises \(\tfrac12 \|A - gB\|^2\) over the elements of all classes, one family of groups at a time.

    Each step compares A with B as it stands now and proposes elements that move B further; a proposal is taken only if
    the distance, in float64, falls. Permutations are linear assignments; blocks that are mixed inside are assigned by a
    table of their inner problems (by the gain of isometries and by circuits, whichever leads further).

    Args:
        spec: The symmetry.
        state_a: Weights of model A by name.
        state_b: Weights of model B by name.
        signs: Whether signs are used where a group allows them.
        backend: Implementation of `pyalign.engine.linear_assignment`.
        experts: How the order of experts is found, see `pyalign.matching.experts`.
    """

    def __init__(
        self,
        spec: SymmetrySpec,
        state_a: Mapping[str, Tensor],
        state_b: Mapping[str, Tensor],
        signs: bool = True,
        backend: str = "auto",
        experts: str = "exact",
    ) -> None:
        check_experts(experts)
        self.spec, self.signs, self.backend, self.experts = spec, signs, backend, experts
        state_a, state_b = spec.stacked(state_a), spec.stacked(state_b)
        self.mixtures = expert_groups(spec)
        names = dict.fromkeys(b.tensor for b in spec.bindings if b.role is Role.MATCHED)
        self.a = {n: state_a[n].detach().double() for n in names}
        self.start = {n: state_b[n].detach().double() for n in names}
        self.families = _families(spec)
        self.worst_gap: float | None = None
        self.restart(spec.identity().transforms)

    def restart(self, elements: Mapping[str, Transform]) -> None:
        """Begin anew at other elements."""
        self.elements: Elements = dict(elements)
        self.b = {n: act(t, self.spec.on(n), self.elements) for n, t in self.start.items()}
        self.costs = {n: self._cost(n, t) for n, t in self.b.items()}
        self.trace = [self.objective]

    @property
    def objective(self) -> float:
        """Minus half the squared distance of the matched tensors."""
        return -0.5 * sum(self.costs.values())

    def anchor(self) -> None:
        """Match every family once by what it shares with families that are matched already, best founded first.

        Tensors that only one family moves (embeddings, the input and output side) need nothing else to be known.
        """
        settled: set[str] = set()
        pending = list(self.families)
        while pending:
            known = {f.top.name: self._known(f, settled) for f in pending}
            best = max(pending, key=lambda f: sum(float(self.a[n].square().sum()) for n in known[f.top.name]))
            proposals = self._proposals(best, frozenset(known[best.top.name]))
            self._take(proposals, known[best.top.name])
            settled |= {g.name for g in best.groups}
            pending.remove(best)

    def run(self, sweeps: int, generator: torch.Generator) -> bool:
        """Sweep over the families in random orders until nothing changes; say whether it came to that."""
        for _ in range(sweeps):
            before = self.objective
            for i in torch.randperm(len(self.families), generator=generator).tolist():
                self.step(self.families[i])
            if self.objective - before <= 1e-12 * self._size:
                return True
        return False

    def step(self, family: _Family) -> bool:
        """Improve one family, the others held still; say whether that helped."""
        return self._take(self._proposals(family, None), None)

    @property
    def _size(self) -> float:
        return sum(float(t.square().sum()) for t in self.a.values()) + 1e-300

    def _cost(self, name: str, tensor: Tensor) -> float:
        return float((self.a[name] - tensor).square().sum())

    def _known(self, family: _Family, settled: set[str]) -> list[str]:
        """Tensors of a family that no unsettled family moves besides."""
        own = {g.name for g in family.groups}
        names = dict.fromkeys(b.tensor for g in family.groups for b in self.spec.of(g.name) if b.tensor in self.a)
        return [n for n in names if all(b.group in own | settled for b in self.spec.on(n))]

    def _take(self, proposals: Sequence[Elements], only: Sequence[str] | None) -> bool:
        """Move by the proposal after which A and B are nearest (on the tensors `only`), if that is nearer than now."""
        best, least, limit = None, 0.0, 1e-13 * self._size
        for moves in proposals:
            names = dict.fromkeys(b.tensor for g in moves for b in self.spec.of(g) if b.tensor in self.a)
            moved = {n: act(self.b[n], self.spec.on(n), moves) for n in names}
            costs = {n: self._cost(n, t) for n, t in moved.items()}
            rise = sum(c - self.costs[n] for n, c in costs.items() if only is None or n in only)
            if best is None or rise < least:
                best, least = (moves, moved, costs), rise
        if best is None or least >= -limit:
            return False
        moves, moved, costs = best
        self.b.update(moved)
        self.costs.update(costs)
        for name, element in moves.items():
            self.elements[name] = composed(element, self.elements[name])
        if only is None:
            self.trace.append(self.objective)
        return True

    def _proposals(self, family: _Family, only: frozenset[str] | None) -> list[Elements]:
        """Elements by which a family may move from where it is."""
        mixing = [g for g in family.inner if g.kind.mixes]
        if family.top.kind.mixes:
            grams = self._grams(family.top, 1, None, only)
            return [{family.top.name: BlockLinear(nearest(grams, family.top.kind), family.top.kind)}]
        orders = self._orders(family, mixing, only)
        proposals = []
        for order in orders:
            elements: Elements = dict(order)
            for group in mixing:
                outer = elements[family.top.name]
                assert isinstance(outer, ScaledPermutation)
                elements[group.name] = self._within(group, outer.perm, only)
            proposals.append(elements)
        return proposals + self._scaled(family, orders, only)

    def _orders(self, family: _Family, mixing: Sequence[Group], only: frozenset[str] | None) -> list[Elements]:
        plain = [g for g in family.groups if not g.kind.mixes]
        evidence: dict[str, Evidence | Blocks] = {}
        for g in plain:
            inside = lies_in_experts(self.spec, g)
            known = expert_blocks(self.spec, g, self.a, self.b, only) if inside else self._evidence(g, mixing, only)
            evidence |= {} if known is None else {g.name: known}
        if not mixing:
            costs = self._expert_costs(plain, only)
            solution = assign_groups(plain, evidence, self.signs, self.backend, costs)
            self._note(solution.worst_gap)
            return [dict(solution.elements)]
        gains, circuits = [], []
        for group in mixing:
            assert isinstance(group.structure, Wreath)
            one, two = (in_blocks(m, group.structure.blocks) for m in self._products(group, only))
            gains.append(gain_table(one, two, group.kind))
            circuits.append(circuit_table(one, two, group.kind) / _circuit_size(self, group, only))
        answers: list[Elements] = [{g.name: following(g, self._identity(family)) for g in plain}]
        for table in (torch.stack(gains).sum(0), torch.stack(circuits).sum(0)):
            own = evidence.get(family.top.name)
            assert not isinstance(own, Blocks)
            with_own = Evidence(table if own is None else table + own.gain(False))
            solution = assign_groups(plain, {**evidence, family.top.name: with_own}, False, self.backend)
            self._note(solution.worst_gap)
            answers.append(dict(solution.elements))
        return answers

    def _expert_costs(self, groups: Sequence[Group], only: frozenset[str] | None) -> dict[str, Tensor]:
        """Costs by which the order of experts is found where it is not found exactly."""
        if self.experts == "exact":
            return {}
        names = [g.name for g in groups if g.name in self.mixtures]
        costs = {n: expert_costs(self.spec, n, self.a, self.b, self.experts, only) for n in names}
        return {n: cost for n, cost in costs.items() if cost is not None}

    def _identity(self, family: _Family) -> Elements:
        elements: Elements = {}
        for group in family.groups:
            elements[group.name] = following(group, elements)
        return elements

    def _within(self, group: Group, perm: Tensor, only: frozenset[str] | None) -> BlockLinear:
        assert isinstance(group.structure, Wreath)
        grams = self._grams(group, group.structure.blocks, perm, only)
        return BlockLinear(nearest(grams, group.kind), group.kind, perm)

    def _scaled(self, family: _Family, orders: Sequence[Elements], only: frozenset[str] | None) -> list[Elements]:
        """The same orders with the best factors for all groups that may scale their units, where none is mixed."""
        scaling = [g for g in family.groups if g.kind.scales]
        if not scaling or any(g.kind.mixes for g in family.groups):
            return []
        return [{**order, **{g.name: self._factors(g, order[g.name], only) for g in scaling}} for order in orders]

    def _factors(self, group: Group, element: Transform, only: frozenset[str] | None) -> ScaledPermutation:
        """An order with the best factors: signs where they are used, and sizes."""
        assert isinstance(element, ScaledPermutation)
        sums = torch.zeros(4, group.size, dtype=torch.float64)
        for b in self.spec.of(group.name):
            if b.tensor in self.a and (only is None or b.tensor in only) and b.side.power:
                side = 1 if b.side is Side.CONTRAVARIANT else 0
                one, two = (
                    b.unfold(self.a[b.tensor]),
                    b.unfold(self.b[b.tensor])[element.perm.to(self.b[b.tensor].device)],
                )
                sums[side] += (one * two).sum(1).cpu()
                sums[side + 2] += two.square().sum(1).cpu()
        kind = Kind.INVERTIBLE if group.kind.signs and self.signs else Kind.POSITIVE
        return ScaledPermutation(element.perm, nearest(Grams(*sums[:, :, None, None]), kind).reshape(-1))

    def _evidence(self, group: Group, mixing: Sequence[Group], only: frozenset[str] | None) -> Evidence | None:
        """Similarity of units, without the entries that a mixing group within them compares."""
        covered = {(b.tensor, b.axis): b.positions for g in mixing for b in self.spec.of(g.name)}
        inside_experts = {b.tensor for g in self.mixtures.get(group.name, []) for b in self.spec.of(g.name)}
        odd = even = None
        for b in self.spec.of(group.name):
            if b.tensor not in self.a or (only is not None and b.tensor not in only) or b.tensor in inside_experts:
                continue
            inside = [
                c.positions for g in mixing for c in self.spec.of(g.name) if (c.tensor, c.axis) == (b.tensor, b.axis)
            ]
            if covered and inside and torch.isin(b.positions, torch.cat([p.reshape(-1) for p in inside])).all():
                continue
            matrix = (b.unfold(self.a[b.tensor]) @ b.unfold(self.b[b.tensor]).T).cpu()
            if b.side.power:
                odd = matrix if odd is None else odd + matrix
            else:
                even = matrix if even is None else even + matrix
        if odd is None:
            return None if even is None else Evidence(torch.zeros_like(even), even)
        return Evidence(odd, even)

    def _products(self, group: Group, only: frozenset[str] | None) -> tuple[Tensor, Tensor]:
        """Rows of A times rows of B, produced and consumed, each (n, n)."""
        return self._summed(group, only, self.a, self.b)

    def _own(self, group: Group, only: frozenset[str] | None) -> tuple[Tensor, Tensor]:
        return self._summed(group, only, self.b, self.b)

    def _summed(
        self, group: Group, only: frozenset[str] | None, left: Mapping[str, Tensor], right: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        sums = [torch.zeros(group.size, group.size, dtype=torch.float64) for _ in range(2)]
        for b in self.spec.of(group.name):
            if b.tensor in self.a and (only is None or b.tensor in only) and (b.side.power or group.kind.mixes):
                side = 1 if b.side is Side.CONTRAVARIANT else 0
                sums[side] += (b.unfold(left[b.tensor]) @ b.unfold(right[b.tensor]).T).cpu()
        return sums[0], sums[1]

    def _grams(self, group: Group, blocks: int, perm: Tensor | None, only: frozenset[str] | None) -> Grams:
        """What `nearest` needs when block k of A is compared with block perm[k] of B."""
        order = torch.arange(blocks) if perm is None else perm
        both = [in_blocks(m, blocks)[torch.arange(blocks), order] for m in self._products(group, only)]
        own = [in_blocks(m, blocks)[order, order] for m in self._own(group, only)]
        return Grams(both[0], both[1], own[0], own[1])

    def _note(self, gap: float | None) -> None:
        if gap is not None:
            self.worst_gap = gap if self.worst_gap is None else max(self.worst_gap, gap)


def _circuit_size(descent: MixedDescent, group: Group, only: frozenset[str] | None) -> float:
    """The size of the circuits of a group in B, so that those of several groups count alike."""
    assert isinstance(group.structure, Wreath)
    blocks = torch.arange(group.structure.blocks)
    one, two = (in_blocks(m, group.structure.blocks)[blocks, blocks] for m in descent._own(group, only))
    return max(float((one * two).sum()), 1e-300)


def _families(spec: SymmetrySpec) -> list[_Family]:
    top_of: dict[str, str] = {}
    within: dict[str, list[Group]] = {}
    for group in spec.outer_first():
        if isinstance(group.structure, Wreath):
            top_of[group.name] = top_of[group.structure.outer]
            within[top_of[group.name]].append(group)
        else:
            top_of[group.name] = group.name
            within[group.name] = []
    return [_Family(spec.groups[name], tuple(inner)) for name, inner in within.items()]
