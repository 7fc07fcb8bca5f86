"""Copies of modules that keep computed tensors: each computes alike, has parameters of its own, and can be aligned."""

from __future__ import annotations

import threading
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import pyalign
from pyalign.errors import InputError
from pyalign.statistics.spectral import settle_spectral_norms
from pyalign.symmetry import Kind
from pyalign.symmetry.copies import copy_of

X = torch.randn(8, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def pruned(layer: nn.Linear) -> nn.Linear:
    prune.random_unstructured(layer, "weight", 0.25)
    return layer


WRAPPERS = {"weight_norm": nn.utils.weight_norm, "spectral_norm": nn.utils.spectral_norm, "prune": pruned}


def network(wrapper: str) -> nn.Module:
    """Layers whose weight is an attribute that a hook computes before every pass: none of them is a leaf."""
    torch.manual_seed(3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch recommends parametrizations instead
        layers = [WRAPPERS[wrapper](nn.Linear(m, n).double()) for m, n in ((5, 9), (9, 7), (7, 3))]
    model = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2]).eval()
    model(X)
    return model


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_computed_tensors_follow_the_parameters_of_the_copy(wrapper: str) -> None:
    model = network(wrapper)
    answer = model(X)
    copied = copy_of(model)
    assert torch.equal(copied(X), answer)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.mul_(-1.5)
    assert not torch.allclose(copied(X), answer)
    assert torch.equal(model(X), answer)
    assert all(p.is_leaf and p.requires_grad for p in copied.parameters())


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_shuffled_copy_is_found_again(wrapper: str) -> None:
    model = network(wrapper)
    spec = pyalign.derive(model, X)
    assert sorted(group.size for group in spec.groups.values()) == [7, 9]
    shuffled = spec.random(1, Kind.PERMUTATION).apply(model)
    torch.testing.assert_close(shuffled(X), model(X), rtol=1e-12, atol=1e-12)
    found = pyalign.align(model, shuffled, method="weight", example_inputs=X)
    back = found.apply(shuffled).state_dict()
    assert all(torch.equal(back[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_curve_through_computed_weights(wrapper: str) -> None:
    """The model at a control point is the one whose parameters are put in by hand."""
    data = [(X, torch.arange(8) % 3)]
    a, b = network(wrapper), network(wrapper)
    with torch.no_grad():
        b[0].bias.add_(1.0)
    path = pyalign.curve(a, b, data, steps=3)
    middle, own = path.at(0.5), network(wrapper)
    own.load_state_dict(path.state(0.5))
    settle_spectral_norms(own)
    assert torch.equal(middle(X), own(X))
    assert not torch.equal(middle(X), pyalign.interpolate(a, b, 0.5)(X))


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_scripted_copy_can_be_trained() -> None:
    model = torch.jit.script(nn.Linear(3, 2))
    model.bias.requires_grad_(False)
    copied = copy_of(model)
    assert [(p.is_leaf, p.requires_grad) for p in copied.parameters()] == [(True, True), (True, False)]


def test_what_cannot_be_copied_is_said() -> None:
    model = nn.Linear(2, 2)
    model.lock = threading.Lock()
    with pytest.raises(InputError, match="Linear cannot be copied"):
        copy_of(model)


class Kept(nn.Module):
    """Keeps a product of its weights between passes in evaluation mode, and drops it when it goes back to training."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[str, torch.Tensor] = {}
        self.first, self.bias, self.last = nn.Linear(5, 6), nn.Parameter(torch.randn(6)), nn.Linear(6, 3)

    def train(self, mode: bool = True) -> Kept:
        if mode:
            self.kept = {}
        return super().train(mode)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training and "bias" not in self.kept:
            self.kept["bias"] = self.bias.exp()
        return self.last(torch.relu(self.first(x) + (self.bias.exp() if self.training else self.kept["bias"])))


def test_what_modules_keep_of_their_weights_is_renewed() -> None:
    torch.manual_seed(0)
    one, two = Kept().double().eval(), Kept().double().eval()
    spec = pyalign.derive(one, X)
    assert [g.size for g in spec.groups.values()] == [6]
    assert not one.kept, "the model is left as it was"
    assert spec.verify(one, X).passed
    with torch.no_grad():
        one(X), two(X)  # both keep values of their own weights now
        moved = spec.random(1).apply(two)
        torch.testing.assert_close(moved(X), two(X), rtol=1e-12, atol=1e-12)
        middle = pyalign.interpolate(one, two, t=0.5)
        fresh = Kept().double().eval()
        fresh.load_state_dict(middle.state_dict())
        torch.testing.assert_close(middle(X), fresh(X), rtol=1e-12, atol=1e-12)
    assert not middle.training and not moved.training
