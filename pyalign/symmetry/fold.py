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

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pyalign.symmetry.calls import state_of
from pyalign.symmetry.copies import copy_of
from pyalign.symmetry.foldable import multiplied, plan_fold

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
                    state[tensor].copy_(multiplied(state[tensor].double(), axis, 1 / scale))
                if name in self.shifts:
                    shift = state[self.shifts[name]]
                    shift.copy_(multiplied(shift.double(), 0, scale))
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
    parted, plan = plan_fold(model, example_inputs, [state_of(model)])
    copied = copy_of(parted)
    state, before = state_of(copied), state_of(model)
    with torch.no_grad():
        for name in plan.touched:
            state[name].copy_(plan.folded(name, before))
    return Folding(
        copied,
        {name: before[name].detach().clone() for name in plan.scales},
        {n: one.readers for n, one in plan.scales.items()},
        {n: one.shift for n, one in plan.scales.items() if one.shift},
        {n: one.offset for n, one in plan.scales.items()},
        plan.untied,
        plan.notes,
    )
