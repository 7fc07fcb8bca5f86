"""REPAIR: the merged network has the goal statistics, on every kind of layer, and nothing else changes."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pyalign.errors import PyalignWarning
from pyalign.merge import merge
from pyalign.merge.layers import survey

pytestmark = pytest.mark.filterwarnings("ignore:pyalign runs its slower")


def mlp(seed, depth=4, width=32):
    torch.manual_seed(seed)
    layers = [layer for i in range(depth) for layer in (nn.Linear(8 if i == 0 else width, width), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(width, 3))


def batches(shape=(8,), sizes=(256,), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, *shape, generator=generator) * 1.5 + 0.3 for n in sizes]


def statistics(model, data, names):
    """Mean and standard deviation of every unit of the named layers' outputs, in evaluation mode."""
    seen = {name: [] for name in names}
    handles = [
        model.get_submodule(name).register_forward_hook(lambda m, i, output, name=name: seen[name].append(output))
        for name in names
    ]
    model.eval()
    with torch.no_grad():
        for x in data:
            model(x)
    for handle in handles:
        handle.remove()
    result = {}
    for name, outputs in seen.items():
        axis = -1 if not hasattr(model.get_submodule(name), "kernel_size") else 1
        rows = torch.cat([output.movedim(axis, -1).flatten(0, -2) for output in outputs]).double()
        result[name] = (rows.mean(0), rows.std(0, correction=0))
    return result


def goal(models, weights, data, names):
    ends = [statistics(model, data, names) for model in models]
    return {
        name: tuple(sum(w * end[name][i] for w, end in zip(weights, ends, strict=True)) for i in (0, 1))
        for name in names
    }


def assert_statistics(model, expected, data, rtol=1e-3, means=True):
    for name, (mean, std) in statistics(model, data, list(expected)).items():
        torch.testing.assert_close(
            std, expected[name][1], rtol=rtol, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}"
        )
        if means:
            torch.testing.assert_close(mean, expected[name][0], rtol=rtol, atol=rtol * float(std.max()))


HIDDEN = ["0", "2", "4", "6"]


def test_variance_collapses_without_repair_and_is_restored_by_it():
    models, data = [mlp(0), mlp(1)], batches()
    expected = goal(models, [0.5, 0.5], data, HIDDEN)
    naive = merge(models)
    with pytest.raises(AssertionError):
        assert_statistics(naive, expected, data)
    assert float(statistics(naive, data, ["6"])["6"][1].mean()) < 0.4 * float(expected["6"][1].mean())
    repaired = merge(models, repair="repair", data=data)
    assert_statistics(repaired, expected, data)
    assert sorted(repaired.state_dict()) == sorted(naive.state_dict())
    assert [type(m) for m in repaired.modules()] == [type(m) for m in naive.modules()]
    assert all(torch.equal(repaired.state_dict()[n], naive.state_dict()[n]) for n in ("8.weight", "8.bias"))


def test_three_models_average_standard_deviations_not_variances():
    models, data, weights = [mlp(seed) for seed in range(3)], batches(), [0.5, 0.3, 0.2]
    with torch.no_grad():
        for factor, model in zip((0.2, 1.0, 4.0), models, strict=True):
            model[0].weight.mul_(factor)
    expected = goal(models, weights, data, HIDDEN)
    assert_statistics(merge(models, weights, "repair", data), expected, data)


def test_batches_of_many_sizes_come_close_to_the_goal():
    models, data = [mlp(0), mlp(1)], batches(sizes=(200, 31, 7, 120, 2))
    expected = goal(models, [0.5, 0.5], data, HIDDEN)
    assert_statistics(merge(models, repair="repair", data=iter(data)), expected, data, rtol=0.05)
    first = {"0": expected["0"]}
    assert_statistics(merge(models, repair="repair", data=data), first, data, rtol=1e-5)


@pytest.mark.parametrize("repair", ["repair", "rescale"])
@pytest.mark.parametrize("weights", [[1.0, 0.0], [0.0, 1.0]])
def test_the_ends_keep_their_function(repair, weights):
    models, data = [mlp(0), mlp(1)], batches(sizes=(64, 5, 33))
    merged = merge(models, weights, repair, data)
    x = batches(seed=5)[0]
    torch.testing.assert_close(merged(x), models[weights.index(1.0)](x), rtol=1e-5, atol=1e-6)


