"""The weighted average: by hand, bit by bit where it must be, and every bad input told."""

import copy
import warnings

import pytest
import torch
from torch import nn

from pyalign.errors import DataError, InputError, MismatchError, NonFiniteError, PyalignWarning
from pyalign.io import open_state, save_state
from pyalign.merge import merge


def network(seed, norm=True):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6) if norm else nn.Identity(), nn.ReLU(), nn.Linear(6, 2))


def data(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(64, 4, generator=generator) * 2 + 1 for _ in range(3)]


@pytest.mark.parametrize("weights", [None, [0.2, 0.3, 0.5], [2.0, -1.5, 0.5]], ids=str)
def test_modules_by_hand(weights):
    models = [network(seed, norm=False) for seed in range(3)]
    before = [copy.deepcopy(model.state_dict()) for model in models]
    merged = merge(models, weights)
    for name, tensor in merged.state_dict().items():
        expected = sum(w * state[name] for w, state in zip(weights or [1 / 3] * 3, before, strict=True))
        torch.testing.assert_close(tensor, expected)
    for model, earlier in zip(models, before, strict=True):
        assert all(torch.equal(tensor, earlier[name]) for name, tensor in model.state_dict().items())


def test_a_single_weight_gives_that_model_bit_by_bit():
    models = [network(seed) for seed in range(3)]
    merged = merge(models, [0.0, 1.0, 0.0])
    assert all(torch.equal(tensor, models[1].state_dict()[name]) for name, tensor in merged.state_dict().items())


def test_state_dicts_and_readers(tmp_path):
    states = [network(seed, norm=False).state_dict() for seed in range(2)]
    merged = merge(states)
    torch.testing.assert_close(merged["0.weight"], (states[0]["0.weight"] + states[1]["0.weight"]) / 2)
    for index, state in enumerate(states):
        save_state(state, tmp_path / f"{index}.safetensors")
    with open_state(tmp_path / "0.safetensors") as a, open_state(tmp_path / "1.safetensors") as b:
        from_files = merge([a, b])
    assert sorted(from_files) == sorted(merged)
    assert all(torch.equal(from_files[name], tensor) for name, tensor in merged.items())


def test_batchnorm_without_repair_is_warned_of():
    models = [network(seed) for seed in range(2)]
    for given in (models, [model.state_dict() for model in models]):
        with pytest.warns(PyalignWarning, match="bn_reset"):
            merge(given)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message="pyalign runs its slower")
        merge(models, [1.0, 0.0])
        merge([network(seed, norm=False) for seed in range(2)])


def test_bn_reset():
    models = [network(seed).train() for seed in range(2)]
    merged = merge(models, repair="bn_reset", data=iter(data()))
    hidden = merged[0](torch.cat(data()))
    torch.testing.assert_close(merged[1].running_mean, hidden.mean(0))
    assert merged.training and merged[1].momentum == 0.1
    assert merged[1].num_batches_tracked == 3
    with pytest.warns(PyalignWarning, match="nothing to reset"):
        merge([network(seed, norm=False) for seed in range(2)], repair="bn_reset", data=data())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"models": []}, "cannot be merged"),
        ({"models": network(0)}, "cannot be merged.*list of modules"),
        ({"models": [network(0), network(0).state_dict()]}, "cannot be merged.*Given: Sequential, OrderedDict"),
        ({"weights": [0.5]}, r"weights do not fit the models.*\[0.5\] for 2 models"),
        ({"weights": [0.5, 0.6]}, "divide the weights by their sum"),
        ({"weights": [float("nan"), 1.0]}, "weights do not fit"),
        ({"repair": "fix", "data": data()}, "this repair is unknown.*'fix'"),
        ({"repair": "repair"}, "a repair needs data"),
        ({"repair": "repair", "data": data(), "weights": [1.5, -0.5]}, "not negative"),
        ({"repair": "bn_reset", "data": data(), "models": [network(0).state_dict()] * 2}, "load_into"),
    ],
    ids=lambda value: "",
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(InputError, match=message):
        merge(**{"models": [network(0), network(1)], **arguments})


def test_models_that_do_not_fit():
    with pytest.raises(MismatchError, match=r"model 2 does not have the architecture of model 0.*'1\.weight'"):
        merge([network(0), network(1), network(2, norm=False)])
    with pytest.raises(MismatchError, match=r"dtype or device, first at '0\.weight'"):
        merge([network(0), network(1).double()])


def test_nan_in_weights_is_named():
    models = [network(0), network(1)]
    with torch.no_grad():
        models[1][3].bias[1] = float("inf")
    with pytest.raises(NonFiniteError, match=r"'3\.bias' of model 1"):
        merge(models)


@pytest.mark.parametrize("repair", ["bn_reset", "repair", "rescale"])
def test_bad_data_changes_nothing(repair):
    models = [network(0), network(1)]
    before = [copy.deepcopy(model.state_dict()) for model in models]
    for wrong, message in (
        ([], "data is empty"),
        ([torch.zeros(8, 3)], "Sequential cannot take batch 0"),
        ([torch.zeros(8, 4), torch.zeros(8, 4, dtype=torch.float64)], "cannot take batch 1.*float32"),
    ):
        with pytest.raises(DataError, match=message):
            merge(models, repair=repair, data=wrong)
    with pytest.raises(NonFiniteError):
        merge(models, repair=repair, data=[torch.full((8, 4), float("nan"))])
    for model, earlier in zip(models, before, strict=True):
        assert all(torch.equal(tensor, earlier[name]) for name, tensor in model.state_dict().items())
        assert all(not module._forward_hooks for module in model.modules())
        assert all(module.training for module in model.modules())


def test_the_room_is_also_the_function():
    import pyalign

    models = [{"w": torch.zeros(1)}, {"w": torch.ones(1)}]
    for _ in range(2):
        assert pyalign.merge(models)["w"].item() == 0.5
    import pyalign.merge

    assert pyalign.merge(models, weights=[0.0, 1.0])["w"].item() == 1.0
