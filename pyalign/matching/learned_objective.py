"""The loss between A and a B that is moved as it is learnt: what learned matching minimises (Theus et al. 2025)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pyalign.errors import InputError
from pyalign.matching.latents import Latent
from pyalign.paths.losses import mean_loss
from pyalign.paths.point import Loss, Point, digest, runnable
from pyalign.statistics.batches import checked, split
from pyalign.statistics.batchnorm import running_statistics
from pyalign.statistics.forward import respond
from pyalign.symmetry import AxisBinding, Side, SymmetrySpec, state_of
from pyalign.symmetry.groups import fibre

__all__ = ["LearnedObjective", "Sampler", "sampler_of"]

Sampler = Callable[[torch.Generator], float]

JUDGED_AT = (0.25, 0.5, 0.75)
"""Positions at which held-out batches are judged."""


def sampler_of(t: float | tuple[float, float] | Sampler) -> Sampler:
    """The distribution of t: a number, an interval with equal chances, or a function of a generator.

    Raises:
        InputError: A position outside [0, 1].

    Example:
        >>> 0.4 <= sampler_of((0.4, 0.6))(torch.Generator()) <= 0.6
        True
    """
    if callable(t):
        return t
    low, high = t if isinstance(t, tuple) else (t, t)
    if not 0.0 <= low <= high <= 1.0:
        raise InputError("t is drawn from outside the path", given=f"t={t!r}", expected="0 <= low <= high <= 1")

    def draw(generator: torch.Generator) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator, dtype=torch.float64))

    return draw


@dataclass(frozen=True, eq=False)
class _Move:
    """One group on one axis of one tensor.

    Args:
        latent: What is learnt of the group.
        axis: The axis.
        power: What the group's factors are raised to.
        units: How many units the group has.
        index: Where its units sit, None where they fill the axis in order.
        arrived: Whether other groups have moved the blocks before.
        blocks: Of a grouped convolution or of experts, whose axis is a fibre (see `AxisBinding.blocks`), else 1.
    """

    latent: Latent
    axis: int
    power: int
    units: int
    index: Tensor | None
    arrived: bool
    blocks: int

    def __call__(self, tensor: Tensor) -> Tensor:
        first = fibre(tensor, self.axis, self.blocks) if self.blocks > 1 else tensor.movedim(self.axis, 0)
        rows = first if self.index is None else first.index_select(0, self.index)
        acted = self.latent.act(rows.reshape(self.units, -1), self.power, self.arrived).reshape(rows.shape)
        moved = acted if self.index is None else first.index_copy(0, self.index, acted)
        return self._back(moved, tensor) if self.blocks > 1 else moved.movedim(0, self.axis)

    def _back(self, rows: Tensor, like: Tensor) -> Tensor:
        """Entries of fibres where they were."""
        shape = like.movedim(self.axis, 1).shape
        apart = rows.reshape(self.blocks, shape[1], shape[0] // self.blocks, -1).transpose(1, 2)
        return apart.reshape(shape).movedim(1, self.axis)


class LearnedObjective:
    r"""\(\mathbb{E}_t\, L((1 - t) A + t\, g(B))\) over the latents of g.

    The best latents so far are kept: those of the least mean loss over a window of steps, or of the least loss on held
    batches, judged once a window.

    Args:
        spec: The symmetry.
        model_a: The model that stays.
        model_b: The model that is moved, aligned as far as it is before learning.
        latents: What is learnt of every group.
        sampler: Draws t.
        loss: As for `pyalign.curve`.
        seed: Of the draws of t.
        window: Steps between judgements.
        held: Batches to judge by, or None.
        name: What identifies sampler and projection in a checkpoint.
    """

    def __init__(
        self, spec: SymmetrySpec, model_a: nn.Module, model_b: nn.Module, latents: Mapping[str, Latent], *,
        sampler: Sampler, loss: Loss | None, seed: int, window: int, held: Sequence[Any] | None, name: str,
    ) -> None:  # fmt: skip
        self.latents, self.sampler, self.custom, self.window, self.held = latents, sampler, loss, window, held
        self.a, self.b = spec.stacked(state_of(model_a)), spec.stacked(state_of(model_b))
        self.stacks = spec.stacks
        self.module = _evaluating(runnable(model_a, {}))
        skipped = running_statistics(self.module) | set(spec.aliases)
        floating = [n for n, tensor in self.a.items() if tensor.is_floating_point() and n not in skipped]
        self.moves = {n: _moves(spec.on(n), latents, self.b[n]) for n in floating}
        self.generator = torch.Generator().manual_seed(seed)
        self.t: float | None = None
        self.name = name
        device = next(iter(self.b.values())).device
        # Steps of the window at hand; value and step of the best latents; steps so far. The losses of the window are
        # summed where they are, so that a GPU is waited for once a window only.
        self.state = torch.tensor([0.0, math.inf, 0.0, 0.0], dtype=torch.float64)
        self.total = torch.zeros((), dtype=torch.float64, device=device)
        self.best = [p.detach().clone() for p in self.parameters]
        self._latest = torch.zeros((), dtype=torch.float64, device=device)

    @property
    def parameters(self) -> list[Tensor]:
        """The latents."""
        return [p for latent in self.latents.values() for p in latent.parameters.values()]

    @property
    def value(self) -> float:
        """The loss of the best latents, infinite before the first window has ended."""
        return float(self.state[1])

    @property
    def best_step(self) -> int:
        """After how many steps they were found."""
        return int(self.state[2])

    def loss(self, batch: Any, index: int, scale: float) -> Tensor:
        """The loss of a batch at a new t."""
        inputs, targets = split(batch)
        t = self.t = self.sampler(self.generator)
        self._refresh(hard=False)
        loss = self.at(t, inputs, targets, index)
        self._latest = loss.detach().double()
        return loss

    def at(self, t: float, inputs: Any, targets: Any, index: int) -> Tensor:
        """The loss of inputs at t, with the latents as they were projected last."""
        values: dict[str, Tensor] = {}
        for name, moves in self.moves.items():
            moved = self.b[name]
            for move in moves:
                moved = move(moved)
            value = torch.lerp(self.a[name], moved, t)
            parts = self.stacks.get(name)
            values |= {name: value} if parts is None else dict(zip(parts, value.unbind(0), strict=True))
        return mean_loss(respond(Point(self.module, values), inputs, index), targets, self.custom, index)

    @torch.no_grad()
    def judge(self) -> float:
        """The mean loss on the held batches, over positions between the ends, of the element that the latents give."""
        assert self.held is not None
        self._refresh(hard=True)
        losses = [float(self.at(t, *split(batch), index)) for index, batch in enumerate(self.held) for t in JUDGED_AT]
        return sum(losses) / len(losses)

    def begin(self) -> None:
        """Judge the start, so that what is kept is never worse on the held batches."""
        if self.held is not None:
            self._keep(self.judge())

    @torch.no_grad()
    def stepped(self, lr: float) -> None:
        """Count the step; at the end of a window keep the latents if they are the best so far."""
        self.total += self._latest
        self.state[0] += 1
        self.state[3] += 1
        if int(self.state[0]) == self.window:
            self._keep(self.judge() if self.held is not None else float(self.total) / self.window)
            self.state[0] = 0
            self.total.zero_()

    def _keep(self, value: float) -> None:
        if value < self.value and all(bool(p.isfinite().all()) for p in self.parameters):
            self.state[1], self.state[2] = value, self.state[3]
            for kept, parameter in zip(self.best, self.parameters, strict=True):
                kept.copy_(parameter.detach())

    @torch.no_grad()
    def settle(self) -> None:
        """Put the best latents in the place of the latest."""
        for kept, parameter in zip(self.best, self.parameters, strict=True):
            parameter.copy_(kept)

    def tensors(self) -> dict[str, Tensor]:
        """Latents, the best of them, the orders they stand for, counts, and the module's buffers."""
        found = {f"buffer.{name}": buffer for name, buffer in self.module.named_buffers()}
        for name, latent in self.latents.items():
            found |= {f"latent.{name}.{part}": p for part, p in latent.parameters.items()}
            found |= {f"order.{name}": latent.perm} if hasattr(latent, "perm") else {}
        return (
            found | {f"best.{i}": kept for i, kept in enumerate(self.best)} | {"state": self.state, "total": self.total}
        )

    def record(self) -> dict[str, Any]:
        """What identifies the objective."""
        ends = [digest([state[name] for name in self.moves]) for state in (self.a, self.b)]
        about = {"ends": ends, "window": self.window, "held": self.held is not None, "learned": self.name}
        return {**about, "loss": getattr(self.custom, "__name__", "default")}

    def _refresh(self, hard: bool) -> None:
        for latent in self.latents.values():
            latent.refresh(hard)


