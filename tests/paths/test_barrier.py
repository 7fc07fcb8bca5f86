"""Barriers: definitions by hand, every kind of target, and every bad input of the measurement."""

import json
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pyalign.errors import DataError, InputError, MismatchError, NonFiniteError, PyalignWarning
from pyalign.paths import Barrier, LinearPath, barrier, measure
from pyalign.paths.measure import evaluate


def classifier(seed, *, norm=True):
    torch.manual_seed(seed)
    layers = [nn.Linear(6, 8), *([nn.BatchNorm1d(8)] if norm else []), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3)]
    return nn.Sequential(*layers)


def labelled(sizes=(16, 16, 5), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(n, 6, generator=generator), torch.randint(3, (n,), generator=generator)) for n in sizes]


def test_definitions_are_those_of_the_design():
    record = Barrier(t=(0.0, 0.25, 0.5, 1.0), loss=(1.0, 3.0, 2.5, 3.0), accuracy=(0.9, 0.5, 0.6, 0.7))
    assert record.loss_barrier == pytest.approx(3.0 - 1.5)
    assert record.accuracy_barrier == pytest.approx(0.85 - 0.5)
    assert record.loss_height("mean") == pytest.approx(3.0 - 2.0)
    assert record.loss_height("midpoint") == pytest.approx(0.5)
    assert record.accuracy_height("mean") == pytest.approx(0.8 - 0.5)
    with pytest.raises(InputError, match="baseline"):
        record.loss_height("median")


def test_nothing_is_clipped():
    record = Barrier(t=(0.0, 0.5, 1.0), loss=(2.0, 1.0, 2.0), accuracy=(0.5, 0.9, 0.5))
    assert (record.loss_barrier, record.accuracy_barrier) == (-1.0, pytest.approx(-0.4))
    assert Barrier(t=(0.0, 1.0), loss=(1.0, 2.0)).loss_barrier == 0.0


@pytest.mark.parametrize(
    "wrong",
    [
        {"t": (0.0, 0.5), "loss": (1.0, 1.0)},
        {"t": (0.0, 1.0), "loss": (1.0,)},
        {"t": (0.0, 0.7, 0.6, 1.0), "loss": (1.0,) * 4},
        {"t": (0.0, 1.0), "loss": (1.0, 1.0), "accuracy": (1.0,)},
        {"t": (), "loss": ()},
    ],
)
def test_a_record_must_be_whole(wrong):
    with pytest.raises(InputError):
        Barrier(**wrong)


def test_values_at_every_position_are_exact_means_over_all_samples():
    a, b, data = classifier(0, norm=False), classifier(1, norm=False), labelled()
    record = barrier(a, b, data, points=5)
    assert record.t == (0.0, 0.25, 0.5, 0.75, 1.0)
    assert record.samples == 37
    inputs, targets = (torch.cat(parts) for parts in zip(*data, strict=True))
    for t, loss, accuracy in zip(record.t, record.loss, record.accuracy, strict=True):
        model = LinearPath(a, b).at(t).eval()
        outputs = model(inputs)
        assert loss == pytest.approx(F.cross_entropy(outputs, targets).item(), rel=1e-6)
        assert accuracy == (outputs.argmax(1) == targets).double().mean().item()


def test_models_stay_as_they_are():
    a, b = classifier(0).train(), classifier(1).eval()
    before = [{name: tensor.clone() for name, tensor in model.state_dict().items()} for model in (a, b)]
    state = torch.get_rng_state()
    barrier(a, b, labelled(), points=3, recalibrate=labelled())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(m.training for m in a.modules()) and not any(m.training for m in b.modules())
    for model, earlier in zip((a, b), before, strict=True):
        assert all(torch.equal(tensor, earlier[name]) for name, tensor in model.state_dict().items())


def test_recalibration_at_every_position_also_the_ends():
    a, b, data = classifier(0), classifier(1), labelled((32, 32))
    with pytest.warns(PyalignWarning, match="recalibrate="):
        stale = barrier(a, b, data, points=3)
    fresh = barrier(a, b, data, points=3, recalibrate=data)
    assert fresh.recalibrated and not stale.recalibrated
    assert all(new != old for new, old in zip(fresh.loss, stale.loss, strict=True))
    assert barrier(a, b, data, points=3, recalibrate=data).loss == fresh.loss


def test_the_batchnorm_warning_comes_once_and_only_for_batchnorm():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        barrier(classifier(0), classifier(1), labelled(), points=4)
        barrier(classifier(0, norm=False), classifier(1, norm=False), labelled(), points=4)
    assert len([entry for entry in caught if "recalibrate=" in str(entry.message)]) == 1


