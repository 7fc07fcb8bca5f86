"""Fitting curves: gradients by hand, falling losses, resuming to the bit, and everything that can go wrong."""

import copy
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from paths.helpers_paths import classifier, labelled, same
from torch import nn
from torch.utils.data import DataLoader

from pyalign.errors import CheckpointError, DataError, InputError, NonFiniteError
from pyalign.paths import Curve, curve, garipov_schedule
from pyalign.paths.family import coefficients
from pyalign.paths.point import CurveObjective


@pytest.mark.parametrize(("kind", "bends"), [("bezier", 1), ("bezier", 2), ("polychain", 3)])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_gradients_are_those_of_the_formula(kind, bends, decay):
    a, b = (classifier(seed, norm=False).double() for seed in (0, 1))
    path = Curve(a, b, kind=kind, bends=bends)
    objective = CurveObjective(path, a, weight_decay=decay)
    x, y = labelled()[0]
    t, scale = 0.35, 8.0
    (objective.at(t, x.double(), y, 0, scale) * scale).backward()

    points = [{n: v.clone().requires_grad_() for n, v in path.control_point(i).items()} for i in range(bends + 2)]
    weights = coefficients(kind, bends + 2, t)
    at = {n: sum(w * p[n] for w, p in zip(weights, points, strict=True)) for n in points[0]}
    loss = F.cross_entropy(torch.func.functional_call(a, at, (x.double(),)), y)
    (loss + decay / 2 * sum(v.square().sum() for v in at.values())).backward()
    for inner, point in zip(objective.inner, points[1:-1], strict=True):
        for name, gradient in path.layout.unpack([buffer.grad for buffer in inner]).items():
            torch.testing.assert_close(gradient / scale, point[name].grad, rtol=1e-10, atol=1e-12)


def test_training_lowers_the_loss_and_leaves_the_ends():
    a, b, data = classifier(0), classifier(1), labelled((32, 32, 32))
    before = [copy.deepcopy(model.state_dict()) for model in (a, b)]
    modes = [[m.training for m in model.modules()] for model in (a, b)]
    straight = Curve(a, b).evaluate(data, points=9, recalibrate=data)
    path = curve(a, b, data, epochs=20, lr=0.2)
    fitted = path.evaluate(data, points=9, recalibrate=data)
    assert fitted.summary().mean < straight.summary().mean - 0.05
    assert (fitted.loss[0], fitted.loss[-1]) == (straight.loss[0], straight.loss[-1])
    for model, earlier, mode in zip((a, b), before, modes, strict=True):
        assert same(model.state_dict(), earlier) and [m.training for m in model.modules()] == mode
        assert all(p.grad is None for p in model.parameters())
    assert same(path.state(0.0), before[0]) and same(path.state(1.0), before[1])
    assert len(path.history) == 60 and path.settings["taken"] == 60


def test_the_same_seed_gives_the_same_curve_and_global_generators_are_left_alone():
    def fit(seed):
        return curve(classifier(0, dropout=0.5), classifier(1), labelled(), steps=7, seed=seed).state(0.5)

    torch.manual_seed(5), random.seed(5), np.random.seed(5)
    expected = torch.rand(2), random.random(), np.random.rand()
    torch.manual_seed(5), random.seed(5), np.random.seed(5)
    models = classifier(0, dropout=0.5), classifier(1)
    torch.manual_seed(5)
    curve(*models, labelled(), steps=3)
    assert torch.equal(torch.rand(2), expected[0]) and (random.random(), np.random.rand()) == expected[1:]
    first = fit(3)
    assert same(fit(3), first) and not same(fit(4), first)


class Noisy(torch.utils.data.Dataset):
    """Samples with augmentations out of every global generator."""

    def __len__(self):
        return 20

    def __getitem__(self, i):
        x = torch.full((6,), float(i)) / 20 + torch.randn(6) + random.random() + float(np.random.rand())
        return x, i % 3


def loader(own):
    generator = torch.Generator().manual_seed(9) if own else None
    return DataLoader(Noisy(), batch_size=6, shuffle=True, generator=generator)