def _moves(bindings: Sequence[AxisBinding], latents: Mapping[str, Latent], tensor: Tensor) -> list[_Move]:
    """What moves a tensor: whole units on every axis first, then what is within them or mixes."""
    own = [b for b in bindings if _moving(latents[b.group])]
    after = [b for b in own if b.placed or b.blocks > 1 or latents[b.group].group.kind.mixes]
    plain = [b for b in own if b not in after]
    # A group that moves blocks and one that moves units within them may share positions: the latter does both.
    plain = [b for i, b in enumerate(plain) if not any(_covers(c, b) for c in plain[i + 1 :])]
    found = []
    for b in [*plain, *after]:
        here = b.positions.reshape(-1)
        whole = len(here) == b.blocks * tensor.shape[b.axis] and torch.equal(here, torch.arange(len(here)))
        power = b.side.power if not latents[b.group].group.kind.mixes else -1 if b.side is Side.CONTRAVARIANT else 1
        index = None if whole else here.to(tensor.device)
        arrived = bool(b.placed) or b.blocks > 1
        found.append(_Move(latents[b.group], b.axis, power, len(b.positions), index, arrived, b.blocks))
    return found


def _moving(latent: Latent) -> bool:
    """Whether anything is learnt of a group, or of those that move its blocks."""
    return bool(latent.parameters) or (latent.outer is not None and _moving(latent.outer))


def _covers(later: AxisBinding, earlier: AxisBinding) -> bool:
    return later.axis == earlier.axis and bool(torch.isin(earlier.positions, later.positions).any())


def _evaluating(module: nn.Module) -> nn.Module:
    """Without dropout, but with the batch's own statistics in BatchNorm, since stored ones fit no point between."""
    module.eval()
    for child in module.modules():
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            child.train()
    return module


def held_batches(held: Iterable[Any] | None) -> list[Any] | None:
    """Held-out batches in memory, None where there are none."""
    return None if held is None else list(checked(held))