def test_given_positions_are_sorted_and_have_both_ends():
    models = classifier(0, norm=False), classifier(1, norm=False)
    assert barrier(*models, labelled(), t=[0.7, 0.3]).t == (0.0, 0.3, 0.7, 1.0)
    assert measure(LinearPath(*models), labelled(), t=[0.5]).t == (0.0, 0.5, 1.0)


@pytest.mark.parametrize("wrong", [{"points": 1}, {"points": 2.5}, {"t": [0.5, 1.2]}, {"t": [float("nan")]}], ids=str)
def test_positions_that_cannot_be(wrong):
    with pytest.raises(InputError):
        barrier(classifier(0), classifier(1), labelled(), **wrong)


class Answer(nn.Module):
    """Gives back its input: the outputs are chosen by the test."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return x * self.scale


def test_sequences_with_ignored_positions():
    generator = torch.Generator().manual_seed(0)
    scores, targets = torch.randn(2, 5, 4, generator=generator), torch.randint(4, (2, 5), generator=generator)
    targets[0, 3:] = -100
    loss, accuracy, samples = evaluate(Answer(), [(scores, targets), (scores[:1, :2], targets[:1, :2])])
    valid = targets.flatten() != -100
    flat, wanted = scores.reshape(-1, 4)[valid], targets.flatten()[valid]
    flat, wanted = torch.cat([flat, scores[0, :2]]), torch.cat([wanted, targets[0, :2]])
    assert samples == 3
    assert loss == pytest.approx(F.cross_entropy(flat, wanted).item(), rel=1e-6)
    assert accuracy == pytest.approx((flat.argmax(1) == wanted).double().mean().item())


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 5, 5, 5), (2, 3, 4, 4, 4)])
def test_segmentation(shape):
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(shape, generator=generator)
    targets = torch.randint(shape[1], (shape[0], *shape[2:]), generator=generator)
    loss, accuracy, _ = evaluate(Answer(), [(scores, targets)])
    assert loss == pytest.approx(F.cross_entropy(scores, targets).item(), rel=1e-6)
    assert accuracy == pytest.approx((scores.argmax(1) == targets).double().mean().item())


def test_regression_has_no_accuracy():
    x, y = torch.arange(12.0).reshape(4, 3), torch.zeros(4, 3)
    loss, accuracy, _ = evaluate(Answer(), [(x[:3], y[:3]), (x[3:], y[3:])])
    assert loss == pytest.approx(F.mse_loss(x, y).item())
    assert accuracy is None
    assert barrier(Answer(), Answer(), [(x, y)], points=2).accuracy is None


def test_a_loss_of_ones_own_weighs_by_samples_and_sees_the_whole_answer():
    class Two(nn.Module):
        def forward(self, x):
            return {"logits": x, "penalty": x.mean()}

    data = [
        (torch.full((3, 2), 1.0), torch.zeros(3, dtype=torch.long)),
        (torch.full((1, 2), 5.0), torch.ones(1, dtype=torch.long)),
    ]
    loss, accuracy, _ = evaluate(Two(), data, lambda output, targets: output["penalty"])
    assert loss == pytest.approx((3 * 1.0 + 5.0) / 4)
    assert accuracy == 0.75
    assert evaluate(Answer(), [torch.ones(2, 2)], lambda output, targets: output.sum())[0] == 4.0


def test_dict_batches():
    class Keyword(nn.Module):
        def forward(self, pixel_values):
            return {"logits": pixel_values}

    batch = {"pixel_values": torch.eye(3), "labels": torch.tensor([0, 1, 1])}
    assert evaluate(Keyword(), [batch])[1] == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "data is empty"),
        ([torch.zeros(2, 6)], "batch 0 carries no targets"),
        ([(torch.zeros(2, 5), torch.zeros(2, dtype=torch.long))], "Sequential cannot take batch 0"),
        ([(torch.zeros(2, 6, dtype=torch.float64), torch.zeros(2, dtype=torch.long))], "Expected: inputs of float32"),
        ([(torch.zeros(2, 6), torch.tensor([0, 7]))], "loss cannot be computed on batch 0.*out of bounds"),
        ([(torch.zeros(2, 6), torch.zeros(4, dtype=torch.long))], "cannot compare the outputs of batch 0"),
        ([(torch.zeros(2, 6), torch.zeros(2))], "cannot compare the outputs of batch 0"),
        ([(torch.zeros(2, 6), torch.full((2,), -100))], "no target of the data counts"),
        (torch.zeros(2, 6), "not an iterable of batches"),
    ],
    ids=["empty", "no targets", "shape", "dtype", "class", "count", "float", "ignored", "tensor"],
)
def test_bad_data(data, message):
    a, b = classifier(0, norm=False), classifier(1, norm=False)
    with pytest.raises(DataError, match=message):
        barrier(a, b, data, points=3)


def test_a_failing_loss_is_told():
    def loss(output, targets):
        raise RuntimeError("shapes")

    with pytest.raises(DataError, match=r"batch 0 \(RuntimeError: shapes\)"):
        barrier(classifier(0, norm=False), classifier(1, norm=False), labelled(), points=2, loss=loss)


def test_nan_is_told_with_layer_and_position():
    class Root(nn.Module):
        def forward(self, x):
            return x.sqrt()

    a, b = (nn.Sequential(nn.Linear(6, 3), Root()) for _ in range(2))
    with torch.no_grad():
        for model, bias in ((a, 50.0), (b, -50.0)):
            model[0].bias.fill_(bias)
    with pytest.raises(NonFiniteError, match=r"layer '1' at t=1"):
        barrier(a, b, labelled(), t=[])
    with torch.no_grad():
        b[0].weight[0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match=r"'0\.weight' of model b"):
        barrier(a, b, labelled(), points=3)
    with pytest.raises(NonFiniteError, match="inputs of batch 0 hold NaN"):
        barrier(a, a, [(torch.full((2, 6), float("nan")), torch.tensor([0, 1]))], points=2)


def test_another_architecture():
    with pytest.raises(MismatchError, match="model b does not have the architecture of model a"):
        barrier(classifier(0), classifier(1, norm=False), labelled())


def test_one_pass_data_is_kept_and_told():
    models, data = (classifier(0), classifier(1)), labelled()
    with pytest.warns(PyalignWarning, match="one-pass iterator"):
        once = barrier(*models, iter(data), points=3, recalibrate=data)
    assert once.loss == barrier(*models, data, points=3, recalibrate=data).loss
    both = iter(data)
    with pytest.warns(PyalignWarning, match="one-pass iterator and is read 6 times"):
        assert barrier(*models, both, points=3, recalibrate=both).loss == once.loss


def test_memory_holds_one_model(monkeypatch):
    from pyalign.paths import linear

    copies, real = [], linear.copy_of
    monkeypatch.setattr(linear, "copy_of", lambda model: copies.append(1) or real(model))
    barrier(classifier(0, norm=False), classifier(1, norm=False), labelled(), points=9)
    assert len(copies) == 1


def test_the_record_goes_through_dict_and_json(tmp_path):
    record = barrier(classifier(0, norm=False), classifier(1, norm=False), labelled(), points=3)
    assert Barrier.from_dict(record.to_dict()) == record
    text = record.to_json(tmp_path / "barrier.json")
    assert json.loads((tmp_path / "barrier.json").read_text()) == json.loads(text)
    assert Barrier.from_dict(json.loads(text)) == record
    assert json.loads(text)["loss_barrier"] == record.loss_barrier
    with pytest.raises(InputError, match="no barrier record"):
        Barrier.from_dict({"t": [0, 1]})


def test_the_record_prints_a_table():
    lines = str(Barrier(t=(0.0, 0.5, 1.0), loss=(1.0, 2.0, 1.0), accuracy=(0.5, 0.25, 0.5))).splitlines()
    assert lines[0].split() == ["t", "loss", "accuracy"]
    assert lines[2].split() == ["0.500", "2.0000", "0.2500"]
    assert lines[-1] == "loss barrier 1.0000, accuracy barrier 0.2500"


def test_the_record_draws_itself(tmp_path):
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    record = Barrier(t=(0.0, 0.5, 1.0), loss=(1.0, 2.0, 1.0), accuracy=(0.5, 0.25, 0.5))
    record.plot(tmp_path / "barrier.png")
    assert (tmp_path / "barrier.png").read_bytes().startswith(b"\x89PNG")
    axes = Figure().subplots()
    assert record.plot(axes, label="naive") is axes
    assert axes.lines[0].get_ydata().tolist() == [1.0, 2.0, 1.0]
    assert record.plot().get_ylabel() == "loss"


def test_progress_is_shown_only_when_asked(capsys):
    models = classifier(0, norm=False), classifier(1, norm=False)
    barrier(*models, labelled(), points=2)
    assert capsys.readouterr().err == ""
    barrier(*models, labelled(), points=2, progress=True)
    assert "path" in capsys.readouterr().err
