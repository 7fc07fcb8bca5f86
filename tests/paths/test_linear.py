"""The straight line: its ends bit by bit, its middle by hand, and what does not fit told by name."""

import copy
import threading

import pytest
import torch
from torch import nn

from pyalign.errors import InputError, MismatchError, NonFiniteError, PyalignWarning
from pyalign.paths import LinearPath, Path, interpolate


def network(seed):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 2))
    for _ in range(seed + 1):
        model(torch.randn(4, 2, 4, 4))
    return model


def assert_bitwise(given, expected):
    assert list(given) == list(expected)
    for name, tensor in expected.items():
        assert given[name].dtype == tensor.dtype, name
        assert torch.equal(
            given[name].contiguous().view(-1).view(torch.uint8), tensor.contiguous().view(-1).view(torch.uint8)
        ), name


def test_the_bitwise_comparison_can_fail():
    with pytest.raises(AssertionError):
        assert_bitwise({"a": torch.tensor([0.0])}, {"a": torch.tensor([-0.0])})


@pytest.mark.parametrize("form", ["modules", "states"])
def test_the_ends_are_the_models_bit_by_bit(form):
    a, b = network(0), network(1)
    with torch.no_grad():
        b[0].bias[0] = -0.0
    before = [copy.deepcopy(model.state_dict()) for model in (a, b)]
    for t, end in ((0, before[0]), (1, before[1])):
        middle = (
            interpolate(a, b, t).state_dict() if form == "modules" else interpolate(a.state_dict(), b.state_dict(), t)
        )
        assert_bitwise(middle, end)
    for model, earlier in zip((a, b), before, strict=True):
        assert_bitwise(model.state_dict(), earlier)


@pytest.mark.parametrize("t", [0.25, 0.5, 0.9])
def test_between_the_ends(t):
    a, b = network(0), network(1)
    middle = interpolate(a, b, t)
    for name, tensor in middle.state_dict().items():
        left, right = a.state_dict()[name], b.state_dict()[name]
        if name.endswith("num_batches_tracked"):
            assert tensor == left == 1 and right == 2
        else:
            torch.testing.assert_close(tensor, (1 - t) * left + t * right)
    assert middle is not a and middle[0].weight.requires_grad and middle.training
    assert middle[0].weight.data_ptr() not in {a[0].weight.data_ptr(), b[0].weight.data_ptr()}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.complex64, torch.float8_e4m3fn])
def test_every_continuous_dtype(dtype):
    a, b = torch.tensor([1.0, 2.0, -4.0]).to(dtype), torch.tensor([3.0, 2.0, 4.0]).to(dtype)
    middle = interpolate({"w": a}, {"w": b}, 0.5)["w"]
    assert middle.dtype == dtype
    assert torch.equal(middle.to(torch.complex64), torch.tensor([2.0, 2.0, 0.0]).to(torch.complex64))


@pytest.mark.parametrize("t", [-0.1, 1.5, float("nan"), float("inf")])
def test_t_outside_the_path(t):
    with pytest.raises(InputError, match=r"outside the path.*0 <= t <= 1"):
        interpolate({"w": torch.ones(1)}, {"w": torch.ones(1)}, t)


class Tied(nn.Module):
    def __init__(self, tied=True):
        super().__init__()
        self.embedding, self.head = nn.Embedding(4, 2), nn.Linear(2, 4, bias=False)
        if tied:
            self.head.weight = self.embedding.weight
        else:
            self.head.weight = nn.Parameter(torch.zeros(4, 2))


def test_tied_weights_stay_tied():
    a, b = Tied(), Tied()
    middle = interpolate(a, b, 0.5)
    assert middle.head.weight is middle.embedding.weight
    torch.testing.assert_close(middle.head.weight, (a.head.weight + b.head.weight) / 2)
    state = interpolate(a.state_dict(), b.state_dict(), 0.5)
    assert state["head.weight"] is state["embedding.weight"]
    copied = {name: tensor.clone() for name, tensor in b.state_dict().items()}
    assert torch.equal(interpolate(a.state_dict(), copied, 0.5)["head.weight"], middle.head.weight)
    assert sorted(interpolate(Tied(tied=False), b, 0.5).state_dict()) == ["embedding.weight", "head.weight"]


