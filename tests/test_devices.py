"""Models that are not in host memory: everything stays where they are, and what lies apart is refused by name."""

from __future__ import annotations

import copy
from importlib import import_module

import pytest
import torch
from helpers_elsewhere import ELSEWHERE, Elsewhere, elsewhere, moved
from matching import handmade
from symmetry import mixtures
from symmetry.architectures import ARCHITECTURES
from torch import nn

import pyalign
from pyalign import errors
from pyalign.matching import Problem, WeightMatching, birkhoff, layout
from pyalign.matching.experts import EXPERTS
from pyalign.statistics import Moments, collect, home
from pyalign.symmetry import Kind, state_of, widen

WIDEST = 24
sharing, correlations = (import_module(f"pyalign.{name}") for name in ("matching.share", "paths.correlations"))


def network(seed):
    torch.manual_seed(seed)
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(48, WIDEST), nn.Tanh(), nn.Linear(WIDEST, 5)).eval()


A, B = network(1), network(2)
DATA = [(torch.randn(40, 3, 6, 6, generator=torch.Generator().manual_seed(k)), torch.arange(40) % 5) for k in range(3)]

# What comes to the host at most, in entries of one tensor: single numbers, or a few for every unit.
JOBS = {
    "interpolate": (1, lambda a, b, data: pyalign.interpolate(a, b, 0.3)),
    "barrier": (1, lambda a, b, data: pyalign.barrier(a, b, data, points=3, recalibrate=data)),
    "merge": (1, lambda a, b, data: pyalign.merge([a, b], repair="repair", data=data)),
    "activation": (WIDEST, lambda a, b, data: pyalign.align(a, b, data)),
    "weight": (3 * WIDEST, lambda a, b, data: pyalign.align(a, b, data, method="weight")),
    "apply": (1, lambda a, b, data: pyalign.derive(a, data[0][0]).random(0).apply(b)),
}


def matched(a, b, spec, **options):
    """Weight matching of two sweeps: as many as show all that a sweep does."""
    return WeightMatching(sweeps=2, **options).match(Problem(a, b, spec, seed=1, progress=False))


def expect_same(got, want):
    """The answers of weight matching on two devices that compute alike."""
    assert got.objective == pytest.approx(want.objective, rel=1e-6, abs=1e-9)
    assert got.worst_gap == pytest.approx(0.0, abs=1e-9)
    for name, element in want.transforms.items():
        assert torch.equal(got.transforms[name].perm, element.perm), name


def expect_to_stay(a, b, spec, **options):
    """At most a few numbers for every unit come to the host, and the answer is the same as there."""
    want = matched(a, b, spec, **options)
    a, b = moved(copy.deepcopy(a)), moved(copy.deepcopy(b))
    with elsewhere() as to_host:
        got = matched(a, b, spec, **options)
    assert max(to_host) <= 3 * max(group.size for group in spec.groups.values()), sorted(to_host)[-10:]
    expect_same(got, want)


def compare(got, want):
    """The answers of two devices, up to rounding."""
    if isinstance(want, nn.Module):
        for name, tensor in want.state_dict().items():
            other = got.state_dict()[name]
            other = other.host if isinstance(other, Elsewhere) else other.cpu()
            assert torch.allclose(other.double(), tensor.double(), rtol=1e-4, atol=1e-5), name
    elif isinstance(want, pyalign.Barrier):
        assert got.loss == pytest.approx(want.loss, rel=1e-4) and got.accuracy == want.accuracy
    else:
        assert got.objective == pytest.approx(want.objective, rel=1e-4)
        assert got.correlation_after == pytest.approx(want.correlation_after, rel=1e-3, abs=1e-4)
        assert got.worst_gap == pytest.approx(0.0, abs=1e-9)


def pair_of(case):
    """Two models of one architecture, and their symmetry, by which kind of groups weight matching meets."""
    if case.startswith("experts"):
        with pytest.MonkeyPatch.context() as patch:
            for name, value in {"WIDTH": 24, "HIDDEN": 16}.items():
                patch.setattr(mixtures, name, value)
            send = mixtures.masked if "list" in case else mixtures.gathered
            models = []
            for seed in (0, 1):
                torch.manual_seed(seed)
                models.append(mixtures.Mixture(mixtures.after, send).eval())
            return *models, pyalign.derive(models[0], torch.randn(3, 16, 3))
    if case == "mixing":
        found = ARCHITECTURES["attention_by_hand"]
        a, b = (handmade.generic(found.build(), seed) for seed in (3, 4))
        return a, b, pyalign.derive(a, found.inputs().float(), within=Kind.INVERTIBLE)
    name, change = {"blocks": ("grouped", {"inner": 8}), "side by side": ("concat", {"growth": 12})}.get(
        case, (case, {})
    )
    build, spec_of, _ = handmade.CASES.get(name, handmade.CASES["mlp"])
    a, b = (
        handmade.generic(build(**change), seed, torch.float64 if case == "float64" else torch.float32)
        for seed in (3, 4)
    )
    if case == "signs":
        return a, b, handmade.mlp_spec(a, Kind.SIGNED)
    spec = spec_of(a)
    return a, (spec.random(0).apply(a) if case == "factors" else b), spec


