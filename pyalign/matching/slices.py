"""The units' slices of a group's tensors, laid out side by side once: a similarity is then a gather and a product."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet

import numpy as np
import torch
from torch import Tensor

from pyalign.engine.cuda import tf32_allowed
from pyalign.engine.permuted_lerp import permuted_dots
from pyalign.matching.layout import Array, Rows
from pyalign.symmetry import ScaledPermutation

__all__ = ["Slices", "changed", "inner", "precision", "rounding", "total_of"]

CHUNK = 1 << 18  # entries that are multiplied in float64 at once
TF32_EPS = 2.0**-10  # ten bits after the point

Elements = Mapping[str, ScaledPermutation]


def precision(*tensors: Tensor) -> torch.dtype:
    """What products of these tensors are computed in: float32, or float64 for float64 weights."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def rounding(dtype: torch.dtype, terms: float, device: torch.device) -> float:
    r"""A bound on the error of an inner product of so many terms, as a fraction of \(\|a\| \|b\|\).

    \(\lambda \sqrt{n} u\) with \(\lambda = 8\), which rounding errors of mean zero exceed once in \(10^{13}\) products
    [higham2019new]. Where torch's flag allows TF32 on a GPU, products of float32 have its precision.
    """
    short = device.type == "cuda" and dtype == torch.float32 and tf32_allowed()
    return 4.0 * (TF32_EPS if short else float(torch.finfo(dtype).eps)) * math.sqrt(terms)


def changed(before: ScaledPermutation, after: ScaledPermutation) -> Array:
    """The slots where two elements differ, ascending."""
    differ = before.perm.numpy() != after.perm.numpy()
    if before.scale is not None or after.scale is not None:
        one, two = (1.0 if e.scale is None else e.scale.numpy() for e in (before, after))
        differ |= one != two
    return np.flatnonzero(differ)


