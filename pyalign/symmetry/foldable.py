"""Which scales of norms can be moved into the weights that read them, and each tensor as it is then.

What reads a scale is found in the computation: the axes of weights that may be divided by what the scale is multiplied
by. The computation needs no weights; the scales themselves are looked at, since a zero cannot be divided by.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pyalign.symmetry.calls import state_of
from pyalign.symmetry.copies import copy_of
from pyalign.symmetry.derive import UNUSED, solved
from pyalign.symmetry.tracing.hashing import IntArray
from pyalign.symmetry.tracing.scales import Scales
from pyalign.symmetry.tracing.ties import ParameterAxis, Ties

__all__ = ["FoldPlan", "FoldedScale", "multiplied", "plan_fold"]

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class FoldedScale:
    """A scale that can be folded.

    Args:
        readers: The (tensor, axis) that take it up.
        shift: The bias that is added after it and is divided by it, or "".
        offset: What is added to the stored value (1 where a scale is stored as its difference from one).
    """

    readers: tuple[tuple[str, int], ...]
    shift: str = ""
    offset: float = 0.0


@dataclass(frozen=True)
class FoldPlan:
    """What folding does to each tensor of an architecture.

    Args:
        scales: The scales by name.
        left: Scales that stay, and why.
        untied: Names that share a tensor with another and have one of their own after folding.
    """

    scales: dict[str, FoldedScale]
    left: dict[str, str] = field(default_factory=dict)
    untied: tuple[str, ...] = ()

    @property
    def notes(self) -> tuple[str, ...]:
        """The scales that stay, each with the reason."""
        return tuple(f"{name} stays: {why}" for name, why in self.left.items())

    @property
    def touched(self) -> frozenset[str]:
        """Names of all tensors that folding changes."""
        readers = {tensor for one in self.scales.values() for tensor, _ in one.readers}
        return frozenset(readers | set(self.scales) | {one.shift for one in self.scales.values() if one.shift})

    def folded(self, name: str, state: State, dtype: torch.dtype = torch.float64) -> Tensor:
        """A tensor after folding; no other but the scales that concern it is read.

        Args:
            name: Its name.
            state: The weights before folding; of names in `untied` under both names.
            dtype: In which products are computed, and of the answer where the tensor is touched.
        """
        if name in self.scales:
            return torch.full_like(state[name], 1 - self.scales[name].offset, dtype=dtype)
        tensor = state[name]
        for scale, one in self.scales.items():
            for axis in [axis for reader, axis in one.readers if reader == name]:
                tensor = multiplied(tensor.to(dtype), axis, self._factor(scale, state))
            if one.shift == name:
                tensor = multiplied(tensor.to(dtype), 0, 1 / self._factor(scale, state))
        return tensor

    def _factor(self, scale: str, state: State) -> Tensor:
        return state[scale].double() + self.scales[scale].offset


def plan_fold(model: nn.Module, example_inputs: Any, states: Sequence[State]) -> tuple[nn.Module, FoldPlan]:
    """Find the scales that can be folded in all of several states of one architecture.

    Args:
        model: The architecture; its weights may be absent. It is not changed.
        example_inputs: One batch, as for `derive`.
        states: Weights by name, of which only vectors are read.

    Returns:
        The model, or a copy of it in which tied weights are parted where that lets more scales be folded (its
        configuration then says so), and the plan.
    """
    found, left = _foldable(model, example_inputs, states)
    tied = _tied(model)
    if left and tied:
        parted = copy_of(model)
        _untie(parted, tied)
        more, rest = _foldable(parted, example_inputs, states)
        if len(more) > len(found):
            return parted, FoldPlan(more, rest, tuple(tied))
    return model, FoldPlan(found, left)


def _foldable(model: nn.Module, inputs: Any, states: Sequence[State]) -> tuple[dict[str, FoldedScale], dict[str, str]]:
    """The scales that can be folded, and why others cannot."""
    ties, units = solved(model, inputs)
    scales, state = Scales(ties, units), state_of(model)
    shifts = {int(a.reshape(-1)[0]): int(b.reshape(-1)[0]) for a, b in ties.shifts}
    at: dict[int, set[int]] = defaultdict(set)
    for number, axis in enumerate(ties.axes):
        for node in np.unique(scales.node[axis.start : axis.start + axis.size]).tolist():
            at[node].add(number)
    found: dict[str, FoldedScale] = {}
    left: dict[str, str] = {}
    idle = _idle(ties)
    for axis in ties.axes:
        if axis.buffer or axis.blocks > 1 or state[axis.tensor].dim() != 1:
            continue
        atoms, offset = ties.offsets.get(axis.start, (np.arange(axis.start, axis.start + axis.size), 0.0))
        if int(atoms[0]) not in ties.factors:
            continue
        produced, consumed = ({n for a in nodes for n in at[int(a)]} for nodes in _nodes(scales, atoms))
        others = {n for n in produced - consumed if ties.axes[n] is not axis}
        shift = next((ties.axes[n] for n in others if shifts.get(axis.start) == ties.axes[n].start), None)
        if any(ties.axes[n] is not shift for n in others):
            if axis.start in shifts:
                left[axis.tensor] = "what it scales is added to other values"
            continue  # a bias, or the scale of a norm of something else
        readers = [ties.axes[n] for n in sorted(consumed)]
        why = _obstacle(scales, atoms, readers, [s[axis.tensor] + offset for s in states])
        if axis.size in idle and not why:
            why = f"{idle[axis.size]} was never used on these inputs and might read it"
        if why:
            left[axis.tensor] = why
        elif readers:
            bound = tuple((r.tensor, r.axis) for r in readers)
            found[axis.tensor] = FoldedScale(bound, "" if shift is None else shift.tensor, offset)
    return found, left


def _idle(ties: Ties) -> dict[int, str]:
    """Matrices whose part in the computation was not seen, by the lengths of their axes."""
    unseen = {int(atoms[0]) for atoms, reason in ties.pins if reason == UNUSED and len(atoms)}
    several = {axis.tensor for axis in ties.axes if axis.axis > 0}
    return {a.size: a.tensor for a in ties.axes if a.start in unseen and a.tensor in several and not a.buffer}


def _nodes(scales: Scales, atoms: IntArray) -> tuple[IntArray, IntArray]:
    """The factors of atoms, and their inverses."""
    return scales.node[atoms], scales.node[atoms + scales.count]


def _obstacle(scales: Scales, atoms: IntArray, readers: list[ParameterAxis], values: Sequence[Tensor]) -> str:
    own, inverse = _nodes(scales, atoms)
    if not all(bool((value != 0).all()) for value in values):
        return "an entry is zero"
    if (own == inverse).any() or not scales.scales[own].all():
        return next(filter(None, map(scales.reason, own.tolist())), "it is read by what it is written to")
    if any(bool((value < 0).any()) for value in values) and not scales.signs[own].all():
        return "it has negative entries, which its readers cannot take"
    for reader in readers:
        here = scales.node[reader.start : reader.start + reader.size]
        if len(here) != len(inverse) or (here != inverse).any():
            return f"{reader.tensor} reads it in another order"
    return ""


def multiplied(tensor: Tensor, axis: int, factors: Tensor) -> Tensor:
    """A tensor with the entries along one axis multiplied by factors, shape (length of the axis,)."""
    shape = [1] * tensor.dim()
    shape[axis] = -1
    return tensor * factors.to(tensor.device, tensor.dtype).reshape(shape)


def _tied(model: nn.Module) -> list[str]:
    """Names that share a parameter with an earlier one."""
    first: dict[int, str] = {}
    return [n for n, p in model.named_parameters(remove_duplicate=False) if first.setdefault(id(p), n) != n]


def _untie(model: nn.Module, names: list[str]) -> None:
    for name in names:
        place, _, last = name.rpartition(".")
        owner = model.get_submodule(place)
        setattr(owner, last, nn.Parameter(getattr(owner, last).detach().clone()))
    config: Any = getattr(model, "config", None)
    if getattr(config, "tie_word_embeddings", False):
        config.tie_word_embeddings = False
