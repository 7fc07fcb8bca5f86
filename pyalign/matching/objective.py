"""The objective of weight matching and its partial sums: which unit goes with which, all other groups held still."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from itertools import chain

import torch
from torch import Tensor

from pyalign.matching.assign import Evidence
from pyalign.matching.layout import KEPT, TOTAL, Term, layout_of
from pyalign.matching.slices import Slices, changed, inner, precision, rounding
from pyalign.symmetry import ScaledPermutation, SymmetrySpec
from pyalign.symmetry.actions import act

__all__ = ["Elements", "Objective", "summed"]

Elements = Mapping[str, ScaledPermutation]


class Objective:
    r"""\(\sum_w \langle A_w, (g B)_w \rangle\) over the matched tensors, with the present elements g.

    Similarities are computed in float32 (float64 for float64 weights), with a bound on their error. A change is
    accepted only if the objective rises in float64: where the bound leaves that open, the rise is computed in float64.

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
        self._layout = layout_of(spec, {name: tensor.shape for name, tensor in state_a.items()})
        self.on, self.terms, self.anchoring = self._layout.on, self._layout.terms, self._layout.anchoring
        self.a, self.b = ({name: state[name].detach() for name in self.on} for state in (state_a, state_b))
        self.loose = {g: [t for t in terms if not t.kept] for g, terms in self.terms.items()}
        self.kept = {
            g: {odd: Slices(rows, self.a, self.b) for odd, rows in sides.items()}
            for g, sides in self._layout.rows.items()
        }
        self._similarities: dict[Term, tuple[tuple[ScaledPermutation, ...], Tensor]] = {}
        self._held = 0  # entries of these similarities
        self._norms: dict[str, float] = {}
        self._lengths: dict[str, tuple[Tensor, Tensor]] = {}
        self._values: dict[str, tuple[tuple[ScaledPermutation, ...], float]] = {}
        self.elements: dict[str, ScaledPermutation] = {}
        self.restart(elements)

    @property
    def device(self) -> torch.device:
        """Where the weights are; of a model on several devices, the first of them."""
        return next((tensor.device for tensor in self.a.values()), torch.device("cpu"))

    def restart(self, elements: Elements) -> None:
        """Begin anew at other elements."""
        if self.elements and all(elements[name] is element for name, element in self.elements.items()):
            return
        self.elements = dict(elements)
        self._identity = all(element.is_identity for element in elements.values())
        self._signed = all(self.spec.groups[g].kind.signs or e.scale is None for g, e in elements.items())
        self._signed = self._signed and all(_only_signs(element) for element in elements.values())
        self.total = self.exact()

    def exact(self) -> float:
        """The objective at the present elements, in float64."""
        if not self._signed:
            return sum(self._value(name, self.elements) for name in self.on)
        total = sum(self._value(name, self.elements) for name in self._layout.elsewhere)
        for group, sides in self.kept.items():
            for odd, slices in sides.items():
                slices.follow(self.elements)
                total += slices.counted(_sided(self.elements[group], odd))
        return total

    def value(self, tensor: str, elements: Elements) -> float:
        """One tensor's part of the objective."""
        moved = act(self.b[tensor], self.on[tensor], elements)
        return inner(self.a[tensor].reshape(-1, 1), moved.reshape(-1, 1))

    def accept(self, changes: Elements) -> bool:
        """Take over elements if the objective, computed anew, rises by more than rounding; say whether it did."""
        tensors = dict.fromkeys(t.binding.tensor for group in changes for t in self.terms[group])
        trial = {**self.elements, **changes}
        values = {name: self.value(name, trial) for name in tensors}
        rise = sum(values.values()) - sum(self._value(name, self.elements) for name in tensors)
        if rise <= 1e-12 * sum(self._norm(name) for name in tensors):
            return False
        self.total += rise
        self.elements, self._identity = trial, False
        self._values.update({name: (self._stamp(name), value) for name, value in values.items()})
        return True

    def accept_one(self, group: str, element: ScaledPermutation, evidence: Evidence) -> bool:
        """The same for one group, whose evidence tells the rise where the objective is linear in its element."""
        present = self.elements[group]
        units = changed(present, element)
        if not len(units):
            return False
        if not self._signed or any(term.relative for term in self.terms[group]):
            return self.accept({group: element})
        rise = evidence.value(element, units) - evidence.value(present, units)
        one, two = self.norms(group)
        reach = (one[units] * (two[element.perm[units]] + two[present.perm[units]])).sum()
        if abs(rise) <= self.error(group) * float(reach):
            if self.loose[group]:
                return self.accept({group: element})
            sides = self.kept[group].items()
            rise = sum(s.rise(_sided(present, odd), _sided(element, odd), units) for odd, s in sides)
        if rise <= 1e-12 * float(torch.dot(one, two)):
            return False
        self.total += rise
        self.elements, self._identity = {**self.elements, group: element}, False
        return True

    def error(self, group: str) -> float:
        """A bound on the error of a similarity of two units, as a fraction of the product of their norms."""
        tensors = ((self.a[term.binding.tensor], term.features) for term in self.loose[group])
        loose = [rounding(precision(tensor), features, tensor.device) for tensor, features in tensors]
        return sum(loose) + sum(slices.error for slices in self.kept.get(group, {}).values())

    def depends(self, group: str) -> set[str]:
        """The groups whose elements change the similarity of this one's units."""
        return {name for term in self.terms[group] for name in term.depends}

    def evidence(self, group: str) -> Evidence | None:
        """Similarity of the units of a group, the others at their present elements; only what is stale is computed."""
        return self._evidence(group, self.loose[group])

    def known(self, group: str, elements: Elements, settled: AbstractSet[str], even: Tensor | None) -> Evidence | None:
        """Similarity by the tensors on which only settled groups move besides, and (`even`) by what has no sign."""
        kept = ((odd, slices.known(elements, settled)) for odd, slices in self.kept.get(group, {}).items())
        terms = (term for term in self.loose[group] if term.known(settled))
        loose = ((self._layout.odd(term.binding), self.similarity(term, elements)) for term in terms)
        return summed(chain(kept, loose, ((not self.spec.groups[group].kind.signs, even),)))

    def partial(self, group: str, family: frozenset[str]) -> Evidence | None:
        """The same without the tensors that `family` moves along a further axis."""
        return self._evidence(group, [term for term in self.loose[group] if not term.joint & family])

    def contribution(self, term: Term) -> Tensor:
        """A term's similarity matrix at the present elements; unless large, kept while what it depends on stays."""
        stamp, known = tuple(self.elements[name] for name in term.depends), self._similarities.get(term)
        if known is not None and known[0] == stamp:
            return known[1]
        similarity = self.similarity(term, self.elements)
        if known is None:
            if similarity.numel() > KEPT or self._held + similarity.numel() > TOTAL:
                return similarity
            self._held += similarity.numel()
        self._similarities[term] = stamp, similarity
        return similarity

    def similarity(self, term: Term, elements: Elements) -> Tensor:
        """A term's similarity matrix at given elements: slots of A by units of B, shape (n, n)."""
        rows_a, rows_b = self._rows(term, elements)
        similarity = rows_a @ rows_b.T
        if not term.relative:
            return similarity
        element = elements[term.binding.group]
        if element.scale is not None and term.binding.side.power:
            similarity = similarity * element.scale.to(similarity)
        return torch.empty_like(similarity).index_copy_(1, element.perm.to(similarity.device), similarity)

    def paired(self, term: Term, elements: Elements, outer: Tensor) -> Tensor:
        """The same between each block of slots of A and the block of B that comes there only, (blocks, n, n).

        Args:
            term: A term whose group lies in the blocks of another.
            elements: Elements of all groups; those of this one put its blocks where `outer` says.
            outer: The block of B that comes to each place, shape (blocks,).
        """
        element, blocks = elements[term.binding.group], len(outer)
        rows_a, rows_b = (rows.reshape(blocks, -1, rows.shape[1]) for rows in self._rows(term, elements))
        if not term.relative:
            return rows_a @ rows_b[outer.to(rows_b.device)].mT
        similarity = rows_a @ rows_b.mT
        size = similarity.shape[1]
        if element.scale is not None and term.binding.side.power:
            similarity = similarity * element.scale.to(similarity).reshape(blocks, 1, size)
        within = (element.perm.reshape(blocks, size) - outer.unsqueeze(1) * size).to(similarity.device)
        return torch.empty_like(similarity).scatter_(2, within.unsqueeze(1).expand_as(similarity), similarity)

    def by_slot(self, term: Term, elements: Elements) -> Tensor:
        """What each slot contributes when everything is in place, shape (n,), float64."""
        moved = act(self.b[term.binding.tensor], self.on[term.binding.tensor], elements)
        return (term.binding.unfold(self.a[term.binding.tensor]).double() * term.binding.unfold(moved).double()).sum(1)

    def cosine(self, group: str) -> float | None:
        """Mean cosine between the matched weights of the units of a group at the present elements."""
        if not self.terms[group]:
            return None
        if not self._signed:
            return self._moved_cosine(group)
        norms_a, norms_b = self.norms(group)
        both = torch.zeros(len(norms_a), dtype=torch.float64)  # vectors of a few numbers a unit come to the host
        if self._identity:
            for slices in self.kept.get(group, {}).values():
                both += slices.aligned()
        else:
            element, kept = self.elements[group], self._evidence(group, [])
            norms_b = norms_b[element.perm]
            both += 0.0 if kept is None else kept.by_slot(element).cpu()
        for term in self.loose[group]:  # their similarities would be whole products, of which this needs a diagonal
            both += self.by_slot(term, self.elements).cpu()
        norms = norms_a * norms_b
        return float(torch.where(norms > 0, both / norms.clamp_min(1e-300), 0.0).mean()) if len(both) else 0.0

    def norms(self, group: str) -> tuple[Tensor, Tensor]:
        """Norms of the units of A and of B, in their own order, shapes (n,), float64."""
        if group not in self._lengths:
            pairs = [slices.squares() for slices in self.kept.get(group, {}).values()]
            for term in self.loose[group]:
                rows = [term.binding.unfold(state[term.binding.tensor]) for state in (self.a, self.b)]
                pairs.append(tuple(torch.linalg.vector_norm(r, dim=1, dtype=torch.float64).cpu() ** 2 for r in rows))
            one, two = (torch.stack(side).sum(0).sqrt() for side in zip(*pairs, strict=True))
            self._lengths[group] = one, two
        return self._lengths[group]

    def _moved_cosine(self, group: str) -> float:
        """The same from the moved tensors themselves, whatever the elements are."""
        sums = torch.zeros(3, self.spec.groups[group].size, dtype=torch.float64)
        for term in self.terms[group]:
            name = term.binding.tensor
            moved = act(self.b[name], self.on[name], self.elements)
            one, two = (term.binding.unfold(t).double() for t in (self.a[name], moved))
            sums += torch.stack([(one * two).sum(1), one.square().sum(1), two.square().sum(1)]).cpu()
        norms = (sums[1] * sums[2]).sqrt()
        return float(torch.where(norms > 0, sums[0] / norms.clamp_min(1e-300), 0.0).mean()) if sums.shape[1] else 0.0

    def _evidence(self, group: str, terms: list[Term]) -> Evidence | None:
        kept = ((odd, slices.similarity(self.elements)) for odd, slices in self.kept.get(group, {}).items())
        return summed(chain(kept, ((self._layout.odd(term.binding), self.contribution(term)) for term in terms)))

    def _norm(self, tensor: str) -> float:
        """Product of the norms of a tensor in both models."""
        if tensor not in self._norms:
            sides = [torch.linalg.vector_norm(state[tensor], dtype=torch.float64) for state in (self.a, self.b)]
            self._norms[tensor] = float(sides[0] * sides[1])
        return self._norms[tensor]

    def _value(self, tensor: str, elements: Elements) -> float:
        stamp = self._stamp(tensor)
        if self._values.get(tensor, ((), 0.0))[0] != stamp:
            self._values[tensor] = stamp, self.value(tensor, elements)
        return self._values[tensor][1]

    def _stamp(self, tensor: str) -> tuple[ScaledPermutation, ...]:
        return tuple(self.elements[binding.group] for binding in self.on[tensor])

    def _rows(self, term: Term, elements: Elements) -> tuple[Tensor, Tensor]:
        binding, a = term.binding, self.a[term.binding.tensor]
        if not term.relative:
            elements = {name: e for name, e in elements.items() if name != binding.group}
        moved = act(self.b[binding.tensor], self.on[binding.tensor], elements)
        dtype = precision(a, moved)
        return binding.unfold(a).to(dtype), binding.unfold(moved).to(dtype)


def summed(parts: Iterable[tuple[bool, Tensor | None]]) -> Evidence | None:
    """Evidence from similarities that change sign with a unit (True) and others; they are asked for one at a time.

    It lies where the first of them does: where the models are. (Of a model on several devices the others follow.)
    """
    sums: dict[bool, Tensor] = {}
    for odd, matrix in parts:
        if matrix is not None:
            matrix = matrix.to(next(iter(sums.values()), matrix).device)
            sums[odd] = sums[odd] + matrix if odd in sums else matrix
        del matrix
    if not sums:
        return None
    return Evidence(sums[True] if True in sums else torch.zeros_like(sums[False]), sums.get(False))


def _sided(element: ScaledPermutation, odd: bool) -> ScaledPermutation:
    return element if odd or element.scale is None else ScaledPermutation(element.perm)


def _only_signs(element: ScaledPermutation) -> bool:
    return element.scale is None or bool((element.scale.abs() == 1).all())
