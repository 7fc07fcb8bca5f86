"""Other dimensions, other upsampling, other normalisations, reparametrised weights."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from .record import PERMUTATION, POSITIVE, SIGNED, Registry, affine, axis, bn, group, image, into, noise, out, out_bias

ARCHITECTURES = Registry()


class PixelShuffleNet(nn.Module):
    """Super-resolution: 7 channels come out of 28 by pixel shuffle; the image itself by a second one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 28, 3, padding=1)
        self.conv3, self.shuffle = nn.Conv2d(7, 12, 3, padding=1), nn.PixelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.shuffle(self.conv2(F.relu(self.conv1(x)))))
        return self.shuffle(self.conv3(h))


ARCHITECTURES.add(
    "pixel_shuffle",
    PixelShuffleNet,
    image,
    group(8, out_bias("conv1"), into("conv2"), kind=POSITIVE),
    group(7, out_bias("conv2"), into("conv3"), kind=POSITIVE),
)


class PixelUnshuffleNet(nn.Module):
    """Space to depth: every unit becomes four channels in a row."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.fc = nn.Conv2d(3, 5, 3, padding=1), nn.Conv2d(20, 8, 3), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = F.pixel_unshuffle(F.relu(self.conv1(x)), 2)
        return self.fc(F.relu(self.conv2(h)).mean((2, 3)))


ARCHITECTURES.add(
    "pixel_unshuffle",
    PixelUnshuffleNet,
    image,
    group(5, out_bias("conv1"), into("conv2"), kind=POSITIVE),
    group(8, out_bias("conv2"), into("fc"), kind=POSITIVE),
)


class ConvNet(nn.Module):
    """The same small net in 1, 2 or 3 dimensions."""

    def __init__(self, dimensions: int) -> None:
        super().__init__()
        conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dimensions - 1]
        norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[dimensions - 1]
        self.conv1, self.bn1 = conv(2, 6, 3, padding=1, padding_mode="circular", bias=False), norm(6)
        self.conv2, self.bn2 = conv(6, 8, 3, padding=2, dilation=2, bias=False), norm(8)
        self.pool = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)[dimensions - 1](2)
        self.best = (nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d)[dimensions - 1](1)
        self.fc = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(F.relu(self.bn1(self.conv1(x))))
        return self.fc(self.best(F.relu(self.bn2(self.conv2(x)))).flatten(1))


for _d in (1, 3):
    ARCHITECTURES.add(
        f"convnet_{_d}d",
        lambda d=_d: ConvNet(d),
        lambda d=_d: noise(2, 2, *([6] * d)),
        group(6, out("conv1"), bn("bn1"), into("conv2"), kind=POSITIVE),
        group(8, out("conv2"), bn("bn2"), into("fc"), kind=POSITIVE),
    )


class GroupedUpsampling(nn.Module):
    """Transposed convolution in four groups, after a grouped convolution in the same four."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 16, 3, groups=4)
        self.up, self.last = nn.ConvTranspose2d(16, 12, 4, groups=4), nn.Conv2d(12, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv2(F.relu(self.conv1(x))))
        return self.last(F.relu(self.up(x)))


ARCHITECTURES.add(
    "grouped_transposed",
    GroupedUpsampling,
    image,
    group(8, out_bias("conv1"), into("conv2"), kind=POSITIVE, outer="four", blocks=4),
    group(16, out_bias("conv2"), out("up"), kind=POSITIVE, outer="four", blocks=4),
    group(12, axis("up.weight", 1), axis("up.bias"), into("last"), kind=POSITIVE, outer="four", blocks=4),
)


class InstanceNormNet(nn.Module):
    """InstanceNorm with affine, with running statistics, and with neither."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 6, 3), nn.InstanceNorm2d(6, affine=True)
        self.conv2, self.norm2 = nn.Conv2d(6, 7, 3), nn.InstanceNorm2d(7, affine=True, track_running_stats=True)
        self.conv3, self.norm3, self.fc = nn.Conv2d(7, 8, 3), nn.InstanceNorm2d(8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm1(self.conv1(x)))
        x = F.relu(self.norm2(self.conv2(x)))
        return self.fc(F.silu(self.norm3(self.conv3(x))).amax((2, 3)))


ARCHITECTURES.add(
    "instance_norm",
    InstanceNormNet,
    lambda: image(size=10),
    group(6, out_bias("conv1"), affine("norm1"), into("conv2")),
    group(7, out_bias("conv2"), bn("norm2"), into("conv3")),
    group(8, out_bias("conv3"), into("fc"), kind=PERMUTATION),
)


class GroupNormLimits(nn.Module):
    """One group (a LayerNorm over channels and space) and as many groups as channels (an InstanceNorm)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 6, 3), nn.GroupNorm(1, 6)
        self.conv2, self.norm2, self.fc = nn.Conv2d(6, 8, 3), nn.GroupNorm(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm1(self.conv1(x)))
        return self.fc(F.relu(self.norm2(self.conv2(x))).mean((2, 3)))


