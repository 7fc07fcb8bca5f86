"""A small residual network with BatchNorm for 8 x 8 images (after He et al. 2016 [he2016deep])."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Block", "Network", "network"]


class Block(nn.Module):
    """Two 3 x 3 convolutions with BatchNorm and a shortcut around them.

    Args:
        inputs: Width of what comes in.
        width: Width of what goes out.
        stride: Step of the first convolution, in pixels.
    """

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != width:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        """`x` (b, inputs, h, w) to (b, width, h / stride, w / stride)."""
        inner = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(inner)) + self.shortcut(x))


class Network(nn.Module):
    """A stem, three residual blocks of 1, 2 and 4 times `width` channels, and a linear head.

    Args:
        width: Width of the stem and the first block.
        classes: How many logits.
    """

    def __init__(self, width: int = 16, classes: int = 10) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.blocks = nn.Sequential(Block(width, width, 1), Block(width, 2 * width, 2), Block(2 * width, 4 * width, 2))
        self.head = nn.Linear(4 * width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Images (b, 1, 8, 8) to logits (b, classes)."""
        x = F.relu(self.norm(self.conv(images)))
        pooled: Tensor = self.blocks(x).mean((2, 3))
        logits: Tensor = self.head(pooled)
        return logits


def network(width: int = 16) -> Network:
    """An untrained network of the demo.

    Args:
        width: Width of the first stage, in channels.

    Returns:
        A new module in evaluation mode.

    Example:
        >>> import torch
        >>> network(width=4)(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """
    return Network(width).eval()