def devices_of(answer):
    return {tensor.device.type for tensor in answer.state_dict().values()} if isinstance(answer, nn.Module) else set()


@pytest.mark.filterwarnings("ignore::pyalign.errors.PyalignWarning")
@pytest.mark.parametrize("job", JOBS)
def test_nothing_large_comes_to_the_host(job):
    most, run = JOBS[job]
    data = [(Elsewhere(inputs), Elsewhere(targets)) for inputs, targets in DATA]
    with elsewhere() as to_host:
        got = run(moved(copy.deepcopy(A)), moved(copy.deepcopy(B)), data)
    assert max(to_host, default=0) <= most, sorted(to_host)[-10:]
    assert devices_of(got) <= {ELSEWHERE.type}
    compare(got, run(A, B, DATA))


CASES = ("mlp", "resnet", "signs", "factors", "float64", "blocks", "side by side", "experts", "experts in a list")


@pytest.mark.filterwarnings("ignore::pyalign.errors.PyalignWarning")
@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_similarities_of_weights_stay_on_the_device(case, kept, monkeypatch):
    """Whatever the groups are like, and whether slices are laid out or products are made anew in every step."""
    if not kept:
        monkeypatch.setattr(layout, "KEPT", 0)
    expect_to_stay(*pair_of(case))


