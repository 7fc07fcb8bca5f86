"""Curves as paths: their ends, their geometry, what follows them and what stays on the line, files."""

import itertools

import pytest
import torch
from paths.helpers_paths import classifier, labelled, same
from torch import nn

from pyalign.errors import CheckpointError, InputError, MismatchError, NonFiniteError, PyalignWarning
from pyalign.paths import Curve, CurveRecord, LinearPath, Path
from pyalign.paths.family import coefficients

FAMILIES = [("bezier", 1), ("bezier", 3), ("polychain", 1), ("polychain", 4)]


def bent(kind="bezier", bends=1, a=None, b=None, seed=2):
    """A curve whose bends lie off the line."""
    curve = Curve(a or classifier(0), b or classifier(1), kind=kind, bends=bends)
    generator = torch.Generator().manual_seed(seed)
    for point in curve.inner:
        for buffer in point:
            buffer += torch.randn(buffer.shape, generator=generator, dtype=buffer.dtype)
    return curve


@pytest.mark.parametrize(("kind", "bends"), FAMILIES)
def test_weights_sum_to_one_and_keep_a_line_a_line(kind, bends):
    for t in (0.0, 0.13, 0.5, 0.77, 1.0):
        weights = coefficients(kind, bends + 2, t)
        assert sum(weights) == pytest.approx(1.0) and min(weights) >= 0.0
        assert sum(w * i / (bends + 1) for i, w in enumerate(weights)) == pytest.approx(t)
    assert coefficients(kind, bends + 2, 0.0) == [1.0] + [0.0] * (bends + 1)
    assert coefficients(kind, bends + 2, 1.0) == [0.0] * (bends + 1) + [1.0]


@pytest.mark.parametrize(("kind", "bends"), FAMILIES)
def test_ends_are_the_models_bit_by_bit(kind, bends):
    a, b = classifier(0), classifier(1)
    b(torch.randn(4, 6))
    curve = bent(kind, bends, a, b)
    assert isinstance(curve, Path)
    for t, model in ((0, a), (1, b)):
        assert same(curve.state(t), model.state_dict())
        assert same(curve.at(t).state_dict(), model.state_dict())
    assert not torch.equal(curve.at(0.5)[0].weight, LinearPath(a, b).at(0.5)[0].weight)


@pytest.mark.parametrize(("kind", "bends"), FAMILIES)
def test_a_new_curve_is_the_line_and_control_points_enter_by_their_weights(kind, bends):
    a, b = classifier(0), classifier(1)
    line, curve = LinearPath(a, b), Curve(a, b, kind=kind, bends=bends)
    for t in (0.2, 0.5):
        for name, tensor in curve.state(t).items():
            torch.testing.assert_close(tensor, line.state(t)[name])
    moved = bent(kind, bends, a, b)
    points = [moved.control_point(i)["4.weight"] for i in range(bends + 2)]
    expected = sum(w * p for w, p in zip(coefficients(kind, bends + 2, 0.3), points, strict=True))
    torch.testing.assert_close(moved.at(0.3)[4].weight.detach(), expected)


def test_the_curve_keeps_its_own_copies():
    a, b = classifier(0), classifier(1)
    curve = Curve(a, b)
    before = curve.state(0.5)
    with torch.no_grad():
        a[0].weight.zero_()
        a[1].running_mean.add_(1.0)
    assert same(curve.state(0.5), before)


def test_frozen_shared_and_parametrised_parameters():
    def network(seed):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4, bias=False), nn.Linear(4, 3))
        model[1].weight = model[0].weight
        model[2] = nn.utils.parametrizations.weight_norm(model[2])
        model[3].weight.requires_grad_(False)
        model.register_buffer("scale", torch.full((2,), float(seed)))
        model.register_buffer("mask", torch.ones(2, dtype=torch.bool))
        return model

    a, b = network(0), network(1)
    curve = bent("polychain", 2, a, b)
    assert set(curve.layout.names) == {
        "0.weight", "0.bias", "1.bias", "3.bias",
        "2.parametrizations.weight.original0", "2.parametrizations.weight.original1",
    }  # fmt: skip
    model = curve.at(0.25)
    assert model[0].weight is model[1].weight
    torch.testing.assert_close(model[3].weight, 0.75 * a[3].weight + 0.25 * b[3].weight)
    torch.testing.assert_close(model.scale, torch.full((2,), 0.25))
    state = curve.state(0.25)
    assert state["0.weight"].data_ptr() == state["1.weight"].data_ptr() and state["mask"].dtype == torch.bool
    assert same(curve.state(1.0), b.state_dict())


def test_equal_frozen_tensors_are_taken_as_they_are():
    a, b = classifier(0), classifier(1)
    b[4].load_state_dict(a[4].state_dict())
    a[4].requires_grad_(False)
    for t in (0.1, 0.3, 0.7):
        assert torch.equal(bent(a=a, b=b).at(t)[4].weight, a[4].weight)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.complex64])
def test_other_dtypes(dtype):
    class Net(nn.Module):
        def __init__(self, seed):
            super().__init__()
            generator = torch.Generator().manual_seed(seed)
            self.weight = nn.Parameter(torch.randn(3, 2, generator=generator).to(dtype))
            self.bias = nn.Parameter(torch.randn(3, generator=generator))

    a, b = Net(0), Net(1)
    curve = bent(a=a, b=b)
    assert same(curve.state(0.0), a.state_dict()) and same(curve.state(1.0), b.state_dict())
    points = [curve.control_point(i)["weight"] for i in range(3)]
    torch.testing.assert_close(curve.at(0.5).weight.detach(), 0.25 * points[0] + 0.5 * points[1] + 0.25 * points[2])


