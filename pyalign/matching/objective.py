"""The objective of weight matching and its partial sums: which unit goes with which, all other groups held still."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pyalign.matching.assign import Evidence
from pyalign.matching.slices import Slices
from pyalign.symmetry import AxisBinding, Role, ScaledPermutation, SymmetrySpec
from pyalign.symmetry.actions import act

__all__ = ["Elements", "Objective", "Term"]

Elements = Mapping[str, ScaledPermutation]

KEPT = 1 << 21  # tensors of up to so many entries are kept in float64, twice for every axis that moves


@dataclass(eq=False)
class Term:
    """What one binding contributes to the similarity of its group's units.

    Args:
        binding: The binding.
        depends: Groups whose elements the contribution depends on; its cache is dropped when one of them changes.
        relative: Whether the group's own element is applied too and its labels undone afterwards: needed where blocks
            of a tensor move together, and where the group occurs twice (the linearisation at the present element).
        joint: Groups bound to other axes of the same tensor.
    """

    binding: AxisBinding
    depends: tuple[str, ...]
    relative: bool
    joint: frozenset[str]
    stamp: tuple[int, ...] | None = field(default=None, repr=False)
    cached: Tensor | None = field(default=None, repr=False)
    slices: Slices | None = field(default=None, repr=False)


class Objective:
    r"""\(\sum_w \langle A_w, (g B)_w \rangle\) over the matched tensors, in float64, with the present elements g.

    Args:
        spec: The symmetry.
        state_a: Weights of model A by name.
        state_b: Weights of model B by name.
        elements: The elements to begin with.
    """

    def __init__(
        self, spec: SymmetrySpec, state_a: Mapping[str, Tensor], state_b: Mapping[str, Tensor], elements: Elements
    ) -> None:
        self.spec = spec
        names = dict.fromkeys(b.tensor for b in spec.bindings if b.role is Role.MATCHED)
        self.on = {name: spec.on(name) for name in names}
        self.a = {name: state_a[name].detach() for name in names}
        self.b = {name: state_b[name].detach() for name in names}
        self.norms = {n: float(self.a[n].double().norm() * self.b[n].double().norm()) for n in names}
        self.terms = {g: [self._term(b) for b in spec.of(g) if b.tensor in self.on] for g in spec.groups}
        self._fixed: dict[str, tuple[Tensor | None, Tensor | None]] = {}
        self.elements: dict[str, ScaledPermutation] = {}
        self.restart(elements)

    def restart(self, elements: Elements) -> None:
        """Begin anew at other elements."""
        if self.elements and all(_same(element, elements[group]) for group, element in self.elements.items()):
            return
        self.elements = dict(elements)
        self.identity = all(element.is_identity for element in elements.values())
        self.versions = dict.fromkeys(self.spec.groups, 0)
        self.values = {name: self.value(name, self.elements) for name in self.on}
        self.total = sum(self.values.values())
        for term in (t for terms in self.terms.values() for t in terms):
            term.stamp = None

    def value(self, tensor: str, elements: Elements) -> float:
        """One tensor's part of the objective."""
        moved = act(self.b[tensor], self.on[tensor], elements)
        return float(torch.dot(self.a[tensor].double().reshape(-1), moved.double().reshape(-1)))

    def accept(self, changes: Elements) -> bool:
        """Take over elements if the true objective rises by more than rounding; say whether it did."""
        tensors = dict.fromkeys(t.binding.tensor for group in changes for t in self.terms[group])
        trial = {**self.elements, **changes}
        values = {name: self.value(name, trial) for name in tensors}
        rise = sum(values.values()) - sum(self._present_value(name) for name in tensors)
        if rise <= 1e-12 * sum(self.norms[name] for name in tensors):
            return False
        self.values.update(values)
        self.total += rise
        for group, element in changes.items():
            if not _same(self.elements[group], element):
                self.versions[group] += 1
        self.elements, self.identity = trial, False
        return True

    def accept_one(self, group: str, element: ScaledPermutation, evidence: Evidence) -> bool:
        """The same for one group, whose evidence tells the rise where the objective is linear in its element."""
        present = self.elements[group]
        if any(term.relative for term in self.terms[group]) or not (_only_signs(present) and _only_signs(element)):
            return self.accept({group: element})
        tensors = dict.fromkeys(term.binding.tensor for term in self.terms[group])
        rise = evidence.value(element) - evidence.value(present)
        if rise <= 1e-12 * sum(self.norms[name] for name in tensors):
            return False
        for name in tensors:
            self.values.pop(name, None)  # computed again when it is asked for
        self.total += rise
        self.versions[group] += 1
        self.elements, self.identity = {**self.elements, group: element}, False
        return True

    def _present_value(self, tensor: str) -> float:
        if tensor not in self.values:
            self.values[tensor] = self.value(tensor, self.elements)
        return self.values[tensor]

    def evidence(self, group: str) -> Evidence | None:
        """Similarity of the units of a group, the others at their present elements; only stale terms are computed."""
        odd, even = self._fixed_part(group)
        for term in self.terms[group]:
            if term.depends:
                odd, even = _add(term, self.contribution(term), odd, even)
        return _evidence(odd, even)

    def partial(self, group: str, family: frozenset[str]) -> Evidence | None:
        """The same without the tensors that `family` moves along a further axis."""
        odd, even = self._fixed_part(group)
        for term in self.terms[group]:
            if term.depends and not term.joint & family:
                odd, even = _add(term, self.contribution(term), odd, even)
        return _evidence(odd, even)

    def contribution(self, term: Term) -> Tensor:
        """A term's similarity matrix at the present elements, from its cache while nothing it depends on changes."""
        stamp = tuple(self.versions[name] for name in term.depends)
        if term.stamp != stamp or term.cached is None:
            term.cached, term.stamp = self.similarity(term, self.elements), stamp
        return term.cached

    def similarity(self, term: Term, elements: Elements) -> Tensor:
        """A term's similarity matrix at given elements: slots of A by units of B, shape (n, n), float64."""
        slices = self._slices(term)
        if slices is not None:
            return slices.similarity(elements)
        rows_a, rows_b = self._rows(term, elements)
        similarity = rows_a @ rows_b.T
        if not term.relative:
            return similarity
        element = elements[term.binding.group]
        if element.scale is not None and term.binding.side.power:
            similarity = similarity * element.scale.to(similarity.device)
        return torch.empty_like(similarity).index_copy_(1, element.perm.to(similarity.device), similarity)

    def by_slot(self, term: Term, elements: Elements) -> Tensor:
        """What each slot contributes when everything is in place, shape (n,)."""
        moved = act(self.b[term.binding.tensor], self.on[term.binding.tensor], elements)
        return (term.binding.unfold(self.a[term.binding.tensor]).double() * term.binding.unfold(moved).double()).sum(1)

    def cosine(self, group: str) -> float | None:
        """Mean cosine between the matched weights of the units of a group at the present elements."""
        if not self.terms[group]:
            return None
        both, squares_a, squares_b = [torch.zeros(self.spec.groups[group].size, dtype=torch.float64) for _ in range(3)]
        perm = self.elements[group].perm
        plain = all(element.scale is None for element in self.elements.values())
        for term in self.terms[group]:
            slices = self._slices(term)
            if plain and slices is not None:
                if self.identity:
                    both += slices.products
                else:
                    both += self.contribution(term).cpu().gather(1, perm.unsqueeze(1)).squeeze(1)
                squares_a += slices.squares_a
                squares_b += slices.squares_b[perm]
                continue
            name = term.binding.tensor
            moved = act(self.b[name], self.on[name], self.elements)
            rows_a, rows_b = term.binding.unfold(self.a[name]).double(), term.binding.unfold(moved).double()
            both += (rows_a * rows_b).sum(1).cpu()
            squares_a += rows_a.square().sum(1).cpu()
            squares_b += rows_b.square().sum(1).cpu()
        norms = (squares_a * squares_b).sqrt()
        return float(torch.where(norms > 0, both / norms.clamp_min(1e-300), 0.0).mean()) if len(both) else 0.0

    def _slices(self, term: Term) -> Slices | None:
        """The term's slices where they stay what they are while its group moves, and are small enough to keep."""
        name = term.binding.tensor
        if term.slices is None and not term.relative and self.a[name].numel() <= KEPT:
            term.slices = Slices(term.binding, self.on[name], self.a[name], self.b[name])
        return term.slices

    def _rows(self, term: Term, elements: Elements) -> tuple[Tensor, Tensor]:
        binding = term.binding
        if not term.relative:
            elements = {name: e for name, e in elements.items() if name != binding.group}
        moved = act(self.b[binding.tensor], self.on[binding.tensor], elements)
        return binding.unfold(self.a[binding.tensor]).double(), binding.unfold(moved).double()

    def _term(self, binding: AxisBinding) -> Term:
        place = (binding.axis, binding.blocks)
        elsewhere = {b.group for b in self.on[binding.tensor] if (b.axis, b.blocks) != place}
        relative = binding.group in elsewhere or any(b.blocks > 1 for b in self.on[binding.tensor])
        depends = elsewhere | ({binding.group} if relative else set())
        return Term(binding, tuple(sorted(depends)), relative, frozenset(elsewhere))

    def _fixed_part(self, group: str) -> tuple[Tensor | None, Tensor | None]:
        if group not in self._fixed:
            odd = even = None
            for term in self.terms[group]:
                if not term.depends:
                    odd, even = _add(term, self.contribution(term), odd, even)
            self._fixed[group] = (odd, even)
        return self._fixed[group]


def _add(term: Term, matrix: Tensor, odd: Tensor | None, even: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    matrix = matrix.cpu()
    if term.binding.side.power:
        return (matrix if odd is None else odd + matrix), even
    return odd, (matrix if even is None else even + matrix)


def _evidence(odd: Tensor | None, even: Tensor | None) -> Evidence | None:
    if odd is None:
        return None if even is None else Evidence(torch.zeros_like(even), even)
    return Evidence(odd, even)


def _only_signs(element: ScaledPermutation) -> bool:
    return element.scale is None or bool((element.scale.abs() == 1).all())


def _same(first: ScaledPermutation, second: ScaledPermutation) -> bool:
    if first is second:
        return True
    if not torch.equal(first.perm, second.perm):
        return False
    if first.scale is None and second.scale is None:
        return True
    ones = torch.ones(first.size, dtype=torch.float64)
    one, two = (ones if e.scale is None else e.scale for e in (first, second))
    return torch.equal(one, two)
