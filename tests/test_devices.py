"""Models that are not in host memory: everything stays where they are, and what lies apart is refused by name."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers_elsewhere import ELSEWHERE, Elsewhere, elsewhere, moved
from torch import nn

import pyalign
from pyalign import errors
from pyalign.statistics import Moments, collect, home

WIDEST = 24


def network(seed):
    torch.manual_seed(seed)
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(48, WIDEST), nn.Tanh(), nn.Linear(WIDEST, 5)).eval()


A, B = network(1), network(2)
DATA = [(torch.randn(40, 3, 6, 6, generator=torch.Generator().manual_seed(k)), torch.arange(40) % 5) for k in range(3)]

# What comes to the host at most, in entries of one tensor: single numbers, indices, or similarities of units.
JOBS = {
    "interpolate": (1, lambda a, b, data: pyalign.interpolate(a, b, 0.3)),
    "barrier": (1, lambda a, b, data: pyalign.barrier(a, b, data, points=3, recalibrate=data)),
    "merge": (1, lambda a, b, data: pyalign.merge([a, b], repair="repair", data=data)),
    "activation": (WIDEST, lambda a, b, data: pyalign.align(a, b, data)),
    "weight": (WIDEST**2, lambda a, b, data: pyalign.align(a, b, data, method="weight")),
    "apply": (1, lambda a, b, data: pyalign.derive(a, data[0][0]).random(0).apply(b)),
}


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
