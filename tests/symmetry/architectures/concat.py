"""Networks that concatenate or flatten: VGG, DenseNet, Inception with auxiliary heads, U-Net."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .record import PERMUTATION, POSITIVE, Registry, bn, group, image, into, out, out_bias

ARCHITECTURES = Registry()


class VGG(nn.Module):
    """Convolutions, then flatten of 6 x 4 x 4 into dense layers with dropout."""

    def __init__(self, batchnorm: bool, head_dropout: float) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for a, b in ((3, 8), (8, 6)):
            layers += [nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b) if batchnorm else nn.Identity(), nn.ReLU()]
            layers += [nn.MaxPool2d(2)]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Flatten(), nn.Linear(6 * 16, 10), nn.ReLU(True), nn.Dropout(head_dropout), nn.Linear(10, 4)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x))


for _name, _bn, _dropout in (("vgg_batchnorm", True, 0.0), ("vgg_plain_dropout", False, 0.5)):
    _norm = bn if _bn else (lambda *_: frozenset())
    ARCHITECTURES.add(
        _name,
        lambda batchnorm=_bn, dropout=_dropout: VGG(batchnorm, dropout),
        lambda: image(size=16),
        group(8, out_bias("features.0"), _norm("features.1"), into("features.4"), kind=POSITIVE),
        group(6, out_bias("features.4"), _norm("features.5"), into("classifier.1"), kind=POSITIVE),
        group(10, out_bias("classifier.1"), into("classifier.4"), kind=POSITIVE),
        train=_dropout == 0.0,
    )


class DenseLayer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(width), nn.Conv2d(width, 7, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(7), nn.Conv2d(7, 4, 3, padding=1, bias=False)

    def forward(self, features: list[Tensor]) -> Tensor:
        h = self.conv1(F.relu(self.norm1(torch.cat(features, 1))))
        return self.conv2(F.relu(self.norm2(h)))


class DenseBlock(nn.ModuleDict):
    def __init__(self, width: int, layers: int) -> None:
        super().__init__({f"layer{i}": DenseLayer(width + 4 * i) for i in range(layers)})

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for layer in self.values():
            features.append(layer(features))
        return torch.cat(features, 1)


class DenseNet(nn.Module):
    """Two dense blocks of growth 4 and a transition; every convolution reads all earlier growth."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block1 = nn.Conv2d(3, 8, 3, padding=1, bias=False), DenseBlock(8, 3)
        self.norm, self.transition = nn.BatchNorm2d(20), nn.Conv2d(20, 9, 1, bias=False)
        self.block2, self.last, self.fc = DenseBlock(9, 2), nn.BatchNorm2d(17), nn.Linear(17, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block1(self.stem(x))
        x = F.avg_pool2d(self.transition(F.relu(self.norm(x))), 2)
        x = F.relu(self.last(self.block2(x)))
        return self.fc(F.adaptive_avg_pool2d(x, (1, 1)).view(x.shape[0], -1))


def _reads(block: str, layers: range) -> frozenset:
    return bn(*(f"{block}.layer{i}.norm1" for i in layers)) | into(*(f"{block}.layer{i}.conv1" for i in layers))


_END1, _END2 = bn("norm") | into("transition"), bn("last") | into("fc")
ARCHITECTURES.add(
    "densenet",
    DenseNet,
    image,
    group(8, out("stem"), _reads("block1", range(3)), _END1),
    *(group(4, out(f"block1.layer{i}.conv2"), _reads("block1", range(i + 1, 3)), _END1) for i in range(3)),
    group(9, out("transition"), _reads("block2", range(2)), _END2),
    *(group(4, out(f"block2.layer{i}.conv2"), _reads("block2", range(i + 1, 2)), _END2) for i in range(2)),
    *(
        group(7, out(f"{layer}.conv1"), bn(f"{layer}.norm2"), into(f"{layer}.conv2"), kind=POSITIVE)
        for layer in ("block1.layer0", "block1.layer1", "block1.layer2", "block2.layer0", "block2.layer1")
    ),
)


class ConvNormReLU(nn.Module):
    def __init__(self, a: int, b: int, size: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(a, b, size, padding=size // 2, bias=False), nn.BatchNorm2d(b)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(x)))


class InceptionBlock(nn.Module):
    """Four branches of widths 4, 6, 5, 3."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.one = ConvNormReLU(width, 4, 1)
        self.three = nn.Sequential(ConvNormReLU(width, 5, 1), ConvNormReLU(5, 6, 3))
        self.five = nn.Sequential(ConvNormReLU(width, 3, 1), ConvNormReLU(3, 5, 5))
        self.pool = ConvNormReLU(width, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = F.max_pool2d(x, 3, stride=1, padding=1)
        return torch.cat([self.one(x), self.three(x), self.five(x), self.pool(pooled)], dim=1)


class Auxiliary(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv, self.fc1, self.fc2 = nn.Conv2d(width, 7, 1), nn.Linear(7 * 4, 9), nn.Linear(9, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(F.adaptive_avg_pool2d(x, 2)))
        return self.fc2(F.relu(self.fc1(torch.flatten(x, 1))))


class Inception(nn.Module):
    """Two inception blocks; the auxiliary head on the first exists only in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvNormReLU(3, 8, 3)
        self.a, self.b = InceptionBlock(8), InceptionBlock(18)
        self.auxiliary, self.fc = Auxiliary(18), nn.Linear(18, 5)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = self.a(self.stem(x))
        auxiliary = self.auxiliary(x) if self.training else None
        logits = self.fc(self.b(x).mean((2, 3)))
        return logits if auxiliary is None else (logits, auxiliary)


def _unit(name: str) -> frozenset:
    return out(f"{name}.conv") | bn(f"{name}.norm")


_BRANCHES = (("one", 4), ("three.1", 6), ("five.1", 5), ("pool", 3))
_HEADS = ("one.conv", "three.0.conv", "five.0.conv", "pool.conv")
_READS_A = into(*(f"b.{head}" for head in _HEADS), "auxiliary.conv")
ARCHITECTURES.add(
    "inception_auxiliary",
    Inception,
    image,
    group(8, _unit("stem"), into(*(f"a.{head}" for head in _HEADS)), kind=POSITIVE),
    *(group(width, _unit(f"a.{branch}"), _READS_A, kind=POSITIVE) for branch, width in _BRANCHES),
    *(group(width, _unit(f"b.{branch}"), into("fc"), kind=POSITIVE) for branch, width in _BRANCHES),
    *(
        group(width, _unit(f"{block}.{branch}.0"), into(f"{block}.{branch}.1.conv"), kind=POSITIVE)
        for block in "ab" for branch, width in (("three", 5), ("five", 3))
    ),
    group(7, out_bias("auxiliary.conv"), into("auxiliary.fc1"), kind=POSITIVE),
    group(9, out_bias("auxiliary.fc1"), into("auxiliary.fc2"), kind=POSITIVE),
)  # fmt: skip


class Double(nn.Sequential):
    def __init__(self, a: int, b: int) -> None:
        super().__init__(ConvNormReLU(a, b, 3), ConvNormReLU(b, b, 3))


class UNet(nn.Module):
    """Two levels; the decoder reads the skip and a transposed convolution side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.enc1, self.enc2, self.bottom = Double(3, 6), Double(6, 8), Double(8, 10)
        self.up2, self.dec2 = nn.ConvTranspose2d(10, 7, 2, stride=2), Double(15, 8)
        self.up1, self.dec1 = nn.ConvTranspose2d(8, 5, 2, stride=2), Double(11, 6)
        self.head = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        one = self.enc1(x)
        two = self.enc2(F.max_pool2d(one, 2))
        x = self.bottom(F.max_pool2d(two, 2))
        x = self.dec2(torch.cat((two, self.up2(x)), dim=1))
        x = self.dec1(torch.cat((one, self.up1(x)), dim=-3))
        return self.head(x)


def _upsampled(name: str) -> frozenset:
    return frozenset({(f"{name}.weight", 1), (f"{name}.bias", 0)})


ARCHITECTURES.add(
    "unet",
    UNet,
    image,
    group(6, _unit("enc1.1"), into("enc2.0.conv", "dec1.0.conv"), kind=POSITIVE),
    group(8, _unit("enc2.1"), into("bottom.0.conv", "dec2.0.conv"), kind=POSITIVE),
    group(10, _unit("bottom.1"), out("up2"), kind=POSITIVE),
    group(7, _upsampled("up2"), into("dec2.0.conv")),
    group(8, _unit("dec2.1"), out("up1"), kind=POSITIVE),
    group(5, _upsampled("up1"), into("dec1.0.conv")),
    group(6, _unit("dec1.1"), into("head"), kind=POSITIVE),
    *(
        group(width, _unit(f"{name}.0"), into(f"{name}.1.conv"), kind=POSITIVE)
        for name, width in (("enc1", 6), ("enc2", 8), ("bottom", 10), ("dec2", 8), ("dec1", 6))
    ),
)


class Feature2Scale(nn.Module):
    """A feature pyramid: lateral 1x1, upsampling by three methods, addition, two outputs at two scales."""

    def __init__(self) -> None:
        super().__init__()
        self.low, self.high = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 9, 3, 2, padding=1)
        self.side_low, self.side_high = nn.Conv2d(6, 8, 1), nn.Conv2d(9, 8, 1)
        self.smooth, self.box, self.score = nn.Conv2d(8, 7, 3, padding=1), nn.Conv2d(7, 4, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> dict[str, list[Tensor]]:
        low = F.gelu(self.low(x))
        high = F.gelu(self.high(low))
        top = self.side_high(high)
        up = F.interpolate(top, scale_factor=2, mode="nearest") + F.interpolate(top, size=8, mode="bilinear")
        merged = self.side_low(low) + F.pad(up, (1, 1, 1, 1), mode="reflect")[..., 1:-1, 1:-1]
        return {"boxes": [self.box(F.relu(self.smooth(merged)))], "scores": [self.score(top), self.score(merged)]}


ARCHITECTURES.add(
    "feature_pyramid",
    Feature2Scale,
    image,
    group(6, out_bias("low"), into("high", "side_low"), kind=PERMUTATION),
    group(9, out_bias("high"), into("side_high"), kind=PERMUTATION),
    group(8, out_bias("side_low", "side_high"), into("smooth", "score")),
    group(7, out_bias("smooth"), into("box"), kind=POSITIVE),
)
