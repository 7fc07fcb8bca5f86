"""The tensors of two models, read one at a time: from state dicts in memory or from checkpoints on disk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from pyalign.matching.slices import CHUNK, total_of
from pyalign.symmetry import AxisBinding, Role, ScaledPermutation, SymmetrySpec, Transform
from pyalign.symmetry.actions import act

__all__ = ["Pair", "moved_by"]

Elements = Mapping[str, Transform]


class Pair:
    """Model A and model B, moved by elements, tensor by tensor; nothing is kept.

    Reorderings and signs are exact in every dtype and are applied in that of the weights, everything else in float64.

    Args:
        spec: The symmetry.
        state_a: Weights of model A by name; anything that reads a tensor when it is asked for, as `StateReader` does.
        state_b: Weights of model B by name.
    """

    def __init__(self, spec: SymmetrySpec, state_a: Mapping[str, Tensor], state_b: Mapping[str, Tensor]) -> None:
        self.spec, self._states = spec, (state_a, state_b)
        self.names = tuple(dict.fromkeys(b.tensor for b in spec.bindings if b.role is Role.MATCHED))
        self._known = frozenset(self.names)

    def of(self, group: str, only: frozenset[str] | None = None) -> dict[str, list[AxisBinding]]:
        """The matched tensors of a group (those among `only`), with its bindings on each."""
        found: dict[str, list[AxisBinding]] = {}
        for b in self.spec.of(group):
            if b.tensor in self._known and (only is None or b.tensor in only):
                found.setdefault(b.tensor, []).append(b)
        return found

    def rows(
        self, group: str, elements: Elements, only: frozenset[str] | None = None, precise: bool = False
    ) -> Iterator[tuple[AxisBinding, Tensor, Tensor]]:
        """For each binding of a group the units' rows in A and in B as it stands, (units, features).

        They are float32, or float64 for float64 weights and, if `precise`, for float32 weights. (Weights of half
        precision have no more digits than float32 products keep.)
        """
        for name, bindings in self.of(group, only).items():
            a, b = self.both(name, elements, precise)
            for binding in bindings:
                yield binding, binding.unfold(a), binding.unfold(b)

    def both(self, name: str, elements: Elements, precise: bool = False) -> tuple[Tensor, Tensor]:
        """A tensor of A and the same of B at the given elements, in the precision of products."""
        a = self._read(0, name)
        half = a.dtype in (torch.bfloat16, torch.float16)
        dtype = torch.float64 if a.dtype == torch.float64 or (precise and not half) else torch.float32
        return a.to(dtype), self.moved(name, elements).to(dtype)

    def moved(self, name: str, elements: Elements) -> Tensor:
        """A tensor of B at the given elements."""
        return moved_by(elements, self._read(1, name), self.spec.on(name))

    def _read(self, which: int, name: str) -> Tensor:
        """A tensor of A (0) or B (1); that of experts in a list is put together."""
        state, parts = self._states[which], self.spec.stacks.get(name)
        return state[name].detach() if parts is None else torch.stack([state[part].detach() for part in parts])

    def size(self, name: str) -> float:
        """The squared norm of a tensor of A, summed in float64."""
        return total_of([x.double().square().sum() for x in _pieces(self._read(0, name))])

    def cost(self, name: str, elements: Elements) -> float:
        """The squared distance of a tensor of A from that of B at the given elements, summed in float64."""
        a, b = self._read(0, name), self.moved(name, elements)
        return total_of([(x.double() - y).square().sum() for x, y in zip(_pieces(a), _pieces(b), strict=True)])


def moved_by(elements: Elements, tensor: Tensor, bindings: tuple[AxisBinding, ...], power: int = 1) -> Tensor:
    """A tensor moved by elements: in its own dtype where that is exact, else in float64."""
    exact = all(_exact(elements[b.group]) for b in bindings if b.group in elements)
    return act(tensor if exact else tensor.double(), bindings, elements, power)


def _exact(element: Transform) -> bool:
    """Whether an element only reorders units and changes signs."""
    if not isinstance(element, ScaledPermutation):
        return False
    return element.scale is None or bool((element.scale.abs() == 1).all())


def _pieces(tensor: Tensor) -> tuple[Tensor, ...]:
    return tuple(tensor.reshape(-1).split(CHUNK))