@pytest.mark.parametrize(("kind", "bends"), FAMILIES)
def test_length_and_planarity_against_the_points_themselves(kind, bends):
    curve = bent(kind, bends, classifier(0, norm=False), classifier(1, norm=False))
    spots = torch.stack([torch.cat([p.flatten() for p in curve.state(i / 300).values()]) for i in range(301)]).double()
    assert curve.length == pytest.approx(float((spots[1:] - spots[:-1]).norm(dim=1).sum()), rel=1e-4)
    coarse = spots[torch.arange(61) * 300 // 60] if kind == "bezier" else None
    if bends == 1:
        assert curve.planarity == pytest.approx(1.0)
    elif coarse is not None:
        values = torch.linalg.svdvals(coarse - coarse.mean(0)).square()
        assert curve.planarity == pytest.approx(float(values[:2].sum() / values.sum()), rel=1e-6)
    straight = Curve(classifier(0, norm=False), classifier(1, norm=False), kind=kind, bends=bends)
    assert straight.planarity == pytest.approx(1.0) and straight.length < curve.length


def test_frozen_parameters_count_in_the_length():
    a, b = classifier(0, norm=False), classifier(1, norm=False)
    whole = Curve(a, b).length
    a[0].requires_grad_(False)
    assert Curve(a, b).length == pytest.approx(whole, rel=1e-6)


def test_evaluate_gives_the_record_of_the_curve():
    data = labelled()
    record = bent().evaluate(data, points=5, recalibrate=data)
    assert record.t == (0.0, 0.25, 0.5, 0.75, 1.0) and record.recalibrated and record.samples == 37
    summary = record.summary("accuracy")
    assert summary.min == min(record.accuracy) and summary.mean == pytest.approx(sum(record.accuracy) / 5)
    pieces = list(itertools.pairwise(zip(record.arc, record.loss, strict=True)))
    weighted = sum((s1 - s0) * (l0 + l1) / 2 for (s0, l0), (s1, l1) in pieces) / record.length
    assert record.summary().arc_mean == pytest.approx(weighted)
    assert CurveRecord.from_dict(record.to_dict()) == record
    assert "mean over arc length" in str(record)


def test_a_model_with_batchnorm_and_no_recalibration_is_warned_of():
    with pytest.warns(PyalignWarning, match="recalibrate="):
        bent().evaluate(labelled(), points=2)


def test_a_record_without_fitting_arc_lengths_is_refused():
    with pytest.raises(InputError, match="arc lengths"):
        CurveRecord(t=(0.0, 1.0), loss=(1.0, 1.0), arc=(0.0,))
    with pytest.raises(InputError, match="not measured"):
        CurveRecord(t=(0.0, 1.0), loss=(1.0, 1.0), arc=(0.0, 1.0)).summary("accuracy")
    with pytest.raises(InputError, match="no record of a curve"):
        CurveRecord.from_dict({"t": [0, 1], "loss": [1, 1]})


@pytest.mark.parametrize(("kind", "bends"), FAMILIES)
def test_saving_and_loading(tmp_path, kind, bends):
    a = classifier(0)
    a[0].requires_grad_(False)
    curve = bent(kind, bends, a)
    curve.settings = {"lr": 0.1}
    curve.save(tmp_path / "curve.safetensors")
    for found in (
        Curve.load(tmp_path / "curve.safetensors"),
        Curve.load(tmp_path / "curve.safetensors", classifier(7)),
    ):
        for t in (0.0, 0.3, 1.0):
            assert same(found.state(t), curve.state(t))
        assert (found.kind, found.bends, found.settings["lr"]) == (kind, bends, 0.1)
        assert found.length == curve.length
    assert same(found.at(0.3).state_dict(), curve.state(0.3))


def test_files_that_cannot_be_curves(tmp_path):
    path = tmp_path / "curve.safetensors"
    curve = bent()
    curve.save(path)
    with pytest.raises(InputError, match="loaded without a model"):
        Curve.load(path).at(0.5)
    with pytest.raises(MismatchError, match="another architecture"):
        Curve.load(path, classifier(0, norm=False))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="cannot read a curve"):
        Curve.load(path)
    with pytest.raises(CheckpointError, match="cannot read a curve"):
        Curve.load(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"bends": 0}, InputError, "at least one bend"),
        ({"bends": 1.5}, InputError, "at least one bend"),
        ({"kind": "spline"}, InputError, "unknown kind of curve"),
        ({"b": classifier(1, norm=False)}, MismatchError, "does not have the architecture of model a"),
        ({"b": {}}, InputError, "model b is no module"),
        ({"a": classifier(0).requires_grad_(False)}, InputError, "requires_grad=True in model a"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_curves_that_cannot_be(change, error, message):
    with pytest.raises(error, match=message):
        Curve(**{"a": classifier(0), "b": classifier(1), **change})


def test_positions_and_weights_that_cannot_be():
    curve = bent()
    for wrong in (-0.1, 1.5, float("nan")):
        for ask in (curve.at, curve.state, curve.weights):
            with pytest.raises(InputError, match="t is outside the path"):
                ask(wrong)
    for wrong in ("a", None):
        with pytest.raises(InputError, match="t is no number"):
            curve.at(wrong)
    for wrong in ({"points": 1}, {"t": [2.0]}):
        with pytest.raises(InputError):
            curve.evaluate(labelled(), **wrong)
    b = classifier(1)
    with torch.no_grad():
        b[0].weight[0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match=r"'0\.weight' of model b"):
        Curve(classifier(0), b)
