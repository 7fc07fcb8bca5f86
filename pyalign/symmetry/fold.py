"""Scales of RMSNorm moved into the weights that read them, so that the stream before may be turned as a whole.

A norm without mean, x / |x|, commutes with every orthogonal matrix; its scale does not. Multiplying the columns of all
readers by the scale and setting the scale to one changes no output (Theus et al. 2025, section 3).
"""

from __future__ import annotations

import copy
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pyalign.symmetry.calls import state_of
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
        untied: Names that shared a tensor before and have one of their own now.
        notes: Scales that were left, and why.
    """

    model: nn.Module
    scales: dict[str, Tensor]
    readers: dict[str, tuple[tuple[str, int], ...]]
    untied: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=())

    @property
    def constants(self) -> tuple[str, ...]:
        """The parameters that are one everywhere now: `derive(model, inputs, constants=...)`."""
        return tuple(self.scales)

    def unfold(self) -> nn.Module:
        """The model with its scales where they were; tensors that were untied stay so."""
        model = copy.deepcopy(self.model)
        state = state_of(model)
        with torch.no_grad():
            for name, scale in self.scales.items():
                for tensor, axis in self.readers[name]:
                    _multiply(state[tensor], axis, 1 / scale.double())
                state[name].copy_(scale)
        return model


def fold(model: nn.Module, example_inputs: Any) -> Folding:
    """Fold the scales of RMSNorms into their readers.

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
    copied = copy.deepcopy(model)
    untied: tuple[str, ...] = ()
    tied = _tied(copied)
    if left and tied:
        _untie(copied, tied)
        more, rest = _foldable(copied, example_inputs)
        if len(more) > len(found):
            found, left, untied = more, rest, tuple(tied)
        else:
            copied = copy.deepcopy(model)
    state, scales = state_of(copied), {}
    with torch.no_grad():
        for name, readers in found.items():
            scales[name] = state[name].detach().clone()
            for tensor, axis in readers:
                _multiply(state[tensor], axis, scales[name].double())
            state[name].fill_(1)
    notes = tuple(f"{name} stays: {why}" for name, why in left.items())
    return Folding(copied, scales, {n: tuple(r) for n, r in found.items()}, untied, notes)


def _foldable(model: nn.Module, inputs: Any) -> tuple[dict[str, list[tuple[str, int]]], dict[str, str]]:
    """The readers of every scale that can be folded, and why others cannot."""
    ties, units = solved(model, inputs)
    scales, state = Scales(ties, units), state_of(model)
    at: dict[int, set[int]] = defaultdict(set)
    for number, axis in enumerate(ties.axes):
        for node in np.unique(scales.node[axis.start : axis.start + axis.size]).tolist():
            at[node].add(number)
    found: dict[str, list[tuple[str, int]]] = {}
    left: dict[str, str] = {}
    for axis in ties.axes:
        if axis.buffer or axis.blocks > 1 or len(state[axis.tensor].shape) != 1:
            continue
        atoms = np.arange(axis.start, axis.start + axis.size)
        produced, consumed = ({n for a in nodes for n in at[int(a)]} for nodes in _nodes(scales, atoms))
        if any(ties.axes[n] is not axis for n in produced - consumed):
            continue  # a bias, or the scale of a norm with a bias
        readers = [ties.axes[n] for n in sorted(consumed)]
        why = _obstacle(scales, atoms, readers, state[axis.tensor])
        if why:
            left[axis.tensor] = why
        elif readers:
            found[axis.tensor] = [(r.tensor, r.axis) for r in readers]
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
