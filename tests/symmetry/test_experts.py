"""Experts: their order, the units of each, and what may not move."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pyalign import derive
from pyalign.errors import InputError
from pyalign.symmetry import Alignment, SymmetrySpec, Wreath, verify
from pyalign.symmetry.expert_layers import expert_layers

from .mixtures import (
    EXPERTS,
    HIDDEN,
    ROUTERS,
    SENDERS,
    WIDTH,
    Mixture,
    after,
    before,
    combined,
    corrected,
    counted,
    dense,
    gathered,
    limited,
    looped,
    masked,
    noisy,
    renormalised,
    top1,
)  # fmt: skip

X = torch.randn(3, 16, 3, generator=torch.Generator().manual_seed(0))


def mixture(route: Callable[..., Any], send: Callable[..., Tensor]) -> nn.Module:
    torch.manual_seed(0)
    return Mixture(route, send).eval()


def derived(model: nn.Module) -> SymmetrySpec:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # operators that choose have no rules
        return derive(model, X)


def names(route: Callable[..., Any]) -> str:
    return route.__name__


CASES = [
    (after, gathered), (before, looped), (renormalised, counted), (corrected, masked), (limited, gathered),
    (top1, looped), (noisy, combined), (dense, masked),
]  # fmt: skip
assert {route for route, _ in CASES} == set(ROUTERS) and {send for _, send in CASES} == set(SENDERS)


@pytest.mark.parametrize(("route", "send"), CASES, ids=names)
def test_experts_move_each_with_its_own_units(route: Callable[..., Any], send: Callable[..., Tensor]) -> None:
    model = mixture(route, send)
    spec = derived(model)
    experts = next(g for g in spec.groups.values() if g.size == EXPERTS)
    hidden = [g for g in spec.groups.values() if g.size == EXPERTS * HIDDEN]
    assert [g.structure for g in hidden] == [Wreath(experts.name, EXPERTS)], spec.report()
    assert isinstance(experts.structure, Wreath) == (route is limited)
    bound = {b.tensor for b in spec.of(experts.name)}
    assert {"gate.weight", "gate.bias"} <= bound and not any("share" in name for name in bound)
    assert ("correction" in bound) == (route is corrected)
    assert {g.size for g in spec.groups.values()} >= {WIDTH, 7}  # the stream, and the shared expert's own
    assert verify(spec, model, X, seed=3).passed


class Uneven(Mixture):
    """The number of an expert is a factor of what it says."""

    def expert(self, e: int, x: Tensor) -> Tensor:
        return (e + 1) * super().expert(e, x)


class Open(Mixture):
    """The scores are an output."""

    def forward(self, x: Tensor) -> Any:
        return super().forward(x), self.gate(self.write(x))


class Silent(Mixture):
    """Nobody listens to the experts."""

    def expert(self, e: int, x: Tensor) -> Tensor:
        return 0 * super().expert(e, x)


@pytest.mark.parametrize(
    ("kind", "why"),
    [(Uneven, "changes? the outputs"), (Open, "changes? the outputs"), (Silent, "expert 0 had no part")],
)
def test_experts_that_may_not_move_stay_with_a_reason(kind: type[Mixture], why: str) -> None:
    torch.manual_seed(0)
    model = kind(after, masked).eval()
    spec = derived(model)
    reasons = {f.reason for f in spec.fixed if f.tensor == "gate.weight" and f.axis == 0}
    assert len(reasons) == 1 and re.search(why, reasons.pop()), spec.report()
    assert not any(g.size in (EXPERTS, EXPERTS * HIDDEN) for g in spec.groups.values())


def test_lists_of_experts_move_whole_states_and_files(tmp_path: Any) -> None:
    model = mixture(after, looped)
    spec = derived(model)
    model = model.double()
    g, h = spec.random(1), spec.random(2)
    one, two = g.compose(h).apply(model).state_dict(), g.apply(h.apply(model)).state_dict()
    back = g.inverse().apply(g.apply(model)).state_dict()
    g.save(tmp_path / "g.safetensors")
    again = Alignment.load(tmp_path / "g.safetensors", spec).apply(model).state_dict()
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(one[name], two[name])
        torch.testing.assert_close(back[name], tensor)
        torch.testing.assert_close(again[name], g.apply(model).state_dict()[name])
    with pytest.raises(InputError, match="part of a stack"):
        spec.on("experts.0.0.weight")


def test_momenta_of_listed_experts_move_along() -> None:
    model = mixture(after, masked)
    spec = derived(model)
    model = model.double()
    moved = spec.random(4)
    twin = moved.apply(model)
    states = []
    for m in (model, twin):
        optimizer = torch.optim.Adam(m.parameters())
        m(X.double()).square().sum().backward()
        optimizer.step()
        states.append(optimizer.state_dict())
    expected, found = states[1]["state"], moved.apply(states[0], parameters=model)["state"]
    assert expected.keys() == found.keys()
    for number, entries in expected.items():
        for key, value in entries.items():
            torch.testing.assert_close(found[number][key], value)


class ChannelAttention(nn.Module):
    """A convolution that runs along the channels (ECA): they stay, and are nobody's experts."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.point, self.eca = nn.Conv2d(8, 8, 1), nn.Conv1d(1, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.point(self.norm(self.conv(x)))
        return h * self.eca(h.mean((2, 3)).unsqueeze(1)).sigmoid().squeeze(1)[:, :, None, None]


def test_kernels_of_convolutions_are_no_experts() -> None:
    spec = derive(ChannelAttention().eval(), torch.randn(2, 3, 6, 6))
    assert not [f for f in spec.fixed if "experts" in f.reason]
    assert not expert_layers(spec)


class Parallel(nn.Module):
    """Tokens cut into stretches, one for each expert, as JetMoE and GraniteMoE do it; some stretches are empty."""

    def __init__(self, tokens: tuple[int, ...]) -> None:
        super().__init__()
        self.tokens, self.write, self.read = tokens, nn.Linear(5, WIDTH), nn.Linear(WIDTH, 2)
        self.up = nn.Parameter(torch.randn(len(tokens), 2 * HIDDEN, WIDTH))
        self.down = nn.Parameter(torch.randn(len(tokens), WIDTH, 2 * HIDDEN))

    def forward(self, x: Tensor) -> Tensor:
        x = self.write(x).relu()
        parts = [nn.functional.linear(part, self.up[e]) for e, part in enumerate(x.split(self.tokens))]
        parts = [part.view(-1, 2, HIDDEN).relu().view(-1, 2 * HIDDEN) for part in parts]
        out = [nn.functional.linear(part, self.down[e]) for e, part in enumerate(parts)]
        return self.read(x + torch.cat(out))


@pytest.mark.parametrize("tokens", [(2, 3, 3), (0, 4, 4), (8, 0, 0)])
def test_an_expert_without_tokens_holds_nothing_in_place(tokens: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    model, x = Parallel(tokens), torch.randn(8, 5)
    spec = derive(model, x)
    stream = next(g for g in spec.groups.values() if g.size == WIDTH)
    assert {(b.tensor, b.axis) for b in spec.of(stream.name)} >= {
        ("write.weight", 0), ("up", 2), ("down", 1), ("read.weight", 1),
    }  # fmt: skip
    assert verify(spec, model, x).passed