@pytest.mark.parametrize(("own", "stop", "how"), [(False, 3, "sgd"), (True, 4, "adam"), (False, 6, "half")])
def test_an_interrupted_run_goes_on_to_the_bit(tmp_path, own, stop, how):
    def fit(checkpoint=None, callback=None):
        models = classifier(0, dropout=0.3), classifier(1)
        more = {"adam": {"optimizer": torch.optim.Adam, "lr": 0.01}, "half": {"precision": torch.float16}}.get(how, {})
        return curve(
            *models, loader(own), epochs=2, bends=2, checkpoint=checkpoint, every=stop, callback=callback, **more
        )

    def interrupt(step):
        if step.step == stop + 1:
            raise KeyboardInterrupt

    whole = fit()
    path = tmp_path / "run.safetensors"
    with pytest.raises(KeyboardInterrupt):
        fit(path, interrupt)
    seen = []
    resumed = fit(path, lambda step: seen.append(step.step))
    assert seen == list(range(stop + 1, 9))
    assert all(same(resumed.state(t), whole.state(t)) for t in (0.2, 0.5, 0.9))
    assert resumed.history == whole.history
    again = fit(path, lambda step: pytest.fail("the run was complete"))
    assert same(again.state(0.5), whole.state(0.5))


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    path = tmp_path / "run.safetensors"
    curve(classifier(0), classifier(1), labelled(), steps=2, checkpoint=path)
    for change in ({"lr": 0.5}, {"bends": 2}, {"seed": 1}, {"model_b": classifier(2)}, {"optimizer": torch.optim.Adam}):
        given = {"model_a": classifier(0), "model_b": classifier(1), "data": labelled(), "steps": 2, **change}
        with pytest.raises(CheckpointError, match=r"another run.* instead of "):
            curve(**given, checkpoint=path)
    path.write_bytes(b"\0" * 50)
    with pytest.raises(CheckpointError, match="cannot read"):
        curve(classifier(0), classifier(1), labelled(), steps=2, checkpoint=path)


def test_a_checkpoint_of_other_frozen_weights_is_refused(tmp_path):
    a, b, path = classifier(0), classifier(1), tmp_path / "run.safetensors"
    a[0].weight.requires_grad_(False)
    b[0].weight.data.copy_(a[0].weight)  # a backbone that both share
    curve(a, b, labelled(), steps=2, checkpoint=path)
    curve(a, b, labelled(), steps=2, checkpoint=path)
    for model in (a, b):
        model[0].weight.data.add_(1.0)
    with pytest.raises(CheckpointError, match="another run"):
        curve(a, b, labelled(), steps=2, checkpoint=path)


def test_a_loss_that_turns_nan_stops_and_keeps_the_checkpoint(tmp_path):
    path = tmp_path / "run.safetensors"
    calls = []

    def loss(output, targets):
        calls.append(1)
        return F.cross_entropy(output, targets) * (float("nan") if len(calls) == 6 else 1.0)

    with pytest.raises(NonFiniteError, match=r"nan at step 6, t=0\.\d+.*of step 4 is kept") as caught:
        curve(classifier(0), classifier(1), labelled(), steps=9, loss=loss, checkpoint=path, every=2)
    assert str(path) in str(caught.value)
    expected = curve(classifier(0), classifier(1), labelled(), steps=9, loss=loss)
    calls[:] = [1] * 10
    assert same(curve(classifier(0), classifier(1), labelled(), steps=9, loss=loss, checkpoint=path).state(0.5),
                expected.state(0.5))  # fmt: skip


def test_it_trains_where_gradients_are_off_by_default():
    given = {"model_a": classifier(0), "model_b": classifier(1), "data": labelled(), "steps": 3}
    expected = curve(**given).state(0.5)
    with torch.no_grad():
        assert same(curve(**given).state(0.5), expected)
        assert not torch.is_grad_enabled()
    with torch.inference_mode(), pytest.raises(InputError, match="inference mode"):
        curve(**given)


