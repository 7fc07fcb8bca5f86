"""Cost matrices of the linear assignment benchmarks: drawn at random, constructed, and of real trained networks."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import pyalign
from benchmarks.record import Skipped
from benchmarks.studies.data import Absent, cifar10, pair
from pyalign import engine
from pyalign.symmetry import Role

__all__ = ["DRAWN", "LAYERS", "REAL", "layer", "perturbed"]

Costs = NDArray[np.float64]
IMAGES = 2000
SAMPLES = 512


def _planted(n: int, rng: np.random.Generator) -> Costs:
    """Negated correlations of n units with themselves in another order, under as much noise as signal."""
    x = rng.standard_normal((SAMPLES, n))
    y = x[:, rng.permutation(n)] + rng.standard_normal((SAMPLES, n))
    x, y = ((z - z.mean(0)) / (z.std(0) * SAMPLES**0.5) for z in (x, y))
    return -(x.T @ y)


def _product(n: int, rng: np.random.Generator) -> Costs:
    index = np.arange(1.0, n + 1)
    return np.outer(index, index)


DRAWN: dict[str, Callable[[int, np.random.Generator], Costs]] = {
    "uniform": lambda n, rng: rng.random((n, n)),
    "gaussian": lambda n, rng: rng.standard_normal((n, n)),
    "planted correlation": _planted,
    "i*j": _product,
    "integers with ties": lambda n, rng: rng.integers(0, 100, (n, n)).astype(np.float64),
    "rectangular": lambda n, rng: rng.random((n // 2, n)),
}


def perturbed(cost: Costs, seed: int) -> Costs:
    """The costs with noise of 1 % of their standard deviation."""
    return cost + 0.01 * cost.std() * np.random.default_rng(seed).standard_normal(cost.shape)


def _tiled(cost: Costs, n: int) -> Costs:
    """A corner of the matrix, or copies of it side by side under noise of 1 % of its spread."""
    if n <= len(cost):
        return np.ascontiguousarray(cost[:n, :n])
    copies = -(-n // len(cost))
    return perturbed(np.tile(cost, (copies, copies))[:n, :n], seed=n)


def real_correlation(n: int) -> Costs:
    """Negated correlations of hidden units of the trained MLPs: one layer's up to 512, then all three layers'."""
    layers = _mlp_correlation()
    return _tiled(layers[1024:, 1024:] if n <= 512 else layers, n)


def real_weights(n: int) -> Costs:
    """The first costs of weight matching on the second hidden layer of the trained MLPs."""
    return _tiled(layer("mlp weights 2"), n)


REAL = {"real correlation": real_correlation, "real weights": real_weights}
LAYERS = (
    *(f"mlp correlation {k}" for k in (1, 2, 3)),
    *(f"mlp weights {k}" for k in (1, 2, 3)),
    *(f"gpt weights {k}" for k in (1, 2, 3, 4)),
    "resnet20 correlation",
    "resnet20 weights",
)


def layer(name: str) -> Costs:
    """The costs of one real layer, named as in `LAYERS`, at its own size.

    Raises:
        Skipped: The trained networks are not at hand.
    """
    network, kind, *which = name.split()
    if kind == "correlation":
        costs = _site_correlations(network)
    else:
        costs = _weight_costs(network)
    widest = max(len(c) for c in costs if len(c) <= 512)  # in the GPT, the units of the feed-forward layers
    return [c for c in costs if len(c) == widest][int(which[0]) - 1 if which else -1]


@lru_cache
def _pair(name: str) -> tuple[nn.Module, nn.Module, Tensor]:
    """Two trained networks and inputs for them."""
    try:
        models = pair(name)
        inputs = torch.arange(32).reshape(1, 32) if name == "gpt" else cifar10("train", IMAGES, seed=0).x
    except Absent as reason:
        raise Skipped(str(reason)) from None
    return (*models, inputs)


def _spec(name: str) -> pyalign.SymmetrySpec:
    a, _, inputs = _pair(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pyalign.errors.PyalignWarning)
        return pyalign.derive(a, inputs[:2])


@lru_cache
def _weight_costs(name: str) -> list[Costs]:
    """Per group the negated inner products of the weights of all pairs of units, before any matching."""
    a, b, _ = _pair(name)
    spec = _spec(name)
    one, two = a.state_dict(), b.state_dict()
    found = []
    for group in spec.groups:
        bound = [x for x in spec.of(group) if x.role is Role.MATCHED and x.tensor in one]
        parts = [x.unfold(one[x.tensor]).double() @ x.unfold(two[x.tensor]).double().T for x in bound]
        if parts:
            found.append(-torch.stack(parts).sum(0).numpy())
    return found


@lru_cache
def _site_correlations(name: str) -> list[Costs]:
    """Per observation site the negated correlations of the units' activations."""
    a, b, images = _pair(name)
    moments = pyalign.statistics.collect(a, b, _spec(name), images.split(250), sites="last", progress=False)
    return [-m.correlation().numpy() for m in moments.values()]


@lru_cache
def _mlp_correlation() -> Costs:
    """Negated correlations of all hidden units of one MLP with all of the other's, (1536, 1536)."""
    a, b, images = _pair("mlp")
    streams = []
    for model in (a, b):
        hidden, x = [], images.flatten(1)
        with torch.no_grad():
            for linear in model.layers:
                x = torch.relu(linear(x))
                hidden.append(x)
        streams.append(torch.cat(hidden, 1))
    m = engine.cross_moments(*streams)
    scale = torch.outer(m.square_a.sqrt(), m.square_b.sqrt())
    return -torch.where(scale > 0, m.comoment / scale, 0.0).numpy()
