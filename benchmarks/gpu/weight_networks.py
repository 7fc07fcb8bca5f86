"""Networks of the shapes of ResNet-50, GPT-2 and one layer of Llama-7B, with random weights, for weight matching."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["NETWORKS", "QUICK"]


def _normed(before: int, after: int, kernel: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(after)
    )  # fmt: skip


class _Bottleneck(nn.Module):
    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.one, self.two, self.three = (
            _normed(before, width, 1), _normed(width, width, 3, stride), _normed(width, 4 * width, 1),
        )  # fmt: skip
        self.short = _normed(before, 4 * width, 1, stride) if before != 4 * width or stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.three(F.relu(self.two(F.relu(self.one(x))))) + self.short(x))


class ResNet50(nn.Module):
    """Bottleneck blocks in four stages, for small images."""

    def __init__(self, width: int = 64, blocks: tuple[int, ...] = (3, 4, 6, 3)) -> None:
        super().__init__()
        self.stem, before, made = _normed(3, width, 3), width, []
        for stage, count in enumerate(blocks):
            for k in range(count):
                made.append(_Bottleneck(before, width * 2**stage, 2 if stage and not k else 1))
                before = 4 * width * 2**stage
        self.blocks, self.head = nn.Sequential(*made), nn.Linear(before, 10 if width < 64 else 1000)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(F.relu(self.stem(x))).mean((2, 3)))


class _GPTBlock(nn.Module):
    def __init__(self, d: int, heads: int) -> None:
        super().__init__()
        self.heads, self.norm1, self.norm2 = heads, nn.LayerNorm(d), nn.LayerNorm(d)
        self.q, self.k, self.v, self.o = (nn.Linear(d, d) for _ in range(4))
        self.up, self.down = nn.Linear(d, 4 * d), nn.Linear(4 * d, d)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        q, k, v = (z.unflatten(2, (self.heads, -1)).transpose(1, 2) for z in (self.q(y), self.k(y), self.v(y)))
        x = x + self.o(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class GPT2(nn.Module):
    """Embeddings, blocks of attention and feed-forward layers, and a head."""

    def __init__(self, d: int = 768, heads: int = 12, layers: int = 12, words: int = 8192) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(words, d), nn.Embedding(64, d)
        self.blocks = nn.Sequential(*(_GPTBlock(d, heads) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(d), nn.Linear(d, words, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids) + self.places(torch.arange(ids.shape[1], device=ids.device))
        return self.head(self.norm(self.blocks(x)))


class LlamaLayer(nn.Module):
    """One layer between a projection in and one out, so that the residual stream may move too."""

    def __init__(self, d: int = 4096, heads: int = 32, inner: int = 11008) -> None:
        super().__init__()
        self.heads, self.inside, self.outside = heads, nn.Linear(64, d, bias=False), nn.Linear(d, 64, bias=False)
        self.norm1, self.norm2 = nn.RMSNorm(d), nn.RMSNorm(d)
        self.q, self.k, self.v, self.o = (nn.Linear(d, d, bias=False) for _ in range(4))
        self.gate, self.up, self.down = (
            nn.Linear(d, inner, bias=False), nn.Linear(d, inner, bias=False), nn.Linear(inner, d, bias=False),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        x = self.inside(x)
        y = self.norm1(x)
        q, k, v = (z.unflatten(2, (self.heads, -1)).transpose(1, 2) for z in (self.q(y), self.k(y), self.v(y)))
        x = x + self.o(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        y = self.norm2(x)
        return self.outside(x + self.down(F.silu(self.gate(y)) * self.up(y)))


Network = tuple[Callable[[], nn.Module], Callable[[], Tensor]]

NETWORKS: dict[str, Network] = {
    "ResNet-50": (ResNet50, lambda: torch.zeros(2, 3, 32, 32)),
    "GPT-2": (GPT2, lambda: torch.arange(16).reshape(2, 8)),
    "Llama-7B layer": (LlamaLayer, lambda: torch.ones(2, 8, 64)),
}
"""Name -> how to make the network, and what it is called with to derive its symmetry."""
QUICK: dict[str, Network] = {
    "ResNet-50": (partial(ResNet50, 4, (1, 1)), lambda: torch.zeros(2, 3, 8, 8)),
    "GPT-2": (partial(GPT2, 16, 2, 1, 32), lambda: torch.arange(16).reshape(2, 8)),
    "Llama-7B layer": (partial(LlamaLayer, 16, 2, 40), lambda: torch.ones(2, 8, 64)),
}
