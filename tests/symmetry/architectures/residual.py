"""Residual convolutional networks: basic, bottleneck, pre-activation, grouped, with every normalisation."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from .record import POSITIVE, Axes, Expected, Registry, affine, bn, group, image, into, out, out_bias

ARCHITECTURES = Registry()
Norm = Callable[[int], nn.Module]


class LayerNormFirst(nn.LayerNorm):
    """LayerNorm over the channels of (batch, channels, height, width), by permuting there and back."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def group_norm(width: int) -> nn.Module:
    return nn.GroupNorm(2, width)


def conv(a: int, b: int, size: int = 3, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(a, b, size, stride, size // 2, groups=groups, bias=False)


class Basic(nn.Module):
    def __init__(self, a: int, b: int, norm: Norm, stride: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = conv(a, b, 3, stride), norm(b)
        self.conv2, self.norm2 = conv(b, b), norm(b)
        self.down = nn.Sequential(conv(a, b, 1, stride), norm(b)) if a != b else None

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.norm1(self.conv1(x)))
        h = self.norm2(self.conv2(h))
        return F.relu(h + (x if self.down is None else self.down(x)))


class Bottleneck(nn.Module):
    def __init__(self, a: int, b: int, norm: Norm, stride: int, groups: int = 1, inner: int = 6) -> None:
        super().__init__()
        self.conv1, self.norm1 = conv(a, inner, 1), norm(inner)
        self.conv2, self.norm2 = conv(inner, inner, 3, stride, groups), norm(inner)
        self.conv3, self.norm3 = conv(inner, b, 1), norm(b)
        self.down = nn.Sequential(conv(a, b, 1, stride), norm(b)) if a != b else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm1(self.conv1(x)).relu_()
        h = self.norm2(self.conv2(h)).relu_()
        h = self.norm3(self.conv3(h))
        h += self.down(x)
        return h.relu_()


class PreActivation(nn.Module):
    def __init__(self, a: int, b: int, norm: Norm, stride: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = norm(a), conv(a, b, 3, stride)
        self.norm2, self.conv2 = norm(b), conv(b, b)
        self.down = conv(a, b, 1, stride) if a != b else None

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.norm1(x))
        shortcut = x if self.down is None else self.down(h)
        return shortcut + self.conv2(F.relu(self.norm2(self.conv1(h))))


class ResNet(nn.Module):
    """Stem of 8 channels, one block of 8, one block 8 -> 12 with projection and stride, one block of 12."""

    def __init__(self, block: Callable[[int, int, int], nn.Module], norm: Norm, pre: bool = False) -> None:
        super().__init__()
        self.stem = conv(3, 8)
        self.norm = norm(12 if pre else 8)
        self.blocks = nn.Sequential(block(8, 8, 1), block(8, 12, 2), block(12, 12, 1))
        self.pool, self.fc, self.pre = nn.AdaptiveAvgPool2d(1), nn.Linear(12, 4), pre

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        if self.pre:
            x = F.relu(self.norm(self.blocks(x)))
        else:
            x = self.blocks(F.relu(self.norm(x)))
        return self.fc(self.pool(x).flatten(1))


NORMS: dict[str, tuple[Norm, Callable[..., Axes]]] = {
    "batchnorm": (nn.BatchNorm2d, bn),
    "layernorm": (LayerNormFirst, affine),
    "groupnorm": (group_norm, affine),
}


def _wreath(norm: str, label: str) -> dict:
    return {"outer": label, "blocks": 2} if norm == "groupnorm" else {}


def _basic_groups(name: str) -> list[Expected]:
    norm = NORMS[name][1]
    kind = POSITIVE if name == "batchnorm" else None
    first = [
        out("stem"), norm("norm"), into("blocks.0.conv1"), out("blocks.0.conv2"), norm("blocks.0.norm2"),
        into("blocks.1.conv1", "blocks.1.down.0"),
    ]  # fmt: skip
    second = [
        out("blocks.1.conv2", "blocks.1.down.0"), norm("blocks.1.norm2", "blocks.1.down.1"), into("blocks.2.conv1"),
        out("blocks.2.conv2"), norm("blocks.2.norm2"), into("fc"),
    ]  # fmt: skip
    inner = [
        group(
            width, out(f"blocks.{i}.conv1"), norm(f"blocks.{i}.norm1"), into(f"blocks.{i}.conv2"),
            kind=kind, **_wreath(name, f"inner{i}"),
        )
        for i, width in enumerate((8, 12, 12))
    ]  # fmt: skip
    streams = [group(8, *first, kind=kind, **_wreath(name, "s1")), group(12, *second, kind=kind, **_wreath(name, "s2"))]
    return streams + inner


def _bottleneck_groups(name: str, grouped: bool = False) -> list[Expected]:
    norm = NORMS[name][1]
    kind = POSITIVE if name == "batchnorm" else None
    first = [
        out("stem"), norm("norm"), into("blocks.0.conv1"), out("blocks.0.conv3"), norm("blocks.0.norm3"),
        into("blocks.1.conv1", "blocks.1.down.0"),
    ]  # fmt: skip
    second = [
        out("blocks.1.conv3", "blocks.1.down.0"), norm("blocks.1.norm3", "blocks.1.down.1"), into("blocks.2.conv1"),
        out("blocks.2.conv3"), norm("blocks.2.norm3"), into("fc"),
    ]  # fmt: skip
    groups = [group(8, *first, kind=kind, **_wreath(name, "s1")), group(12, *second, kind=kind, **_wreath(name, "s2"))]
    for i in range(3):
        for a, b in ((1, 2), (2, 3)):
            wreath = {"outer": f"cardinality{i}", "blocks": 3} if grouped else _wreath(name, f"inner{i}{a}")
            axes = [out(f"blocks.{i}.conv{a}"), norm(f"blocks.{i}.norm{a}"), into(f"blocks.{i}.conv{b}")]
            groups.append(group(6, *axes, kind=kind, **wreath))
    return groups


def _pre_groups(name: str) -> list[Expected]:
    norm = NORMS[name][1]
    first = [
        out("stem"), norm("blocks.0.norm1", "blocks.1.norm1"), into("blocks.0.conv1"), out("blocks.0.conv2"),
        into("blocks.1.conv1", "blocks.1.down"),
    ]  # fmt: skip
    second = [
        out("blocks.1.conv2", "blocks.1.down"), norm("blocks.2.norm1"), into("blocks.2.conv1"),
        out("blocks.2.conv2"), norm("norm"), into("fc"),
    ]  # fmt: skip
    inner = [
        group(
            width, out(f"blocks.{i}.conv1"), norm(f"blocks.{i}.norm2"), into(f"blocks.{i}.conv2"),
            kind=POSITIVE if name == "batchnorm" else None, **_wreath(name, f"inner{i}"),
        )
        for i, width in enumerate((8, 12, 12))
    ]  # fmt: skip
    return [group(8, *first, **_wreath(name, "s1")), group(12, *second, **_wreath(name, "s2")), *inner]


for _name, (_norm, _) in NORMS.items():
    ARCHITECTURES.add(
        f"resnet_basic_{_name}",
        lambda norm=_norm: ResNet(lambda a, b, stride: Basic(a, b, norm, stride), norm),
        image,
        *_basic_groups(_name),
    )
    ARCHITECTURES.add(
        f"resnet_bottleneck_{_name}",
        lambda norm=_norm: ResNet(lambda a, b, stride: Bottleneck(a, b, norm, stride), norm),
        image,
        *_bottleneck_groups(_name),
    )
    ARCHITECTURES.add(
        f"resnet_preactivation_{_name}",
        lambda norm=_norm: ResNet(lambda a, b, stride: PreActivation(a, b, norm, stride), norm, pre=True),
        image,
        *_pre_groups(_name),
    )

ARCHITECTURES.add(
    "resnext",
    lambda: ResNet(lambda a, b, stride: Bottleneck(a, b, nn.BatchNorm2d, stride, groups=3), nn.BatchNorm2d),
    image,
    *_bottleneck_groups("batchnorm", grouped=True),
)


class ChannelsLastBlock(nn.Module):
    """Activations live as (batch, height, width, channels); only the convolutions turn them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = conv(width, width + 2), nn.LayerNorm(width + 2)
        self.conv2, self.norm2 = conv(width + 2, width), nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.norm1(self.conv1(x.movedim(-1, 1)).movedim(1, -1)))
        return F.relu(x + self.norm2(self.conv2(h.movedim(-1, 1)).movedim(1, -1)))


class ChannelsLast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = conv(3, 8), nn.LayerNorm(8)
        self.blocks, self.fc = nn.Sequential(ChannelsLastBlock(8), ChannelsLastBlock(8)), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x).permute(0, 2, 3, 1)))
        return self.fc(self.blocks(x).mean(dim=(1, 2)))


ARCHITECTURES.add(
    "resnet_channels_last_layernorm",
    ChannelsLast,
    image,
    group(
        8, out("stem"), affine("norm"), into("blocks.0.conv1", "blocks.1.conv1", "fc"),
        out("blocks.0.conv2", "blocks.1.conv2"), affine("blocks.0.norm2", "blocks.1.norm2"),
    ),
    group(10, out("blocks.0.conv1"), affine("blocks.0.norm1"), into("blocks.0.conv2")),
    group(10, out("blocks.1.conv1"), affine("blocks.1.norm1"), into("blocks.1.conv2")),
)  # fmt: skip


class ZeroPadBlock(nn.Module):
    """The shortcut drops every other pixel and pads the new channels with zeros, half before and half behind."""

    def __init__(self, a: int, b: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = conv(a, b, 3, stride), nn.BatchNorm2d(b)
        self.conv2, self.norm2 = conv(b, b), nn.BatchNorm2d(b)
        self.extra, self.stride = (b - a) // 2, stride

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        shortcut = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.extra, self.extra))
        return F.relu(h + shortcut)


_LATER = (
    out("blocks.1.conv2") | bn("blocks.1.norm2") | into("blocks.2.conv1") | out("blocks.2.conv2")
    | bn("blocks.2.norm2") | into("fc")
)  # fmt: skip
_KEPT = group(
    8, out("stem"), bn("norm"), into("blocks.0.conv1"), out("blocks.0.conv2"), bn("blocks.0.norm2"),
    into("blocks.1.conv1"), _LATER, kind=POSITIVE,
)  # fmt: skip
_INNER = [
    group(w, out(f"blocks.{i}.conv1"), bn(f"blocks.{i}.norm1"), into(f"blocks.{i}.conv2"), kind=POSITIVE)
    for i, w in enumerate((8, 12, 12))
]
# The four new channels see nothing but zeros on the shortcut, so all four may mix; a split in front and back is sound.
ARCHITECTURES.add(
    "resnet_option_a",
    lambda: ResNet(ZeroPadBlock, nn.BatchNorm2d),
    image,
    _KEPT, group(4, _LATER), *_INNER,
    otherwise=(_KEPT, group(2, _LATER), group(2, _LATER), *_INNER),
)  # fmt: skip


class BiasedConvs(nn.Module):
    """Convolutions with biases in front of BatchNorm, BatchNorm without affine, max pooling in the stem."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 6, 3), nn.BatchNorm2d(6, affine=False)
        self.conv3, self.fc = nn.Conv2d(6, 5, 3), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 2, stride=1)
        x = F.relu(self.bn2(self.conv2(x)))
        return self.fc(F.relu(self.conv3(x)).amax(dim=(2, 3)))


ARCHITECTURES.add(
    "batchnorm_biases",
    BiasedConvs,
    lambda: image(size=10),
    group(8, out_bias("conv1"), bn("bn1"), into("conv2"), kind=POSITIVE),
    group(6, out_bias("conv2"), bn("bn2") - out_bias("bn2"), into("conv3")),
    group(5, out_bias("conv3"), into("fc"), kind=POSITIVE),
)
