"""A U-Net with the tensor shapes of Stable Diffusion XL's, at any width and depth, with random weights.

At the defaults it has 2.57 billion parameters: channels 320, 640, 1280; transformers of depth 0, 2, 10 and 10 in the
middle; heads of 64; text of width 2048; gated feed-forward layers four times as wide as the stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["Plan", "Transformer", "UNet", "parameters", "randomised"]


@dataclass(frozen=True)
class Plan:
    """Widths and depths.

    Args:
        channels: Width of each resolution.
        depths: Transformer blocks after each residual block of that resolution.
        middle: Transformer blocks in the middle.
        text: Width of the text that is attended to.
        pooled: Width of the pooled text and size conditions.
        head: Width of an attention head.
        groups: Groups of every GroupNorm.
    """

    channels: tuple[int, ...] = (320, 640, 1280)
    depths: tuple[int, ...] = (0, 2, 10)
    middle: int = 10
    text: int = 2048
    pooled: int = 2816
    head: int = 64
    groups: int = 32

    @property
    def time(self) -> int:
        """Width of the time embedding."""
        return 4 * self.channels[0]


class Residual(nn.Module):
    """GroupNorm, SiLU and convolution, twice, with the time embedding added between."""

    def __init__(self, n: int, m: int, plan: Plan) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(plan.groups, n), nn.Conv2d(n, m, 3, padding=1)
        self.time = nn.Linear(plan.time, m)
        self.norm2, self.conv2 = nn.GroupNorm(plan.groups, m), nn.Conv2d(m, m, 3, padding=1)
        self.short = nn.Conv2d(n, m, 1) if n != m else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = self.conv1(functional.silu(self.norm1(x)))
        h = h + self.time(functional.silu(time))[:, :, None, None]
        return self.short(x) + self.conv2(functional.silu(self.norm2(h)))


class Attention(nn.Module):
    """Heads over x, or over a text."""

    def __init__(self, n: int, source: int, head: int) -> None:
        super().__init__()
        self.head = head
        self.q, self.k, self.v = (nn.Linear(m, n, bias=False) for m in (n, source, source))
        self.out = nn.Linear(n, n)

    def forward(self, x: Tensor, source: Tensor) -> Tensor:
        q, k, v = (z.unflatten(2, (-1, self.head)).transpose(1, 2) for z in (self.q(x), self.k(source), self.v(source)))
        return self.out(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Self-attention, attention to the text, and a feed-forward layer gated by GELU."""

    def __init__(self, n: int, plan: Plan) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(n), nn.LayerNorm(n), nn.LayerNorm(n)
        self.attention, self.text = Attention(n, n, plan.head), Attention(n, plan.text, plan.head)
        self.wide, self.narrow = nn.Linear(n, 8 * n), nn.Linear(4 * n, n)

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        h = self.norm1(x)
        x = x + self.attention(h, h)
        x = x + self.text(self.norm2(x), text)
        value, gate = self.wide(self.norm3(x)).chunk(2, dim=-1)
        return x + self.narrow(value * functional.gelu(gate))


class Transformer(nn.Module):
    """Pixels as tokens through several blocks, added to what came in."""

    def __init__(self, n: int, depth: int, plan: Plan) -> None:
        super().__init__()
        self.norm, self.enter, self.leave = nn.GroupNorm(plan.groups, n), nn.Linear(n, n), nn.Linear(n, n)
        self.blocks = nn.ModuleList(Block(n, plan) for _ in range(depth))

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        h = self.enter(self.norm(x).flatten(2).transpose(1, 2))
        for block in self.blocks:
            h = block(h, text)
        return x + self.leave(h).transpose(1, 2).unflatten(2, x.shape[2:])


class Step(nn.Module):
    """A residual block and the transformer after it, if there is one."""

    def __init__(self, n: int, m: int, depth: int, plan: Plan) -> None:
        super().__init__()
        self.residual = Residual(n, m, plan)
        self.transformer = Transformer(m, depth, plan) if depth else None

    def forward(self, x: Tensor, time: Tensor, text: Tensor) -> Tensor:
        x = self.residual(x, time)
        return x if self.transformer is None else self.transformer(x, text)


class UNet(nn.Module):
    """Down, middle and up, with a skip connection for every output on the way down."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        c, last = plan.channels, len(plan.channels) - 1
        self.time = nn.Sequential(nn.Linear(c[0], plan.time), nn.SiLU(), nn.Linear(plan.time, plan.time))
        self.pooled = nn.Sequential(nn.Linear(plan.pooled, plan.time), nn.SiLU(), nn.Linear(plan.time, plan.time))
        self.enter = nn.Conv2d(4, c[0], 3, padding=1)
        skips, width = [c[0]], c[0]
        self.down, self.shrink = nn.ModuleList(), nn.ModuleList()
        for k, m in enumerate(c):
            self.down.append(nn.ModuleList([Step(n, m, plan.depths[k], plan) for n in (width, m)]))
            skips, width = [*skips, m, m], m
            if k < last:
                self.shrink.append(nn.Conv2d(m, m, 3, stride=2, padding=1))
                skips.append(m)
        self.middle = nn.ModuleList([Step(width, width, plan.middle, plan), Step(width, width, 0, plan)])
        self.up, self.grow = nn.ModuleList(), nn.ModuleList()
        for k, m in reversed(list(enumerate(c))):
            steps = []
            for _ in range(3):
                steps.append(Step(width + skips.pop(), m, plan.depths[k], plan))
                width = m
            self.up.append(nn.ModuleList(steps))
            if k:
                self.grow.append(nn.Conv2d(m, m, 3, padding=1))
        self.norm, self.leave = nn.GroupNorm(plan.groups, c[0]), nn.Conv2d(c[0], 4, 3, padding=1)

    def forward(self, x: Tensor, time: Tensor, text: Tensor, pooled: Tensor) -> Tensor:
        time = self.time(time) + self.pooled(pooled)
        x = self.enter(x)
        skips = [x]
        for k, steps in enumerate(self.down):
            for step in steps:
                x = step(x, time, text)
                skips.append(x)
            if k < len(self.shrink):
                x = self.shrink[k](x)
                skips.append(x)
        for step in self.middle:
            x = step(x, time, text)
        for k, steps in enumerate(self.up):
            for step in steps:
                x = step(torch.cat([x, skips.pop()], 1), time, text)
            if k < len(self.grow):
                x = self.grow[k](functional.interpolate(x, scale_factor=2.0, mode="nearest"))
        return self.leave(functional.silu(self.norm(x)))

    @staticmethod
    def inputs(plan: Plan, side: int = 8, words: int = 4) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Random inputs in bfloat16, as small as the architecture takes."""
        generator = torch.Generator().manual_seed(0)
        shapes = ((2, 4, side, side), (2, plan.channels[0]), (2, words, plan.text), (2, plan.pooled))
        return tuple(torch.randn(s, generator=generator).bfloat16() for s in shapes)  # type: ignore[return-value]


def parameters(model: nn.Module) -> int:
    """How many there are."""
    return sum(p.numel() for p in model.parameters())


def randomised(build: type[nn.Module], arguments: Sequence[object], seed: int) -> nn.Module:
    """A module whose weights exist only in bfloat16: made without memory, then filled one tensor at a time."""
    with torch.device("meta"):
        model = build(*arguments).to(torch.bfloat16)
    model = model.to_empty(device="cpu").eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if tensor.dim() > 1:
                tensor.normal_(0.0, tensor[0].numel() ** -0.5, generator=generator)
            else:
                # normalisation scales around one, biases and shifts around nothing
                centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
                tensor.normal_(centre, 0.1, generator=generator)
    return model
