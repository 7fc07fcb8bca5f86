"""Attacks by hand on linear models, robust training, and clean and robust numbers along a path."""

import copy

import pytest
import torch
import torch.nn.functional as F
from paths.helpers_paths import classifier, labelled
from torch import nn

import pyalign
from pyalign.errors import CheckpointError, DataError, InputError, NonFiniteError, PyalignWarning
from pyalign.paths import LinearPath, measure
from pyalign.train import PGD, Normalised, RobustRecord, attacked, fit, robust_measure


class Line(nn.Module):
    """Scores whose loss rises along one direction: the best attack is known."""

    def __init__(self):
        super().__init__()
        self.direction = nn.Parameter(torch.tensor([3.0, -4.0, 0.5]))

    def forward(self, x):
        score = x @ self.direction
        return torch.stack((-score, score), 1)


def test_an_attack_on_a_linear_model_finds_the_worst_point_of_the_ball():
    model, x, y = Line(), torch.full((4, 3), 0.5), torch.zeros(4, dtype=torch.long)
    w = model.direction.detach()
    for start in (False, True):
        moved = PGD("linf", 0.1, 0.05, 10, start, None)(model, x, y)
        torch.testing.assert_close(moved, x + 0.1 * w.sign())
        moved = PGD("l2", 0.1, 0.05, 40, start, None)(model, x, y)
        torch.testing.assert_close(moved, (x + 0.1 * w / w.norm()).expand(4, 3), rtol=0, atol=2e-3)
    assert model.direction.grad is None and not moved.requires_grad


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_it_stays_in_the_ball_and_in_the_bounds_and_raises_the_loss(norm):
    model = classifier(0, norm=False).eval()
    x, y = torch.rand(32, 6), torch.randint(3, (32,))
    radius = 0.2
    moved = PGD(norm, radius, 0.07, 5)(model, x, y)
    away = (moved - x).abs().amax(1) if norm == "linf" else (moved - x).norm(dim=1)
    assert float(away.max()) <= radius + 1e-6 and float(moved.min()) >= 0.0 and float(moved.max()) <= 1.0
    with torch.no_grad():
        assert F.cross_entropy(model(moved), y) > F.cross_entropy(model(x), y) + 0.01
    assert torch.equal(PGD(norm, 0.0, 0.1, 3)(model, x, y), x)


def test_random_starts_differ_and_fill_the_ball():
    x = torch.zeros(2000, 2)
    for norm in ("linf", "l2"):
        start = PGD(norm, 1.0, 0.1, 0, bounds=None)(nn.Identity(), x, torch.zeros(2000).long())
        size = start.abs().amax(1) if norm == "linf" else start.norm(dim=1)
        assert float(size.max()) <= 1.0 and float((size < 0.5).float().mean()) == pytest.approx(0.25, abs=0.04)


def test_pixels_are_attacked_through_the_normalisation():
    inner = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    model = Normalised(inner, [0.4, 0.5, 0.6], [0.2, 0.3, 0.1])
    x, y = torch.rand(5, 3, 2, 2), torch.randint(3, (5,))
    plain = (x - torch.tensor([0.4, 0.5, 0.6]).reshape(3, 1, 1)) / torch.tensor([0.2, 0.3, 0.1]).reshape(3, 1, 1)
    torch.testing.assert_close(model(x), inner(plain))
    assert set(model.state_dict()) == {"model.1.weight", "model.1.bias"}
    assert float((PGD()(model, x, y) - x).abs().max()) <= 8 / 255 + 1e-6
    with pytest.raises(InputError, match="normalised"):
        Normalised(inner, [0.5], [0.0])


def test_dict_inputs_and_what_cannot_be_attacked():
    class Keyword(nn.Module):
        def forward(self, pixels, mask):
            return {"logits": pixels * mask}

    inputs = {"pixels": torch.rand(2, 3), "mask": torch.ones(2, 3, dtype=torch.bool)}
    moved = PGD()(Keyword(), inputs, torch.tensor([0, 1]))
    assert set(moved) == {"pixels", "mask"} and not torch.equal(moved["pixels"], inputs["pixels"])
    with pytest.raises(DataError, match="cannot be attacked"):
        PGD()(nn.Embedding(3, 3), torch.tensor([0, 1]), torch.tensor([0, 1]))
    for wrong in ({"norm": "l1"}, {"epsilon": -1.0}, {"steps": -1}):
        with pytest.raises(InputError):
            PGD(**wrong)


