r"""Factors of matched units: those at which two networks are nearest, each moved halfway towards the other.

With \(m\) the product of the factors on an entry, \(\sum (a / \sqrt m - \sqrt m b)^2 = \sum a^2 / m + m b^2 - 2 a b\).
It is the same from either side, unlike the distance \(\sum (a - m b)^2\), which shrinks units that agree little. It is
convex in the logarithms of the factors, and each has a closed form while the others are held still. Where many groups
in a row must move together that comes nearer in small steps only, so after each sweep all move jointly by a Newton
step (`pyalign.matching.newton`). Products \(a b\) do not depend on factors, so neither do the permutations that
maximise them.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pyalign.matching.newton import Logarithms, newton_step
from pyalign.matching.slices import total_of
from pyalign.statistics.home import home
from pyalign.symmetry import AxisBinding, Group, Role, ScaledPermutation, SymmetrySpec
from pyalign.symmetry.actions import act

__all__ = ["NEARER", "halfway"]

NEARER = 0.9
"""Factors are kept where they leave at most this part of the squared distance: permutations alone are exact in any
precision, and between networks from different seeds factors that only follow the noise of the norms gain nothing."""

SWEEPS, ENOUGH = 200, 1e-9  # and how far a logarithm moves that counts as not at all


def halfway(
    spec: SymmetrySpec,
    a: Mapping[str, Tensor],
    b: Mapping[str, Tensor],
    elements: Mapping[str, ScaledPermutation],
    products: float,
) -> Mapping[str, ScaledPermutation]:
    r"""The elements with factors where units may be scaled, if these bring the two networks nearer.

    Args:
        spec: The symmetry.
        a: Weights of model A by name.
        b: Weights of model B by name.
        elements: Permutations and signs that move B.
        products: \(\sum a b\) over the matched tensors, with B moved by them.

    Returns:
        New elements, or `elements` themselves.
    """
    if not any(group.kind.scales for group in spec.groups.values()):
        return elements
    pair = _Energies(spec, a, b, elements)
    before = pair.total - 2 * products
    if before <= 1e-9 * pair.total or not pair.descend(products, NEARER * before):
        return elements
    return {name: _scaled(element, pair.factors.get(name)) for name, element in elements.items()}


class _Energies:
    """Squares of the weights of both models, summed over all axes without units, as the factors found so far move them.

    They live on the device of the weights, or on the host where they would not fit beside these.

    Args:
        spec: The symmetry.
        a: Weights of model A by name.
        b: Weights of model B by name.
        elements: Permutations and signs that move B.
    """

    def __init__(
        self,
        spec: SymmetrySpec,
        a: Mapping[str, Tensor],
        b: Mapping[str, Tensor],
        elements: Mapping[str, ScaledPermutation],
    ) -> None:
        self.groups = {name: group for name, group in spec.groups.items() if group.kind.scales}
        self.bindings = {name: [b for b in spec.of(name) if _counts(b)] for name in self.groups}
        self.factors = {name: torch.ones(group.size, dtype=torch.float64) for name, group in self.groups.items()}
        moved = dict.fromkeys(binding.tensor for own in self.bindings.values() for binding in own)
        size = sum(2 * 8 * a[name].numel() for name in moved)
        self._home = next((home(a[name].device, size) for name in moved), torch.device("cpu"))
        self.a: dict[str, Tensor] = {}
        self.b: dict[str, Tensor] = {}
        self.rest = 0.0  # of the tensors that no factor touches
        for name in dict.fromkeys(binding.tensor for binding in spec.bindings if binding.role is Role.MATCHED):
            here = [binding for binding in spec.on(name) if binding.group in self.groups and _counts(binding)]
            if not here:
                self.rest += sum(float(_energy(state[name], [])) for state in (a, b))
                continue
            self.a[name] = _energy(a[name], here).to(self._home)
            if any(binding.blocks > 1 for binding in spec.on(name)):  # fibres move with the rows of their blocks
                self.b[name] = _energy(act(b[name], spec.on(name), elements), here).to(self._home)
            else:
                self.b[name] = act(_energy(b[name], here).to(self._home), here, elements, 2)
        shapes = {name: energy.shape for name, energy in self.a.items()}
        sizes = {name: group.size for name, group in self.groups.items()}
        self._logarithms = Logarithms(sizes, self.bindings, shapes, self._home)

    @property
    def total(self) -> float:
        """The sum of all squares, those of A over the factors and those of B times them."""
        return self.rest + total_of([t.sum() for side in (self.a, self.b) for t in side.values()])

    def descend(self, products: float, enough: float) -> bool:
        """Set the factors of one group after the other, then all together, until none changes.

        Whether the distance fell below `enough`.

        It is given up once a sweep gains so little that a hundred like it would not lead there.
        """
        distance = self.total - 2 * products
        for _ in range(SWEEPS):
            moved = max(self._step(group) for group in self.groups.values())
            if moved >= ENOUGH:
                self._joint()
            before, distance = distance, self.total - 2 * products
            if moved < ENOUGH or distance - 100 * (before - distance) > enough:
                break
        return distance <= enough

    def _step(self, group: Group) -> float:
        """The best factors of a group, the others held still; how far the logarithm of any of them moved."""
        above, below = torch.zeros(2, group.size, dtype=torch.float64, device=self._home)
        bindings = self.bindings[group.name]
        for binding in bindings:
            of_a, of_b = (binding.totals(side[binding.tensor]) for side in (self.a, self.b))
            above += of_a if binding.side.power > 0 else of_b
            below += of_b if binding.side.power > 0 else of_a
        twice = len({binding.tensor for binding in bindings}) < len(bindings)  # then both sides move with its factors
        rise = torch.where((above > 0) & (below > 0), (above / below).log(), 0.0).cpu() / (4 if twice else 2)
        step = {group.name: ScaledPermutation(torch.arange(group.size), rise.exp())}
        for name in {binding.tensor: None for binding in bindings}:
            here = [binding for binding in bindings if binding.tensor == name]
            self.a[name], self.b[name] = act(self.a[name], here, step, -1), act(self.b[name], here, step)
        self.factors[group.name] *= rise.exp()
        return float(rise.abs().max())

    def _joint(self) -> None:
        """Move the factors of all groups together by a Newton step."""
        steps = newton_step(self._logarithms, self.a, self.b)
        for name, rise in self._logarithms.on_entries(steps).items():
            self.a[name], self.b[name] = self.a[name] / rise.exp(), self.b[name] * rise.exp()
        for group, rise in steps.items():
            self.factors[group] *= rise.exp().cpu()


def _counts(binding: AxisBinding) -> bool:
    """Whether factors change the entries of a matched tensor through this binding."""
    return binding.role is Role.MATCHED and binding.side.power != 0


def _energy(tensor: Tensor, bindings: list[AxisBinding]) -> Tensor:
    """Squares in float64, summed over the axes that no binding needs, which keep the length 1."""
    needed = {binding.axis for binding in bindings} | ({0} if any(b.blocks > 1 for b in bindings) else set())
    others = [axis for axis in range(tensor.dim()) if axis not in needed]
    squares = tensor.square() if tensor.dtype.itemsize >= 4 else tensor.float().square()
    return squares.sum(others, keepdim=True, dtype=torch.float64) if others else squares.double()


def _scaled(element: ScaledPermutation, factors: Tensor | None) -> ScaledPermutation:
    if factors is None:
        return element
    return ScaledPermutation(element.perm, factors if element.scale is None else element.scale * factors)
