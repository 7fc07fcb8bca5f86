"""Depthwise and shuffled networks: inverted residuals, ConvNeXt-like, ShuffleNet-like."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .record import PERMUTATION, POSITIVE, Registry, affine, axis, bn, group, image, into, out, out_bias

ARCHITECTURES = Registry()


class SqueezeExcite(nn.Module):
    def __init__(self, width: int, squeezed: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(width, squeezed, 1), nn.Conv2d(squeezed, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        scale = F.relu(self.fc1(F.adaptive_avg_pool2d(x, 1)))
        return x * F.hardsigmoid(self.fc2(scale))


class InvertedResidual(nn.Module):
    """Expand, depthwise, squeeze-excite, project; a residual where the shapes allow."""

    def __init__(self, a: int, inner: int, b: int, stride: int, hard_swish: bool) -> None:
        super().__init__()
        act = nn.Hardswish if hard_swish else nn.ReLU
        self.expand, self.bn1 = nn.Conv2d(a, inner, 1, bias=False), nn.BatchNorm2d(inner)
        self.depthwise = nn.Conv2d(inner, inner, 3, stride, 1, groups=inner, bias=False)
        self.bn2, self.act = nn.BatchNorm2d(inner), act(inplace=True)
        self.excite = SqueezeExcite(inner, 4) if hard_swish else nn.Identity()
        self.project, self.bn3 = nn.Conv2d(inner, b, 1, bias=False), nn.BatchNorm2d(b)
        self.residual = a == b and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        h = self.act(self.bn1(self.expand(x)))
        h = self.excite(self.act(self.bn2(self.depthwise(h))))
        h = self.bn3(self.project(h))
        return x + h if self.residual else h


class MobileNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn1 = nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8)
        self.blocks = nn.Sequential(
            InvertedResidual(8, 16, 8, 1, True), InvertedResidual(8, 12, 10, 2, False),
            InvertedResidual(10, 14, 10, 1, True),
        )  # fmt: skip
        self.conv, self.bn2 = nn.Conv2d(10, 20, 1, bias=False), nn.BatchNorm2d(20)
        self.fc1, self.fc2 = nn.Linear(20, 9), nn.Linear(9, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(F.hardswish(self.bn1(self.stem(x))))
        x = F.hardswish(self.bn2(self.conv(x))).mean([2, 3])
        return self.fc2(F.hardswish(self.fc1(x)))


def _expanded(i: int, width: int, excite: bool) -> list:
    name = f"blocks.{i}"
    axes = [
        out(f"{name}.expand", f"{name}.depthwise"), bn(f"{name}.bn1", f"{name}.bn2"), into(f"{name}.project"),
    ]  # fmt: skip
    if not excite:
        return [group(width, *axes)]
    axes += [into(f"{name}.excite.fc1"), out_bias(f"{name}.excite.fc2")]
    squeezed = group(4, out_bias(f"{name}.excite.fc1"), into(f"{name}.excite.fc2"), kind=POSITIVE)
    return [group(width, *axes, kind=PERMUTATION), squeezed]


ARCHITECTURES.add(
    "mobilenet",
    MobileNet,
    lambda: image(size=16),
    group(
        8, out("stem"), bn("bn1"), into("blocks.0.expand", "blocks.1.expand"), out("blocks.0.project"),
        bn("blocks.0.bn3"), kind=PERMUTATION,
    ),
    group(
        10, out("blocks.1.project", "blocks.2.project"), bn("blocks.1.bn3", "blocks.2.bn3"),
        into("blocks.2.expand", "conv"),
    ),
    *_expanded(0, 16, True), *_expanded(1, 12, False), *_expanded(2, 14, True),
    group(20, out("conv"), bn("bn2"), into("fc1"), kind=PERMUTATION),
    group(9, out_bias("fc1"), into("fc2"), kind=PERMUTATION),
)  # fmt: skip


class LayerNormFirstByHand(nn.Module):
    """LayerNorm over axis 1, as ConvNeXt's authors write it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(1, keepdim=True)
        variance = (x - mean).pow(2).mean(1, keepdim=True)
        x = (x - mean) / torch.sqrt(variance + 1e-6)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


