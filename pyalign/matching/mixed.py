"""Weight matching where groups mix units: coordinate descent over all classes (Theus et al. 2025, section 4)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyalign.matching.assign import Evidence, assign_groups, in_blocks
from pyalign.matching.blocks import Blocks
from pyalign.matching.experts import check_experts, expert_blocks, expert_costs, expert_groups, lies_in_experts
from pyalign.matching.nearest import circuit_table, gain_table, nearest
from pyalign.matching.nested import Nested, carriers, flat
from pyalign.matching.pair import Pair
from pyalign.matching.products import Products
from pyalign.symmetry import BlockLinear, Group, Kind, ScaledPermutation, SymmetrySpec, Transform, Wreath
from pyalign.symmetry.elements import composed, following

__all__ = ["Family", "MixedDescent"]

Elements = dict[str, Transform]


@dataclass(frozen=True)
class Family:
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
    table of their inner problems (by the gain of isometries and by circuits, whichever leads further). Tensors are read
    when they are needed, one at a time, and not kept: checkpoints may be larger than memory.

    Args:
        spec: The symmetry.
        state_a: Weights of model A by name.
        state_b: Weights of model B by name.
        signs: Whether signs are used where a group allows them.
        backend: Implementation of `pyalign.engine.linear_assignment`.
        experts: How the order of experts is found, see `pyalign.matching.experts`.
        tick: Called after every step.
    """

    def __init__(
        self,
        spec: SymmetrySpec,
        state_a: Mapping[str, Tensor],
        state_b: Mapping[str, Tensor],
        signs: bool = True,
        backend: str = "auto",
        experts: str = "exact",
        tick: Callable[[], object] = lambda: None,
    ) -> None:
        check_experts(experts)
        self.spec, self.signs, self.backend, self.experts, self.tick = spec, signs, backend, experts, tick
        self.mixtures = expert_groups(spec)
        self.pair = Pair(spec, state_a, state_b)
        self.families = _families(spec)
        self.sizes = {n: self.pair.size(n) for n in self.pair.names}
        self.worst_gap: float | None = None
        self.restart(spec.identity().transforms)

    def restart(self, elements: Mapping[str, Transform]) -> None:
        """Begin anew at other elements."""
        self.elements: Elements = dict(elements)
        self.costs = {n: self.pair.cost(n, self.elements) for n in self.pair.names}
        self.trace = [self.objective]
        self._tried: dict[str, tuple[Transform, ...]] = {}

    @property
    def state(self) -> tuple[Elements, dict[str, float]]:
        """Where the search is: the elements and what each tensor costs there."""
        return dict(self.elements), dict(self.costs)

    def resume(self, state: tuple[Elements, dict[str, float]]) -> None:
        """Go back to where the search was."""
        self.elements, self.costs = dict(state[0]), dict(state[1])
        self.trace = [self.objective]
        self._tried.clear()

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
            founded = [f for f in pending if all(self._touched(g, known[f.top.name]) for g in f.groups)] or pending
            best = max(founded, key=lambda f: sum(self.sizes[n] for n in known[f.top.name]))
            self._take(best, frozenset(known[best.top.name]))
            settled |= {g.name for g in best.groups}
            pending.remove(best)
            self.tick()

    def run(self, sweeps: int, generator: torch.Generator) -> bool:
        """Sweep over the families in random orders until nothing changes; say whether it came to that."""
        for _ in range(sweeps):
            before = self.objective
            for i in torch.randperm(len(self.families), generator=generator).tolist():
                self.step(self.families[i])
                self.tick()
            if self.objective - before <= 1e-12 * self._size:
                return True
        return False

    def step(self, family: Family) -> bool:
        """Improve one family, the others held still; say whether that helped.

        A family that did not improve is passed over while it and its neighbours stay as they are.
        """
        stamp = tuple(self.elements[g] for g in self._around(family))
        if self._tried.get(family.top.name) == stamp:
            return False
        moved = self._take(family, None)
        if not moved:
            self._tried[family.top.name] = stamp
        return moved

    @property
    def _size(self) -> float:
        return sum(self.sizes.values()) + 1e-300

    def _tensors(self, family: Family) -> dict[str, None]:
        return dict.fromkeys(name for g in family.groups for name in self.pair.of(g.name))

    def _around(self, family: Family) -> dict[str, None]:
        """The groups on whose elements a step depends."""
        return dict.fromkeys(
            [*(g.name for g in family.groups), *(b.group for n in self._tensors(family) for b in self.spec.on(n))]
        )

    def _touched(self, group: Group, names: Sequence[str]) -> bool:
        """Whether a group moves one of these tensors, or none at all."""
        tensors = [b.tensor for b in self.spec.of(group.name)]
        return not tensors or any(name in names for name in tensors)

    def _known(self, family: Family, settled: set[str]) -> list[str]:
        """Tensors of a family that no unsettled family moves besides."""
        own = {g.name for g in family.groups}
        return [n for n in self._tensors(family) if all(b.group in own | settled for b in self.spec.on(n))]

    def _take(self, family: Family, only: frozenset[str] | None) -> bool:
        """Move by the proposal after which A and B are nearest (on the tensors `only`), if that is nearer than now."""
        best, least, limit = None, 0.0, 1e-13 * self._size
        for moves in _Step(self, family, only).proposals():
            elements = {**self.elements, **{name: composed(e, self.elements[name]) for name, e in moves.items()}}
            names = dict.fromkeys(n for g in moves for n in self.pair.of(g, only))
            costs = {n: self.pair.cost(n, elements) for n in names}
            rise = sum(c - self.costs[n] for n, c in costs.items())
            if best is None or rise < least:
                best, least = (moves, elements, costs), rise
        if best is None or least >= -limit:
            return False
        moves, self.elements, costs = best
        if only is not None:
            rest = dict.fromkeys(n for g in moves for n in self.pair.of(g) if n not in only)
            costs |= {n: self.pair.cost(n, self.elements) for n in rest}
        self.costs.update(costs)
        if only is None:
            self.trace.append(self.objective)
        return True

    def note(self, gap: float | None) -> None:
        """Remember the largest duality gap."""
        if gap is not None:
            self.worst_gap = gap if self.worst_gap is None else max(self.worst_gap, gap)


