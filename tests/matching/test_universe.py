"""Several models in one frame, over all classes, and the barrier of the simplex that they span."""

import itertools

import pytest
import torch
from torch import nn

import pyalign
from pyalign.errors import InputError, MismatchError
from pyalign.matching import universe
from pyalign.paths import simplex_barrier
from pyalign.symmetry import Kind, derive


def network(seed: int = 0) -> nn.Module:
    """An orthogonal stream, a permutation and signs."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Linear(5, 8), nn.RMSNorm(8, elementwise_affine=False), nn.Linear(8, 7), nn.GELU(), nn.Linear(7, 6),
        nn.Tanh(), nn.Linear(6, 3),
    ).double()  # fmt: skip
    with torch.no_grad():
        model[6].weight *= 10  # sure of its answers, so that a mean of strangers is worse
    return model


def copies(count: int, noise: float):
    model, x = network(), torch.randn(32, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    spec = derive(model, x, within=Kind.INVERTIBLE)
    generator = torch.Generator().manual_seed(1)
    moved = [spec.random(seed).apply(model) for seed in range(count)]
    with torch.no_grad():
        for other in moved:
            for p in other.parameters():
                p += noise * torch.randn(p.shape, generator=generator, dtype=p.dtype)
    return moved, spec, [(x, model(x).argmax(1))]


def test_planted_models_meet_and_their_simplex_is_flat():
    models, spec, data = copies(3, 0.01)
    assert {g.kind for g in spec.groups.values()} >= {Kind.ORTHOGONAL, Kind.PERMUTATION, Kind.SIGNED}
    found = universe(models, spec, method=pyalign.WeightMatching(restarts=5))
    assert found.trace[-1] < 1e-2 * found.trace[0]
    assert all(low <= high for high, low in itertools.pairwise(found.trace))
    framed = found.apply(models)
    x = data[0][0]
    for before, after in zip(models, framed, strict=True):
        torch.testing.assert_close(after(x), before(x), rtol=1e-9, atol=1e-9)
    apart, together = (simplex_barrier(m, data, resolution=3) for m in (models, framed))
    assert together.loss_barrier < 0.01 < apart.loss_barrier
    around = found.between(0, 1).compose(found.between(1, 2))
    state = models[2].state_dict()
    for name, tensor in found.between(0, 2).apply(state).items():
        torch.testing.assert_close(around.apply(state)[name], tensor, rtol=1e-7, atol=1e-7)


def test_the_spread_never_rises_for_models_that_share_nothing():
    models, x = [network(seed) for seed in range(3)], torch.randn(16, 5, dtype=torch.float64)
    spec = derive(models[0], x, within=Kind.INVERTIBLE)
    trace = universe(models, spec, sweeps=3).trace
    assert trace[-1] < trace[0] and all(low <= high for high, low in itertools.pairwise(trace))


def test_the_simplex_of_two_is_the_line():
    models, _, data = copies(2, 0.1)
    line = pyalign.barrier(*models, data, points=5)
    simplex = simplex_barrier(models, data, resolution=4)
    assert simplex.weights[1] == (0.75, 0.25)
    assert simplex.loss == pytest.approx(line.loss) and simplex.accuracy == pytest.approx(line.accuracy)
    assert simplex.loss_barrier == pytest.approx(line.loss_barrier)
    assert simplex.accuracy_barrier == pytest.approx(line.accuracy_barrier)
    assert simplex.to_dict()["highest"] == list(simplex.highest)


def test_what_spans_no_simplex_is_refused():
    models, spec, data = copies(2, 0.0)
    for wrong in (lambda: simplex_barrier(models[:1], data), lambda: simplex_barrier(models, data, resolution=1)):
        with pytest.raises(InputError, match="no simplex"):
            wrong()
    with pytest.raises(InputError, match="bring together"):
        universe(models[:1], spec)
    with pytest.raises(MismatchError):
        universe([models[0], nn.Linear(2, 2).double()], spec)
