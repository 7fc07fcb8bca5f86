"""Laws of every matching method on planted problems: B = g.A, exactly and with noise, must give g back."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from matching import handmade
from symmetry.architectures import ARCHITECTURES

from pyalign.errors import InputError, MismatchError
from pyalign.matching import ActivationMatching, Problem, WeightMatching
from pyalign.symmetry import Kind, derive, state_of

METHODS = {
    "correlation": ActivationMatching(),
    "correlation, before": ActivationMatching(observe="before"),
    "correlation, last site": ActivationMatching(sites="last"),
    "covariance": ActivationMatching(similarity="covariance"),
    "second moment": ActivationMatching(similarity="second moment", sites="all"),
    "weight": WeightMatching(),
    "weight, restarts": WeightMatching(restarts=2),
}


def planted(case, seed, noise=0.0, kind=Kind.PERMUTATION):
    """A model, a moved copy with noise, its spec, the planted alignment and data."""
    build, spec_of, shape = handmade.CASES[case]
    model = handmade.generic(build(), seed)
    spec = spec_of(model)
    truth = spec.random(seed, kind)
    moved = truth.apply(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in moved.parameters():
            p.add_(noise * torch.randn(p.shape, generator=generator))
    return model, moved, spec, truth, handmade.batches(*shape, count=4, seed=seed)


def undone(answer, truth, live=True):
    """Fraction of units that are not back in their place."""
    back = answer.compose(truth)
    wrong = [int((e.perm != torch.arange(e.size)).sum()) for e in back.transforms.values()]
    return sum(wrong) / sum(e.size for e in back.transforms.values())


@pytest.mark.parametrize("case", handmade.CASES)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("noise", [0.0, 1e-2])
def test_planted_permutations_are_recovered(case, method, noise):
    model, moved, spec, truth, data = planted(case, 3, noise)
    answer = METHODS[method].match(Problem(model, moved, spec, data, seed=1))
    assert undone(spec.identity(), truth) > 0.5
    assert undone(answer, truth) == 0.0
    assert answer.worst_gap < 1e-9
    assert all(later >= earlier for earlier, later in zip(answer.trace, answer.trace[1:], strict=False))
    assert answer.objective == answer.trace[-1]
    assert set(answer.transforms) == set(spec.groups)
    for group, after in answer.correlation_after.items():
        assert after > answer.correlation_before[group] and after > 0.75


@pytest.mark.parametrize("method", METHODS)
def test_same_seed_same_answer_and_nothing_changes(method):
    model, moved, spec, _, data = planted("resnet", 5, 0.5)
    states = [{n: t.clone() for n, t in state_of(m).items()} for m in (model, moved)]
    random_state = torch.get_rng_state()
    first, second = (METHODS[method].match(Problem(model, moved, spec, data, seed=7)) for _ in range(2))
    assert all(torch.equal(e.perm, second.transforms[n].perm) for n, e in first.transforms.items())
    assert first.trace == second.trace
    assert torch.equal(random_state, torch.get_rng_state())
    for model_now, before in zip((model, moved), states, strict=True):
        assert all(torch.equal(before[n], t) for n, t in state_of(model_now).items())


@pytest.mark.parametrize("case", handmade.CASES)
def test_weight_matching_climbs_to_a_fixed_point_of_its_objective(case):
    build, spec_of, _ = handmade.CASES[case]
    a, b = handmade.generic(build(), 1), handmade.generic(build(), 2)
    spec = spec_of(a)
    # from the identity: where it begins by default there may be nothing left to climb
    answer = WeightMatching(start=spec.identity()).match(Problem(a, b, spec))
    assert answer.trace[0] < WeightMatching().match(Problem(a, b, spec)).trace[0]
    aligned = state_of(answer.apply(b))
    matched = {binding.tensor for binding in spec.bindings if binding.role.value == "matched"}
    value = sum(float((state_of(a)[n].double() * aligned[n].double()).sum()) for n in matched)
    assert answer.objective == pytest.approx(value, rel=1e-9)
    assert len(answer.trace) > 1 and all(y > x for x, y in zip(answer.trace, answer.trace[1:], strict=False))
    again = WeightMatching(start=answer).match(Problem(a, b, spec))
    assert again.objective == pytest.approx(answer.objective, rel=1e-12) and len(again.trace) == 1


def test_one_step_of_weight_matching_is_exact():
    """With one group there is nothing to alternate: the answer is the best of all permutations."""
    import itertools

    a, b = (handmade.generic(handmade.MLP((3, 5, 2)), seed) for seed in (1, 2))
    spec = handmade.mlp_spec(a)
    answer = WeightMatching().match(Problem(a, b, spec))

    def value(perm):
        p = list(perm)
        return float(
            (a.layers[0].weight * b.layers[0].weight[p]).sum()
            + (a.layers[0].bias * b.layers[0].bias[p]).sum()
            + (a.head.weight * b.head.weight[:, p]).sum()
        )

    with torch.no_grad():
        assert answer.objective == pytest.approx(max(map(value, itertools.permutations(range(5)))), rel=1e-5)


def test_restarts_keep_the_best():
    a, b = handmade.generic(handmade.ResNet(), 1), handmade.generic(handmade.ResNet(), 2)
    spec = handmade.resnet_spec(a)
    helped = False
    for seed in range(4):
        values = [WeightMatching(restarts=n).match(Problem(a, b, spec, seed=seed)).objective for n in (1, 3, 6)]
        assert values == sorted(values)
        helped = helped or values[0] < values[2]
    assert helped


@pytest.mark.parametrize("method", ["correlation", "weight"])
def test_signs_are_recovered_where_they_are_free(method):
    model = handmade.generic(handmade.MLP(activation=torch.tanh), 1)
    spec = handmade.mlp_spec(model, Kind.SIGNED, "aten.tanh.default")
    truth = spec.random(4)
    assert any(e.scale is not None for e in truth.transforms.values())
    problem = Problem(model, truth.apply(model), spec, handmade.batches(40, 6))
    assert METHODS[method].match(problem).compose(truth).is_identity
    unsigned = type(METHODS[method])(signs=False).match(problem)
    assert all(e.scale is None for e in unsigned.transforms.values())


def test_scales_do_not_disturb_correlations():
    model = handmade.generic(handmade.MLP(), 1)
    spec = handmade.mlp_spec(model)
    truth = spec.random(2)
    answer = ActivationMatching().match(Problem(model, truth.apply(model), spec, handmade.batches(60, 6)))
    back = answer.compose(truth)
    assert undone(answer, truth) == 0.0 and not back.is_identity, "the factors remain"


def test_dead_units_are_reported_and_matched_last():
    model = handmade.generic(handmade.MLP(), 1)
    with torch.no_grad():
        for unit in (2, 5, 11):
            model.layers[0].bias[unit] = -100.0
    spec = handmade.mlp_spec(model)
    truth = spec.random(3, Kind.PERMUTATION)
    answer = ActivationMatching().match(Problem(model, truth.apply(model), spec, handmade.batches(60, 6)))
    back = answer.compose(truth).transforms["layers.0"].perm
    live = [i for i in range(16) if i not in (2, 5, 11)]
    assert back[live].tolist() == live
    assert any("3 dead units in A, 3 in B" in note and "layers.0" in note for note in answer.notes)
    assert all(torch.isfinite(torch.tensor(v)) for v in answer.correlation_after.values())


def test_groups_that_are_never_seen_stay_and_are_named():
    model = handmade.generic(handmade.MLP(), 1)
    spec = handmade.mlp_spec(model)
    unseen = type(spec)(spec.groups, spec.bindings, spec.sites_of("layers.0"), shapes=spec.shapes)
    answer = ActivationMatching().match(
        Problem(model, handmade.generic(handmade.MLP(), 2), unseen, handmade.batches(60, 6))
    )
    assert answer.transforms["layers.1"].is_identity and not answer.transforms["layers.0"].is_identity
    assert any("'layers.1'" in note for note in answer.notes)


def test_running_statistics_do_not_count_in_weight_matching():
    a, b = handmade.generic(handmade.ResNet(), 1), handmade.generic(handmade.ResNet(), 2)
    spec = handmade.resnet_spec(a)
    other = copy.deepcopy(b)
    for name, buffer in other.named_buffers():
        if "running" in name:
            buffer.copy_(buffer.flip(0) * 3)
    first, second = (WeightMatching().match(Problem(a, m, spec)) for m in (b, other))
    assert first.trace == second.trace


class Recurrent(torch.nn.Module):
    """The group occurs twice in one matrix, so the objective is quadratic in it."""

    def __init__(self):
        super().__init__()
        self.enter, self.again = torch.nn.Linear(4, 7), torch.nn.Linear(7, 7, bias=False)
        self.leave = torch.nn.Linear(7, 3)

    def forward(self, x):
        h = F.relu(self.enter(x))
        return self.leave(F.relu(h + F.relu(self.again(h))))


def recurrent_spec(model):
    b = handmade.Builder(model)
    b.group("h", 7)
    b.out("enter", "h")
    b.into("again", "h")
    b.out("again", "h")
    b.into("leave", "h")
    return b.spec()


def test_a_group_twice_in_one_tensor():
    a, b = handmade.generic(Recurrent(), 1), handmade.generic(Recurrent(), 2)
    spec = recurrent_spec(a)
    answer = WeightMatching().match(Problem(a, b, spec))
    assert all(y > x for x, y in zip(answer.trace, answer.trace[1:], strict=False))
    aligned = state_of(answer.apply(b))
    value = sum(float((state_of(a)[n].double() * aligned[n].double()).sum()) for n in spec.shapes if n != "leave.bias")
    assert answer.objective == pytest.approx(value, rel=1e-9)
    truth = spec.random(3)
    assert WeightMatching().match(Problem(a, truth.apply(a), spec)).compose(truth).is_identity


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_weight_matching_recovers_a_permuted_copy_of_every_architecture(name):
    architecture = ARCHITECTURES[name]
    model = architecture.model()
    spec = derive(model, architecture.inputs())
    truth = spec.random(11, Kind.PERMUTATION)
    answer = WeightMatching().match(Problem(model, truth.apply(model), spec))
    assert answer.compose(truth).is_identity


def test_wrong_settings_and_a_foreign_start():
    with pytest.raises(InputError, match="similarity"):
        ActivationMatching(similarity="cosine")
    with pytest.raises(InputError, match="observation"):
        ActivationMatching(observe="during")
    with pytest.raises(InputError, match="restarts=0"):
        WeightMatching(restarts=0)
    model, moved, spec, _, _ = planted("mlp", 1)
    foreign = planted("resnet", 1)[2].identity()
    with pytest.raises(MismatchError, match="fingerprint"):
        WeightMatching(start=foreign).match(Problem(model, moved, spec))
    with pytest.raises(InputError, match="needs data"):
        ActivationMatching().match(Problem(model, moved, spec))