def test_weights_tied_in_one_model_only():
    with pytest.raises(
        MismatchError, match=r"'head\.weight' and 'embedding\.weight' are one tensor in model a but not in model b"
    ):
        interpolate(Tied(), Tied(tied=False), 0.5)


def test_parametrised_modules():
    torch.manual_seed(0)
    a, b = (torch.nn.utils.parametrizations.weight_norm(nn.Linear(3, 2)) for _ in range(2))
    middle = interpolate(a, b, 0.5)
    scale = (a.parametrizations.weight.original0 + b.parametrizations.weight.original0) / 2
    torch.testing.assert_close(middle.weight.norm(dim=1, keepdim=True), scale)


@pytest.mark.parametrize(
    ("b", "message"),
    [
        (nn.Sequential(nn.Linear(3, 2)), r"surplus: '0\.weight', '0\.bias'"),
        (nn.Linear(3, 2, bias=False), "missing: 'bias'"),
        (nn.Linear(4, 2), r"of another shape: 'weight' \(2, 4\) instead of \(2, 3\)"),
        (nn.Linear(3, 2).double(), "dtype or device, first at 'weight'.*float32 on cpu, float64 on cpu"),
        (nn.Linear(3, 2).to("meta"), "float32 on cpu, float32 on meta"),
    ],
    ids=["other names", "no bias", "shape", "dtype", "device"],
)
def test_another_architecture(b, message):
    a = nn.Linear(3, 2)
    before = copy.deepcopy(a.state_dict())
    with pytest.raises(MismatchError, match=message):
        interpolate(a, b, 0.5)
    assert_bitwise(a.state_dict(), before)


def test_a_module_and_a_state_dict():
    with pytest.raises(InputError, match="different kinds"):
        interpolate(nn.Linear(1, 1), nn.Linear(1, 1).state_dict(), 0.5)
    with pytest.raises(InputError, match="has no modules"):
        LinearPath({}, {}).at(0.5)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("which", ["a", "b"])
def test_nan_in_weights_is_named(value, which):
    models = {"a": network(0), "b": network(1)}
    with torch.no_grad():
        models[which][3].weight[0, 5] = value
    with pytest.raises(NonFiniteError, match=rf"NaN or infinity in '3\.weight' of model {which}"):
        interpolate(models["a"], models["b"], 0.5)


def test_a_mask_of_infinity_is_kept():
    mask = torch.tensor([0.0, -float("inf")])
    assert torch.equal(interpolate({"mask": mask}, {"mask": mask.clone()}, 0.3)["mask"], mask)


def test_integer_tensors_that_differ_are_told():
    a, b = {"codes": torch.tensor([1, 2])}, {"codes": torch.tensor([3, 4])}
    with pytest.warns(PyalignWarning, match="taken from model a: 'codes'"):
        assert interpolate(a, b, 0.5)["codes"].tolist() == [1, 2]


def test_the_path_reuses_one_module():
    a, b = network(0), network(1)
    path = LinearPath(a, b)
    assert isinstance(path, Path)
    model = path.at(0.0)
    memory = [tensor.data_ptr() for tensor in model.state_dict().values()]
    for t in (0.5, 1.0, 0.25):
        with torch.no_grad():
            for tensor in model.state_dict().values():
                tensor.fill_(float("nan") if tensor.is_floating_point() else 99)
        path.into(t, model)
        assert_bitwise(model.state_dict(), interpolate(a, b, t).state_dict())
    assert [tensor.data_ptr() for tensor in model.state_dict().values()] == memory


def test_a_module_that_cannot_be_copied():
    model = nn.Linear(2, 2)
    model.lock = threading.Lock()
    with pytest.raises(InputError, match="Linear cannot be copied"):
        interpolate(model, nn.Linear(2, 2), 0.5)
