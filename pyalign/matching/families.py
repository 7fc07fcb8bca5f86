"""Groups in blocks: moving whole blocks together with what lies inside them, in one step of weight matching."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pyalign.engine import linear_assignment
from pyalign.matching.assign import Evidence, children_of, in_blocks, signs_of
from pyalign.matching.layout import Term
from pyalign.matching.objective import Objective, summed
from pyalign.symmetry import Group, Kind, ScaledPermutation, SymmetrySpec, Wreath

__all__ = ["Families", "by_blocks"]


class Families:
    """Which groups lie within the units of which, and the joint update of a group of blocks with its contents.

    Args:
        spec: The symmetry.
        signs: Whether signs are used where a group allows them.
        backend: Implementation of `pyalign.engine.linear_assignment`.
    """

    def __init__(self, spec: SymmetrySpec, signs: bool = True, backend: str = "auto") -> None:
        self.spec, self.signs, self.backend = spec, signs, backend
        self.children = children_of(spec.groups)

    def within(self, group: str) -> list[Group]:
        """All groups within the units of `group`, outer ones first."""
        found = []
        for child in self.children.get(group, []):
            found += [child, *self.within(child.name)]
        return found

    def free(self, group: Group) -> bool:
        """Whether the units of a group may change sign."""
        return self.signs and group.kind.signs

    def joint(self, objective: Objective, outer: Group) -> tuple[dict[str, ScaledPermutation], float]:
        """Propose elements for a group of blocks and everything within, given all groups outside of it.

        Every pairing of blocks is tried: shift s pairs block k with block k + s, the contents of all pairs of a shift
        are optimised at once (alternating where two inner groups meet in one tensor, as in a grouped convolution), and
        the values of the pairs make the table of the outer assignment.

        Returns:
            The proposed elements and the duality gap of the outer assignment.
        """
        inner = self.within(outer.name)
        family = frozenset([outer.name, *(g.name for g in inner)])
        shifts = _shifts(objective.elements, outer)
        known = {g.name: objective.partial(g.name, family) for g in (outer, *inner)}
        coupled = _coupled(objective, family)
        table = torch.zeros(outer.size, outer.size, dtype=torch.float64, device=objective.device)
        slots = torch.arange(outer.size)
        tried: list[dict[str, ScaledPermutation]] = []
        for shift in shifts:
            elements = self._contents(objective, outer, inner, shift, known, coupled)
            values = _slot_values(objective, outer, inner, elements, known, coupled)
            table[slots.to(table.device), shift.to(table.device)] = values
            tried.append(elements)
        own = known[outer.name]
        gain = table if own is None else table + own.gain(self.free(outer)).to(table.device)
        perm, gap = by_blocks(gain, objective.elements, outer, self.backend)
        chosen = (torch.stack(shifts) == perm).long().argmax(0)
        proposal = {g.name: _picked([t[g.name] for t in tried], chosen, outer.size) for g in inner}
        proposal[outer.name] = ScaledPermutation(
            perm, None if own is None else signs_of(own.similarity, perm, self.free(outer))
        )
        return proposal, gap

    def _contents(
        self,
        objective: Objective,
        outer: Group,
        inner: Sequence[Group],
        shift: Tensor,
        known: dict[str, Evidence | None],
        coupled: Sequence[Term],
    ) -> dict[str, ScaledPermutation]:
        """The best inner orders when the blocks go where `shift` says."""
        elements = {**objective.elements, outer.name: ScaledPermutation(shift)}
        paired: dict[str, Evidence | None] = {}
        for group in inner:
            evidence = known[group.name]
            paired[group.name] = None if evidence is None else _paired(evidence, group, elements)
            elements[group.name] = self._best(group, elements, paired[group.name])
        own = [(group, [t for t in coupled if t.binding.group == group.name]) for group in inner]
        for _ in range(2 if coupled else 0):
            for group, terms in own:
                _, place = _place(group, elements)
                parts = [(bool(t.binding.side.power), objective.paired(t, elements, place)) for t in terms]
                alone = paired[group.name]
                both = summed([*(() if alone is None else alone.parts), *parts])
                if both is not None:
                    elements[group.name] = self._best(group, elements, both)
        return elements

    def _best(self, group: Group, elements: dict[str, ScaledPermutation], paired: Evidence | None) -> ScaledPermutation:
        """The best order within the blocks; `paired` compares each with the one that comes there, (blocks, n, n)."""
        blocks, outer = _place(group, elements)
        size = group.size // blocks
        if paired is None or group.kind is Kind.IDENTITY:
            return ScaledPermutation(_put(outer, torch.arange(size)))
        free = self.free(group)
        perm, _ = _within(paired.gain(free), self.backend)
        return ScaledPermutation(_put(outer, perm), signs_of(paired.similarity.flatten(0, 1), perm.reshape(-1), free))


def _place(group: Group, elements: dict[str, ScaledPermutation]) -> tuple[int, Tensor]:
    """The number of blocks of a group, and which comes to each place."""
    structure = group.structure
    assert isinstance(structure, Wreath)
    return structure.blocks, elements[structure.outer].perm


def _paired(evidence: Evidence, group: Group, elements: dict[str, ScaledPermutation]) -> Evidence:
    """Evidence between each block of A and the block of B that comes there, shape (blocks, n, n)."""
    blocks, outer = _place(group, elements)
    even = None if evidence.even is None else _met(evidence.even, blocks, outer)
    return Evidence(_met(evidence.similarity, blocks, outer), even)


def _met(matrix: Tensor, blocks: int, outer: Tensor) -> Tensor:
    """The parts of (units, units) between each block of A and the block of B that comes there, (blocks, n, n)."""
    here = torch.arange(blocks, device=matrix.device)
    return in_blocks(matrix, blocks)[here, outer.to(matrix.device)].contiguous()


def _put(outer: Tensor, within: Tensor) -> Tensor:
    """The permutation of all units, by the block that comes to each place and the order within, (blocks, n) or (n,)."""
    return (outer.unsqueeze(1) * within.shape[-1] + within).reshape(-1)


def _within(gain: Tensor, backend: str) -> tuple[Tensor, float]:
    """The best order within each of many pairs of blocks, (blocks, n), and the largest duality gap."""
    answer = linear_assignment(gain, maximize=True, backend=backend)
    assert isinstance(answer.perm, Tensor) and isinstance(answer.gap, Tensor)
    return answer.perm.cpu(), float(answer.gap.max())


def by_blocks(gain: Tensor, elements: dict[str, ScaledPermutation], group: Group, backend: str) -> tuple[Tensor, float]:
    """The best permutation of a group within the blocks that its outer group has put in place, and its duality gap."""
    if not isinstance(group.structure, Wreath):
        return _within(gain, backend)
    blocks, outer = _place(group, elements)
    perm, gap = _within(_met(gain, blocks, outer), backend)
    return _put(outer, perm), gap


def _shifts(elements: dict[str, ScaledPermutation], outer: Group) -> list[Tensor]:
    """Permutations that together pair every block with every other that it may be exchanged with, the present first."""
    if outer.kind is Kind.IDENTITY:
        return [elements[outer.name].perm]
    blocks = outer.structure.blocks if isinstance(outer.structure, Wreath) else 1
    present = elements[outer.name].perm.reshape(blocks, -1)
    return [present.roll(-s, 1).reshape(-1) for s in range(present.shape[1])]


def _coupled(objective: Objective, family: frozenset[str]) -> list[Term]:
    """The terms on tensors that two groups of the family (or one of them twice) move along different axes."""
    return [t for name in sorted(family) for t in objective.terms[name] if t.joint & family]


def _slot_values(
    objective: Objective,
    outer: Group,
    inner: Sequence[Group],
    elements: dict[str, ScaledPermutation],
    known: dict[str, Evidence | None],
    coupled: Sequence[Term],
) -> Tensor:
    """What each block contributes with its contents in place; a tensor that several groups share counts once."""
    total = torch.zeros(outer.size, dtype=torch.float64, device=objective.device)
    for group in inner:
        evidence = known[group.name]
        if evidence is None:
            continue
        element = elements[group.name]
        perm = element.perm.to(evidence.similarity.device).unsqueeze(1)
        matched = evidence.similarity.gather(1, perm).squeeze(1)
        if element.scale is not None:
            matched = matched * element.scale.to(matched.device)
        if evidence.even is not None:
            matched = matched + evidence.even.gather(1, perm).squeeze(1)
        total += matched.reshape(outer.size, -1).sum(1).to(total.device)
    accountants = {t.binding.tensor: t for t in coupled}
    for term in accountants.values():
        total += objective.by_slot(term, elements).to(total.device).reshape(outer.size, -1).sum(1)
    return total


def _picked(tried: Sequence[ScaledPermutation], chosen: Tensor, blocks: int) -> ScaledPermutation:
    """For each block the element of the shift that was chosen for it."""
    at = torch.arange(blocks)
    perms = torch.stack([e.perm for e in tried]).reshape(len(tried), blocks, -1)[chosen, at].reshape(-1)
    if all(e.scale is None for e in tried):
        return ScaledPermutation(perms)
    ones = torch.ones(len(perms), dtype=torch.float64)
    scales = torch.stack([ones if e.scale is None else e.scale for e in tried])
    return ScaledPermutation(perms, scales.reshape(len(tried), blocks, -1)[chosen, at].reshape(-1))