def two_features():
    """One feature that is always right but that an attack can turn, and one that is right nine times in ten."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(2, (256,), generator=generator)
    sign = 2.0 * y - 1
    right = torch.where(torch.rand(256, generator=generator) < 0.9, 1.0, -1.0)
    return [(torch.stack((0.4 * sign, 1.5 * sign * right), 1), y)]


def test_robust_training_gives_a_robust_model():
    attack, data = PGD("linf", 1.0, 0.5, 3, bounds=None), two_features()
    accuracy = {}
    for name, how in (("plain", None), ("robust", attack)):
        torch.manual_seed(0)
        model = nn.Linear(2, 2)
        fit(model, data, epochs=40, lr=2.0, weight_decay=0.0, attack=how)
        record = robust_measure(LinearPath(model, model), data, attack, points=2)
        accuracy[name] = record.clean.accuracy[0], record.robust.accuracy[0]
    assert accuracy["plain"][0] > 0.95 and accuracy["robust"][1] > accuracy["plain"][1] + 0.3, accuracy


def test_fitting_resumes_to_the_bit_and_tells_what_is_wrong(tmp_path):
    def run(callback=None, checkpoint=None):
        model = classifier(0, dropout=0.5)
        fit(model, labelled(), epochs=3, attack=PGD(steps=1), callback=callback, checkpoint=checkpoint, every=4)
        return model.state_dict()

    def stop(step):
        if step.step == 6:
            raise KeyboardInterrupt

    path = tmp_path / "run.safetensors"
    with pytest.raises(KeyboardInterrupt):
        run(stop, path)
    whole, resumed = run(), run(checkpoint=path)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    with pytest.raises(CheckpointError, match="another run"):
        fit(classifier(0), labelled(), epochs=3, checkpoint=path)
    with pytest.raises(InputError, match="nothing to train"):
        fit(classifier(0).requires_grad_(False), labelled(), steps=1)
    with pytest.raises(NonFiniteError, match="at step 1"):
        fit(classifier(0), labelled(), steps=1, loss=lambda output, targets: output.sum() * float("inf"))


def test_clean_and_robust_numbers_along_a_path():
    a, b, data = classifier(0), classifier(1), labelled((32, 32))
    before = [copy.deepcopy(m.state_dict()) for m in (a, b)]
    attack = PGD("linf", 0.3, 0.1, 3, bounds=None)
    path = pyalign.Curve(a, b)
    record = robust_measure(path, data, attack, points=3, recalibrate=data)
    clean = measure(path, data, t=[0.5], recalibrate=data)
    assert record.clean == clean
    assert all(r > c for r, c in zip(record.robust.loss, record.clean.loss, strict=True))
    assert robust_measure(path, data, attack, points=3, recalibrate=data) == record
    assert RobustRecord.from_dict(record.to_dict()) == record
    assert all(torch.equal(m.state_dict()[n], v) for m, s in zip((a, b), before, strict=True) for n, v in s.items())
    with pytest.warns(PyalignWarning, match="recalibrate="):
        assert robust_measure(path, data, attack, points=3) != record
    for wrong in ({"points": 1}, {"t": [2.0]}):
        with pytest.raises(InputError):
            robust_measure(path, data, attack, **wrong)


def test_attacked_batches_leave_mode_and_gradients_alone():
    model = classifier(0).train()
    (first, *_) = attacked(model, labelled((8,)), PGD())
    assert model.training and first[0].shape == (8, 6) and all(p.grad is None for p in model.parameters())


def test_a_curve_trained_on_attacks_is_more_robust_than_the_line():
    a, b, data = classifier(0, norm=False), classifier(1, norm=False), labelled((32, 32))
    attack = PGD("linf", 0.1, 0.05, 2, bounds=None)
    path = pyalign.curve(a, b, data, epochs=10, lr=0.3, attack=attack)
    line, curve = (robust_measure(p, data, attack, points=3) for p in (LinearPath(a, b), path))
    assert curve.robust.loss[1] < line.robust.loss[1] - 0.02


def test_the_attack_agrees_with_a_library():
    torchattacks = pytest.importorskip("torchattacks")
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3), nn.Tanh(), nn.Linear(3, 3)).eval()
    x, y = torch.rand(5, 3, 2, 2), torch.randint(3, (5,))
    for ours, theirs in (
        (PGD("linf", 0.1, 0.03, 6, False), torchattacks.PGD(model, 0.1, 0.03, 6, random_start=False)),
        (PGD("l2", 0.5, 0.1, 6, False), torchattacks.PGDL2(model, 0.5, 0.1, 6, random_start=False)),
    ):
        torch.testing.assert_close(ours(model, x, y), theirs(x, y), rtol=1e-5, atol=1e-6)