def test_weights_that_turn_nan_do_not_replace_the_checkpoint(tmp_path):
    path, calls = tmp_path / "run.safetensors", []

    def loss(output, targets):
        calls.append(1)
        # of a finite value with a gradient that is not
        more = (0.0 * output.sum()).sqrt() if len(calls) == 4 else 0.0
        return F.cross_entropy(output, targets) + more

    with pytest.raises(NonFiniteError, match=r"weights became NaN or infinite by step 4, t=0\.\d+.*of step 2 is kept"):
        curve(classifier(0), classifier(1), labelled(), steps=4, loss=loss, checkpoint=path, every=2)
    calls.clear()
    with pytest.raises(NonFiniteError, match=r"weights became NaN or infinite by step 4, .*no checkpoint"):
        curve(classifier(0), classifier(1), labelled(), steps=4, loss=loss)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({}, InputError, "exactly one of them"),
        ({"steps": 1, "epochs": 1}, InputError, "exactly one of them"),
        ({"steps": 0}, InputError, "exactly one of them"),
        ({"steps": 1, "data": []}, DataError, "data is empty"),
        ({"steps": 4, "data": iter(labelled())}, DataError, "ran out after step 3"),
        ({"epochs": 2, "data": iter(labelled())}, DataError, "ran out after step 3.*2 epochs"),
        ({"steps": 1, "data": [torch.zeros(2, 6)]}, DataError, "batch 0 carries no targets"),
        ({"steps": 1, "data": [(torch.zeros(2, 5), torch.zeros(2).long())]}, DataError, "cannot take batch 0"),
        ({"steps": 1, "loss": lambda output, targets: output}, DataError, "instead of one number"),
        ({"steps": 1, "precision": torch.float32}, InputError, "unknown precision"),
        ({"steps": 1, "lr": float("nan")}, InputError, "lr=nan"),
        ({"steps": 1, "lr": -0.1}, InputError, "lr=-0.1"),
        ({"steps": 1, "optimizer": torch.optim.LBFGS}, InputError, "LBFGS.*no closure"),
        ({"steps": 1, "every": 0}, InputError, "every=0"),
        ({"steps": 1, "clip": -1.0}, InputError, "clip=-1.0"),
        ({"steps": 1, "weight_decay": float("nan")}, InputError, "weight_decay=nan"),
        ({"steps": 1, "bends": 0}, InputError, "at least one bend"),
    ],
)
def test_fits_that_cannot_be(change, error, message):
    with pytest.raises(error, match=message):
        curve(**{"model_a": classifier(0), "model_b": classifier(1), "data": labelled(), **change})


def test_data_that_can_be_read_once_is_enough_for_its_length():
    once = curve(classifier(0), classifier(1), iter(labelled()), epochs=1, schedule=lambda _: 1.0)
    again = curve(classifier(0), classifier(1), labelled(), steps=3, schedule=lambda _: 1.0)
    assert same(once.state(0.5), again.state(0.5))


def test_clipping_bounds_the_step():
    def distance(clip):
        start, path = Curve(classifier(0), classifier(1)), curve(
            classifier(0), classifier(1), labelled(), steps=1, lr=1.0, clip=clip,
            optimizer=torch.optim.SGD, weight_decay=0.0,
        )  # fmt: skip
        return float((path.inner[0][0] - start.inner[0][0]).norm())

    assert distance(1e-3) == pytest.approx(1e-3, rel=1e-3) and distance(None) > 1e-2


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_mixed_precision_keeps_the_weights_and_lowers_the_loss(precision):
    a, b, data = classifier(0), classifier(1), labelled((32, 32, 32))
    path = curve(a, b, data, steps=60, lr=0.1, precision=precision)
    assert path.inner[0][0].dtype == torch.float32
    assert sum(x for _, x in path.history[-20:]) < sum(x for _, x in path.history[:20])


def test_the_callback_sees_every_step_and_can_end_the_run():
    steps = []
    path = curve(classifier(0), classifier(1), labelled(), epochs=5, callback=lambda s: steps.append(s) or s.step == 7)
    assert [s.step for s in steps] == [1, 2, 3, 4, 5, 6, 7] and [s.epoch for s in steps] == [0, 0, 0, 1, 1, 1, 2]
    assert all(0 <= s.t <= 1 and s.loss > 0 for s in steps) and path.settings["taken"] == 7
    assert steps[0].lr == 0.03 and steps[-1].lr == 0.03


def test_the_schedule_is_that_of_garipov():
    factors = []
    curve(classifier(0), classifier(1), labelled(), steps=10, lr=1.0, callback=lambda s: factors.append(s.lr))
    assert factors == pytest.approx([1.0] * 6 + [0.7525, 0.505, 0.2575, 0.01])
    assert garipov_schedule(0.0) == 1.0 and garipov_schedule(1.0) == pytest.approx(0.01)


