"""Factors of matched units: planted ones are found, in every architecture, and others are left at one."""

from __future__ import annotations

import pytest
import torch
from matching import handmade
from symmetry.architectures import ARCHITECTURES
from torch import nn

import pyalign
from pyalign import WeightMatching
from pyalign.matching import scaling
from pyalign.matching.classes import match_states
from pyalign.matching.scaling import halfway
from pyalign.symmetry import derive, state_of


def largest(one: nn.Module, two: nn.Module) -> float:
    """The largest difference of two models' parameters over the largest parameter."""
    pairs = list(zip(one.parameters(), two.parameters(), strict=True))
    return max(float((p - q).detach().abs().max()) for p, q in pairs) / max(
        float(p.detach().abs().max()) for p, _ in pairs
    )


def network(seed: int, activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(6, 20), activation(), nn.Linear(20, 12), activation(), nn.Linear(12, 3)).double()


X = torch.zeros(2, 6, dtype=torch.float64)


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_elements_with_scales_are_undone_in_every_architecture(name: str) -> None:
    architecture = ARCHITECTURES[name]
    model = handmade.generic(architecture.build(), 0, torch.float64)
    inputs = pyalign.symmetry.map_tensors(architecture.inputs(), lambda t: t.double() if t.is_floating_point() else t)
    spec = derive(model, inputs)
    if not any(g.kind.scales for g in spec.groups.values()):
        pytest.skip("no group of it may be scaled")
    moved = spec.random(20).apply(model)  # of 228 such, two were not undone: few units of layers without nonlinearity
    assert largest(model, moved) > 0.1
    found = pyalign.align(model, moved, method="weight", spec=spec, verify=False, progress=False)
    assert largest(model, found.apply(moved)) < 1e-6


def test_a_recurrent_matrix_that_the_factors_meet_twice_comes_back() -> None:
    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.read, self.again, self.out = nn.Linear(6, 9), nn.Linear(9, 9), nn.Linear(9, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            state = torch.relu(self.read(x))
            for _ in range(3):
                state = torch.relu(self.again(state))
            return self.out(state)

    model = handmade.generic(Loop(), 3, torch.float64)
    spec = derive(model, X)
    moved = spec.random(4).apply(model)
    found = pyalign.align(model, moved, method="weight", spec=spec, verify=False, progress=False)
    assert any(e.scale is not None for e in found.transforms.values())
    assert largest(model, found.apply(moved)) < 1e-6


def test_networks_of_their_own_are_only_reordered() -> None:
    a, b = network(0), network(1)
    spec = derive(a, X)
    found = pyalign.align(a, b, method="weight", spec=spec, verify=False, progress=False)
    assert any(g.kind.scales for g in spec.groups.values())
    assert all(e.scale is None for e in found.transforms.values())


def test_a_network_written_in_other_scales_is_brought_back_and_the_way_is_the_same_from_both_sides() -> None:
    a, b = network(0), network(1)
    spec = derive(a, X)
    factors = spec.random(5)
    odd = factors.apply(b)
    there = pyalign.align(a, odd, method="weight", spec=spec, verify=False, progress=False)
    back = pyalign.align(odd, a, method=WeightMatching(start=there.inverse()), spec=spec, verify=False, progress=False)
    assert there.notes[1].startswith("units are scaled as well")
    for name, element in there.compose(back).transforms.items():
        if torch.equal(element.perm, torch.arange(element.size)):
            torch.testing.assert_close(element.scale, torch.ones_like(element.scale), rtol=1e-6, atol=0)
        assert spec.groups[name].size == element.size
    x = torch.randn(5, 6, dtype=torch.float64)
    torch.testing.assert_close(there.apply(odd)(x), odd(x))


def test_each_factor_is_the_best_where_the_others_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "NEARER", float("inf"))
    a, b = network(0), network(1)
    spec = derive(a, X)
    odd = spec.random(6).apply(b)
    state_a, state_b = state_of(a), state_of(odd)
    elements = spec.identity().reorderings
    found = halfway(spec, state_a, state_b, elements, 0.0)
    assert found is not elements

    def energy(change: dict[str, torch.Tensor]) -> float:
        scaled = {n: type(e)(e.perm, e.scale * change.get(n, 1.0)) for n, e in found.items()}
        ones = {n: torch.ones_like(t) for n, t in state_b.items()}
        m = spec.apply(scaled, ones)
        return sum(float((state_a[n] ** 2 / m[n] + m[n] * state_b[n] ** 2).sum()) for n in state_a)

    least = energy({})
    for name, group in spec.groups.items():
        for unit in range(0, group.size, 5):
            for factor in (0.99, 1.01):
                change = torch.ones(group.size, dtype=torch.float64)
                change[unit] = factor
                assert energy({name: change}) > least


