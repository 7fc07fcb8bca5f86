"""Narrow models in wide architectures: the function stays, spread units are found again, the rest is refused."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pyalign
from pyalign.errors import MismatchError, SymmetryError
from pyalign.symmetry import Kind, derive, fold, widen

IMAGES = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
TOKENS = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(0))


class Residual(nn.Module):
    """A stem, a block with BatchNorm, and a head behind a flatten: one stream, one inner group, one hidden group."""

    def __init__(self, stream: int, inner: int, hidden: int) -> None:
        super().__init__()
        self.stem, self.norm0 = nn.Conv2d(3, stream, 3, padding=1, bias=False), nn.BatchNorm2d(stream)
        self.conv1, self.norm1 = nn.Conv2d(stream, inner, 3, padding=1, bias=False), nn.BatchNorm2d(inner)
        self.conv2, self.norm2 = nn.Conv2d(inner, stream, 3, padding=1, bias=False), nn.BatchNorm2d(stream)
        self.hidden, self.head = nn.Linear(stream * 4, hidden), nn.Linear(hidden, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm0(self.stem(x)))
        x = F.relu(x + self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))))
        return self.head(F.relu(self.hidden(F.max_pool2d(x, 4).flatten(1))))


class Transformer(nn.Module):
    """One block of attention (heads of four) and a gated feed-forward, with norms before either."""

    def __init__(self, stream: int, heads: int, hidden: int, norm: type[nn.Module] = nn.RMSNorm) -> None:
        super().__init__()
        self.heads, width = heads, 4 * heads
        self.embed, self.out = nn.Linear(6, stream), nn.Linear(stream, 3)
        self.norms = nn.ModuleList(norm(stream) for _ in range(3))
        self.qkv, self.proj = nn.Linear(stream, 3 * width), nn.Linear(width, stream)
        self.gate, self.up, self.down = nn.Linear(stream, hidden), nn.Linear(stream, hidden), nn.Linear(hidden, stream)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        q, k, v = (t.unflatten(-1, (self.heads, 4)).transpose(1, 2) for t in self.qkv(self.norms[0](x)).chunk(3, -1))
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        y = self.norms[1](x)
        return self.out(self.norms[2](x + self.down(F.silu(self.gate(y)) * self.up(y))))


def noisy(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model in evaluation mode with noise on every weight and statistic."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.eval().state_dict().items():
        if tensor.is_floating_point():
            noise = 0.3 * torch.randn(tensor.shape, generator=generator)
            tensor.add_(noise.abs() if name.endswith("running_var") else noise)
    return model


CASES = {
    "residual": (lambda *n: Residual(*n), (5, 6, 7), (8, 6, 12), IMAGES),
    "transformer": (lambda *n: Transformer(*n), (8, 2, 10), (12, 3, 16), TOKENS),
    "centred": (lambda *n: Transformer(*n, nn.LayerNorm), (8, 2, 10), (12, 3, 16), TOKENS),
}


@pytest.mark.parametrize("name", CASES)
def test_a_widened_model_is_the_narrow_one(name: str) -> None:
    build, small, large, x = CASES[name]
    narrow, wide = noisy(build(*small)), noisy(build(*large), 1)
    kept = {key: tensor.clone() for key, tensor in narrow.state_dict().items()}
    found = widen(narrow, wide, x)
    assert found.error < 1e-5
    fresh = noisy(build(*large), 2)
    fresh.load_state_dict(found.model.state_dict())
    torch.testing.assert_close(fresh(x), narrow(x), rtol=1e-3, atol=1e-5)
    assert all(torch.equal(tensor, kept[key]) for key, tensor in narrow.state_dict().items())
    assert len(found.rescaled) == (0 if name == "residual" else 3)


@pytest.mark.parametrize("name", CASES)
def test_units_that_were_spread_over_a_wide_model_are_found_again(name: str) -> None:
    """The wide model holds the narrow one at places of its own, with weak units besides."""
    build, small, large, x = CASES[name]
    narrow = noisy(build(*small))
    start = widen(narrow, noisy(build(*large), 1), x).model
    spec = derive(start, x)
    wide = spec.random(3, Kind.PERMUTATION).apply(start)
    with torch.no_grad():
        for p in wide.parameters():
            p.add_(1e-3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    moved = pyalign.align(wide, start, [x], method="weight", spec=spec).apply(start)
    pairs = zip(wide.parameters(), moved.parameters(), strict=True)
    apart = sum(float((p - q).detach().square().sum()) for p, q in pairs)
    size = sum(p.numel() for p in wide.parameters())
    assert apart < 2e-6 * size
    torch.testing.assert_close(moved(x), narrow(x), rtol=1e-3, atol=1e-5)


def test_small_activations_are_widened_exactly() -> None:
    """Where the squares are no larger than the constant inside the norm, that counts as much as they do."""
    narrow, wide = noisy(Transformer(8, 2, 10, nn.LayerNorm)), noisy(Transformer(12, 2, 10, nn.LayerNorm))
    with torch.no_grad():
        for tensor in (narrow.embed.weight, narrow.embed.bias):
            tensor.mul_(1e-3)
    assert widen(narrow, wide, TOKENS).error < 1e-6


def test_a_narrow_stream_is_turned_into_a_wide_one() -> None:
    """Widened and rotated: a matrix with orthonormal columns between streams of different width."""
    given, x = noisy(Transformer(8, 2, 10)), TOKENS
    narrow = fold(given, x)
    start = widen(narrow.model, fold(noisy(Transformer(12, 3, 16), 1), x).model, x)
    spec = derive(start.model, x, within=Kind.INVERTIBLE, constants=narrow.constants)
    stream = next(g.name for g in spec.groups.values() if g.kind is Kind.ORTHOGONAL)
    turned = spec.random(5).apply(start.model)
    found = pyalign.align(turned, start.model, [x], method="weight", spec=spec)
    element = found.transforms[stream].matrices[0][:, start.slots["embed"]]
    torch.testing.assert_close(element.T @ element, torch.eye(8, dtype=element.dtype), rtol=0, atol=1e-8)
    torch.testing.assert_close(found.apply(start.model)(x), given(x), rtol=1e-3, atol=1e-4)


def test_what_cannot_be_widened_is_named() -> None:
    grouped = [nn.Sequential(nn.Conv2d(3, n, 3), nn.GroupNorm(2, n), nn.ReLU(), nn.Conv2d(n, 2, 3)) for n in (4, 8)]
    with pytest.raises(SymmetryError, match=r"0 \(4 of 8\).*norms over groups"):
        widen(noisy(grouped[0]), noisy(grouped[1]), IMAGES)
    with pytest.raises(MismatchError, match="larger in the narrow model"):
        widen(Residual(5, 6, 7).eval(), Residual(5, 4, 9).eval(), IMAGES)
    one, two = (nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, n)) for n in (2, 4))
    with pytest.raises(MismatchError, match=r"axis 0 of '2\.weight' cannot be widened.*output of the model"):
        widen(one, two, torch.randn(4, 2))
    deep = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2))
    with pytest.raises(MismatchError):
        widen(deep, one, torch.randn(4, 2))
