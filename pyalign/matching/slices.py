"""The units' slices of a group's tensors, laid out side by side once: a similarity is then a gather and a product."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyalign.symmetry import AxisBinding, ScaledPermutation

__all__ = ["Part", "Slices", "changed", "precision", "rounding"]

CHUNK = 1 << 16  # entries that are multiplied in float64 at once: what stays in the cache

Elements = Mapping[str, ScaledPermutation]


def precision(*tensors: Tensor) -> torch.dtype:
    """What products of these tensors are computed in: float32, or float64 for float64 weights."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def rounding(dtype: torch.dtype, terms: int) -> float:
    r"""The bound \(\gamma\) of an inner product of so many terms: its error is at most \(\gamma \|a\| \|b\|\)."""
    return (terms + 2) * torch.finfo(dtype).eps / 2


@dataclass(frozen=True, eq=False)
class Part:
    """One binding of a group, and what else moves on its tensor.

    Args:
        binding: The binding; its group occurs on no other axis of the tensor.
        others: Bindings on one other axis of the tensor, or none.
        counted: Whether the tensor's part of the objective is summed here.
    """

    binding: AxisBinding
    others: tuple[AxisBinding, ...]
    counted: bool


class Slices:
    """The features of one group's units, rows of a matrix per model, while other groups reorder and sign them.

    The first rows are those of tensors on which no other group moves; their similarity is computed once. For the rest
    a moved unit of another group exchanges some rows, and only their products are added.

    Args:
        size: Units of the group.
        parts: What is laid out.
        a: Tensors of model A.
        b: Tensors of model B.
    """

    def __init__(self, size: int, parts: Sequence[Part], a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> None:
        fixed, moved = [p for p in parts if not p.others], [p for p in parts if p.others]
        order = [sorted(part, key=lambda p: not p.counted) for part in (fixed, moved)]
        tensors = [state[p.binding.tensor] for p in parts for state in (a, b)]
        dtype, device = precision(*tensors), tensors[0].device
        self._fixed = _Rows(size, order[0], a, b, dtype, device)
        self._moved = _Rows(size, order[1], a, b, dtype, device)
        self._links = _links(order[1], a)
        self._index = torch.arange(len(self._moved.a), device=device)
        self._scale: Tensor | None = None
        self._last: dict[str, ScaledPermutation | None] = dict.fromkeys(self._links)
        self._constant: Tensor | None = None
        self._similarity: Tensor | None = None
        self.error = 0.0

    @property
    def groups(self) -> Collection[str]:
        """The groups that the similarity depends on."""
        return self._links.keys()

    def squares(self) -> tuple[Tensor, Tensor]:
        """Sums of squares of each unit in A and in B, shapes (n,), float64."""
        one, two = ([torch.linalg.vector_norm(m, dim=0) for m in side] for side in (self._sides_a(), self._sides_b()))
        return sum(n.double().square().cpu() for n in one), sum(n.double().square().cpu() for n in two)  # type: ignore[return-value]

    def aligned(self) -> Tensor:
        """Inner product of each unit of A with that of B in the same place, nothing moved, shape (n,), float64."""
        pairs = zip(self._sides_a(), self._sides_b(), strict=True)
        return sum((torch.einsum("fn,fn->n", one, two).double().cpu() for one, two in pairs))  # type: ignore[return-value]

    def constant(self) -> Tensor:
        """The similarity by what no other group moves, shape (n, n)."""
        if self._constant is None:
            self._constant = self._fixed.a.T @ self._fixed.b
        return self._constant

    def similarity(self, elements: Elements) -> Tensor:
        """Units of A by units of B, shape (n, n), the other groups at these elements; valid until the next call."""
        places, before, factor = self._follow(elements)
        if self._similarity is None or 3 * len(places) >= 2 * len(self._index):
            rows = self._moved.b.index_select(0, self._index)
            rows = rows if self._scale is None else rows.mul_(self._scale.unsqueeze(1))
            self._similarity = torch.addmm(self.constant(), self._moved.a.T, rows)
            self.error = rounding(rows.dtype, len(self._fixed.a) + len(rows))
        elif len(places):
            now, old = self._moved.b.index_select(0, self._index[places]), self._moved.b.index_select(0, before)
            if self._scale is not None:
                now, old = now * self._scale[places].unsqueeze(1), old * factor.unsqueeze(1)
            self._similarity.addmm_(self._moved.a.index_select(0, places).T, now.sub_(old))
            self.error += 2 * rounding(now.dtype, len(places))
        return self._similarity

    def rise(self, before: ScaledPermutation, after: ScaledPermutation, units: Tensor) -> float:
        """What moving the group itself adds to the objective, in float64: only these units have changed."""
        total = 0.0
        for element, sign in ((after, 1.0), (before, -1.0)):
            columns, factor = element.perm[units], None if element.scale is None else element.scale[units]
            for one, two in self._pairs(units, columns, counted=False):
                total += sign * _inner(one, two, factor)
        return total

    def counted(self, element: ScaledPermutation) -> float:
        """The objective's part of the counted tensors, in float64, the other groups as last followed."""
        units = torch.arange(element.size)
        return sum(_inner(one, two, element.scale) for one, two in self._pairs(units, element.perm, counted=True))

    def follow(self, elements: Elements) -> None:
        """Take over the other groups' elements without computing the similarity, which is begun anew when needed."""
        if len(self._follow(elements)[0]):
            self._similarity = None

    def _sides_a(self) -> tuple[Tensor, Tensor]:
        return self._fixed.a, self._moved.a

    def _sides_b(self) -> tuple[Tensor, Tensor]:
        return self._fixed.b, self._moved.b

    def _pairs(self, units: Tensor, columns: Tensor, counted: bool) -> Iterator[tuple[Tensor, Tensor]]:
        """Rows of A and of the moved B, of some units and those that come to them, a few rows at a time."""
        for rows, moves in ((self._fixed, False), (self._moved, True)):
            stop = rows.counted if counted else len(rows.a)
            step = max(1, CHUNK // max(1, len(units)))
            for at in range(0, stop, step):
                chosen = slice(at, min(at + step, stop))
                two = rows.b.index_select(0, self._index[chosen]) if moves else rows.b[chosen]
                if moves and self._scale is not None:
                    two = two * self._scale[chosen].unsqueeze(1)
                yield rows.a[chosen].index_select(1, units.to(two.device)), two.index_select(1, columns.to(two.device))

    def _follow(self, elements: Elements) -> tuple[Tensor, Tensor, Tensor]:
        """Bring index and factors to these elements; which rows have changed, and their index and factor before."""
        places, rows, factors = [], [], []
        for group, links in self._links.items():
            element, last = elements[group], self._last[group]
            if element is last:
                continue
            self._last[group] = element
            units = changed(last, element)
            for power, own in links:
                places.append(own[units].reshape(-1))
                rows.append(own[element.perm[units]].reshape(-1))
                factors.append(_factors(element, units, power, own.shape[1]))
        at = torch.cat(places).to(self._index.device) if places else self._index[:0]
        before = self._index[at]
        old = before if self._scale is None else self._scale[at]
        if places:
            self._index[at] = torch.cat(rows).to(self._index.device)
        if self._scale is not None or any(f is not None for f in factors):
            if self._scale is None:
                self._scale = torch.ones(len(self._index), dtype=self._moved.a.dtype, device=self._index.device)
                old = self._scale[at]
            ones = [torch.ones(len(p)) if f is None else f for f, p in zip(factors, places, strict=True)]
            if ones:
                self._scale[at] = torch.cat(ones).to(self._scale)
        return at, before, old


class _Rows:
    """Features by units of both models, those of counted tensors first."""

    def __init__(
        self,
        size: int,
        parts: Sequence[Part],
        a: Mapping[str, Tensor],
        b: Mapping[str, Tensor],
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        lengths = [a[p.binding.tensor].numel() // a[p.binding.tensor].shape[p.binding.axis] for p in parts]
        lengths = [f * p.binding.positions.shape[1] for f, p in zip(lengths, parts, strict=True)]
        self.counted = sum(f for f, p in zip(lengths, parts, strict=True) if p.counted)
        self.a, self.b = (torch.empty(sum(lengths), size, dtype=dtype, device=device) for _ in "ab")
        for state, out in ((a, self.a), (b, self.b)):
            for part, rows in zip(parts, out.split(lengths), strict=True):
                _lay_out(part.binding, state[part.binding.tensor], rows)


def _lay_out(binding: AxisBinding, tensor: Tensor, rows: Tensor) -> None:
    here = binding.positions
    if here.shape[1] == 1 and torch.equal(here[:, 0], torch.arange(tensor.shape[binding.axis])):
        last = tensor.movedim(binding.axis, -1)
        rows.view(last.shape).copy_(last)
    else:
        rows.copy_(binding.unfold(tensor).T)


def _links(parts: Sequence[Part], state: Mapping[str, Tensor]) -> dict[str, list[tuple[int, Tensor]]]:
    """For each other group and power of its factors, the rows that each of its units owns, shape (units, rows)."""
    found: dict[tuple[str, int], list[Tensor]] = {}
    at = 0
    for part in parts:
        axis, runs = part.binding.axis, part.binding.positions.shape[1]
        shape = list(state[part.binding.tensor].shape)
        shape[axis] = runs
        length = torch.Size(shape).numel()
        # `unfold` puts the runs of the units first and leaves the other axes in their order
        rows = torch.arange(at, at + length).reshape(runs, *shape[:axis], *shape[axis + 1 :]).movedim(0, axis)
        for other in part.others:
            units = rows.index_select(other.axis, other.positions.reshape(-1)).movedim(other.axis, 0)
            owned = units.reshape(other.positions.shape[0], -1)
            found.setdefault((other.group, other.side.power), []).append(owned)
        at += length
    links: dict[str, list[tuple[int, Tensor]]] = {}
    for (group, power), owned_rows in found.items():
        links.setdefault(group, []).append((power, torch.cat(owned_rows, 1)))
    return links


def changed(before: ScaledPermutation | None, after: ScaledPermutation) -> Tensor:
    """The slots where two elements differ (all for None), ascending."""
    if before is None:
        before = ScaledPermutation.identity(after.size)
    differ = before.perm != after.perm
    if before.scale is not None or after.scale is not None:
        ones = torch.ones(after.size, dtype=torch.float64)
        one, two = (ones if e.scale is None else e.scale for e in (before, after))
        differ |= one != two
    return differ.nonzero().squeeze(1)


def _factors(element: ScaledPermutation, units: Tensor, power: int, rows: int) -> Tensor | None:
    if element.scale is None or power == 0:
        return None
    return (element.scale[units] ** power).repeat_interleave(rows)


def _inner(one: Tensor, two: Tensor, factor: Tensor | None) -> float:
    if factor is None:
        return float(torch.dot(one.double().reshape(-1), two.double().reshape(-1)))
    return float(torch.dot((one.double() * two.double()).sum(0).cpu(), factor))