def test_factors_that_gain_little_are_not_used() -> None:
    a, b = network(0), network(1)
    spec = derive(a, X)
    one, two = state_of(a), state_of(b)
    elements = spec.identity().reorderings
    little = {n: type(e)(torch.arange(e.size), e.scale**0.01) for n, e in spec.random(0).transforms.items()}

    def products(of: dict[str, torch.Tensor]) -> float:
        return sum(float((t * of[n]).sum()) for n, t in one.items() if spec.on(n))

    near, far = spec.apply(little, one), spec.apply(little, two)
    assert halfway(spec, one, far, elements, products(far)) is elements
    assert halfway(spec, one, near, elements, products(near)) is not elements  # nothing else is off


def test_scales_can_be_left_out() -> None:
    a = network(0)
    spec = derive(a, X)
    moved = spec.random(5).apply(a)
    found = pyalign.align(a, moved, method=WeightMatching(scales=False), spec=spec, verify=False, progress=False)
    assert all(e.scale is None for e in found.transforms.values())


def test_units_of_few_weights_are_told_apart_from_factors_over_all_classes() -> None:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(2, 200), nn.ReLU(), nn.Linear(200, 2)).double()
    spec = derive(model, torch.zeros(2, 2, dtype=torch.float64))
    moved = spec.random(1).apply(model.state_dict())
    found = match_states(spec, model.state_dict(), moved, progress=False)
    assert -found.objective < 1e-20


@pytest.mark.parametrize("seed", range(3))
def test_units_that_factors_led_astray_are_matched_again(seed: int) -> None:
    """A layer of many units that differ little: products with large factors outweigh what tells them apart."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        layers = [nn.Linear(64, 600, bias=False), nn.BatchNorm1d(600), nn.ReLU(), nn.Linear(600, 7)]
        model = nn.Sequential(*layers).double().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                spread = max(float(parameter.square().mean().sqrt()), 0.05)
                parameter.add_(0.2 * spread * torch.randn_like(parameter))
        inputs = torch.randn(4, 64, dtype=torch.float64)
    spec = derive(model, inputs)
    moved = spec.random(1).apply(model)
    found = pyalign.align(model, moved, [inputs], method="weight", spec=spec, progress=False)
    assert largest(model, found.apply(moved)) < 1e-9 < 0.1 < largest(model, moved)


class Head(nn.Module):
    """Normalised values of a layer that is read by few: their scales outweigh what tells the units apart."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.norm, self.out = nn.Linear(24, 300), nn.LayerNorm(300), nn.Linear(300, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.out(self.norm(nn.functional.gelu(self.fc(x)))))


class Blocks(nn.Module):
    """The same where units stay in the block of a grouped convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.fc = nn.Conv1d(3, 8, 1), nn.Conv1d(8, 300, 1, groups=2)
        self.norm, self.out = nn.BatchNorm1d(300), nn.Conv1d(300, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.out(torch.relu(self.norm(self.fc(torch.tanh(self.first(x.view(-1, 3, 8))))))))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("build", [Head, Blocks])
def test_units_whose_factors_fit_a_wrong_partner_are_matched_again(build: type[Head | Blocks], seed: int) -> None:
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        model = build().double().eval()
        with torch.no_grad():
            for parameter in (model.fc.weight, model.out.weight):
                parameter.mul_(0.1)
            model.norm.weight.add_(0.3 * torch.randn(300))
        inputs = torch.randn(4, 24, dtype=torch.float64)
    spec = derive(model, inputs)
    assert any(g.kind.scales for g in spec.groups.values())
    moved = spec.random(1).apply(model)
    found = pyalign.align(model, moved, [inputs], method="weight", spec=spec, progress=False)
    assert largest(model, found.apply(moved)) < 1e-9 < 0.1 < largest(model, moved)