def test_rescale_restores_deviations_by_scaling_alone():
    models, data = [mlp(0), mlp(1)], batches()
    naive, merged = merge(models), merge(models, repair="rescale", data=data)
    assert_statistics(merged, {"0": goal(models, [0.5, 0.5], data, ["0"])["0"]}, data, means=False)
    ratio = merged[0].weight / naive[0].weight
    torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio))
    torch.testing.assert_close(merged[0].bias / naive[0].bias, ratio[:, 0])
    for layer in HIDDEN:
        expected = goal(models, [0.5, 0.5], data, HIDDEN)[layer][1]
        torch.testing.assert_close(statistics(merged, data, HIDDEN)[layer][1], expected, rtol=1e-3, atol=1e-4)


LAYERS = {
    "conv1d": (lambda: nn.Conv1d(4, 6, 3), (4, 9)),
    "conv2d": (lambda: nn.Conv2d(4, 6, 3, stride=2), (4, 9, 9)),
    "conv3d": (lambda: nn.Conv3d(4, 6, 2), (4, 4, 4, 4)),
    "grouped": (lambda: nn.Conv2d(4, 6, 3, groups=2), (4, 7, 7)),
    "depthwise": (lambda: nn.Conv2d(4, 8, 3, groups=4), (4, 7, 7)),
    "transposed": (lambda: nn.ConvTranspose2d(4, 6, 3, stride=2), (4, 5, 5)),
    "transposed grouped": (lambda: nn.ConvTranspose2d(4, 6, 3, groups=2), (4, 5, 5)),
    "linear on sequences": (lambda: nn.Linear(5, 6), (4, 5)),
    "weight norm": (lambda: torch.nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 6, 3)), (4, 7, 7)),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_every_kind_of_layer(kind):
    make, shape = LAYERS[kind]

    def build(seed):
        torch.manual_seed(seed)
        return nn.Sequential(make(), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3))

    data = batches(shape, (32, 32))
    models = [build(0), build(1)]
    for model in models:
        model(data[0])
    expected = goal(models, [0.25, 0.75], data, ["0"])
    merged = merge(models, [0.25, 0.75], "repair", data)
    assert_statistics(merged, expected, data, rtol=1e-4)
    assert list(merged.state_dict()) == list(models[0].state_dict())


class Sketch(nn.Module):
    """Convolutions with BatchNorm, without bias, and one of neither; residual; output by log-softmax."""

    def __init__(self):
        super().__init__()
        self.normed, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.plain = nn.Conv2d(4, 4, 3, padding=1)
        self.unbiased = nn.Conv2d(4, 4, 1, bias=False)
        self.to_layernorm, self.layernorm = nn.Linear(4, 5), nn.LayerNorm(5)
        self.head = nn.Linear(5, 3)

    def forward(self, x):
        x = F.relu(self.norm(self.normed(x)))
        x = F.relu(x + self.unbiased(F.relu(self.plain(x))))
        return F.log_softmax(self.head(F.relu(self.layernorm(self.to_layernorm(x.mean((2, 3)))))), dim=1)


def test_layers_before_a_normalisation_and_the_output_are_left_alone():
    torch.manual_seed(0)
    layers, reasons = survey(Sketch(), torch.randn(4, 3, 5, 5))
    assert sorted(layers) == ["plain", "unbiased"]
    assert reasons == {
        "normed": "is followed by a normalisation",
        "to_layernorm": "is followed by a normalisation",
        "head": "gives the model's output",
    }


