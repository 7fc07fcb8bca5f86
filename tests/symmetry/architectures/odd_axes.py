"""Models that cut, fold, repeat, reorder or regroup the axis of units."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .record import PERMUTATION, POSITIVE, Registry, affine, axis, bn, group, image, into, noise, out, out_bias

ARCHITECTURES = Registry()
vectors = lambda: noise(5, 6)  # noqa: E731


class Maxout(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(6, 15), nn.Linear(5, 7), nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.fc1(x).view(-1, 5, 3).amax(-1)
        return self.fc3(F.relu(self.fc2(h)))


# The five units move; the three pieces of each may move as well (a wreath), or stay.
ARCHITECTURES.add(
    "maxout", Maxout, vectors,
    group(7, out_bias("fc2"), into("fc3"), kind=POSITIVE),
    open=True, moves=into("fc2") | out_bias("fc1"),
)  # fmt: skip


class ConcatenatedReLU(nn.Module):
    """Each unit appears twice on the next axis, once negated."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.fc = nn.Conv2d(3, 6, 3), nn.Conv2d(12, 8, 3), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        x = torch.cat([F.relu(x), F.relu(-x)], 1)
        return self.fc(F.relu(self.conv2(x)).mean((2, 3)))


ARCHITECTURES.add(
    "concatenated_relu", ConcatenatedReLU, image,
    group(6, out_bias("conv1"), into("conv2"), kind=POSITIVE), group(8, out_bias("conv2"), into("fc"), kind=POSITIVE),
)  # fmt: skip


class Unfold(nn.Module):
    """im2col makes every unit a run of four features."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc1, self.fc2 = nn.Conv2d(3, 5, 3), nn.Linear(20, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        columns = F.unfold(F.relu(self.conv(x)), kernel_size=2, stride=2)
        return self.fc2(F.relu(self.fc1(columns.transpose(1, 2))).mean(1))


class SpaceToDepth(nn.Module):
    """By view and permute, the 2 x 2 pixel outermost: every unit becomes four channels five apart."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc1, self.fc2 = nn.Conv2d(3, 5, 3), nn.Conv2d(20, 8, 1), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = (x := F.relu(self.conv(x))).shape
        x = x.view(b, c, h // 2, 2, w // 2, 2).permute(0, 3, 5, 1, 2, 4).reshape(b, 4 * c, h // 2, w // 2)
        return self.fc2(F.relu(self.fc1(x)).mean((2, 3)))


class FlattenLast(nn.Module):
    """Flatten with the channels innermost; LayerNorm with a weight of the whole (channels, height, width)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 5, 3), nn.LayerNorm((5, 6, 6))
        self.plane, self.fc1, self.fc2 = nn.LayerNorm((6, 6)), nn.Linear(5 * 36, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.plane(F.gelu(self.norm(self.conv(x))))
        return self.fc2(F.relu(self.fc1(x.permute(0, 2, 3, 1).reshape(len(x), -1))))


for _name, _build in (("unfold", Unfold), ("space_to_depth", SpaceToDepth)):
    ARCHITECTURES.add(
        _name, _build, image,
        group(5, out_bias("conv"), into("fc1"), kind=POSITIVE), group(8, out_bias("fc1"), into("fc2"), kind=POSITIVE),
    )  # fmt: skip
ARCHITECTURES.add(
    "flatten_channels_last", FlattenLast, image,
    group(5, out_bias("conv"), affine("norm"), into("fc1")), group(8, out_bias("fc1"), into("fc2"), kind=POSITIVE),
)  # fmt: skip


class Repeats(nn.Module):
    """repeat_interleave puts a unit's copies side by side, repeat puts them 9 apart."""

    def __init__(self, interleave: bool) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3, self.interleave = nn.Linear(6, 9), nn.Linear(18, 7), nn.Linear(7, 4), interleave

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.fc1(x))
        h = h.repeat_interleave(2, dim=-1) if self.interleave else h.repeat(1, 2)
        return self.fc3(F.relu(self.fc2(h)))


for _interleave in (True, False):
    ARCHITECTURES.add(
        "repeat_interleave" if _interleave else "repeat", lambda interleave=_interleave: Repeats(interleave), vectors,
        group(9, out_bias("fc1"), into("fc2"), kind=POSITIVE), group(7, out_bias("fc2"), into("fc3"), kind=POSITIVE),
    )  # fmt: skip


