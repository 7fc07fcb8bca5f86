"""Channels of GroupNorm move as blocks and within them: weight matching against trying every element."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

import pyalign
from pyalign import WeightMatching
from pyalign.symmetry import Kind, SymmetrySpec, derive, state_of

BLOCKS, INSIDE = 3, 2


def network(seed: int) -> nn.Sequential:
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        width = BLOCKS * INSIDE
        layers = [nn.Conv1d(2, width, 3), nn.GroupNorm(BLOCKS, width), nn.ReLU(), nn.Conv1d(width, width, 3)]
        model = nn.Sequential(*layers, nn.GroupNorm(BLOCKS, width), nn.ReLU(), nn.Conv1d(width, 2, 1)).double()
        for name, parameter in model.named_parameters():
            parameter.data += 0.3 * torch.randn_like(parameter) * (1.0 if name.endswith("weight") else 0.3)
        return model


def elements() -> list[list[int]]:
    """Every order of the blocks, with every order inside each."""
    inner = list(itertools.permutations(range(INSIDE)))
    return [
        [block * INSIDE + unit for block, order in zip(blocks, orders, strict=True) for unit in order]
        for blocks in itertools.permutations(range(BLOCKS))
        for orders in itertools.product(inner, repeat=BLOCKS)
    ]


def moved(state: dict[str, Tensor], one: list[int], two: list[int]) -> dict[str, Tensor]:
    """The two hidden layers reordered by hand."""
    found = dict(state)
    for names, order in ((("0.weight", "0.bias", "1.weight", "1.bias"), one), (("3.bias", "4.weight", "4.bias"), two)):
        found |= {name: state[name][order] for name in names}
    return found | {"3.weight": state["3.weight"][two][:, one], "6.weight": state["6.weight"][:, two]}


def objective(spec: SymmetrySpec, a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    return sum(float((a[name] * b[name]).sum()) for name in {binding.tensor for binding in spec.bindings})


@pytest.mark.parametrize("seed", range(3))
def test_the_best_of_all_orders_is_found(seed: int) -> None:
    a, b = network(2 * seed), network(2 * seed + 1)
    spec = derive(a, torch.randn(2, 2, 12, dtype=torch.float64)).within(Kind.PERMUTATION)
    one, two = dict(state_of(a)), dict(state_of(b))
    values = [objective(spec, one, moved(two, p, q)) for p in elements() for q in elements()]
    assert len(values) == 48**2
    found = pyalign.align(a, b, method=WeightMatching(restarts=10), spec=spec, verify=False, progress=False)
    assert found.objective == pytest.approx(max(values), rel=1e-9)
    assert objective(spec, one, dict(found.apply(b).state_dict())) == pytest.approx(max(values), rel=1e-9)
