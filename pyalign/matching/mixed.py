"""Weight matching where groups mix units: coordinate descent over all classes (Theus et al. 2025, section 4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyalign.matching.assign import Evidence, assign_groups, in_blocks
from pyalign.matching.nearest import Grams, circuit_table, gain_table, nearest
from pyalign.matching.nested import Nested, carriers, flat
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
    """

    def __init__(
        self,
        spec: SymmetrySpec,
        state_a: Mapping[str, Tensor],
        state_b: Mapping[str, Tensor],
        signs: bool = True,
        backend: str = "auto",
    ) -> None:
        self.spec, self.signs, self.backend = spec, signs, backend
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
            founded = [f for f in pending if all(self._touched(g, known[f.top.name]) for g in f.groups)] or pending
            best = max(founded, key=lambda f: sum(float(self.a[n].square().sum()) for n in known[f.top.name]))
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

    def _touched(self, group: Group, names: Sequence[str]) -> bool:
        """Whether a group moves one of these tensors, or none at all."""
        tensors = [b.tensor for b in self.spec.of(group.name)]
        return not tensors or any(name in names for name in tensors)

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
            grams = self._grams(family.top, 1, self.b, only)
            return [{family.top.name: BlockLinear(nearest(grams, family.top.kind), family.top.kind)}]
        orders = self._orders(family, mixing, only)
        proposals = []
        for order in orders:
            elements: Elements = dict(order)
            for group in mixing:
                elements[group.name] = self._within(group, order, only)
            proposals.append(elements)
        return proposals + self._scaled(family, orders, only)

    def _orders(self, family: _Family, mixing: Sequence[Group], only: frozenset[str] | None) -> list[Elements]:
        plain = [g for g in family.groups if not g.kind.mixes]
        evidence = {g.name: e for g in plain if (e := self._evidence(g, mixing, only)) is not None}
        if not mixing:
            solution = assign_groups(plain, evidence, self.signs, self.backend)
            self._note(solution.worst_gap)
            return [dict(solution.elements)]
        answers: list[Elements] = [{g.name: following(g, self._identity(family)) for g in plain}]
        for tables in self._tables(family, plain, mixing, only):
            known = dict(evidence)
            for name, table in tables.items():
                own = evidence.get(name)
                known[name] = Evidence(table if own is None else table + own.gain(False))
            solution = assign_groups(plain, known, False, self.backend)
            self._note(solution.worst_gap)
            answers.append(dict(solution.elements))
        return answers

    def _tables(
        self, family: _Family, plain: Sequence[Group], mixing: Sequence[Group], only: frozenset[str] | None
    ) -> list[dict[str, Tensor]]:
        """What the mixing groups say of the order of blocks, and of units that change places within them.

        One answer by the gain of the best matrices, one by circuits, and one by the rows of units as they stand.
        """
        names = frozenset(self.a) if only is None else only
        gains: dict[str, Tensor] = {}
        circuits: dict[str, Tensor] = {}
        plainly: dict[str, Tensor] = {}
        for group in mixing:
            assert isinstance(group.structure, Wreath)
            carried = carriers(self.spec, group, [g for g in plain if g is not family.top])
            if carried:
                nested = Nested(self.spec, group, carried, names)
                outer, inner = nested.gains(self.a, self.b)
                _add(gains, {family.top.name: outer, **{n: flat(t) for n, t in inner.items()}})
                _add(circuits, {n: flat(t) for n, t in nested.circuits(self.a, self.b).items()})
                _add(plainly, {n: flat(t) for n, t in nested.plain(self.a, self.b).items()})
                continue
            one, two = (in_blocks(m, group.structure.blocks) for m in self._products(group, only))
            _add(gains, {family.top.name: gain_table(one, two, group.kind)})
            _add(circuits, {family.top.name: circuit_table(one, two, group.kind) / _circuit_size(self, group, only)})
        return [gains, circuits, plainly] if plainly else [gains, circuits]

    def _identity(self, family: _Family) -> Elements:
        elements: Elements = {}
        for group in family.groups:
            elements[group.name] = following(group, elements)
        return elements

    def _within(self, group: Group, order: Elements, only: frozenset[str] | None) -> BlockLinear:
        assert isinstance(group.structure, Wreath)
        outer = order[group.structure.outer]
        assert isinstance(outer, ScaledPermutation)
        names = dict.fromkeys(b.tensor for b in self.spec.of(group.name) if b.tensor in self.b)
        moved = {n: act(self.b[n], self.spec.on(n), order) for n in names}
        grams = self._grams(group, group.structure.blocks, moved, only)
        return BlockLinear(nearest(grams, group.kind), group.kind, outer.perm)

    def _scaled(self, family: _Family, orders: Sequence[Elements], only: frozenset[str] | None) -> list[Elements]:
        """The same orders with the best factors, for a flat group that may scale its units."""
        top = family.top
        if not top.kind.scales or family.inner:
            return []
        found: list[Elements] = []
        for order in orders:
            element = order[top.name]
            assert isinstance(element, ScaledPermutation)
            sums = [m.diagonal()[:, None, None] for m in self._own(top, only)]
            one, two = (m.gather(1, element.perm.unsqueeze(1))[:, :, None] for m in self._products(top, only))
            grams = Grams(one, two, sums[0][element.perm], sums[1][element.perm])
            kind = Kind.INVERTIBLE if top.kind.signs and self.signs else Kind.POSITIVE
            found.append({top.name: ScaledPermutation(element.perm, nearest(grams, kind).reshape(-1))})
        return found

    def _evidence(self, group: Group, mixing: Sequence[Group], only: frozenset[str] | None) -> Evidence | None:
        """Similarity of units, without the entries that a mixing group within them compares."""
        covered = {(b.tensor, b.axis): b.positions for g in mixing for b in self.spec.of(g.name)}
        odd = even = None
        for b in self.spec.of(group.name):
            if b.tensor not in self.a or (only is not None and b.tensor not in only):
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

    def _grams(self, group: Group, blocks: int, b: Mapping[str, Tensor], only: frozenset[str] | None) -> Grams:
        """What `nearest` needs when each block of A is compared with the same block of `b`."""
        here = torch.arange(blocks)
        both, own = (self._summed(group, only, left, b) for left in (self.a, b))
        return Grams(*(in_blocks(m, blocks)[here, here] for m in (*both, *own)))

    def _note(self, gap: float | None) -> None:
        if gap is not None:
            self.worst_gap = gap if self.worst_gap is None else max(self.worst_gap, gap)


def _add(sums: dict[str, Tensor], tables: Mapping[str, Tensor]) -> None:
    for name, table in tables.items():
        sums[name] = sums[name] + table if name in sums else table


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