@pytest.mark.filterwarnings("ignore::pyalign.errors.PyalignWarning")
@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("case", ["mlp", "resnet", "factors", "blocks", "side by side"])
def test_models_in_parts_on_two_devices_are_matched_as_in_one_piece(case, kept, monkeypatch):
    if not kept:
        monkeypatch.setattr(layout, "KEPT", 0)
    a, b, spec = pair_of(case)
    want = matched(a, b, spec)
    a, b = copy.deepcopy(a), copy.deepcopy(b)
    for model in (a, b):
        leaves = [module for module in model.modules() if not any(module.children())]
        for module in leaves[: len(leaves) // 2]:
            moved(module)
    with elsewhere():
        expect_same(matched(a, b, spec), want)


@pytest.mark.filterwarnings("ignore::pyalign.errors.PyalignWarning")
@pytest.mark.parametrize("how", EXPERTS)
def test_ways_to_match_experts_stay_on_the_device(how):
    expect_to_stay(*pair_of("experts"), experts=how)


def test_nearest_permutations_are_found_on_the_device():
    matrix = birkhoff.project(torch.rand(40, 40, generator=torch.Generator().manual_seed(0)).double() ** 3)
    want, correlation = birkhoff.decompose(matrix, 5), correlations._means(matrix)
    with elsewhere() as to_host:
        got = birkhoff.decompose(Elsewhere(matrix), 5)
        assert torch.equal(birkhoff.nearest(Elsewhere(matrix)), birkhoff.nearest(matrix))
        assert correlations._means(Elsewhere(matrix)) == pytest.approx(correlation)
    assert max(to_host) <= 5 * 40
    assert torch.equal(got.perms, want.perms) and torch.equal(got.weights, want.weights)


@pytest.mark.filterwarnings("ignore::pyalign.errors.PyalignWarning")
def test_shares_of_units_are_found_on_the_device():
    torch.manual_seed(0)
    small, large = (nn.Sequential(nn.Linear(4, n), nn.ReLU(), nn.Linear(n, 4)) for n in (10, 24))
    x = torch.randn(6, 4)
    spec, wide = pyalign.derive(large, x), widen(small, large, x).model
    states = [{name: tensor.double() for name, tensor in state_of(model).items()} for model in (large, wide)]
    (group,) = spec.groups.values()
    silent = sharing._silent(spec, group, states[1])
    want = sharing._round(spec, group, silent, *states)
    there = [{name: Elsewhere(tensor) for name, tensor in state.items()} for state in states]
    with elsewhere() as to_host:
        assert torch.equal(sharing._silent(spec, group, there[1]), silent)
        got = sharing._round(spec, group, silent, *there)
    assert max(to_host) <= 24 and len(want[0]) > 0
    assert all(torch.equal(x, y) for x, y in zip(got, want, strict=True))


@pytest.mark.filterwarnings("ignore::pyalign.errors.PyalignWarning")
def test_units_that_mix_are_matched_as_on_the_host():
    """Products that speak for matrices come to the host, where these are found."""
    a, b, spec = pair_of("mixing")
    assert any(group.kind.mixes for group in spec.groups.values())
    want = matched(a, b, spec)
    with elsewhere():
        got = matched(moved(copy.deepcopy(a)), moved(copy.deepcopy(b)), spec)
    expect_same(got, want)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore::pyalign.errors.PyalignWarning")
@pytest.mark.parametrize("case", (*CASES, "mixing"))
def test_weight_matching_on_a_gpu(case):
    a, b, spec = pair_of(case)
    want = matched(a, b, spec)
    got = matched(copy.deepcopy(a).cuda(), copy.deepcopy(b).cuda(), spec)
    assert got.objective == pytest.approx(want.objective, rel=1e-4, abs=1e-6)
    assert got.worst_gap == pytest.approx(0.0, abs=1e-9)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore::pyalign.errors.PyalignWarning")
@pytest.mark.parametrize("job", JOBS)
def test_on_a_gpu(job, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # torch's default for convolutions
    _, run = JOBS[job]
    data = [(inputs.cuda(), targets.cuda()) for inputs, targets in DATA]
    got = run(copy.deepcopy(A).cuda(), copy.deepcopy(B).cuda(), data)
    assert devices_of(got) <= {"cuda"}
    compare(got, run(A, B, DATA))
    if job == "weight":
        again = run(copy.deepcopy(A).cuda(), copy.deepcopy(B).cuda(), data)
        assert all(torch.equal(again.transforms[name].perm, g.perm) for name, g in got.transforms.items())


def test_models_on_two_devices_are_refused():
    a, b = copy.deepcopy(A), moved(copy.deepcopy(B))
    with elsewhere():
        with pytest.raises(errors.MismatchError, match=r"different device\..* cpu in model A, meta in model B"):
            pyalign.align(a, b, DATA)
        for run in (lambda: pyalign.interpolate(a, b, 0.5), lambda: pyalign.barrier(a, b, DATA)):
            with pytest.raises(errors.MismatchError, match=r"float32 on cpu, float32 on meta.*\.to\(device\)"):
                run()
        with pytest.raises(errors.MismatchError, match="differ in dtype or device"):
            pyalign.merge([a, b])


@pytest.mark.gpu
def test_models_on_a_gpu_and_on_the_host_are_refused():
    a, b = copy.deepcopy(A), copy.deepcopy(B).cuda()
    with pytest.raises(errors.MismatchError, match=r"cpu in model A, cuda:0 in model B"):
        pyalign.align(a, b, DATA)
    with pytest.raises(errors.MismatchError, match="differ in dtype or device"):
        pyalign.interpolate(a, b, 0.5)


@pytest.mark.filterwarnings("ignore::pyalign.errors.PyalignWarning")
def test_data_on_another_device_is_refused():
    a, b = (moved(copy.deepcopy(model)) for model in (A, B))
    with elsewhere():
        for run in (lambda: pyalign.align(a, b, DATA), lambda: pyalign.barrier(a, b, DATA, points=2)):
            said = r"on cpu.*inputs on meta, where the model is.*model.to\('cpu'\)"
            with pytest.raises(errors.DataError, match=said):
                run()


@pytest.mark.filterwarnings("ignore::pyalign.errors.PyalignWarning")
def test_statistics_that_do_not_fit_stay_on_the_host(monkeypatch):
    """Of 8, 12 and 24 units the last do not fit, by the rule of three times their size."""
    fits = home.ROOM * Moments.size(12)
    monkeypatch.setattr(home, "free_memory", lambda device: fits if device.type == ELSEWHERE.type else None)
    a, b = (moved(copy.deepcopy(model)) for model in (A, B))
    data = [(Elsewhere(inputs), Elsewhere(targets)) for inputs, targets in DATA]
    with elsewhere():
        seen = collect(a, b, pyalign.derive(a, data[0][0]), data, progress=False)
        got = pyalign.align(a, b, data, progress=False)
    places = {len(moments.mean_a): moments.mean_a.device.type for moments in seen.values()}
    assert places == {8: "meta", 12: "meta", WIDEST: "cpu"}
    compare(got, pyalign.align(A, B, DATA, progress=False))


@pytest.mark.parametrize(("free", "kept"), [(299, False), (300, True)])
def test_rule_of_the_host(monkeypatch, free, kept):
    monkeypatch.setattr(home, "free_memory", lambda device: free)
    assert (home.home(torch.device("cuda", 1), 100) == torch.device("cuda", 1)) is kept


def test_free_memory_counts_what_torch_has_reserved(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (100, 1000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 50)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 20)
    assert home.free_memory(torch.device("cuda")) == 130
    assert home.free_memory(torch.device("cpu")) is None


def test_the_device_that_is_not_there_refuses_strangers():
    """The helper itself: what torch refuses on a GPU, and what it counts."""
    x = Elsewhere(torch.ones(3))
    with elsewhere() as to_host:
        for wrong in (lambda: x + torch.ones(3), lambda: x.index_select(0, torch.tensor([1]))):
            with pytest.raises(RuntimeError, match="same device"):
                wrong()
        assert isinstance(x * 2.0, Elsewhere) and isinstance(torch.zeros(2, device=ELSEWHERE), Elsewhere)
        assert to_host == []
        assert x.cpu().tolist() == [1.0] * 3 and float(x[0]) == 1.0
        assert to_host == [3, 1]
