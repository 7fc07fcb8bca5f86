"""Models that tempt a derivation into a wrong answer: what moves must be right, what cannot move must stay."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import pytest
import torch
from torch import nn

from pyalign import derive
from pyalign.symmetry import SymmetrySpec

from .architectures import generic, odd_axes, odd_values
from .architectures.random_nets import RandomNet
from .helpers import (
    assert_untouched,
    check_groups,
    check_invariance,
    check_positions,
    fingerprint,
    group_with,
    moved_units,
    state_of,
)

ODD = {**odd_axes.ARCHITECTURES, **odd_values.ARCHITECTURES}
NAMES = sorted(ODD)


@functools.cache
def derived(name: str) -> tuple[nn.Module, Any, SymmetrySpec]:
    model, inputs = ODD[name].model(), ODD[name].inputs()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model, inputs, derive(model, inputs)


@pytest.mark.parametrize("name", NAMES)
def test_groups(name: str) -> None:
    model, _, spec = derived(name)
    check_groups(spec, ODD[name])
    check_positions(spec, state_of(model))


@pytest.mark.parametrize("name", NAMES)
def test_invariance(name: str) -> None:
    model, inputs, spec = derived(name)
    assert moved_units(spec) > 0
    for train in (False, True) if ODD[name].train else (False,):
        check_invariance(model, spec, inputs, train=train)


@pytest.mark.parametrize("name", NAMES)
def test_no_trace_in_train_mode(name: str) -> None:
    inputs, model = ODD[name].inputs(), ODD[name].model().train()
    before, state = fingerprint(model), state_of(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        derive(model, inputs)
    assert_untouched(before, state, model)


@pytest.mark.parametrize("name", sorted(odd_values._PINS))
def test_what_cannot_move_is_listed_with_a_reason(name: str) -> None:
    _, _, spec = derived(name)
    fixed = {(f.tensor, f.axis): f.reason for f in spec.fixed}
    for at in (("fc1.weight", 0), ("fc1.bias", 0), ("fc2.weight", 1)):
        assert fixed.get(at, "").strip(), f"{at} is neither moved nor listed as left alone"


def test_unused_parameters_are_left_alone_and_listed() -> None:
    _, _, spec = derived("unused_parameters")
    for tensor, at in (("forgotten.weight", 0), ("forgotten.weight", 1), ("forgotten.bias", 0), ("spare", 0)):
        assert not group_with(spec, tensor, at)
        assert any((f.tensor, f.axis) == (tensor, at) and f.reason for f in spec.fixed)


def test_inputs_and_outputs_are_fixed() -> None:
    _, _, spec = derived("hidden_output")
    fixed = {(f.tensor, f.axis) for f in spec.fixed}
    assert {("fc1.weight", 1), ("fc1.weight", 0), ("fc1.bias", 0), ("fc3.weight", 0), ("fc3.bias", 0)} <= fixed


@pytest.mark.parametrize("name", NAMES)
def test_every_axis_is_either_moved_or_accounted_for(name: str) -> None:
    _, _, spec = derived(name)
    accounted = {(spec.aliases.get(f.tensor, f.tensor), f.axis) for f in spec.fixed}
    for tensor, shape in spec.shapes.items():
        if tensor in spec.aliases or tensor.endswith("num_batches_tracked"):
            continue
        for at in range(min(len(shape), 2)):
            if shape[at] > 1:
                assert group_with(spec, tensor, at) or (tensor, at) in accounted, f"{tensor}:{at} is not in the report"


class Strange(torch.autograd.Function):
    """An operation no table of rules can know."""

    @staticmethod
    def forward(context: Any, x: torch.Tensor) -> torch.Tensor:
        weight = torch.arange(1, x.shape[-1] + 1, dtype=x.dtype)
        return torch.from_numpy((x.detach().numpy() * weight.numpy()).copy())


class Unknown(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.fc3 = nn.Sequential(nn.Linear(6, 9), nn.ReLU()), nn.Linear(7, 4)
        self.fc2 = nn.Linear(9, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = Strange.apply(self.inner(x))
        return self.fc3(torch.relu(self.fc2(h)))


def test_what_leaves_torch_stays_fixed_and_the_rest_moves() -> None:
    model, inputs = Unknown().double().eval(), torch.randn(5, 6, dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        spec = derive(model, inputs)
    assert not group_with(spec, "inner.0.weight", 0) and not group_with(spec, "fc2.weight", 1)
    assert group_with(spec, "fc2.weight", 0)
    check_invariance(model, spec, inputs, train=False)


@torch.library.custom_op("pyalign_tests::mystery", mutates_args=())
def mystery(x: torch.Tensor) -> torch.Tensor:
    """Multiplies unit i by i + 1."""
    return x * torch.arange(1, x.shape[-1] + 1, dtype=x.dtype)


def test_an_unknown_operator_warns_and_names_operator_and_module() -> None:
    class Special(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc2, self.fc3 = nn.Linear(6, 9), nn.Linear(9, 7), nn.Linear(7, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc3(torch.relu(self.fc2(mystery(self.fc1(x)))))

    model, inputs = nn.Sequential(Special()).double().eval(), torch.randn(5, 6, dtype=torch.float64)
    with pytest.warns(Warning, match=r"mystery.*\b0\b"):
        spec = derive(model, inputs)
    assert not group_with(spec, "0.fc1.weight", 0)
    assert group_with(spec, "0.fc3.weight", 1)
    assert "mystery" in next(f.reason for f in spec.fixed if (f.tensor, f.axis) == ("0.fc1.weight", 0))
    check_invariance(model, spec, inputs, train=False)


@pytest.mark.parametrize("seed", range(24))
def test_what_is_derived_from_a_random_network_holds(seed: int) -> None:
    torch.manual_seed(seed)
    model = generic(RandomNet(seed).double().eval(), seed)
    inputs = torch.randn(3, 3, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # every operator here must have a rule
        spec = derive(model, inputs)
    check_positions(spec, state_of(model))
    for train in (False, True):
        check_invariance(model, spec, inputs, train=train, seeds=2)
