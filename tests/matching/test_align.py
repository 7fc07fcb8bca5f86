"""The public entry from end to end, and every bad input: what was given, what was expected, and nothing changes."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from matching import handmade
from torch import nn

import pyalign
from pyalign.errors import DataError, InputError, MismatchError, NonFiniteError, PyalignWarning, SymmetryError
from pyalign.matching import ActivationMatching, Problem, align
from pyalign.symmetry import Kind, SymmetrySpec, derive, state_of


def resnets(seed=1):
    return handmade.generic(handmade.ResNet(), seed), handmade.generic(handmade.ResNet(), seed + 1)


IMAGES = handmade.batches(8, 3, 8, 8)


@pytest.mark.parametrize("method", ["activation", "weight", ActivationMatching(observe="before")])
def test_a_permuted_copy_comes_back(method):
    model = resnets()[0]
    moved = derive(model, IMAGES[0]).random(3, Kind.PERMUTATION).apply(model)
    alignment = align(model, moved, IMAGES, method=method)
    aligned = state_of(alignment.apply(moved))
    for name, tensor in state_of(model).items():
        torch.testing.assert_close(aligned[name], tensor, rtol=0, atol=0)
    assert {"derive", "verify", "matching"} <= set(alignment.seconds)
    assert alignment.backends and alignment.worst_gap < 1e-9
    assert "duality gap" in alignment.report()


def test_the_function_of_the_moved_model_is_kept():
    a, b = resnets()
    aligned = align(a, b, IMAGES).apply(b)
    with torch.no_grad():
        torch.testing.assert_close(aligned(IMAGES[0]), b(IMAGES[0]), rtol=1e-4, atol=1e-4)
        assert not torch.allclose(aligned.conv1.weight, b.conv1.weight)


def test_forms_of_data_give_the_same_alignment():
    a, b = resnets()
    labels = torch.zeros(8, dtype=torch.int64)
    expected = align(a, b, IMAGES)
    for data in (
        [(x, labels) for x in IMAGES],
        (x for x in IMAGES),
        [{"x": x, "labels": labels} for x in IMAGES],
        torch.utils.data.DataLoader(torch.cat(IMAGES), batch_size=8),
    ):
        answer = align(a, b, data)
        assert all(torch.equal(e.perm, answer.transforms[n].perm) for n, e in expected.transforms.items())
        assert answer.objective == pytest.approx(expected.objective, rel=1e-12)


def test_weight_matching_without_data():
    a, b = resnets()
    with pytest.raises(InputError, match="example_inputs"):
        align(a, b, method="weight")
    derived = align(a, b, method="weight", example_inputs=IMAGES[0], seed=4)
    given = align(a, b, method="weight", spec=derive(a, IMAGES[0]), seed=4)
    assert derived.trace == given.trace
    assert any("not verified" in note for note in given.notes) and not any("verified" in n for n in derived.notes)


def test_models_that_take_several_inputs():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two, self.head = nn.Linear(3, 8), nn.Linear(5, 8), nn.Linear(8, 2)

        def forward(self, x, y):
            return self.head(F.relu(self.one(x) + self.two(y)))

    a = handmade.generic(Two(), 1)
    x, y = handmade.batches(40, 3)[0], handmade.batches(40, 5)[0]
    truth = derive(a, (x, y)).random(1, Kind.PERMUTATION)
    for data in ([((x, y), None)], [{"x": x, "y": y, "labels": x}]):
        assert align(a, truth.apply(a), data).compose(truth).is_identity


def test_own_methods_can_be_given():
    class Stay:
        def match(self, problem: Problem):
            return problem.spec.identity()

    a, b = resnets()
    assert align(a, b, IMAGES, method=Stay()).is_identity


def test_train_mode_is_left_as_found():
    a, b = resnets()
    a.train()
    b.blocks[0].train()
    modes = [m.training for model in (a, b) for m in model.modules()]
    align(a, b, IMAGES)
    assert modes == [m.training for model in (a, b) for m in model.modules()]


def bad_inputs():
    """name -> (arguments changed from a good call, error, words of the message)."""
    a, b = resnets()
    nan, infinite, double = copy.deepcopy(b), copy.deepcopy(a), copy.deepcopy(b).double()
    with torch.no_grad():
        nan.blocks[1].conv2.weight[0, 0, 0, 0] = float("nan")
        infinite.bn1.running_var[1] = float("inf")
    other_spec = handmade.mlp_spec(handmade.MLP())
    wide = handmade.ResNet(widths=(8, 10)).eval()
    return {
        "another architecture": ({"model_b": handmade.MLP()}, MismatchError, "only in model B.*'layers.0.weight'"),
        "equal names, other shapes": ({"model_b": wide}, MismatchError, "'conv1.weight'.*6, 3.*8, 3"),
        "another dtype": ({"model_b": double}, MismatchError, "dtype.*float32.*float64"),
        "no module": ({"model_b": b.state_dict()}, InputError, "model B is no module.*OrderedDict"),
        "NaN in weights": ({"model_b": nan}, NonFiniteError, "'blocks.1.conv2.weight' of model B.*1 of"),
        "infinity in statistics": ({"model_a": infinite}, NonFiniteError, "'bn1.running_var' of model A"),
        "NaN in the data": ({"data": [IMAGES[0] * float("nan")]}, NonFiniteError, "model A at module"),
        "no data": ({"data": None}, InputError, "needs data"),
        "empty data": ({"data": []}, DataError, "empty"),
        "a tensor is not batches": ({"data": IMAGES[0]}, DataError, "not an iterable of batches"),
        "a batch of the wrong shape": ({"data": [torch.zeros(4, 1, 8, 8)]}, DataError, "cannot take batch 0"),
        "data of another dtype": ({"data": [IMAGES[0].double()]}, DataError, "float64.*float32"),
        "a later batch is wrong": ({"data": [IMAGES[0], IMAGES[0][:, :2]]}, DataError, "cannot take batch 1"),
        "the spec of another model": ({"spec": other_spec}, MismatchError, "spec is for another model"),
        "an unknown method": ({"method": "telepathy"}, InputError, "'telepathy'"),
        "an object that does not match": ({"method": object()}, InputError, r"match\(problem\)"),
    }


@pytest.mark.parametrize("name", bad_inputs())
@pytest.mark.filterwarnings("ignore::pyalign.errors.PyalignWarning")
def test_bad_input_says_what_and_changes_nothing(name):
    changes, error, words = bad_inputs()[name]
    a, b = resnets()
    arguments = {"model_a": a, "model_b": b, "data": IMAGES, **changes}
    models = [m for m in (arguments["model_a"], arguments["model_b"]) if isinstance(m, nn.Module)]
    before = [{n: t.clone() for n, t in state_of(m).items()} for m in models]
    modes = [[m.training for m in model.modules()] for model in models]
    state = torch.get_rng_state()
    with pytest.raises(error, match=f"(?s){words}") as caught:
        align(arguments.pop("model_a"), arguments.pop("model_b"), arguments.pop("data"), **arguments)
    assert "Expected:" in str(caught.value) or "What to do:" in str(caught.value)
    assert torch.equal(state, torch.get_rng_state())
    assert modes == [[m.training for m in model.modules()] for model in models]
    for model, old in zip(models, before, strict=True):
        assert all(torch.equal(old[n], t) or bool(torch.isnan(old[n]).any()) for n, t in state_of(model).items())


def test_a_device_other_than_the_datas_is_named():
    a, b = (m.to("meta") for m in resnets())
    with pytest.raises(MismatchError, match=r"'conv1.weight'.*meta in model A, cpu in model B"):
        align(a, resnets()[1], IMAGES)
    assert b.conv1.weight.is_meta


def test_a_wrong_spec_is_caught_before_matching():
    a, b = resnets()
    right = handmade.resnet_spec(a)
    bindings = tuple(x for x in right.bindings if (x.tensor, x.group) != ("blocks.1.bn1.bias", "blocks.1.conv1"))
    wrong = SymmetrySpec(right.groups, bindings, right.sites, shapes=right.shapes)
    with pytest.raises(SymmetryError, match=r"blocks\.1"):
        align(a, b, IMAGES, spec=wrong)
    assert any("not verified" in note for note in align(a, b, IMAGES, spec=wrong, verify=False).notes)


def test_few_samples_warn():
    a, b = (handmade.generic(handmade.MLP(), seed) for seed in (1, 2))
    with pytest.warns(PyalignWarning, match="fewer samples than units"):
        align(a, b, handmade.batches(3, 6, count=2))


def test_public_names():
    assert pyalign.align is align and pyalign.ActivationMatching is ActivationMatching
