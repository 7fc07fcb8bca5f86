"""Spectral norms carried on until they fit the weights: the vectors of two models' power iterations do not blend."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.spectral_norm import SpectralNorm

__all__ = ["iterated", "power_vectors", "settle_spectral_norms"]

STEPS, CLOSE = 100, 1e-5


class _Power(NamedTuple):
    """One power iteration: its owner, the names of its two vectors, the vectors, and a pass that carries it on."""

    owner: Any
    names: tuple[str, str]
    left: Tensor
    right: Tensor
    advance: Callable[[], Any]


def _iterations(model: nn.Module) -> Iterator[_Power]:
    for name, module in model.named_modules():
        start = f"{name}." if name else ""
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, SpectralNorm):
                own = f"{hook.name}_u", f"{hook.name}_v"
                vectors = [getattr(module, vector) for vector in own]
                yield _Power(hook, (start + own[0], start + own[1]), vectors[0], vectors[1], _hooked(hook, module))
        if parametrize.is_parametrized(module):
            for tensor, chain in module.parametrizations.items():
                for place, one in enumerate(chain):
                    if isinstance(one, _SpectralNorm) and hasattr(one, "_u"):  # vectors of one row need no iteration
                        inside = f"{start}parametrizations.{tensor}.{place}."
                        yield _Power(one, (f"{inside}_u", f"{inside}_v"), one._u, one._v, _chained(chain, place))


def _hooked(hook: SpectralNorm, module: nn.Module) -> Callable[[], Any]:
    return lambda: hook.compute_weight(module, do_power_iteration=True)


def _chained(chain: Any, place: int) -> Callable[[], Any]:
    def advance() -> None:
        weight = chain.original
        for before in list(chain)[:place]:
            weight = before(weight)
        norm, training = chain[place], chain[place].training
        norm.train()
        try:
            norm(weight)
        finally:
            norm.train(training)

    return advance


def power_vectors(model: nn.Module) -> set[str]:
    """Names of the buffers that power iterations carry on, as in the state dict.

    Example:
        >>> sorted(power_vectors(torch.nn.utils.parametrizations.spectral_norm(nn.Linear(2, 3))))
        ['parametrizations.weight.0._u', 'parametrizations.weight.0._v']
    """
    return {name for power in _iterations(model) for name in power.names}


@torch.no_grad()
def settle_spectral_norms(model: nn.Module) -> None:
    """Carry the power iterations of all spectral norms of `model` on, in place, until their vectors stand still.

    Between two models the weights are blended, but blended singular vectors are no singular vectors: the norm would
    come out far too small and the weights far too large.

    Example:
        >>> layer = torch.nn.utils.parametrizations.spectral_norm(nn.Linear(2, 3)).eval()
        >>> _ = layer.parametrizations.weight.original.data.mul_(torch.tensor([[1.0, -3.0]]))
        >>> settle_spectral_norms(layer)
        >>> round(float(torch.linalg.matrix_norm(layer.weight, 2)), 4)
        1.0
    """
    for power in _iterations(model):
        if not float(power.right.norm()) > CLOSE:  # opposite vectors cancel
            power.right.fill_(len(power.right) ** -0.5)
        for _ in range(STEPS):
            before = power.left.clone()
            power.advance()
            if float((power.left - before).norm()) < CLOSE:
                break


def iterated(model: nn.Module, steps: int = 15) -> nn.Module:
    """`model` whose spectral norms take at least `steps` iterations a pass, since its weights leap between passes."""
    for power in _iterations(model):
        power.owner.n_power_iterations = max(steps, power.owner.n_power_iterations)
    return model