ARCHITECTURES.add(
    "groupnorm_limits",
    GroupNormLimits,
    image,
    group(6, out_bias("conv1"), affine("norm1"), into("conv2")),
    group(8, out_bias("conv2"), affine("norm2"), into("fc")),
)


class WeightNormNet(nn.Module):
    """weight = g v / |v|: g and v move together; the reader's v cannot take a scale."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = parametrizations.weight_norm(nn.Conv2d(3, 6, 3))
        self.fc1 = parametrizations.weight_norm(nn.Linear(6 * 4, 8))
        self.fc2 = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.relu(self.fc1(F.max_pool2d(F.relu(self.conv(x)), 3).flatten(1))))


def _parts(module: str) -> frozenset:
    return frozenset((f"{module}.parametrizations.weight.original{i}", 0) for i in (0, 1))


ARCHITECTURES.add(
    "weight_norm",
    WeightNormNet,
    image,
    group(
        6, _parts("conv"), axis("conv.bias"), axis("fc1.parametrizations.weight.original1", 1),
        kind=PERMUTATION,
    ),
    group(8, _parts("fc1"), axis("fc1.bias"), into("fc2")),
)  # fmt: skip


class SpectralNormNet(nn.Module):
    """weight / sigma(weight): the power iteration's vectors are buffers that must move along."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = parametrizations.spectral_norm(nn.Conv2d(3, 6, 3))
        self.conv2 = parametrizations.spectral_norm(nn.Conv2d(6, 7, 3))
        self.fc = parametrizations.spectral_norm(nn.Linear(7, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.conv2(F.relu(self.conv1(x)))).mean((2, 3)))


def _spectral(module: str, at: int) -> frozenset:
    vector = "_v" if at else "_u"
    return axis(f"{module}.parametrizations.weight.original", at) | axis(f"{module}.parametrizations.weight.0.{vector}")


ARCHITECTURES.add(
    "spectral_norm",
    SpectralNormNet,
    image,
    group(6, _spectral("conv1", 0), axis("conv1.bias"), _spectral("conv2", 1), kind=PERMUTATION),
    group(7, _spectral("conv2", 0), axis("conv2.bias"), _spectral("fc", 1), kind=PERMUTATION),
)


class MaskedNet(nn.Module):
    """Lottery-ticket masks are buffers that multiply a weight; frozen layers move like any other."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(6, 9), nn.Linear(9, 8), nn.Linear(8, 4)
        for name, layer in (("mask1", self.fc1), ("mask2", self.fc2)):
            mask = torch.rand(layer.weight.shape, generator=torch.Generator().manual_seed(3)) > 0.4
            self.register_buffer(name, mask.float() if name == "mask1" else mask)
        self.fc2.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(F.linear(x, self.fc1.weight * self.mask1, self.fc1.bias))
        x = F.relu(F.linear(x, self.fc2.weight.masked_fill(~self.mask2, 0.0), self.fc2.bias))
        return self.fc3(x)


ARCHITECTURES.add(
    "masked_weights",
    MaskedNet,
    lambda: noise(5, 6),
    group(9, out_bias("fc1"), axis("mask1"), into("fc2"), axis("mask2", 1), kind=POSITIVE),
    group(8, out_bias("fc2"), axis("mask2"), into("fc3"), kind=POSITIVE),
)


class BilinearNet(nn.Module):
    """Every pair of units of two branches has a weight of its own for every output."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.pair = nn.Linear(5, 8), nn.Linear(6, 7), nn.Bilinear(8, 7, 9)
        self.head = nn.Linear(9, 2)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.head(F.relu(self.pair(F.relu(self.left(x)), torch.tanh(self.right(y)))))


ARCHITECTURES.add(
    "bilinear",
    BilinearNet,
    lambda: (noise(3, 5), noise(3, 6)),
    group(8, out_bias("left"), axis("pair.weight", 1), kind=POSITIVE),
    group(7, out_bias("right"), axis("pair.weight", 2), kind=SIGNED),
    group(9, out_bias("pair"), into("head"), kind=POSITIVE),
)


class PrototypeNet(nn.Module):
    """Distances to learned prototypes, and a code book whose nearest vector is decoded."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p, self.fc1, self.fc2 = p, nn.Linear(5, 8), nn.Linear(8, 12)
        self.prototypes, self.codes = nn.Parameter(torch.randn(4, 12)), nn.Embedding(6, 12)
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.fc2(F.relu(self.fc1(x)))
        nearest = torch.cdist(h, self.codes.weight).argmin(-1)
        return torch.cdist(h[None], self.prototypes[None], p=self.p), self.head(self.codes(nearest))


for _p in (1.0, 2.0):
    ARCHITECTURES.add(
        f"prototypes_{_p:g}",
        lambda p=_p: PrototypeNet(p),
        lambda: noise(5, 5),
        group(8, out_bias("fc1"), into("fc2"), kind=POSITIVE),
        group(12, out_bias("fc2"), axis("prototypes", 1), axis("codes.weight", 1), into("head"), kind=PERMUTATION),
    )
