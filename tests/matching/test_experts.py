"""Experts are matched in every way, then their units; what is planted is found, and costs are those of the paper."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import nn

import pyalign
from pyalign.errors import InputError
from pyalign.matching import ActivationMatching, LearnedMatching, WeightMatching, expert_orders, share, universe
from pyalign.matching.experts import EXPERTS as WAYS
from pyalign.matching.experts import expert_costs, expert_groups
from pyalign.statistics.choices import common_choices, expert_counts, selected_experts
from pyalign.symmetry import Kind, ScaledPermutation, SymmetrySpec, widen
from tests.symmetry.mixtures import EXPERTS, HIDDEN, Mixture, after, gathered, limited, looped, masked

X = torch.randn(3, 16, 3, generator=torch.Generator().manual_seed(0))


def planted(route: Any, send: Any) -> tuple[Any, SymmetrySpec]:
    torch.manual_seed(0)
    model = Mixture(route, send).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model, pyalign.derive(model, X)


def distance(a: nn.Module, b: nn.Module) -> float:
    one, two = a.state_dict(), b.state_dict()
    return max(float((one[n] - two[n]).abs().max()) for n in one)


@pytest.mark.parametrize(("route", "send"), [(after, gathered), (limited, masked)])
def test_planted_orders_and_units_are_found(route: Any, send: Any) -> None:
    model, spec = planted(route, send)
    moved = spec.random(5, Kind.PERMUTATION)
    twin = moved.apply(model)
    assert distance(model, twin) > 0.1
    for how in WAYS:
        found = pyalign.align(model, twin, method=WeightMatching(experts=how), spec=spec, verify=False)
        assert distance(model, found.apply(twin)) < 1e-5, how
        assert all(x <= y + 1e-9 for x, y in zip(found.trace, found.trace[1:], strict=False))
    (name,) = expert_groups(spec)
    back = moved.inverse().transforms[name]
    assert isinstance(back, ScaledPermutation)
    assert expert_orders(found)[name] == tuple(back.perm.tolist())
    assert f"take {back.perm.tolist()}" in found.report()


def test_the_exact_table_sees_what_the_gate_does_not() -> None:
    """Experts that moved without their rows of the router are still told apart by what they compute."""
    model, spec = planted(after, gathered)
    (name,) = expert_groups(spec)
    spec = pyalign.declare(
        model, {}, base=spec, fixed=[g for g in spec.groups if g not in (name, expert_groups(spec)[name][0].name)]
    )
    order = torch.tensor([2, 0, 3, 1])
    twin = spec.identity().apply(model)
    with torch.no_grad():
        for weight in ("up", "bias", "down"):
            getattr(twin, weight).copy_(getattr(model, weight)[order])
    exact = pyalign.align(model, twin, method="weight", spec=spec, verify=False)
    gate = pyalign.align(model, twin, method=WeightMatching(experts="gate"), spec=spec, verify=False)
    assert expert_orders(exact)[name] == tuple(torch.argsort(order).tolist())
    assert expert_orders(gate)[name] == (0, 1, 2, 3)


def test_costs_are_the_papers_and_know_no_order_of_units() -> None:
    model, spec = planted(after, masked)
    (name,) = expert_groups(spec)
    a = {n: t.double() for n, t in spec.stacked(model.state_dict()).items()}
    inside = spec.random(1).transforms
    within = {n: e if n != name else ScaledPermutation.identity(EXPERTS) for n, e in inside.items()}
    hidden = next(n for n, g in spec.groups.items() if g.size == EXPERTS * HIDDEN)
    perm = torch.cat([e * HIDDEN + torch.randperm(HIDDEN) for e in range(EXPERTS)])
    from pyalign.symmetry.actions import act

    b = {n: act(t, spec.on(n), {hidden: ScaledPermutation(perm)}) for n, t in a.items()}
    assert within.keys() == spec.groups.keys()
    gram = expert_costs(spec, name, a, b, "gram")
    assert gram is not None and bool((gram.diagonal() < 1e-6).all()) and float(gram.sum()) > 1
    up = torch.cat([a["experts.*.0.weight"], a["experts.*.0.bias"].unsqueeze(2)], 2)
    down, bias = a["experts.*.2.weight"], a["experts.*.2.bias"]
    squares = ((up.mT @ up)[:, None] - (up.mT @ up)[None]).square().sum((2, 3))
    squares += ((down @ down.mT)[:, None] - (down @ down.mT)[None]).square().sum((2, 3))
    squares += (bias[:, None] - bias[None]).square().sum(2)
    torch.testing.assert_close(gram, squares.sqrt() / squares.sqrt().mean(), rtol=1e-6, atol=1e-6)
    shifted = {**b, "gate.weight": b["gate.weight"] + torch.randn(6, dtype=torch.float64)}
    gate = expert_costs(spec, name, a, shifted, "gate")
    assert gate is not None and bool((gate.diagonal() < 1e-9).all())


def test_activations_match_experts_by_their_scores_and_their_units_by_weights() -> None:
    model, spec = planted(after, masked)
    twin = spec.random(7, Kind.PERMUTATION).apply(model)
    found = pyalign.align(model, twin, [X], method=ActivationMatching(), spec=spec)
    assert distance(model, found.apply(twin)) < 1e-5
    assert "by weights" in found.report()


def test_busy_experts_are_matched_with_busy_ones_whatever_scores_vary_with() -> None:
    """The scores of B's idle experts vary as those of A's busy ones do: only who is chosen tells them apart."""
    model, spec = planted(after, gathered)
    (name,) = expert_groups(spec)
    twin = copy.deepcopy(model)
    rows = torch.randn(EXPERTS, model.gate.weight.shape[1], generator=torch.Generator().manual_seed(1))
    sizes = torch.tensor([0.2, 0.2, 1.0, 1.0]).unsqueeze(1)
    with torch.no_grad():
        for network, order in ((model, [0, 1, 2, 3]), (twin, [2, 3, 0, 1])):
            network.gate.weight.copy_(rows[order] * sizes)
            network.gate.bias.copy_(torch.tensor([2.0, 2.0, -1.5, -1.5]))
    tokens = torch.randn(1, 2048, 3, generator=torch.Generator().manual_seed(2))
    counts = expert_counts(selected_experts(model, spec, [tokens])[name], EXPERTS)
    assert counts.min() > 0 and counts[:2].min() > counts[2:].max(), counts
    found = pyalign.align(model, twin, [tokens], method="activation", spec=spec, verify=False)
    assert set(expert_orders(found)[name][:2]) == {0, 1}


def test_padding_chooses_no_experts() -> None:
    """A padded token is no sample: neither of who goes where, nor of which expert is alive."""
    model, spec = planted(after, gathered)
    (name,) = expert_groups(spec)
    padded = torch.cat([X, torch.full((3, 50, 3), 9.0)], 1)
    real = selected_experts(model, spec, [X])[name]
    assert torch.equal(selected_experts(model, spec, [padded], lambda x: x[..., 0] != 9.0)[name], real)
    twin = spec.random(3, Kind.PERMUTATION).apply(model)
    answers = [
        pyalign.align(model, twin, [x], method=ActivationMatching(mask=mask), spec=spec, verify=False)
        for x, mask in ((X, "attention_mask"), (padded, lambda x: x[..., 0] != 9.0))
    ]
    assert answers[0].objective == pytest.approx(answers[1].objective, abs=1e-4)


def test_common_choices_are_counted_pair_by_pair() -> None:
    generator = torch.Generator().manual_seed(0)
    one, two = (torch.rand(30, 5, generator=generator).topk(k).indices for k in (2, 3))
    counted = torch.zeros(5, 5, dtype=torch.int64)
    for a, b in zip(one.tolist(), two.tolist(), strict=True):
        for i in a:
            for j in b:
                counted[i, j] += 1
    assert torch.equal(common_choices(one, two, 5), counted)
    assert common_choices(one[:0], two[:0], 5).sum() == 0


def test_unknown_ways_are_refused() -> None:
    with pytest.raises(InputError, match="match experts"):
        WeightMatching(experts="order")


def test_experts_in_a_list_go_through_every_method(monkeypatch: pytest.MonkeyPatch) -> None:
    """Learned, in a universe, widened and shared: the function stays, whatever form the experts are kept in."""
    torch.manual_seed(0)
    a, b = (Mixture(after, looped).eval() for _ in range(2))
    spec = pyalign.derive(a, X)
    assert spec.stacks
    labelled = [(X, torch.randint(0, 2, (48,), generator=torch.Generator().manual_seed(1)))] * 3
    learned = LearnedMatching(start=WeightMatching(sweeps=1), steps=3)
    found = universe([a, b], spec, method=WeightMatching(sweeps=1), sweeps=1)
    moved = [pyalign.align(a, b, labelled, method=learned, spec=spec).apply(b), found.apply([a, b])[1]]
    monkeypatch.setattr("tests.symmetry.mixtures.HIDDEN", HIDDEN + 3)
    wide = Mixture(after, looped).eval()
    start = widen(b, wide, X).model
    moved += [start, share(wide, start, X).model]
    for model in moved:
        torch.testing.assert_close(model(X), b(X), rtol=1e-4, atol=1e-5)
