"""Grouped convolutions whose weights are computed: normalised, masked, standardised, made of several tensors."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import weight_norm

import pyalign
from pyalign.symmetry import Kind

from .architectures.record import POSITIVE, generic
from .helpers import assert_same, call, listed

GROUPS, WIDTH = 3, 12


class Computed(nn.Conv2d):
    """A grouped convolution whose weight is a function of its parameter."""

    def __init__(self, function: Callable[[nn.Module, Tensor], Tensor], gain: bool = False) -> None:
        super().__init__(WIDTH, WIDTH, 3, padding=1, groups=GROUPS)
        self.function = function
        if gain:
            self.gain = nn.Parameter(torch.rand(WIDTH, 1, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.function(self, self.weight), self.bias, padding=1, groups=GROUPS)


class Product(nn.Module):
    """A grouped convolution whose weight is the product of two matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Parameter(torch.randn(WIDTH, 6)), nn.Parameter(torch.randn(6, WIDTH // GROUPS))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, (self.left @ self.right)[:, :, None, None], groups=GROUPS)


def batch_normed(conv: nn.Module, w: Tensor) -> Tensor:
    """Scaled weight standardisation as normaliser-free networks have it."""
    flat = w.reshape(1, WIDTH, -1)
    return F.batch_norm(flat, None, None, weight=conv.gain.reshape(-1), training=True, momentum=0.0).reshape_as(w)


def standardised(conv: nn.Module, w: Tensor) -> Tensor:
    return (w - w.mean((1, 2, 3), keepdim=True)) / (w.std((1, 2, 3), keepdim=True) + 1e-5)


def pruned() -> nn.Module:
    return prune.random_unstructured(nn.Conv2d(WIDTH, WIDTH, 3, padding=1, groups=GROUPS), "weight", 0.3)


def normed(dim: int, layer: type[nn.Module] = nn.Conv2d) -> nn.Module:
    return weight_norm(layer(WIDTH, WIDTH, 3, padding=1, groups=GROUPS), dim=dim)


# Inputs of the convolution, its outputs: in both the three blocks change places, and units within them.
PLAIN, FREE = "permutation 3x4", f"{POSITIVE} 3x4"
CASES: dict[str, tuple[Callable[[], nn.Module], set[str] | None]] = {
    "plain": (lambda: Computed(lambda conv, w: w), {FREE}),
    "relu": (lambda: Computed(lambda conv, w: w.relu()), {FREE}),
    "batch_normed": (lambda: Computed(batch_normed, gain=True), {PLAIN, FREE}),
    "standardised": (lambda: Computed(standardised), {PLAIN}),
    "pruned": (pruned, {FREE}),
    "weight_norm": (lambda: normed(0), {PLAIN, FREE}),
    "transposed_weight_norm": (lambda: normed(0, nn.ConvTranspose2d), {PLAIN, FREE}),
    "weight_norm_over_positions": (lambda: normed(2), None),
    "product": (Product, None),
}


@pytest.mark.parametrize("within", [Kind.SCALED, Kind.INVERTIBLE])
@pytest.mark.parametrize("name", CASES)
def test_grouped_convolutions_with_computed_weights(name: str, within: Kind) -> None:
    """The function stays under random elements of the class, and nothing is held that could move."""
    build, kinds = CASES[name]
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, WIDTH, 3), nn.ReLU(), build(), nn.ReLU(), nn.Conv2d(WIDTH, 8, 1), nn.ReLU()]
    model = generic(nn.Sequential(*layers, nn.Flatten(), nn.Linear(8 * 16, 2)).double().eval(), seed=1)
    inputs = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    spec = pyalign.derive(model, inputs, within=within)
    for seed in range(2):
        assert_same(call(spec.random(seed).apply(model), inputs), call(model, inputs), what=f"{name}, seed {seed}")
    if kinds is not None:
        found = listed(spec)
        assert sum(found[kind] for kind in kinds) == 2 and all(found[kind] for kind in kinds), found
        assert found["permutation 3"] == 1, found


class Blurred(nn.Module):
    """Channels that are smoothed before they are read, with kernels that the module keeps outside its state."""

    def __init__(self, repeated: bool) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, WIDTH, 3), nn.Conv2d(WIDTH, 8, 1)
        kernel = torch.tensor([1.0, 2.0, 1.0], dtype=torch.float64)
        kernel = (kernel[:, None] * kernel / 16)[None, None]
        strength = torch.linspace(1.0 if repeated else 0.5, 1.0, WIDTH, dtype=torch.float64)
        self.register_buffer("kernel", kernel * strength[:, None, None, None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        h = F.conv2d(F.pad(self.first(x).relu(), [1] * 4, mode="reflect"), self.kernel, stride=2, groups=WIDTH)
        return self.second(h).mean((2, 3))


@pytest.mark.parametrize("repeated", [True, False])
def test_channels_that_a_constant_kernel_smooths_alike_move(repeated: bool) -> None:
    model = generic(Blurred(repeated).double().eval(), seed=1)
    inputs = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    spec = pyalign.derive(model, inputs)
    assert listed(spec) == ({f"{POSITIVE} {WIDTH}": 1} if repeated else {})
    assert_same(call(spec.random(0).apply(model), inputs), call(model, inputs))