class PartsRead(nn.Module):
    """Two layers read different parts of one axis: uneven halves, even and odd channels."""

    def __init__(self, strided: bool) -> None:
        super().__init__()
        self.stem, self.strided = nn.Conv2d(3, 8, 3), strided
        self.a, self.b = nn.Conv2d(4 if strided else 3, 6, 3), nn.Conv2d(4 if strided else 5, 7, 3)
        self.fc = nn.Linear(13, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        one, two = (x[:, ::2], x[:, 1::2]) if self.strided else torch.split(x, [3, 5], dim=1)
        return self.fc(torch.cat([F.relu(self.a(one)), F.relu(self.b(two))], 1).amax((-1, -2)))


for _strided, (_one, _two) in ((True, (4, 4)), (False, (3, 5))):
    ARCHITECTURES.add(
        "read_even_and_odd" if _strided else "read_uneven_parts", lambda strided=_strided: PartsRead(strided), image,
        group(_one, out_bias("stem"), into("a"), kind=POSITIVE),
        group(_two, out_bias("stem"), into("b"), kind=POSITIVE),
        group(6, out_bias("a"), into("fc"), kind=POSITIVE), group(7, out_bias("b"), into("fc"), kind=POSITIVE),
    )  # fmt: skip


class Overlapping(nn.Module):
    """Two layers read overlapping slices, and one unit gates all others."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.a, self.b = nn.Linear(6, 9), nn.Linear(6, 5), nn.Linear(6, 5)
        self.fc2, self.fc3 = nn.Linear(5, 7), nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.fc1(x))
        h = h * h[:, :1].sigmoid()
        h = F.relu(self.a(h[:, :6]) + self.b(h[:, 3:]))
        return self.fc3(F.relu(self.fc2(h)))


ARCHITECTURES.add(
    "overlapping_slices", Overlapping, vectors,
    group(5, out_bias("a", "b"), into("fc2"), kind=POSITIVE), group(7, out_bias("fc2"), into("fc3"), kind=POSITIVE),
    open=True,
)  # fmt: skip


class WrittenInPlace(nn.Module):
    """Two results are written into slices of a fresh tensor, then changed in place."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.conv, self.fc = (
            nn.Conv2d(3, 4, 3), nn.Conv2d(3, 6, 3), nn.Conv2d(10, 8, 3), nn.Linear(8, 4),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        y = x.new_zeros(len(x), 10, 6, 6)
        y[:, :4] = self.a(x)
        y[:, 4:].add_(self.b(x)).mul_(2)
        y.clamp_(min=0)
        return self.fc(self.conv(y).relu_().mean((2, 3)))


ARCHITECTURES.add(
    "written_in_place", WrittenInPlace, image,
    group(4, out_bias("a"), into("conv"), kind=POSITIVE), group(6, out_bias("b"), into("conv"), kind=POSITIVE),
    group(8, out_bias("conv"), into("fc"), kind=POSITIVE),
)  # fmt: skip


class SelectiveKernel(nn.Module):
    """Two branches stacked on a new axis, weighed by a softmax over the branches."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 8, 5, padding=2)
        self.squeeze, self.weigh, self.fc = nn.Linear(8, 5), nn.Linear(5, 16), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        both = torch.stack([F.relu(self.a(x)), F.relu(self.b(x))], dim=1)
        squeezed = F.relu(self.squeeze(both.sum(1).mean((-1, -2))))
        weights = self.weigh(squeezed).view(-1, 2, 8, 1, 1).softmax(1)
        return self.fc((both * weights).sum(1).amax((-2, -1)))


ARCHITECTURES.add(
    "selective_kernel", SelectiveKernel, image,
    group(8, out_bias("a", "b", "weigh"), into("squeeze", "fc")),
    group(5, out_bias("squeeze"), into("weigh"), kind=POSITIVE),
)  # fmt: skip


class DepthMultiplier(nn.Module):
    """Depthwise with three outputs per input: a permutation of inputs carries triples along."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.depthwise = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 12, 3, groups=4)
        self.norm, self.pointwise, self.fc = nn.BatchNorm2d(12), nn.Conv2d(12, 6, 1), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.depthwise(F.relu(self.conv1(x)))))
        return self.fc(F.relu(self.pointwise(x)).mean((2, 3)))


ARCHITECTURES.add(
    "depth_multiplier", DepthMultiplier, image,
    group(6, out_bias("pointwise"), into("fc"), kind=POSITIVE),
    open=True, moves=out_bias("conv1", "depthwise") | bn("norm") | into("pointwise"),
)  # fmt: skip


class NormOfConcat(nn.Module):
    """GroupNorm and a grouped convolution over a concatenation: one block covers one branch and part of another."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.norm = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 12)
        self.conv, self.last, self.fc = nn.Conv2d(12, 6, 3, groups=3), nn.Conv2d(6, 7, 1), nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(torch.cat((self.a(x), self.b(x)), 1)))
        return self.fc(F.relu(self.last(F.relu(self.conv(x)))).mean((2, 3)))


ARCHITECTURES.add(
    "blocks_across_concat", NormOfConcat, image, group(7, out_bias("last"), into("fc"), kind=POSITIVE), open=True
)


class GroupedEnds(nn.Module):
    """Grouped convolutions at the input, in the middle and at the output: where one end is fixed, blocks stay."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.first, self.mix = nn.Conv1d(4, 6, 3, padding=1, groups=2), nn.Conv1d(6, 8, 1)
        self.last = nn.Conv1d(8, outputs, 1, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.gelu(self.mix(F.gelu(self.first(x)))))


