r"""A Newton step of all factors together, in their logarithms (algorithm 7.1 of [nocedal2006numerical]).

With \(x\) the logarithms of the factors and \(s\) their sums on the entries, \(\sum a e^{-s} + b e^{s}\) has the
gradient \(b - a\) and the curvature \(a + b\) on the entries. Conjugate gradients solve for the step: only products
with the curvature are needed, each as cheap as one look at every entry.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pyalign.matching.slices import total_of
from pyalign.symmetry import AxisBinding

__all__ = ["Logarithms", "newton_step"]

_ROUNDS, _HALVINGS, _LARGEST, _UNSEEN = 60, 10, 3.0, 1e-6

Vectors = dict[str, Tensor]
"""One number for each unit, by group."""
Entries = Mapping[str, Tensor]
"""Numbers on the entries of tensors, by tensor."""


class Logarithms:
    """The linear map from logarithms of factors to their sums on the entries of tensors, and its transpose.

    Args:
        sizes: Number of units by group.
        bindings: Where the factors of each group act.
        shapes: Shape of each tensor.
        device: Where the tensors are; there the logarithms are too.
    """

    def __init__(
        self,
        sizes: Mapping[str, int],
        bindings: Mapping[str, Sequence[AxisBinding]],
        shapes: Mapping[str, Sequence[int]],
        device: torch.device | str = "cpu",
    ) -> None:
        self.sizes, self._device = sizes, device
        self._on = [
            (group, binding, _units_of(binding, shapes[binding.tensor]).to(device))
            for group in sizes
            for binding in bindings[group]
        ]

    def on_entries(self, vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Sums of the logarithms on the entries of each tensor, of shapes that broadcast to those of the tensors."""
        padded = {group: torch.cat([v, v.new_zeros(1)]) for group, v in vectors.items()}
        found: dict[str, Tensor] = {}
        for group, binding, units in self._on:
            part = padded[group][units] * binding.side.power
            found[binding.tensor] = found[binding.tensor] + part if binding.tensor in found else part
        return found

    def by_unit(self, entries: Entries, squared: bool = False) -> Vectors:
        """The transpose: sums over the entries of each unit, with the sign of its exponent there unless `squared`."""
        zeros = (torch.zeros(size, dtype=torch.float64, device=self._device) for size in self.sizes.values())
        found = dict(zip(self.sizes, zeros, strict=True))
        for group, binding, _ in self._on:
            found[group] += binding.totals(entries[binding.tensor]) * (1 if squared else binding.side.power)
        return found


def newton_step(logarithms: Logarithms, a: Entries, b: Entries) -> Vectors:
    r"""How far to move the logarithms of all factors, from where \(\sum a + b\) is the function; never further up.

    Args:
        logarithms: Which factors act on which entries.
        a: Entries that are divided by the factors, by tensor, float64.
        b: Entries that are multiplied by them.

    Returns:
        The steps by group, shapes (units,), float64, of at most 3; zeros where none leads down.

    Source:
        [nocedal2006numerical], algorithm 7.1 (line search Newton-CG).
    """
    gradient = logarithms.by_unit({name: b[name] - a[name] for name in a})
    step = _solved(logarithms, {name: a[name] + b[name] for name in a}, gradient)
    peaks = [s.abs().max() for s in step.values() if len(s)]
    largest = float(torch.stack(peaks).max()) if peaks else 0.0
    size = min(1.0, _LARGEST / max(largest, 1e-300))
    for _ in range(_HALVINGS):
        trial = {group: size * s for group, s in step.items()}
        # Of the smallest steps rounding hides the gain; these are where the function is as good as its Taylor series.
        if size * largest < _UNSEEN or _rise(logarithms.on_entries(trial), a, b) <= 0:
            return trial
        size /= 2
    return {group: torch.zeros_like(s) for group, s in step.items()}


def _solved(logarithms: Logarithms, curvature: Entries, gradient: Vectors) -> Vectors:
    """Conjugate gradients on the diagonally scaled curvature, until the rest is small beside the gradient."""
    diagonal = {group: d.clamp_min(1e-300) for group, d in logarithms.by_unit(curvature, squared=True).items()}
    step = {group: torch.zeros_like(g) for group, g in gradient.items()}
    rest = {group: -g for group, g in gradient.items()}
    scaled = {group: r / diagonal[group] for group, r in rest.items()}
    way, now = scaled, _dot(rest, scaled)
    enough = 1e-8 * now
    for _ in range(_ROUNDS):
        on_entries = logarithms.on_entries(way)
        curved = logarithms.by_unit({name: curvature[name] * s for name, s in on_entries.items()})
        bend = _dot(way, curved)
        if now <= enough or bend <= 0:
            break
        length = now / bend
        step = {group: s + length * way[group] for group, s in step.items()}
        rest = {group: r - length * curved[group] for group, r in rest.items()}
        scaled = {group: r / diagonal[group] for group, r in rest.items()}
        before, now = now, _dot(rest, scaled)
        way = {group: s + now / before * way[group] for group, s in scaled.items()}
    return step


def _rise(moves: Entries, a: Entries, b: Entries) -> float:
    """How much the function rises; infinite where it leaves what numbers can hold."""
    rise = total_of([(a[name] * torch.expm1(-s) + b[name] * torch.expm1(s)).sum() for name, s in moves.items()])
    return rise if rise == rise else float("inf")


def _dot(one: Vectors, two: Vectors) -> float:
    return total_of([torch.dot(v, two[group]) for group, v in one.items()])


def _units_of(binding: AxisBinding, shape: Sequence[int]) -> Tensor:
    """The unit that each entry of a tensor belongs to, the number of units where it is none; broadcasts to `shape`."""
    units, length = len(binding.positions), shape[binding.axis]
    owner = torch.full((binding.blocks * length,), units)
    owner[binding.positions] = torch.arange(units).unsqueeze(1)
    sizes = [1] * len(shape)
    sizes[binding.axis] = length
    if binding.blocks > 1:
        sizes[0] = shape[0]
        owner = owner.reshape(binding.blocks, length).repeat_interleave(shape[0] // binding.blocks, 0)
    return owner.reshape(sizes)
