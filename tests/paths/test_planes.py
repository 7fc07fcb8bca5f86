"""Planes: the anchors bit by bit, the geometry by hand, curves in them, resuming, and what cannot be."""

import json
import math

import pytest
import torch
from paths.helpers_paths import classifier, labelled, same
from torch import nn

from pyalign.errors import CheckpointError, DataError, InputError, MismatchError, PyalignWarning
from pyalign.paths import Curve, Plane, PlaneRecord, plane
from pyalign.paths.measure import evaluate


def vector(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()]).double()


def test_the_plane_is_that_of_gram_and_schmidt_and_its_anchors_are_the_models():
    models = [classifier(seed) for seed in range(3)]
    ground = Plane(*models)
    for place, model in zip(ground.anchors, models, strict=True):
        assert same(ground.at(*place).state_dict(), model.state_dict())
        assert ground.coordinates(model.state_dict()) == pytest.approx(place, abs=1e-5)
    a, b, c = (vector(model) for model in models)
    u = (b - a) / (b - a).norm()
    v = (c - a) - ((c - a) @ u) * u
    v = v / v.norm()
    torch.testing.assert_close(vector(ground.at(0.7, -0.4)), a + 0.7 * u - 0.4 * v, rtol=1e-5, atol=1e-5)
    assert ground.coordinates(ground.at(0.7, -0.4).state_dict()) == pytest.approx((0.7, -0.4), abs=1e-5)


def test_every_point_of_a_curve_with_one_bend_lies_in_its_plane():
    path = Curve(classifier(0), classifier(1))
    path.inner[0][0] += torch.randn(path.inner[0][0].shape)
    ground = Plane(path.at(0), path.at(1), path.at(0.5))
    for t in (0.2, 0.7):
        torch.testing.assert_close(
            vector(ground.at(*ground.coordinates(path.state(t)))), vector(path.at(t)), rtol=1e-4, atol=1e-4
        )


def test_values_on_the_grid_and_at_the_anchors():
    models, data = [classifier(seed, norm=False) for seed in range(3)], labelled()
    curves = {"line": Curve(models[0], models[1])}
    record = plane(*models, data, resolution=4, margin=0.1, curves=curves)
    ground = Plane(*models)
    for row, y in enumerate(record.y):
        for column, x in enumerate(record.x):
            loss, accuracy, _ = evaluate(ground.at(x, y), data)
            assert (record.loss[row][column], record.accuracy[row][column]) == (loss, accuracy)
    assert record.anchor_loss == tuple(evaluate(model, data)[0] for model in models) and record.samples == 37
    low, high = min(p[0] for p in record.anchors), max(p[0] for p in record.anchors)
    assert record.x[0] == pytest.approx(low - 0.1 * (high - low)) and record.x[-1] == pytest.approx(
        high + 0.1 * (high - low)
    )
    assert record.curves["line"][0] == pytest.approx((0, 0), abs=1e-5)
    assert record.curves["line"][-1] == pytest.approx(record.anchors[1], abs=1e-5)
    assert PlaneRecord.from_dict(json.loads(record.to_json())) == record


def test_batchnorm_is_reestimated_or_warned_of():
    models, data = [classifier(seed) for seed in range(3)], labelled((32, 32))
    with pytest.warns(PyalignWarning, match="recalibrate="):
        stale = plane(*models, data, resolution=2)
    fresh = plane(*models, data, resolution=2, recalibrate=data)
    assert fresh.recalibrated and fresh.anchor_loss != stale.anchor_loss


def test_an_interrupted_plane_goes_on_where_it_was(tmp_path):
    models, path = [classifier(seed, norm=False) for seed in range(3)], tmp_path / "plane.json"
    whole = plane(*models, labelled(), resolution=3)
    calls = []

    def loss(output, targets):
        calls.append(1)
        if len(calls) == 15:  # three batches a point
            raise KeyboardInterrupt
        return nn.functional.cross_entropy(output, targets)

    with pytest.raises(KeyboardInterrupt):
        plane(*models, labelled(), resolution=3, loss=loss, checkpoint=path)
    assert len(json.loads(path.read_text())["values"]) == 4
    calls[:] = [1] * 100
    record = plane(*models, labelled(), resolution=3, loss=loss, checkpoint=path)
    assert len(calls) == 100 + 3 * 8
    flat = [x for row in record.loss for x in row]
    assert flat == pytest.approx([x for row in whole.loss for x in row])
    given = {"resolution": 3, "loss": loss}
    for change in ({"resolution": 4}, {"margin": 0.5}, {"loss": None}, {"recalibrate": labelled()}):
        with pytest.raises(CheckpointError, match="another plane"):
            plane(*models, labelled(), **{**given, **change}, checkpoint=path)
    path.write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read"):
        plane(*models, labelled(), resolution=3, checkpoint=path)


def test_a_checkpoint_of_other_batchnorm_statistics_is_refused(tmp_path):
    models, path = [classifier(seed) for seed in range(3)], tmp_path / "plane.json"
    with pytest.warns(PyalignWarning, match="recalibrate="):
        plane(*models, labelled(), resolution=2, checkpoint=path)
    models[0][1].running_mean.add_(1.0)
    with pytest.raises(CheckpointError, match="another plane"), pytest.warns(PyalignWarning):
        plane(*models, labelled(), resolution=2, checkpoint=path)


def test_an_overflowing_corner_is_infinite_and_survives_json():
    class Power(nn.Module):
        def __init__(self, value):
            super().__init__()
            self.value = nn.Parameter(torch.tensor(value))

        def forward(self, x):
            return x * torch.exp(self.value.sum())

    models = [Power([0.0, 0.0]), Power([80.0, 0.0]), Power([0.0, 80.0])]
    record = plane(*models, [(torch.eye(2), torch.tensor([0, 1]))], resolution=2, margin=0.0)
    assert math.isinf(record.loss[1][1]) and math.isfinite(record.loss[0][0])
    assert json.loads(record.to_json())["loss"][1][1] is None
    assert PlaneRecord.from_dict(json.loads(record.to_json())) == record


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"resolution": 1}, InputError, "no grid"),
        ({"margin": -0.1}, InputError, "no grid"),
        ({"margin": float("nan")}, InputError, "no grid"),
        ({"margin": float("inf")}, InputError, "no grid"),
        ({"c": classifier(1, norm=False)}, InputError, "on one line"),
        ({"b": classifier(0, norm=False)}, InputError, "on one line"),
        ({"c": classifier(2)}, MismatchError, "model c does not have the architecture"),
        ({"data": []}, DataError, "data is empty"),
    ],
    ids=str,
)
def test_planes_that_cannot_be(change, error, message):
    given = {"a": classifier(0, norm=False), "b": classifier(1, norm=False), "c": classifier(2, norm=False)}
    with pytest.raises(error, match=message):
        plane(**{**given, "data": labelled(), "resolution": 2, **change})
    with pytest.raises(InputError, match="record of a plane"):
        PlaneRecord.from_dict({"x": []})
