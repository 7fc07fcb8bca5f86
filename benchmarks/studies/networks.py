"""The networks of Tatro et al. 2020 that studies train: a ResNet for small images, and TinyTen."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["NETWORKS", "ResNet", "TinyTen"]


class _Block(nn.Module):
    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(after)
        self.short: nn.Module = nn.Identity()
        if stride != 1 or before != after:
            self.short = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> Tensor:
        inner = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(inner + self.short(x))


class ResNet(nn.Module):
    """6 n + 2 layers in three stages of `width`, 2 `width` and 4 `width` channels."""

    def __init__(self, n: int = 3, width: int = 16, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        blocks, before = [], width
        for stage in range(3):
            after = width * 2**stage
            for index in range(n):
                blocks.append(_Block(before, after, 2 if stage and not index else 1))
                before = after
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(before, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


class TinyTen(nn.Sequential):
    """Nine narrow convolutions with BatchNorm and one linear layer, 0.09 million parameters at width 16."""

    def __init__(self, width: int = 16, classes: int = 10) -> None:
        layers: list[nn.Module] = []
        before = 3
        plan = ((1, 1), (1, 1), (1, 1), (2, 2), (2, 1), (2, 1), (3, 2), (3, 1), (4, 1))
        for factor, stride in plan:
            after = factor * width
            layers += [nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
            before = after
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, classes))


NETWORKS: dict[str, Callable[[int, int], nn.Module]] = {
    "resnet20": partial(ResNet, 3),
    "resnet32": partial(ResNet, 5),
    "tinyten": TinyTen,
}
"""Name -> network, given the width of its first layer and the number of classes."""
