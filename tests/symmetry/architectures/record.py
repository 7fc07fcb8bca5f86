"""What a test model is: how to build it, what to feed it, and the groups that mathematics says it has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

Axes = frozenset[tuple[str, int]]

PERMUTATION = "permutation"
SIGNED = "signed permutation"
POSITIVE = "positive-scaled permutation"
SCALED = "scaled permutation"


@dataclass(frozen=True)
class Expected:
    """One group written out by hand: its size and every (tensor, axis) it moves.

    `kind` is None where several classes are right. `outer` labels the wreath that a group belongs to (equal labels:
    one outer group of `blocks` units). `at_least` allows further axes, where an implementer may choose.
    """

    size: int
    axes: Axes
    kind: str | None = None
    outer: str | None = None
    blocks: int = 1
    at_least: bool = False


@dataclass(frozen=True)
class Architecture:
    """A model nobody's library wrote and what must be derived from it.

    `alternatives` are complete answers, one of which must be met. `open`: groups beyond the expected ones are
    allowed (they must still be sound). `train`: the outputs are deterministic given the RNG seed in train mode, and
    no elementwise noise falls on a moved axis, so invariance holds in train mode too. `moves`: axes of which at least
    some units must move, in whatever groups.
    """

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[], Any]
    alternatives: tuple[tuple[Expected, ...], ...]
    open: bool = False
    train: bool = True
    moves: Axes = frozenset()

    def model(self) -> nn.Module:
        """A float64 model in eval mode whose weights and statistics are all generic."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return generic(self.build().double().eval(), seed=1)


class Registry(dict[str, Architecture]):
    """Architectures by name; adding one twice is a mistake."""

    def add(
        self,
        name: str,
        build: Callable[[], nn.Module],
        inputs: Callable[[], Any],
        *groups: Expected,
        otherwise: tuple[Expected, ...] | None = None,
        open: bool = False,
        train: bool = True,
        moves: Axes = frozenset(),
    ) -> None:
        assert name not in self, name
        alternatives = (groups,) if otherwise is None else (groups, otherwise)
        self[name] = Architecture(name, build, inputs, alternatives, open, train, moves)


def group(
    size: int,
    *axes: Axes,
    kind: str | None = None,
    outer: str | None = None,
    blocks: int = 1,
    at_least: bool = False,
) -> Expected:
    """A group of `size` units that moves the union of `axes`."""
    return Expected(size, frozenset().union(*axes), kind, outer, blocks, at_least)


def axis(tensor: str, at: int = 0) -> Axes:
    """One axis of one tensor."""
    return frozenset({(tensor, at)})


def out(*modules: str) -> Axes:
    """Output axis of weights that have no bias."""
    return frozenset((f"{module}.weight", 0) for module in modules)


def out_bias(*modules: str) -> Axes:
    """Output axis of weights, and their biases."""
    return out(*modules) | frozenset((f"{module}.bias", 0) for module in modules)


def into(*modules: str) -> Axes:
    """Input axis of weights."""
    return frozenset((f"{module}.weight", 1) for module in modules)


def affine(*modules: str) -> Axes:
    """Weight and bias of normalisations without running statistics."""
    return out_bias(*modules)


def bn(*modules: str) -> Axes:
    """Weight, bias and running statistics of batch normalisations."""
    statistics = frozenset((f"{m}.{name}", 0) for m in modules for name in ("running_mean", "running_var"))
    return out_bias(*modules) | statistics


def generic(model: nn.Module, seed: int) -> nn.Module:
    """Perturb every parameter and running statistic, so that no zero bias or unit gain can hide a wrong binding."""
    generator = torch.Generator().manual_seed(seed)

    def noise(tensor: torch.Tensor) -> torch.Tensor:
        return torch.randn(tensor.shape, generator=generator, dtype=torch.float64).to(tensor.dtype)

    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(noise(parameter), alpha=0.2)
        for name, buffer in model.named_buffers():
            if name.endswith("running_var"):
                buffer.copy_(noise(buffer).abs() + 0.5)
            elif name.endswith("running_mean"):
                buffer.copy_(noise(buffer))
    return model


def image(channels: int = 3, size: int = 8, batch: int = 2) -> torch.Tensor:
    """Random images (batch, channels, size, size)."""
    return noise(batch, channels, size, size)


def noise(*shape: int) -> torch.Tensor:
    """Standard normal float64 numbers, the same at every call."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


def tokens(batch: int = 3, length: int = 6, vocabulary: int = 11) -> torch.Tensor:
    """Random token indices (batch, length)."""
    return torch.randint(vocabulary, (batch, length), generator=torch.Generator().manual_seed(7))
