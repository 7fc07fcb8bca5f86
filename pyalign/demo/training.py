"""Training of the demo's networks: SGD with momentum, one cycle of the learning rate, shifted images."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from pyalign.demo.digits import Digits
from pyalign.demo.network import Network, network

__all__ = ["accuracy", "train"]

BATCH = 64
PEAK_RATE = 0.1
WARM_UP = 0.2
WEIGHT_DECAY = 1e-3


def train(
    data: Digits, seed: int, *, epochs: int = 20, width: int = 16, name: str = "model", progress: bool | None = None
) -> Network:
    """A network trained on `data` with cross-entropy; the same seed gives the same weights.

    Args:
        data: Training images and labels.
        seed: Decides the first weights, the order of the batches and the shifts.
        epochs: Passes over the data.
        width: Width of the first stage.
        name: What the progress bar calls it.
        progress: True or False to force a progress bar or none; None shows one on a terminal.

    Returns:
        The trained network in evaluation mode.
    """
    generator = torch.Generator().manual_seed(seed)
    model = _initialised(width, seed).train()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9, nesterov=True, weight_decay=WEIGHT_DECAY)
    per_epoch = max(1, len(data.labels) // BATCH)
    steps = per_epoch * epochs
    with tqdm(
        total=steps,
        desc=f"training {name}",
        unit="step",
        leave=False,
        disable=None if progress is None else not progress,
    ) as bar:
        for step in range(steps):
            if step % per_epoch == 0:
                order = torch.randperm(len(data.labels), generator=generator)
            chosen = order[step % per_epoch * BATCH :][:BATCH]
            images = _shifted(data.images[chosen], generator)
            optimiser.param_groups[0]["lr"] = PEAK_RATE * _cycle((step + 1) / (steps + 1))
            optimiser.zero_grad()
            loss = F.cross_entropy(model(images), data.labels[chosen])
            torch.autograd.backward(loss)
            optimiser.step()
            bar.update()
    return model.eval()


def accuracy(model: nn.Module, data: Digits) -> float:
    """Share of the samples that `model` classifies rightly."""
    with torch.no_grad():
        right = model(data.images).argmax(1) == data.labels
    return float(right.double().mean())


def _initialised(width: int, seed: int) -> Network:
    with torch.random.fork_rng(devices=[]):  # torch's initialisers read the global state, which is given back
        torch.default_generator.manual_seed(seed)  # this one only: torch.manual_seed would touch the GPUs' state too
        return network(width)


def _cycle(done: float) -> float:
    """Share of the peak learning rate after the share `done` of all steps: a linear rise, then half a cosine."""
    if done < WARM_UP:
        return done / WARM_UP
    return 0.5 * (1 + math.cos(math.pi * (done - WARM_UP) / (1 - WARM_UP)))


def _shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    """The batch moved by at most one pixel in each direction, zeros moving in."""
    row, column = torch.randint(0, 3, (2,), generator=generator).tolist()
    return F.pad(images, (1, 1, 1, 1))[:, :, row : row + 8, column : column + 8]
