"""Weight matching where groups mix units: coordinate descent over all classes (Theus et al. 2025, section 4)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyalign.matching.assign import Evidence, assign_groups, in_blocks
from pyalign.matching.nearest import circuit_table, gain_table, nearest
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
        tick: Called after every step.
    """

    def __init__(
        self,
        spec: SymmetrySpec,
        state_a: Mapping[str, Tensor],
        state_b: Mapping[str, Tensor],
        signs: bool = True,
        backend: str = "auto",
        tick: Callable[[], object] = lambda: None,
    ) -> None:
        self.spec, self.signs, self.backend, self.tick = spec, signs, backend, tick
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
            best = max(pending, key=lambda f: sum(self.sizes[n] for n in known[f.top.name]))
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
        self.mixing = [g for g in family.inner if g.kind.mixes]
        self.plain = [g for g in family.groups if not g.kind.mixes]

    def proposals(self) -> list[Elements]:
        """All of them, the ones that move nothing but follow included."""
        top = self.family.top
        if top.kind.mixes:
            return [{top.name: BlockLinear(nearest(self.products.grams(top, None), top.kind), top.kind)}]
        orders = self._orders()
        proposals = []
        for order in orders:
            elements: Elements = dict(order)
            for group in self.mixing:
                outer = elements[top.name]
                assert isinstance(outer, ScaledPermutation)
                matrices = nearest(self.products.grams(group, outer.perm), group.kind)
                elements[group.name] = BlockLinear(matrices, group.kind, outer.perm)
            proposals.append(elements)
        return self._scaled(orders) or proposals

    def _orders(self) -> list[Elements]:
        evidence = {g.name: e for g in self.plain if (e := self.products.evidence(g, self.mixing)) is not None}
        if not self.mixing:
            return [self._assigned(evidence, self.descent.signs)]
        gains, circuits = [], []
        for group in self.mixing:
            assert isinstance(group.structure, Wreath)
            one, two = (in_blocks(m, group.structure.blocks) for m in self.products.both(group))
            gains.append(gain_table(one, two, group.kind))
            circuits.append(circuit_table(one, two, group.kind) / self._circuit_size(group))
        answers: list[Elements] = [self._following()]
        for table in (torch.stack(gains).sum(0), torch.stack(circuits).sum(0)):
            own = evidence.get(self.family.top.name)
            with_own = Evidence(table if own is None else table + own.gain(False))
            answers.append(self._assigned({**evidence, self.family.top.name: with_own}, False))
        return answers

    def _assigned(self, evidence: Mapping[str, Evidence], signs: bool) -> Elements:
        solution = assign_groups(self.plain, evidence, signs, self.descent.backend)
        self.descent.note(solution.worst_gap)
        return dict(solution.elements)

    def _following(self) -> Elements:
        elements: Elements = {}
        for group in self.family.groups:
            elements[group.name] = following(group, elements)
        return {g.name: elements[g.name] for g in self.plain}

    def _scaled(self, orders: Sequence[Elements]) -> list[Elements]:
        """The same orders with the best factors, one where none is better, for a flat group that may scale units."""
        top = self.family.top
        if not top.kind.scales or self.family.inner:
            return []
        kind = Kind.INVERTIBLE if top.kind.signs and self.descent.signs else Kind.POSITIVE
        found: list[Elements] = []
        for order in orders:
            element = order[top.name]
            assert isinstance(element, ScaledPermutation)
            factors = nearest(self.products.by_unit(top, element.perm), kind).reshape(-1)
            found.append({top.name: ScaledPermutation(element.perm, factors)})
        return found

    def _circuit_size(self, group: Group) -> float:
        """The size of the circuits of a group in B, so that those of several groups count alike."""
        one, two = self.products.own(group)
        return max(float((one * two).sum()), 1e-300)


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