class _Step:
    """Elements by which one family may move from where it is."""

    def __init__(self, descent: MixedDescent, family: Family, only: frozenset[str] | None) -> None:
        self.descent, self.family, self.only = descent, family, only
        self.products = Products(descent.pair, descent.elements, only)
        self.inside = [g for g in family.inner if g.name in descent.spec.placed]
        self.plain = [g for g in family.groups if g not in self.inside and not g.kind.mixes]

    def proposals(self) -> list[Elements]:
        """All of them, the ones that move nothing but follow included."""
        top = self.family.top
        if top.kind.mixes:
            return [{top.name: BlockLinear(nearest(self.products.grams(top), top.kind), top.kind)}]
        orders = self._orders()
        proposals = [{**order, **{g.name: self._within(g, order) for g in self.inside}} for order in orders]
        return self._scaled(orders) or proposals

    def _orders(self) -> list[Elements]:
        evidence = {g.name: e for g in self.plain if (e := self._evidence(g)) is not None}
        if not self.inside:
            return [self._assigned(evidence, self.descent.signs, self._expert_costs())]
        answers: list[Elements] = [self._following()]
        for tables in self._tables():
            known = dict(evidence)
            for name, table in tables.items():
                own = evidence.get(name)
                assert not isinstance(own, Blocks)
                known[name] = Evidence(table if own is None else table.to(own.similarity.device) + own.gain(False))
            answers.append(self._assigned(known, False))
        return answers

    def _evidence(self, group: Group) -> Evidence | Blocks | None:
        """What speaks for one order of a group's units or another, besides the groups that mix."""
        if lies_in_experts(self.descent.spec, group):
            return expert_blocks(self.descent.spec, group, *self.products.states, self.only)
        experts = self.descent.mixtures.get(group.name, [])
        apart = frozenset(b.tensor for g in experts for b in self.descent.spec.of(g.name))
        found = self.products.evidence(group, self.inside, apart)
        if found is None or not group.kind.scales or len(self.family.groups) > 1 or experts:
            return found
        # Units that differ by a factor are told from those that are only large: alike is what shares all it can.
        missing = self.products.sizes(group).neg_()
        return Evidence(found.similarity, missing if found.even is None else missing.add_(found.even))

    def _expert_costs(self) -> dict[str, Tensor]:
        """Costs by which the order of experts is found where it is not found exactly."""
        spec, how, states = self.descent.spec, self.descent.experts, self.products.states
        names = [g.name for g in self.plain if g.name in self.descent.mixtures and how != "exact"]
        costs = {name: expert_costs(spec, name, *states, how, self.only) for name in names}
        return {name: cost for name, cost in costs.items() if cost is not None}

    def _tables(self) -> list[dict[str, Tensor]]:
        """What the mixing groups say of the order of blocks, and of units that change places within them.

        One answer by the gain of the best matrices, one by circuits, and one by the rows of units as they stand.
        """
        gains: dict[str, Tensor] = {}
        circuits: dict[str, Tensor] = {}
        plainly: dict[str, Tensor] = {}
        top = self.family.top.name
        for group in self.inside:
            assert isinstance(group.structure, Wreath)
            carried = carriers(self.descent.spec, group, [g for g in self.plain if g.name != top])
            if carried:
                nested = Nested(self.descent.spec, group, carried, self.products.names)
                outer, inner = nested.gains(*self.products.states)
                _add(gains, {top: outer, **{n: flat(t) for n, t in inner.items()}})
                _add(circuits, {n: flat(t) for n, t in nested.circuits(*self.products.states).items()})
                _add(plainly, {n: flat(t) for n, t in nested.plain(*self.products.states).items()})
                continue
            one, two = (in_blocks(m, group.structure.blocks) for m in self.products.both(group))
            _add(circuits, {top: circuit_table(one, two, group.kind).cpu() / self._circuit_size(group)})
            if group.kind.mixes:  # singular values of all pairs of blocks
                one, two = one.cpu(), two.cpu()
            _add(gains, {top: gain_table(one, two, group.kind, self.descent.backend).cpu()})
        return [gains, circuits, plainly] if plainly else [gains, circuits]

    def _within(self, group: Group, order: Elements) -> Transform:
        """The best matrices or orders within the blocks, once units and blocks are in an order."""
        assert isinstance(group.structure, Wreath)
        outer = order[group.structure.outer]
        assert isinstance(outer, ScaledPermutation)
        moves = {**order, **{g.name: following(g, order) for g in self.inside}}
        placed = {**self.descent.elements, **{n: composed(e, self.descent.elements[n]) for n, e in moves.items()}}
        products = Products(self.descent.pair, placed, self.only)
        matrices = nearest(products.grams(group), group.kind, self.descent.backend)
        return BlockLinear(matrices, group.kind, outer.perm) if group.kind.mixes else _ordered(matrices, outer.perm)

    def _assigned(
        self, evidence: Mapping[str, Evidence | Blocks], signs: bool, costs: Mapping[str, Tensor] | None = None
    ) -> Elements:
        solution = assign_groups(self.plain, evidence, signs, self.descent.backend, costs or {})
        self.descent.note(solution.worst_gap)
        return dict(solution.elements)

    def _following(self) -> Elements:
        elements: Elements = {}
        for group in self.family.groups:
            elements[group.name] = following(group, elements)
        return {g.name: elements[g.name] for g in self.plain}

    def _scaled(self, orders: Sequence[Elements]) -> list[Elements]:
        """The same orders with the best factors for all groups that may scale their units, where none is mixed."""
        scaling = [g for g in self.family.groups if g.kind.scales]
        if not scaling or self.inside:
            return []
        return [{**order, **{g.name: self._factors(g, order[g.name]) for g in scaling}} for order in orders]

    def _factors(self, group: Group, element: Transform) -> ScaledPermutation:
        """An order with the best factors: signs where they are used, and sizes."""
        assert isinstance(element, ScaledPermutation)
        kind = Kind.INVERTIBLE if group.kind.signs and self.descent.signs else Kind.POSITIVE
        factors = nearest(self.products.by_unit(group, element.perm), kind).reshape(-1)
        return ScaledPermutation(element.perm, factors)

    def _circuit_size(self, group: Group) -> float:
        """The size of the circuits of a group in B, so that those of several groups count alike."""
        one, two = self.products.own(group)
        return max(float((one * two).sum()), 1e-300)


def _ordered(matrices: Tensor, outer: Tensor) -> ScaledPermutation:
    """Permutations with factors, written as a matrix for each block, as one element that moves the blocks too."""
    within = matrices.abs().argmax(-1)
    factors = matrices.gather(-1, within.unsqueeze(-1)).reshape(-1)
    perm = (outer.unsqueeze(1) * matrices.shape[-1] + within).reshape(-1)
    return ScaledPermutation(perm, None if bool((factors == 1).all()) else factors)


def _add(sums: dict[str, Tensor], tables: Mapping[str, Tensor]) -> None:
    for name, table in tables.items():
        sums[name] = sums[name] + table if name in sums else table


def _families(spec: SymmetrySpec) -> list[Family]:
    top_of: dict[str, str] = {}
    within: dict[str, list[Group]] = {}
    for group in spec.outer_first():
        if isinstance(group.structure, Wreath):
            top_of[group.name] = top_of[group.structure.outer]
            within[top_of[group.name]].append(group)
        else:
            top_of[group.name] = group.name
            within[group.name] = []
    return [Family(spec.groups[name], tuple(inner)) for name, inner in within.items()]