class ConvNeXtBlock(nn.Module):
    """Depthwise 7x7, then channels last: LayerNorm, expand, GELU, project, layer scale; stochastic depth."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise, self.norm = nn.Conv2d(width, width, 7, padding=3, groups=width), nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.gamma = nn.Parameter(torch.full((width,), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        h = self.depthwise(x).permute(0, 2, 3, 1)
        h = self.gamma * self.down(F.gelu(self.up(self.norm(h))))
        h = h.permute(0, 3, 1, 2)
        if self.training:
            h = h * h.new_empty((len(x), 1, 1, 1)).bernoulli_(0.7).div_(0.7)
        return x + h


class ConvNeXt(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 2, 2), LayerNormFirstByHand(6))
        self.stage1 = nn.Sequential(ConvNeXtBlock(6), ConvNeXtBlock(6))
        self.down = nn.Sequential(LayerNormFirstByHand(6), nn.Conv2d(6, 8, 2, 2))
        self.stage2, self.norm, self.head = ConvNeXtBlock(8), nn.LayerNorm(8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stage2(self.down(self.stage1(self.stem(x))))
        return self.head(self.norm(x.mean([-2, -1])))


def _convnext_stream(*blocks: str) -> frozenset:
    axes = frozenset()
    for b in blocks:
        axes |= out_bias(f"{b}.depthwise", f"{b}.down") | affine(f"{b}.norm") | into(f"{b}.up") | axis(f"{b}.gamma")
    return axes


ARCHITECTURES.add(
    "convnext",
    ConvNeXt,
    image,
    group(
        6, out_bias("stem.0"), affine("stem.1", "down.0"), into("down.1"),
        _convnext_stream("stage1.0", "stage1.1"),
    ),
    group(8, out_bias("down.1"), affine("norm"), into("head"), _convnext_stream("stage2")),
    *(
        group(width, out_bias(f"{block}.up"), into(f"{block}.down"), kind=PERMUTATION)
        for block, width in (("stage1.0", 12), ("stage1.1", 12), ("stage2", 16))
    ),
)  # fmt: skip


def shuffle(x: Tensor, groups: int) -> Tensor:
    batch, channels, height, width = x.shape
    x = x.view(batch, groups, channels // groups, height, width).transpose(1, 2)
    return x.reshape(batch, channels, height, width)


class ShuffleUnit(nn.Module):
    """Half of the channels pass, half go through the branch; then the halves are interleaved."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        self.pw1, self.bn1 = nn.Conv2d(half, half, 1, bias=False), nn.BatchNorm2d(half)
        self.dw, self.bn2 = nn.Conv2d(half, half, 3, padding=1, groups=half, bias=False), nn.BatchNorm2d(half)
        self.pw2, self.bn3 = nn.Conv2d(half, half, 1, bias=False), nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        kept, x = x.chunk(2, dim=1)
        x = F.relu(self.bn1(self.pw1(x)))
        x = F.relu(self.bn3(self.pw2(self.bn2(self.dw(x)))))
        return shuffle(torch.cat((kept, x), dim=1), 2)


class ShuffleNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn1 = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.one, self.two = ShuffleUnit(16), ShuffleUnit(16)
        self.conv, self.bn2, self.fc = nn.Conv2d(16, 10, 1, bias=False), nn.BatchNorm2d(10), nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.two(self.one(F.relu(self.bn1(self.stem(x)))))
        return self.fc(F.relu(self.bn2(self.conv(x))).mean((2, 3)))


_STEM = out("stem") | bn("bn1")
# Stem channels 8..15 enter the first branch. Channels 0..7 pass and are interleaved with the branch's eight, so the
# second unit keeps four of either and sends four of either into its branch.
ARCHITECTURES.add(
    "shufflenet",
    ShuffleNet,
    image,
    group(8, _STEM, into("one.pw1"), kind=POSITIVE),
    group(4, _STEM, into("conv"), kind=POSITIVE),
    group(4, _STEM, into("two.pw1"), kind=POSITIVE),
    group(4, out("one.pw2"), bn("one.bn3"), into("conv"), kind=POSITIVE),
    group(4, out("one.pw2"), bn("one.bn3"), into("two.pw1"), kind=POSITIVE),
    group(8, out("two.pw2"), bn("two.bn3"), into("conv"), kind=POSITIVE),
    *(
        group(8, out(f"{unit}.pw1", f"{unit}.dw"), bn(f"{unit}.bn1", f"{unit}.bn2"), into(f"{unit}.pw2"))
        for unit in ("one", "two")
    ),
    group(10, out("conv"), bn("bn2"), into("fc"), kind=POSITIVE),
)


class GroupedShuffle(nn.Module):
    """ShuffleNet v1: grouped 1x1, shuffle across the groups, depthwise, grouped 1x1, residual."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv1 = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 1, groups=2)
        self.depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.conv2, self.last, self.fc = nn.Conv2d(12, 8, 1, groups=2), nn.Conv2d(8, 6, 1), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        h = self.depthwise(shuffle(F.relu(self.conv1(x)), 2))
        return self.fc(F.relu(self.last(F.relu(x + self.conv2(h)))).mean((2, 3)))


# Two block structures cross on the 12 channels (before and after the shuffle); how much of it moves is free, and
# so is whether the two blocks of the stream may change places (only together with both structures).
_LAST = group(6, out_bias("last"), into("fc"), kind=POSITIVE)
_STREAM = out_bias("stem", "conv2") | into("conv1", "last")
ARCHITECTURES.add(
    "shufflenet_grouped",
    GroupedShuffle,
    image,
    group(8, _STREAM, outer="stream", blocks=2),
    _LAST,
    otherwise=(group(4, _STREAM), group(4, _STREAM), _LAST),
    open=True,
)