def inner(one: Tensor, two: Tensor, factor: Tensor | None = None) -> float:
    """The inner product of two matrices in float64, the columns times factors, few rows at a time."""
    parts, step = [], max(1, CHUNK // max(1, one.shape[1]))
    factor = None if factor is None else factor.to(one.device)
    for x, y in zip(one.split(step), two.split(step), strict=True):
        if factor is None:
            parts.append(torch.dot(x.double().reshape(-1), y.double().reshape(-1)))
        else:
            parts.append(torch.dot((x.double() * y.double()).sum(0), factor))
    return total_of(parts)


def total_of(numbers: Sequence[Tensor]) -> float:
    """The sum of single float64 numbers of one device, one after the other; they come to the host together."""
    total = 0.0
    for number in torch.stack(list(numbers)).cpu().tolist() if len(numbers) > 1 else map(float, numbers):
        total += number
    return total


class Slices:
    """The features of one group's units, rows of a matrix per model, while other groups reorder and sign them.

    The first rows are those of tensors on which no other group moves; their similarity is computed once. For the rest
    a moved unit of another group exchanges some rows, and only their products are added.

    Args:
        rows: What is laid out, and where.
        a: Tensors of model A.
        b: Tensors of model B.
    """

    def __init__(self, rows: Rows, a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> None:
        dtype = precision(*(state[part.binding.tensor] for part in rows.parts for state in (a, b)))
        self._a, self._b = (_laid_out(rows, state, dtype) for state in (a, b))
        self._fixed, self._counted, self._links, self._held = rows.fixed, rows.counted, rows.links, rows.held
        self._index = np.arange(len(self._a))
        self._scale: Array | None = None
        self._last = {group: ScaledPermutation.identity(len(rows[0][1])) for group, rows in self._links.items()}
        self._constant: Tensor | None = None
        self._similarity: Tensor | None = None
        self._terms = 0

    @property
    def error(self) -> float:
        """A bound on the error of the present similarity, as a fraction of the norms of the two units."""
        return rounding(self._a.dtype, self._terms, self._a.device)

    def squares(self) -> tuple[Tensor, Tensor]:
        """Sums of squares of each unit in A and in B, shapes (n,), float64."""
        return _by_unit(self._a, self._a), _by_unit(self._b, self._b)

    def aligned(self) -> Tensor:
        """Inner product of each unit of A with that of B in the same place, nothing moved, shape (n,), float64."""
        return _by_unit(self._a, self._b)

    def constant(self) -> Tensor:
        """The similarity by what no other group moves, shape (n, n)."""
        if self._constant is not None:
            return self._constant
        found = self._a[: self._fixed].T @ self._b[: self._fixed]
        if self._held:
            self._constant = found
        return found

    def similarity(self, elements: Elements) -> Tensor:
        """Units of A by units of B, shape (n, n), the other groups at these elements; valid until the next call."""
        if not self._links:
            self._terms = self._fixed
            return self.constant()
        places, before, factors = self._follow(elements)
        moved = len(self._index) - self._fixed
        if self._similarity is None or 3 * len(places) >= 2 * moved:
            rows = self._taken(slice(self._fixed, None))
            self._terms = len(self._index)
            found = torch.addmm(self.constant(), self._a[self._fixed :].T, rows)
            if not self._held:
                return found
            self._similarity = found
        elif len(places):
            old = self._b.index_select(0, self._device(before))
            old = old if factors is None else old.mul_(self._device(factors).unsqueeze(1))
            change = self._taken(places).sub_(old)
            self._similarity.addmm_(self._a.index_select(0, self._device(places)).T, change)
            self._terms += 4 * len(places)  # of the difference of two rows
        return self._similarity

    def known(self, elements: Elements, settled: AbstractSet[str]) -> Tensor | None:
        """The similarity by the rows that only settled groups move, or None where there are none."""
        links = [own.ravel() for group, links in self._links.items() if group in settled for _, own in links]
        if not links:
            return self.constant() if self._fixed else None
        self.follow(elements)
        places = np.sort(np.concatenate(links))
        if len(places) == len(self._index) - self._fixed:  # all of them
            return torch.addmm(self.constant(), self._a[self._fixed :].T, self._taken(slice(self._fixed, None)))
        return torch.addmm(self.constant(), self._a.index_select(0, self._device(places)).T, self._taken(places))

    def follow(self, elements: Elements) -> None:
        """Take over the other groups' elements; the similarity is begun anew when it is asked for."""
        if len(self._follow(elements)[0]):
            self._similarity = None

    def rise(self, before: ScaledPermutation, after: ScaledPermutation, units: Array) -> float:
        """What moving the group itself adds to the objective, in float64: only these units have changed."""
        slots, total = torch.from_numpy(units), 0.0
        one = self._a.index_select(1, self._device(units))
        for element, sign in ((after, 1.0), (before, -1.0)):
            two = self._b.index_select(1, element.perm[slots].to(self._b.device))
            two = self._scaled(two.index_select(0, self._device(self._index)), slice(None))
            total += sign * inner(one, two, None if element.scale is None else element.scale[slots])
        return total

    def counted(self, element: ScaledPermutation) -> float:
        """The objective's part of the counted tensors, in float64, the other groups as last followed."""
        perm, total = element.perm.to(self._b.device), 0.0
        for chosen in self._counted:
            one = self._a[chosen]
            if self._scale is not None:
                one = one * self._device(self._scale[chosen]).unsqueeze(1)
            if element.scale is not None:
                one = one * element.scale.to(one)
            # the rows of a tensor are exchanged among themselves
            rows = self._device(self._index[chosen] - chosen.start)
            total += float(permuted_dots(one, [self._b[chosen]], [(rows, perm)]))
        return total

    def _taken(self, places: Array | slice) -> Tensor:
        """The rows of B that have come to these places, with their factors."""
        return self._scaled(self._b.index_select(0, self._device(self._index[places])), places)

    def _scaled(self, rows: Tensor, places: Array | slice) -> Tensor:
        return rows if self._scale is None else rows.mul_(self._device(self._scale[places]).unsqueeze(1))

    def _device(self, array: Array) -> Tensor:
        return torch.from_numpy(array).to(self._b.device)

    def _follow(self, elements: Elements) -> tuple[Array, Array, Array | None]:
        """Bring index and factors to these elements; which places have changed, and their index and factors before."""
        places: list[Array] = []
        rows: list[Array] = []
        factors: list[Array] = []
        for group, links in self._links.items():
            element, last = elements[group], self._last[group]
            if element is last:
                continue
            self._last[group] = element
            if self._scale is None and element.scale is not None:
                self._scale = np.ones(len(self._index), np.float64 if self._a.dtype == torch.float64 else np.float32)
            units = changed(last, element)
            came = element.perm.numpy()[units]
            for power, own in links:
                places.append(own[units].ravel())
                rows.append(own[came].ravel())
                if self._scale is not None:
                    factors.append(_factors(element, units, power, own.shape[1]))
        if not places:
            return self._index[:0], self._index[:0], None
        at = np.concatenate(places)
        before, old = self._index[at], None if self._scale is None else self._scale[at]
        self._index[at] = np.concatenate(rows)
        if self._scale is not None:
            # a group followed before the first factor came has none
            self._scale[at] = np.concatenate([np.ones(len(at) - sum(map(len, factors))), *factors])
        return at, before, old


def _laid_out(rows: Rows, state: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
    """Features of all parts by units, shape (features, size)."""
    tensors = [state[part.binding.tensor] for part in rows.parts]
    out = torch.empty(sum(rows.lengths), rows.size, dtype=dtype, device=tensors[0].device)
    if rows.vectors:
        out[: rows.vectors] = torch.stack([tensor.to(out.device) for tensor in tensors[: rows.vectors]])
    at = rows.vectors
    for part, tensor in zip(rows.parts[at:], tensors[at:], strict=True):
        into = out[at : at + part.features]
        if part.plain and part.binding.axis == 0:
            into.copy_(tensor.flatten(1).T)  # torch transposes matrices in blocks
        elif part.plain:
            last = tensor.movedim(part.binding.axis, -1)
            into.view(last.shape).copy_(last)
        else:
            into.copy_(part.binding.unfold(tensor).T)
        at += part.features
    return out


def _by_unit(one: Tensor, two: Tensor) -> Tensor:
    """Inner products of the columns of two matrices, shape (n,), float64; NumPy keeps no product of all entries."""
    if one.device.type != "cpu":
        return (one * two).sum(0).double().cpu()
    return torch.from_numpy(np.einsum("ij,ij->j", one.numpy(), two.numpy())).double()


def _factors(element: ScaledPermutation, units: Array, power: int, rows: int) -> Array:
    if element.scale is None or power == 0:
        return np.ones(len(units) * rows)
    factors: Array = np.repeat(element.scale.numpy()[units] ** power, rows)
    return factors