for _outputs in (2, 6):
    ARCHITECTURES.add(
        f"grouped_ends_{_outputs}", lambda outputs=_outputs: GroupedEnds(outputs), lambda: noise(2, 4, 5),
        group(3, out_bias("first"), into("mix"), kind=PERMUTATION),
        group(3, out_bias("first"), into("mix"), kind=PERMUTATION),
        group(4, out_bias("mix"), into("last"), kind=PERMUTATION),
        group(4, out_bias("mix"), into("last"), kind=PERMUTATION),
    )  # fmt: skip


class GroupedChain(nn.Module):
    """Eight units in two blocks of one output each; a shuffle later tells the two outputs apart."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.down = nn.Conv1d(3, 8, 3, padding=1), nn.Conv1d(8, 2, 1, groups=2)
        self.up, self.norm, self.fc = nn.Conv1d(2, 6, 1, groups=2), nn.InstanceNorm1d(6, affine=True), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.up(self.down(F.gelu(self.conv(x))))
        h = h + 2 * h.unflatten(1, (2, 3)).transpose(1, 2).flatten(1, 2)
        return self.fc(F.gelu(self.norm(h)).mean(-1))


ARCHITECTURES.add(
    "grouped_chain", GroupedChain, lambda: noise(2, 3, 5), open=True, moves=out_bias("conv") | into("down")
)


class Mixer(nn.Module):
    """MLP-Mixer: one MLP over positions, one over channels; the position axis itself is fixed."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.norm1, self.norm2 = nn.Conv2d(3, 8, 4, 4), nn.LayerNorm(8), nn.LayerNorm(8)
        self.time1, self.time2 = nn.Linear(4, 6), nn.Linear(6, 4)
        self.unit1, self.unit2, self.head = nn.Linear(8, 12), nn.Linear(12, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = x + self.time2(F.gelu(self.time1(self.norm1(x).mT))).mT
        x = x + self.unit2(F.gelu(self.unit1(self.norm2(x))))
        return self.head(x.mean(1))


ARCHITECTURES.add(
    "mixer", Mixer, image,
    group(8, out_bias("patch", "unit2"), affine("norm1", "norm2"), into("unit1", "head")),
    group(6, out_bias("time1"), into("time2"), kind=PERMUTATION),
    group(12, out_bias("unit1"), into("unit2"), kind=PERMUTATION),
)  # fmt: skip


class VisionStem(nn.Module):
    """Patches, a class token in front, learned positions, the first token read out."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.token = nn.Conv2d(3, 8, 4, 4), nn.Parameter(torch.zeros(1, 1, 8))
        self.position = nn.Parameter(torch.zeros(1, 5, 8))
        self.norm, self.fc1, self.fc2, self.head = nn.LayerNorm(8), nn.Linear(8, 9), nn.Linear(9, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], dim=1) + self.position
        x = x + x.mean(1, keepdim=True)
        x = x + self.fc2(F.gelu(self.fc1(self.norm(x))))
        return self.head(x[:, 0])


ARCHITECTURES.add(
    "class_token", VisionStem, image,
    group(
        8, out_bias("patch", "fc2"), axis("token", 2), axis("position", 2), affine("norm"), into("fc1", "head")
    ),
    group(9, out_bias("fc1"), into("fc2"), kind=PERMUTATION),
)  # fmt: skip


class Variational(nn.Module):
    """Mean and log-variance cut from one projection; the decoder folds a dense output back into channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.code = nn.Conv2d(3, 6, 4, 4), nn.Linear(24, 10)
        self.fold, self.up = nn.Linear(5, 28), nn.ConvTranspose2d(7, 3, 4, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_variance = self.code(F.relu(self.conv(x)).flatten(1)).chunk(2, dim=1)
        z = mean + torch.randn_like(mean) * (0.5 * log_variance).exp() if self.training else mean
        divergence = 0.5 * (mean**2 + log_variance.exp() - log_variance - 1).sum(1)
        return torch.sigmoid(self.up(F.relu(self.fold(z)).unflatten(1, (7, 2, 2)))), divergence


_SIDES = (
    group(6, out_bias("conv"), into("code"), kind=POSITIVE),
    group(7, out_bias("fold"), out("up"), kind=POSITIVE),
)
# Noise is drawn per latent unit in train mode: moving latents is right in distribution, leaving them alone is safe.
ARCHITECTURES.add(
    "variational", Variational, image, *_SIDES, group(5, out_bias("code"), into("fold")), otherwise=_SIDES, train=False
)
