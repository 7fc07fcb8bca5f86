"""The loss at a point of a curve: the weighted sum of its control points, run by `torch.func.functional_call`."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from pyalign import engine
from pyalign.errors import InputError
from pyalign.paths.curves import Curve
from pyalign.paths.losses import mean_loss
from pyalign.statistics.batches import split
from pyalign.statistics.batchnorm import running_statistics
from pyalign.statistics.forward import respond
from pyalign.statistics.spectral import iterated, power_vectors
from pyalign.symmetry.copies import copy_of

__all__ = ["Attack", "CurveObjective", "Loss", "Point", "Pull", "called", "digest", "runnable"]

Loss = Callable[[Any, Any], Any]
Attack = Callable[[nn.Module, Any, Any], Any]
Pull = Callable[[list[Tensor], float], None]


class Point(nn.Module):
    """A module that runs with other tensors than its own."""

    def __init__(self, module: nn.Module, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.module, self.values = module, dict(values)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the module with the values in place of its tensors."""
        return functional_call(self.module, self.values, args, kwargs)


class CurveObjective:
    r"""\(\mathbb{E}_t [L(\phi(t)) + \tfrac{\lambda}{2} \|\phi(t)\|^2]\) over the inner control points of a curve.

    Args:
        curve: The curve; its inner control points are changed in place.
        model: A module of the architecture, whose copy runs; its parameters are not used.
        loss: As for `pyalign.curve`.
        weight_decay: As for `pyalign.curve`.
        attack: As for `pyalign.curve`.
        precision: As for `pyalign.curve`.
        seed: Of the draws of t.
        pull: Called with the inner control points and the learning rate after every step.
    """

    def __init__(
        self, curve: Curve, model: nn.Module, *, loss: Loss | None = None, weight_decay: float = 0.0,
        attack: Attack | None = None, precision: torch.dtype | None = None, seed: int = 0, pull: Pull | None = None,
    ) -> None:  # fmt: skip
        if not 0.0 <= weight_decay < math.inf:
            raise InputError("no such weight decay", given=f"weight_decay={weight_decay!r}", expected="0 or more")
        self.curve, self.custom, self.weight_decay, self.attack = curve, loss, weight_decay, attack
        self.precision, self.pull = precision, pull
        self.module = runnable(model, curve.control_point(0))
        kept = running_statistics(self.module) | power_vectors(self.module)
        self.moving = {n for n in curve.line.states[0] if n not in kept}
        self.inner = [[b.detach().requires_grad_() for b in point] for point in curve.inner]
        self.generator = torch.Generator().manual_seed(seed)
        self.t: float | None = None

    @property
    def parameters(self) -> list[Tensor]:
        """The buffers of all inner control points, which share memory with the curve."""
        return [buffer for point in self.inner for buffer in point]

    def loss(self, batch: Any, index: int, scale: float) -> Tensor:
        """The loss of a batch at a new t."""
        inputs, targets = split(batch)
        t = self.t = float(torch.rand((), generator=self.generator, dtype=torch.float64))
        if self.attack is not None:
            with torch.no_grad():
                values = self.values(t, 0.0)
            inputs = self.attack(Point(self.module, values), inputs, targets)
        return self.at(t, inputs, targets, index, scale)

    def at(self, t: float, inputs: Any, targets: Any, index: int, scale: float = 1.0) -> Tensor:
        """The loss of inputs at t; in the backward pass the weight decay of the point joins its gradient."""
        point = Point(self.module, self.values(t, self.weight_decay * scale))
        device = self.parameters[0].device.type
        with torch.autocast(device, self.precision, enabled=self.precision is not None):
            return mean_loss(respond(point, inputs, index), targets, self.custom, index)

    def values(self, t: float, decay: float) -> dict[str, Tensor]:
        """The tensors of the point at t, with gradients back to the inner control points."""
        weights = self.curve.weights(t)
        # The ends come first and without gradients: they lie in many tensors, which nobody packs together.
        ends = self.curve.between((weights[0], weights[-1]))
        scales = [1.0, *weights[1:-1]]
        buffers = [engine.permuted_sum(list(tensors), scales) for tensors in zip(ends, *self.inner, strict=True)]
        if decay:
            for buffer in buffers:
                if buffer.requires_grad:
                    buffer.register_hook(_decaying(buffer.detach(), decay))
        values = self.curve.layout.unpack(buffers)
        if self.moving:
            with torch.no_grad():
                line = self.curve.line.sum((1.0 - t, t))
            values |= {name: tensor for name, tensor in line.items() if name in self.moving}
        return values

    def stepped(self, lr: float) -> None:
        """Pull the control points, where that was asked for."""
        if self.pull is not None:
            with torch.no_grad():
                self.pull(self.parameters, lr)

    def tensors(self) -> dict[str, Tensor]:
        """Inner control points, and the module's buffers, which some layers change as they run."""
        bends = {f"bend{i}": buffer for i, buffer in enumerate(self.parameters)}
        return {**bends, **{f"buffer.{name}": buffer for name, buffer in self.module.named_buffers()}}

    def record(self) -> dict[str, Any]:
        """What identifies the objective."""
        ends = [digest([*end.values(), *self.curve.frozen(i).values()]) for i, end in enumerate(self.curve.ends)]
        about = {"kind": self.curve.kind, "bends": self.curve.bends, "weight_decay": self.weight_decay}
        return {**about, "ends": ends, "attack": called(self.attack), "loss": called(self.custom, "default")}


def runnable(model: nn.Module, values: Mapping[str, Tensor]) -> nn.Module:
    """A copy of `model` in training mode, for `Point`: its own parameters are views of `values` and take no memory."""
    module = iterated(copy_of(model).train())
    for layer in module.modules():
        if isinstance(layer, (nn.Embedding, nn.EmbeddingBag)):
            layer.sparse = False  # a sparse gradient cannot join those of the other tensors in one buffer
    for name, parameter in module.named_parameters():
        if name in values:
            parameter.data = values[name]
    return module


def _decaying(point: Tensor, decay: float) -> Callable[[Tensor], None]:
    def hook(gradient: Tensor) -> None:
        # In place: the gradient was just put together out of its parts by the split, nobody else holds it, and a second
        # copy would be a whole set of weights.
        gradient.add_(point, alpha=decay)

    return hook


def called(thing: Any, otherwise: str = "None") -> str:
    """What a loss or an attack is called, alike in every process: its text without addresses in memory.

    Example:
        >>> called(None, "default"), called(torch.relu), called(nn.MSELoss())
        ('default', '<built-in method relu of type object>', 'MSELoss()')
    """
    return otherwise if thing is None else re.sub(r" at 0x[0-9a-fA-F]+", "", repr(thing))


def digest(tensors: list[Tensor]) -> str:
    """A digest of the bits of tensors."""
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()[:16]