def test_batchnorm_is_reset_in_the_same_pass_and_missing_biases_are_told():
    torch.manual_seed(0)
    models, data = [Sketch(), Sketch()], batches((3, 6, 6), (64,))
    with pytest.warns(PyalignWarning, match="without bias are rescaled and not shifted: 'unbiased'") as caught:
        merged = merge(models, repair="repair", data=data)
    assert len(caught) == 1
    torch.testing.assert_close(merged.norm.running_mean, merged.normed(data[0]).mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    assert merged.unbiased.bias is None and merged.norm.num_batches_tracked == 1


class Awkward(nn.Module):
    """A layer called twice, a layer whose weight is used elsewhere, two layers with one weight, and a plain one."""

    def __init__(self):
        super().__init__()
        self.twice, self.lent, self.one, self.other = (nn.Linear(4, 4) for _ in range(4))
        self.other.weight = self.one.weight
        self.plain, self.head, self.never = nn.Linear(4, 4), nn.Linear(4, 2), nn.Linear(4, 4)

    def forward(self, x):
        x = F.relu(self.twice(F.relu(self.twice(x))))
        x = F.linear(F.relu(self.lent(x)), self.lent.weight.t())
        x = F.relu(self.other(F.relu(self.one(x))))
        return {"logits": self.head(F.relu(self.plain(x))), "aux": None}


def test_shared_and_tied_layers_stay_as_they_are():
    torch.manual_seed(0)
    models, data = [Awkward(), Awkward()], batches((4,))
    layers, reasons = survey(models[0], data[0])
    assert list(layers) == ["plain"]
    assert reasons["twice"] == "is called 2 times"
    assert reasons["never"] == "is not called"
    assert reasons["lent"] == reasons["one"] == reasons["other"] == "shares its weights"
    naive = merge(models)
    with pytest.warns(PyalignWarning, match="stay as they are: 'twice' is called 2 times; 'lent' shares its weights"):
        merged = merge(models, repair="repair", data=data)
    changed = {n for n, tensor in merged.state_dict().items() if not torch.equal(tensor, naive.state_dict()[n])}
    assert changed == {"plain.weight", "plain.bias"}
    assert merged.one.weight is merged.other.weight


def test_a_parametrisation_that_cannot_be_set_is_left_alone():
    torch.manual_seed(0)
    models = [
        nn.Sequential(torch.nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4)), nn.ReLU(), nn.Linear(4, 2))
        for _ in range(2)
    ]
    before = [{n: t.clone() for n, t in model.named_parameters()} for model in models]
    with pytest.warns(PyalignWarning, match="'0' has weights that cannot be set"):
        merge(models, repair="repair", data=batches((4,)))
    for model, earlier in zip(models, before, strict=True):
        assert all(torch.equal(tensor, earlier[name]) for name, tensor in model.named_parameters())


def test_an_in_place_nonlinearity_before_batchnorm_does_not_hide_the_layer():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True), nn.BatchNorm1d(4), nn.Linear(4, 2))
    assert list(survey(model, torch.randn(8, 4))[0]) == ["0"]
    model[1] = nn.Identity()
    assert list(survey(model, torch.randn(8, 4))[0]) == []


def test_a_layernorm_network_has_little_to_do():
    def block(seed):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.GELU(), nn.Linear(6, 2))

    models = [block(0), block(1)]
    with pytest.warns(PyalignWarning, match="nothing to repair"):
        merged = merge(models, repair="repair", data=batches((4,)))
    assert all(torch.equal(tensor, merge(models).state_dict()[name]) for name, tensor in merged.state_dict().items())


def test_dead_units_stay_finite():
    models, data = [mlp(0), mlp(1)], batches()
    with torch.no_grad():
        for model in models:
            model[2].weight[3] = 0.0
            model[2].bias[3] = -1.0
        models[0][4].weight[:] = -models[1][4].weight
        models[0][4].bias[:] = -models[1][4].bias
    for repair in ("repair", "rescale"):
        merged = merge(models, repair=repair, data=data)
        assert all(bool(torch.isfinite(tensor).all()) for tensor in merged.state_dict().values())
        assert merged[2].bias[3].item() == pytest.approx(-1.0)


def test_modes_hooks_and_models_return():
    models, data = [mlp(0).train(), mlp(1).eval()], batches(sizes=(16, 16))
    before = [{n: t.clone() for n, t in model.state_dict().items()} for model in models]
    with warnings.catch_warnings():
        warnings.simplefilter("error", PyalignWarning)
        merged = merge(models, repair="repair", data=data)
    assert models[0].training and not models[1].training and merged.training
    for model in (*models, merged):
        assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())
    for model, earlier in zip(models, before, strict=True):
        assert all(torch.equal(tensor, earlier[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes(dtype):
    models, data = [mlp(0).to(dtype), mlp(1).to(dtype)], [x.to(dtype) for x in batches()]
    merged = merge(models, repair="repair", data=data)
    expected = goal(models, [0.5, 0.5], data, HIDDEN)
    assert_statistics(merged, expected, data, rtol=1e-9 if dtype == torch.float64 else 0.05)
    assert merged[0].weight.dtype == dtype