class Recurrent(nn.Module):
    """Dict batches, a recurrent layer, shared and frozen and parametrised weights, no BatchNorm."""

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.embed = nn.Embedding(7, 4)
        self.cell = nn.LSTM(4, 5, batch_first=True)
        self.back = nn.utils.parametrizations.weight_norm(nn.Linear(5, 4))
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight
        self.shift = nn.Parameter(torch.randn(7), requires_grad=False)

    def forward(self, tokens, mask=None):
        return {"logits": self.head(self.back(self.cell(self.embed(tokens))[0])) + self.shift}


def test_any_model_trains():
    a, b = Recurrent(0), Recurrent(1)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(7, (8, 6), generator=generator)
    data = [{"tokens": tokens, "labels": tokens.roll(-1, 1)}]
    start, path = Curve(a, b, bends=2), curve(a, b, data, steps=20, bends=2, lr=0.3)
    for name in path.layout.names:
        assert not torch.equal(path.control_point(1)[name], start.control_point(1)[name]), name
    assert "head.weight" not in path.layout.names and "shift" not in path.layout.names
    torch.testing.assert_close(path.at(0.25).shift, 0.75 * a.shift + 0.25 * b.shift)
    assert path.evaluate(data, points=5).summary().mean < start.evaluate(data, points=5).summary().mean


def test_gradients_of_sparse_embeddings_join_the_others():
    def ends(sparse):
        torch.manual_seed(0)
        return [nn.Sequential(nn.Embedding(7, 4, sparse=sparse), nn.Flatten(), nn.Linear(8, 3)) for _ in "ab"]

    data = [(torch.tensor([[0, 1], [2, 2]]), torch.tensor([0, 2]))]
    sparse, dense = (curve(*ends(kind), data, steps=3).state(0.5) for kind in (True, False))
    assert same(sparse, dense)


def test_a_run_with_functions_goes_on_in_another_process(tmp_path):
    """A function is another object in another process: what a checkpoint tells of it must be the same."""

    def functions():
        def attack(model, inputs, targets):
            return inputs + 0.1

        def loss(output, targets):
            return F.cross_entropy(output, targets, label_smoothing=0.1)

        return {"attack": attack, "loss": loss}

    given = {"model_a": classifier(0), "model_b": classifier(1), "data": labelled(), "epochs": 2}
    whole = curve(**given, **functions())
    checkpoint, kept = tmp_path / "run.safetensors", functions()
    curve(**given, **kept, checkpoint=checkpoint, callback=lambda step: step.step == 4)
    rest = curve(**given, **functions(), checkpoint=checkpoint)
    assert same(rest.state(0.5), whole.state(0.5)) and rest.history == whole.history
    with pytest.raises(CheckpointError, match="loss="):
        curve(**given, attack=kept["attack"], loss=nn.CrossEntropyLoss(), checkpoint=checkpoint)


def test_the_attack_sees_the_same_point_as_the_step():
    seen = []

    def attack(model, inputs, targets):
        seen.append(model(inputs))
        assert not seen[-1].requires_grad
        return inputs

    def loss(output, targets):
        seen.append(output.detach())
        return F.cross_entropy(output, targets)

    curve(classifier(0, norm=False), classifier(1, norm=False), labelled(), steps=2, attack=attack, loss=loss)
    assert len(seen) == 4 and torch.equal(seen[0], seen[1]) and torch.equal(seen[2], seen[3])


def test_progress_is_shown_only_when_asked(capsys):
    curve(classifier(0), classifier(1), labelled(), steps=2)
    assert capsys.readouterr().err == ""
    curve(classifier(0), classifier(1), labelled(), steps=2, progress=True)
    assert "bezier curve" in capsys.readouterr().err


def test_a_trained_curve_stays_when_its_ends_are_trained_further() -> None:
    """During training the curve borrows the weights of A and B; what it returns owns its ends."""
    a, b = (nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 2)) for _ in range(2))
    data = [(torch.randn(8, 2), torch.randint(0, 2, (8,)))]
    kept = [{name: tensor.clone() for name, tensor in model.state_dict().items()} for model in (a, b)]
    path = curve(a, b, data, steps=5, bends=3)
    for model, state in zip((a, b), kept, strict=True):
        assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
        for tensor in model.state_dict().values():
            tensor.zero_()
    for t, state in zip((0.0, 1.0), kept, strict=True):
        assert all(torch.equal(tensor, state[name]) for name, tensor in path.state(t).items() if tensor.dim())
