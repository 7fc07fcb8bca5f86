"""Attention as networks for images write it: biases with a part of zeros, positions that turn, lambdas, outlooks."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyalign import WeightMatching, align, derive
from pyalign.symmetry import Kind, verify

from .helpers import listed

HEADS, WIDTH = 3, 4


class Attention(nn.Module):
    """Queries and values have a bias, keys have zeros (BEiT); learned positions are added to the stream before.

    Args:
        rotary: Whether queries and keys turn with their position (EVA-02).
    """

    def __init__(self, rotary: bool) -> None:
        super().__init__()
        self.rotary, size = rotary, HEADS * WIDTH
        self.first, self.last, self.positions = nn.Linear(5, 7), nn.Linear(7, 2), nn.Parameter(torch.randn(1, 6, 7))
        self.qkv, self.out = nn.Linear(7, 3 * size, bias=False), nn.Linear(size, 7)
        self.q_bias, self.v_bias = nn.Parameter(torch.randn(size)), nn.Parameter(torch.randn(size))
        self.register_buffer("k_bias", torch.zeros(size), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x) + self.positions
        bias = torch.cat([self.q_bias, torch.as_tensor(self.k_bias), self.v_bias])
        qkv = F.linear(torch.tanh(x), self.qkv.weight, bias).reshape(len(x), 6, 3, HEADS, WIDTH).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        if self.rotary:
            q, k = turned(q), turned(k)
        y = (q @ k.mT).softmax(-1) @ v
        return torch.as_tensor(self.last(x + self.out(y.transpose(1, 2).flatten(2))))


def turned(x: Tensor) -> Tensor:
    """Neighbours are the pairs, put side by side again before the products."""
    angle = (torch.arange(6)[:, None] / 10.0 ** torch.arange(0, 1, 2 / WIDTH)).repeat_interleave(2, -1).to(x)
    return x * angle.cos() + torch.stack([-x[..., 1::2], x[..., ::2]], -1).reshape(x.shape) * angle.sin()


class Lambdas(nn.Module):
    """Queries read a summary of keys and values and one that moves along the values (Bello 2021): only heads move."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.qkv = nn.Conv2d(2, 6, 1), nn.Conv2d(6, HEADS * 5 + 5 + WIDTH, 1, bias=False)
        self.around = nn.Conv3d(1, 5, (3, 3, 1), padding=(1, 1, 0))
        self.norm, self.last = nn.BatchNorm2d(HEADS * WIDTH), nn.Conv2d(HEADS * WIDTH, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, _, h, w = x.shape
        q, k, v = self.qkv(torch.relu(self.first(x))).split([HEADS * 5, 5, WIDTH], 1)
        q = q.reshape(b, HEADS, 5, h * w).mT
        v = v.reshape(b, WIDTH, h * w).mT
        content = q @ (k.flatten(2).softmax(-1) @ v).unsqueeze(1)
        around = self.around(v.reshape(b, 1, h, w, WIDTH)).reshape(b, 1, 5, h * w, WIDTH).transpose(2, 3)
        whole = (content + (q.unsqueeze(-2) @ around).squeeze(-2)).mT.reshape(b, -1, h, w)
        return torch.as_tensor(self.last(torch.relu(self.norm(whole))))


class Outlook(nn.Module):
    """Every place says how the values around it are mixed, and the patches are added up again (VOLO)."""

    def __init__(self) -> None:
        super().__init__()
        self.value, self.scores = nn.Conv2d(2, HEADS * WIDTH, 1), nn.Conv2d(2, HEADS * 81, 1)
        self.out, self.last = nn.Conv2d(HEADS * WIDTH, 6, 1), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, _, h, w = x.shape
        patches = F.unfold(self.value(x), 3, padding=1).reshape(b, HEADS, WIDTH, 9, h * w).permute(0, 1, 4, 3, 2)
        mixed = self.scores(x).reshape(b, HEADS, 9, 9, h * w).permute(0, 1, 4, 2, 3).softmax(-1) @ patches
        folded = F.fold(mixed.permute(0, 1, 4, 3, 2).reshape(b, HEADS * WIDTH * 9, h * w), (h, w), 3, padding=1)
        return torch.as_tensor(self.last(torch.relu(self.out(folded))))


class Refolded(nn.Module):
    """Patches of every channel are weighted by place and added up again: channels move, positions in a patch do not."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(2, 6, 1), nn.Conv2d(6, 2, 1)
        self.window = nn.Parameter(torch.rand(9))

    def forward(self, x: Tensor) -> Tensor:
        b, _, h, w = x.shape
        patches = F.unfold(torch.relu(self.first(x)), 3, padding=1).view(b, 6, 9, h * w) * self.window[:, None]
        return torch.as_tensor(self.last(F.fold(patches.flatten(1, 2), (h, w), 3, padding=1)))


TOKENS, IMAGE = torch.randn(2, 6, 5), torch.randn(2, 2, 4, 5)
ATTENTION = {"signed permutation 7": 1, "permutation 3": 1, "invertible 3x4": 1}
CASES = {
    "zeros": (lambda: Attention(False), TOKENS, {**ATTENTION, "invertible 3x4": 2}),
    "turning": (lambda: Attention(True), TOKENS, {**ATTENTION, "scaled rotation of pairs 3x4": 1}),
    "lambdas": (Lambdas, IMAGE, {"positive-scaled permutation 6": 1, "positive-scaled permutation 3": 1}),
    "outlook": (Outlook, IMAGE, {"positive-scaled permutation 6": 1, "permutation 3": 1}),
    "refolded": (Refolded, IMAGE, {"positive-scaled permutation 6": 1}),
}


@pytest.mark.parametrize("name", CASES)
def test_the_symmetry_is_found_and_holds(name: str) -> None:
    build, x, groups = CASES[name]
    torch.manual_seed(0)
    model = build().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        spec = derive(model, x, within=Kind.INVERTIBLE)
        plain = derive(model, x)
    assert dict(listed(spec)) == groups, spec.report()
    for seed in range(3):
        assert verify(spec, model, x, seed=seed).error < 1e-9
        assert verify(plain, model, x, seed=seed).error < 1e-9


@pytest.mark.parametrize("name", ["zeros", "turning", "lambdas"])
def test_a_moved_copy_comes_back(name: str) -> None:
    build, x, _ = CASES[name]
    torch.manual_seed(0)
    model = build().double().eval()
    spec = derive(model, x.double(), within=Kind.INVERTIBLE)
    moved = spec.random(3).apply(model)
    found = align(model, moved, method=WeightMatching(restarts=3), spec=spec, verify=False).apply(moved)
    for one, two in zip(model.parameters(), found.parameters(), strict=True):
        torch.testing.assert_close(two, one, rtol=1e-6, atol=1e-6)
