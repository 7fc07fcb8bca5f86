"""Correlations along a path: against the definition, any two points, and labels of layers."""

import pytest
import torch
from paths.helpers_paths import classifier, labelled
from torch import nn

import pyalign
from pyalign.errors import InputError, PyalignWarning
from pyalign.paths import Correlations, Curve, LinearPath, correlations


def hidden(model, data):
    model.eval()
    with torch.no_grad():
        return torch.cat([model[:3](x) for x, _ in data]).double()


def test_they_are_pearsons_of_the_hidden_units():
    data, path = labelled((64, 64)), LinearPath(classifier(0), classifier(1))
    record = correlations(path, data, reference=0.25, t=[0.25, 1.0])
    assert record.layers == record.groups == ("0.weight",) or len(record.layers) == 1
    x, y = (hidden(path.at(t), data) for t in (0.25, 1.0))
    together = torch.corrcoef(torch.cat([x, y], 1).T)[:8, 8:].nan_to_num()
    assert record.slots[0] == pytest.approx((1.0, float(together.diagonal().mean())), abs=1e-5)
    assert record.matched[0][1] >= record.slots[0][1]


def test_the_best_order_undoes_a_shuffle():
    a, data = classifier(0), labelled((64, 64))
    shuffled = pyalign.derive(a, data[0][0]).random(0, pyalign.symmetry.Kind.PERMUTATION).apply(a)
    record = correlations(LinearPath(a, shuffled), data, t=[1.0])
    assert record.matched[0] == pytest.approx((1.0,), abs=1e-6) and record.slots[0][0] < 0.9


def test_recalibration_is_used_at_both_points():
    data, path = labelled((32, 32)), Curve(classifier(0), classifier(1))
    with pytest.warns(PyalignWarning, match="recalibrate="):
        stale = correlations(path, data, points=3)
    fresh = correlations(path, data, points=3, recalibrate=data)
    assert stale.slots[0][1] != fresh.slots[0][1] and fresh.slots[0][0] == pytest.approx(1.0, abs=1e-6)
    assert fresh.mean() == fresh.slots[0] and Correlations.from_dict(fresh.to_dict()) == fresh


def test_layers_of_a_shared_group_are_told_apart():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.head = nn.Linear(6, 5), nn.Linear(5, 5), nn.Linear(5, 3)

        def forward(self, x):
            x = self.first(x).relu()
            x = (x + self.second(x)).relu()
            return self.head(x)

    record = correlations(LinearPath(Residual(), Residual()), labelled((32,)), points=2)
    assert len(set(record.layers)) == len(record.layers) == 2 and len(set(record.groups)) == 1


@pytest.mark.parametrize("wrong", [{"points": 1}, {"t": []}, {"t": [1.5]}, {"reference": -1.0}], ids=str)
def test_positions_that_cannot_be(wrong):
    with pytest.raises(InputError):
        correlations(LinearPath(classifier(0), classifier(1)), labelled(), **wrong)
