"""The units' slices of one tensor in two models, laid out once: a similarity is then one gather and one product."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pyalign.symmetry import AxisBinding, ScaledPermutation
from pyalign.symmetry.actions import axis_map

__all__ = ["Slices"]

SMALL = 1 << 20  # multiplications that take no longer than looking for what has moved


class Slices:
    """What one binding sees of a tensor, while the groups on the other axes reorder and scale the features.

    Args:
        binding: The binding whose units are compared; its group occurs nowhere else on the tensor.
        bindings: All bindings of the tensor, none of them on blocks.
        a: The tensor in model A.
        b: The tensor in model B.
    """

    def __init__(self, binding: AxisBinding, bindings: Sequence[AxisBinding], a: Tensor, b: Tensor) -> None:
        rows_a, rows_b = binding.unfold(a).double(), binding.unfold(b).double()
        self._a, self._b = rows_a.T.contiguous(), rows_b.T.contiguous()  # (features, units)
        pairs = ((rows_a, rows_a), (rows_b, rows_b), (rows_a, rows_b))
        self.squares_a, self.squares_b, self.products = [(one * two).sum(1).cpu() for one, two in pairs]
        self._last: tuple[Tensor, Tensor] | None = None
        self._runs = binding.positions.shape[1]
        self._shape = [length for axis, length in enumerate(a.shape) if axis != binding.axis]
        self._moved = []
        for axis in sorted({b.axis for b in bindings} - {binding.axis}):
            here = [b for b in bindings if b.axis == axis]
            self._moved.append((axis - (axis > binding.axis), here, a.shape[axis]))

    def similarity(self, elements: Mapping[str, ScaledPermutation]) -> Tensor:
        """Units of A by units of B, shape (n, n), float64, the other groups at the given elements."""
        index, scale = self._features(elements)
        if scale is not None:
            moved = self._b if index is None else self._b[index.to(self._b.device)]
            return self._a.T @ (moved * scale.to(moved.device).unsqueeze(1))
        if self._a.numel() * self._a.shape[1] <= SMALL:
            return self._a.T @ (self._b if index is None else self._b.index_select(0, index.to(self._b.device)))
        index = torch.arange(len(self._b)) if index is None else index
        similarity = self._updated(index)
        self._last = index, similarity
        return similarity

    def _updated(self, index: Tensor) -> Tensor:
        """The similarity for features in this order: where few have moved, the last one with those exchanged."""
        if self._last is not None:
            before, similarity = self._last
            places = (index != before).nonzero().squeeze(1)
            if 2 * len(places) <= len(index):
                new, old = index[places].to(self._b.device), before[places].to(self._b.device)
                return similarity + self._a[places.to(self._a.device)].T @ (self._b[new] - self._b[old])
        return self._a.T @ self._b.index_select(0, index.to(self._b.device))

    def _features(self, elements: Mapping[str, ScaledPermutation]) -> tuple[Tensor | None, Tensor | None]:
        """Which feature comes to each place, and its factor, shapes (features,); None where nothing moves."""
        index = scale = None
        for axis, bindings, length in self._moved:
            here = [b for b in bindings if b.group in elements]
            moved, factors = axis_map(here, elements, length)
            if moved is not None:
                places = self._places() if index is None else index
                index = places.index_select(axis, moved)
            if factors is not None:
                factors = factors.reshape([-1 if at == axis else 1 for at in range(len(self._shape))])
                scale = factors if scale is None else scale * factors
        if scale is not None:
            scale = scale.expand(self._shape).reshape(-1).repeat(self._runs)
        if index is not None:
            index = index.reshape(-1)
            if self._runs > 1:
                index = (index + len(index) * torch.arange(self._runs).unsqueeze(1)).reshape(-1)
        return index, scale

    def _places(self) -> Tensor:
        return torch.arange(self._b.shape[0] // self._runs).reshape(self._shape)
