"""Scales of norms moved into the weights that read them, so that the stream before may be turned as a whole.

A norm without mean, x / |x|, commutes with every orthogonal matrix; its scale does not. Multiplying the columns of all
readers by the scale and setting the scale to one changes no output (Theus et al. 2025, section 3).

Theus et al. turn a LayerNorm into an RMSNorm: the mean is taken out of every writer of the stream, the scale and the
shift go into the readers. Here the LayerNorm stays, so that the model keeps its class and its checkpoints load:
subtracting the mean commutes with the orthogonal matrices that leave the vector of ones where it is, so nothing needs
to be centred; and the shift, divided by the scale, is one more vector that is added to the stream's coordinates and
turns with them, so readers without a bias (a tied or bare head) need none. All that is lost is the one dimension of the
mean, which no LayerNorm lets through: the class is `Kind.CENTRED` instead of `Kind.ORTHOGONAL`.

A scale that is stored as its difference from one (Gemma) is set to zero.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pyalign.symmetry.calls import state_of
from pyalign.symmetry.copies import copy_of
from pyalign.symmetry.derive import solved
from pyalign.symmetry.tracing.hashing import IntArray
from pyalign.symmetry.tracing.scales import Scales
from pyalign.symmetry.tracing.ties import ParameterAxis

__all__ = ["Folding", "fold"]


@dataclass(frozen=True, eq=False)
class Folding:
    """A model whose norms have no scales of their own, and how to go back.

    Args:
        model: The folded model: same class, same function.
        scales: The scales that were folded, by name, as they were.
        readers: For each folded scale the (tensor, axis) that took it up.
        shifts: For the scale of a LayerNorm its bias, which was divided by it.
        offsets: For each scale what is added to the stored value.
        untied: Names that shared a tensor before and have one of their own now.
        notes: Scales that were left, and why.
    """

    model: nn.Module
    scales: dict[str, Tensor]
    readers: dict[str, tuple[tuple[str, int], ...]]
    shifts: dict[str, str] = field(default_factory=dict)
    offsets: dict[str, float] = field(default_factory=dict)
    untied: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=())

    @property
    def constants(self) -> tuple[str, ...]:
        """The parameters that are constant now: `derive(model, inputs, constants=...)`."""
        return tuple(self.scales)

    def unfold(self) -> nn.Module:
        """The model with its scales where they were; tensors that were untied stay so."""
        model = copy_of(self.model)
        state = state_of(model)
        with torch.no_grad():
            for name, stored in self.scales.items():
                scale = stored.double() + self.offsets[name]
                for tensor, axis in self.readers[name]:
                    _multiply(state[tensor], axis, 1 / scale)
                if name in self.shifts:
                    _multiply(state[self.shifts[name]], 0, scale)
                state[name].copy_(stored)
        return model


def fold(model: nn.Module, example_inputs: Any) -> Folding:
    """Fold the scales of RMSNorms and LayerNorms into their readers.

    Which weights read a scale is found in the computation: those that may be divided by what the scale is multiplied
    by. A scale is folded if nothing but it and its readers would change, and if none of its entries is zero. An output
    matrix that is tied to the embedding is untied where a scale is read by it (the model's configuration, if it has
    one, then says so). The model given is not changed.

    Args:
        model: The model, such as a Llama of Hugging Face.
        example_inputs: One batch, as for `derive`.

    Returns:
        The folded model, of the same class, with what is needed to derive its symmetry and to go back.

    Source:
        Theus et al. 2025 (arXiv 2506.22712), section 3 and appendix.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 6), nn.RMSNorm(6), nn.Linear(6, 3)).double()
        >>> with torch.no_grad():
        ...     _ = model[1].weight.copy_(torch.rand(6) + 0.5)
        >>> folded, x = fold(model, torch.randn(2, 4).double()), torch.randn(5, 4).double()
        >>> folded.constants, torch.allclose(folded.model(x), model(x))
        (('1.weight',), True)
    """
    found, left = _foldable(model, example_inputs)
    copied = copy_of(model)
    untied: tuple[str, ...] = ()
    tied = _tied(copied)
    if left and tied:
        _untie(copied, tied)
        more, rest = _foldable(copied, example_inputs)
        if len(more) > len(found):
            found, left, untied = more, rest, tuple(tied)
        else:
            copied = copy_of(model)
    state, scales = state_of(copied), {}
    with torch.no_grad():
        for name, one in found.items():
            scales[name] = state[name].detach().clone()
            factor = scales[name].double() + one.offset
            for tensor, axis in one.readers:
                _multiply(state[tensor], axis, factor)
            if one.shift:
                _multiply(state[one.shift], 0, 1 / factor)
            state[name].fill_(1 - one.offset)
    return Folding(
        copied,
        scales,
        {n: one.readers for n, one in found.items()},
        {n: one.shift for n, one in found.items() if one.shift},
        {n: one.offset for n, one in found.items()},
        untied,
        tuple(f"{name} stays: {why}" for name, why in left.items()),
    )


@dataclass(frozen=True)
class _Found:
    """A scale that can be folded: who reads it, the bias added after it, what is added to the stored value."""

    readers: tuple[tuple[str, int], ...]
    shift: str = ""
    offset: float = 0.0


def _foldable(model: nn.Module, inputs: Any) -> tuple[dict[str, _Found], dict[str, str]]:
    """The scales that can be folded, and why others cannot."""
    ties, units = solved(model, inputs)
    scales, state = Scales(ties, units), state_of(model)
    shifts = {int(a.reshape(-1)[0]): int(b.reshape(-1)[0]) for a, b in ties.shifts}
    at: dict[int, set[int]] = defaultdict(set)
    for number, axis in enumerate(ties.axes):
        for node in np.unique(scales.node[axis.start : axis.start + axis.size]).tolist():
            at[node].add(number)
    found: dict[str, _Found] = {}
    left: dict[str, str] = {}
    for axis in ties.axes:
        if axis.buffer or axis.blocks > 1 or len(state[axis.tensor].shape) != 1:
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
        why = _obstacle(scales, atoms, readers, state[axis.tensor] + offset)
        if why:
            left[axis.tensor] = why
        elif readers:
            bound = tuple((r.tensor, r.axis) for r in readers)
            found[axis.tensor] = _Found(bound, "" if shift is None else shift.tensor, offset)
    return found, left


def _nodes(scales: Scales, atoms: IntArray) -> tuple[IntArray, IntArray]:
    """The factors of atoms, and their inverses."""
    return scales.node[atoms], scales.node[atoms + scales.count]


def _obstacle(scales: Scales, atoms: IntArray, readers: list[ParameterAxis], value: Tensor) -> str:
    own, inverse = _nodes(scales, atoms)
    if not bool((value != 0).all()):
        return "an entry is zero"
    if (own == inverse).any() or not scales.scales[own].all():
        return next(filter(None, map(scales.reason, own.tolist())), "it is read by what it is written to")
    if bool((value < 0).any()) and not scales.signs[own].all():
        return "it has negative entries, which its readers cannot take"
    for reader in readers:
        here = scales.node[reader.start : reader.start + reader.size]
        if len(here) != len(inverse) or (here != inverse).any():
            return f"{reader.tensor} reads it in another order"
    return ""


def _multiply(tensor: Tensor, axis: int, factors: Tensor) -> None:
    shape = [1] * tensor.dim()
    shape[axis] = -1
    tensor.copy_(tensor.double() * factors.reshape(shape))


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
