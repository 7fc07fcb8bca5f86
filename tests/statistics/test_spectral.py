"""Spectral norms of blended models: the norm is that of the blended weights, wherever models are blended."""

import warnings

import pytest
import torch
from torch import nn

import pyalign
from pyalign.paths import LinearPath
from pyalign.statistics.spectral import power_vectors, settle_spectral_norms


def hooked(layer):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch recommends the parametrization
        return nn.utils.spectral_norm(layer)


WAYS = {"parametrization": nn.utils.parametrizations.spectral_norm, "hook": hooked}
X = torch.randn(12, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
DATA = [(X, torch.arange(12) % 3)]


def network(seed, way, flip=1.0):
    torch.manual_seed(seed)
    model = nn.Sequential(WAYS[way](nn.Linear(5, 8)), nn.Tanh(), WAYS[way](nn.Conv1d(8, 3, 1)), nn.Flatten()).double()
    model.insert(2, nn.Unflatten(1, (8, 1)))
    for _ in range(100):
        model(X)
    model.eval()
    with torch.no_grad():
        for name in power_vectors(model):  # u and v may be turned together: the norm is the same
            model.state_dict()[name].mul_(flip)
    return model


def norms(model):
    """The spectral norms of the weights that are used, by singular values."""
    model(X)
    return [float(torch.linalg.matrix_norm(model[i].weight.detach().flatten(1), 2)) for i in (0, 3)]


@pytest.mark.parametrize("flip", [1.0, -1.0])
@pytest.mark.parametrize("way", WAYS)
def test_blended_layers_have_norm_one(way, flip):
    a, b = network(0, way), network(1, way, flip)
    path = pyalign.curve(a, b, DATA, steps=3)
    c = path.at(0.5)
    with torch.no_grad():
        c[0].bias.add_(1.0)
    blended = {
        "line": pyalign.interpolate(a, b, 0.5),
        "curve": path.at(0.3),
        "merge": pyalign.merge([a, b]),
        "plane": pyalign.paths.Plane(a, b, c).at(0.3, 0.2),
    }
    for which, model in blended.items():
        assert not model.training and norms(model) == pytest.approx([1.0, 1.0], abs=1e-4), which
    stale = pyalign.interpolate(a, b, 0.5)
    stale.load_state_dict(LinearPath(a, b).state(0.5))
    assert max(norms(stale)) > 1.05, "the test could not fail"


@pytest.mark.parametrize("way", WAYS)
def test_ends_stay_as_they_are_bit_by_bit(way):
    a, b = network(0, way), network(1, way)
    for t, model in ((0.0, a), (1.0, b)):
        for path in (LinearPath(a, b), pyalign.curve(a, b, DATA, steps=1)):
            assert all(torch.equal(path.at(t).state_dict()[n], x) for n, x in model.state_dict().items())


@pytest.mark.parametrize("way", WAYS)
def test_a_curve_is_trained_on_the_models_that_it_holds(way):
    """The loss of a step is that of the model at its t, and not of weights under a norm that does not fit."""
    a, b = network(0, way), network(1, way, -1.0)
    path = pyalign.curve(a, b, DATA, steps=6, lr=0.0)
    for t, loss in path.history:
        expected = nn.functional.cross_entropy(path.at(t)(X), DATA[0][1]).detach()
        assert loss == pytest.approx(float(expected), rel=1e-3)


def test_other_models_have_nothing_to_settle():
    model = nn.Sequential(nn.Linear(3, 2), nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)))
    before = {name: x.clone() for name, x in model.state_dict().items()}
    settle_spectral_norms(model)
    assert power_vectors(model) == set()
    assert all(torch.equal(before[name], x) for name, x in model.state_dict().items())
