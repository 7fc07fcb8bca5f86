"""What the caller has set around a call: inference mode, autocast, wrapped and empty models."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import pyalign
from pyalign.errors import InputError, MismatchError


def _net(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(96, 4)
    ).eval()


def _data() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(64, 3, 8, 8, generator=generator), torch.arange(64) % 4)]


@pytest.mark.parametrize("method", ["activation", "weight"])
def test_inference_mode_around_the_call_changes_nothing(method: str) -> None:
    a, b, data = _net(0), _net(1), _data()
    expected = pyalign.align(a, b, data, method=method)
    with torch.inference_mode():
        found = pyalign.align(a, b, data, method=method)
        inside = pyalign.derive(_net(0), data[0][0])  # whose parameters belong to inference mode
    assert set(expected.spec.groups) == set(inside.groups) == {"0", "3"}
    for name in expected.spec.groups:
        assert torch.equal(found.transforms[name].perm, expected.transforms[name].perm)


@pytest.mark.parametrize("before", [False, True])
def test_autocast_around_the_call_hides_no_group(before: bool) -> None:
    a, b, data = _net(0), _net(1), _data()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        if before:  # autocast keeps its casts of the weights
            a(data[0][0]), b(data[0][0])
        found = pyalign.align(a, b, data)
    assert set(found.spec.groups) == {"0", "3"}
    expected = pyalign.align(a, b, data)
    assert found.objective == pytest.approx(expected.objective, rel=1e-2)


def test_autocast_inside_the_model_and_around_the_call() -> None:
    class Casting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = _net(2)

        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return self.net(x).float()

    model, x = Casting(), _data()[0][0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(x)
        assert set(pyalign.derive(model, x).groups) == {"net.0", "net.3"}


def test_points_measured_inside_autocast_are_those_of_their_own_weights() -> None:
    a, b, data = _net(0), _net(1), _data()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = pyalign.barrier(a, b, data, t=[0.0, 0.5, 1.0], recalibrate=data)
        alone = pyalign.barrier(b, b, data, t=[1.0], recalibrate=data)
    assert found.loss[2] == alone.loss[0] != found.loss[0]
    expected = pyalign.barrier(a, b, data, t=[0.0, 0.5, 1.0], recalibrate=data)
    torch.testing.assert_close(torch.tensor(found.loss), torch.tensor(expected.loss), rtol=1e-2, atol=0)
    assert torch.is_autocast_cache_enabled()


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile])
def test_one_wrapped_model_is_told_apart(wrap: object) -> None:
    assert callable(wrap)
    with pytest.raises(MismatchError, match=r"model B is wrapped: pass the module within it"):
        pyalign.align(_net(0), wrap(_net(1)), _data())


def test_models_without_weights() -> None:
    lazy = nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.LazyLinear(3))
    with pytest.raises(InputError, match=r"model A has a lazy parameter.*'0\.weight'.*run the model once"):
        pyalign.align(lazy, lazy, [torch.randn(8, 4)])
    empty = _net(0).to("meta")
    with pytest.raises(InputError, match=r"model A has no weights.*'0\.weight' on the meta device.*load the weights"):
        pyalign.align(empty, empty, _data())


class Counting(nn.Module):
    """Counts its calls in evaluation mode too: in place, and by putting a new tensor in the place of a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.net = _net(3)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("last", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        answer = self.net(x)
        self.last = answer.detach().mean(0)
        return answer + 0 * self.last


@pytest.mark.parametrize("inference", [False, True])
def test_buffers_that_a_forward_pass_changes_are_as_they_were(inference: bool) -> None:
    data, a, b = _data(), Counting(), Counting()
    with torch.inference_mode(inference):
        kept = [a.calls, a.last, b.calls, b.last]
        pyalign.derive(a, data[0][0])
        for method in ("activation", "weight"):
            pyalign.align(a, b, data, method=method)
        pyalign.barrier(a, b, data, t=[0.0, 1.0], recalibrate=data)
    assert all(one is two for one, two in zip(kept, [a.calls, a.last, b.calls, b.last], strict=True))
    assert not any(buffer.any() for buffer in kept)
