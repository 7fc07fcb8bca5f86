"""Training one model, plainly or on adversarial examples, with checkpoints that resume to the bit."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pyalign.errors import InputError
from pyalign.paths.fit import SGD
from pyalign.paths.losses import mean_loss
from pyalign.paths.point import Attack, Loss, called
from pyalign.paths.training import Callback, Settings, train
from pyalign.statistics.batches import split
from pyalign.statistics.forward import respond

__all__ = ["fit"]


def fit(
    model: nn.Module,
    data: Iterable[Any],
    *,
    steps: int | None = None,
    epochs: int | None = None,
    optimizer: Callable[..., torch.optim.Optimizer] = SGD,
    lr: float = 0.1,
    weight_decay: float = 5e-4,
    schedule: Callable[[float], float] = lambda _: 1.0,
    loss: Loss | None = None,
    clip: float | None = None,
    precision: torch.dtype | None = None,
    attack: Attack | None = None,
    seed: int = 0,
    checkpoint: str | os.PathLike[str] | None = None,
    every: int = 500,
    callback: Callback | None = None,
    progress: bool | None = None,
) -> dict[str, Any]:
    r"""Train a model in place, plainly or robustly.

    With an attack: \(\min_\theta \mathbb{E} [\max_{\|\delta\| \le \epsilon} L(\theta, x + \delta)]\).

    Args:
        model: The module, changed in place and left in training mode.
        data: As for `pyalign.curve`.
        steps: Number of batches to train on; or
        epochs: number of passes over `data`.
        optimizer: Called as `optimizer(parameters, lr=lr, weight_decay=weight_decay)`.
        lr: Learning rate.
        weight_decay: Passed to the optimiser.
        schedule: Factor of the learning rate, given the share of the training that is done.
        loss: `loss(output, targets)`; None as for `pyalign.barrier`.
        clip: Largest norm of the gradient.
        precision: torch.bfloat16 or torch.float16 for mixed precision.
        attack: As for `pyalign.curve`: robust training.
        seed: Of the global generators during training, which return to what they were.
        checkpoint: As for `pyalign.curve`.
        every: Steps between checkpoints.
        callback: As for `pyalign.curve`.
        progress: Show a progress bar; None: on a terminal.

    Returns:
        The settings, the steps taken and the seconds, as plain values.

    Raises:
        InputError: No parameter requires gradients, or settings that cannot be.
        DataError: The data is empty, runs out, or does not fit the model.
        NonFiniteError: The loss became NaN or infinite; tells the step. The last checkpoint is kept.
        CheckpointError: The checkpoint is damaged or belongs to another run.

    Source:
        Madry et al. 2018 (arXiv 1706.06083), equation 2.1.

    Example:
        >>> model = nn.Linear(2, 2)
        >>> fit(model, [(torch.eye(2), torch.tensor([0, 1]))], steps=3)["taken"]
        3
    """
    objective = _ModelObjective(model, loss, attack, precision)
    settings = Settings(
        lr=lr, optimizer=partial(optimizer, weight_decay=weight_decay), steps=steps, epochs=epochs, schedule=schedule,
        clip=clip, precision=precision, seed=seed, checkpoint=checkpoint, every=every, callback=callback,
        progress=progress,
    )  # fmt: skip
    return train(objective, data, settings, "training")[0]


class _ModelObjective:
    """The loss of a model on batches, attacked first where that is asked for."""

    def __init__(
        self, model: nn.Module, loss: Loss | None, attack: Attack | None, precision: torch.dtype | None
    ) -> None:
        self.model, self.custom, self.attack, self.precision = model.train(), loss, attack, precision
        self.parameters: list[Tensor] = [p for p in model.parameters() if p.requires_grad]
        if not self.parameters:
            name = type(model).__name__
            raise InputError("nothing to train", given=f"{name} without parameters that require gradients")
        self.generator = torch.Generator()
        self.t: float | None = None

    def loss(self, batch: Any, index: int, scale: float) -> Tensor:
        """The loss of a batch."""
        inputs, targets = split(batch)
        if self.attack is not None:
            inputs = self.attack(self.model, inputs, targets)
        with torch.autocast(self.parameters[0].device.type, self.precision, enabled=self.precision is not None):
            return mean_loss(respond(self.model, inputs, index), targets, self.custom, index)

    def stepped(self, lr: float) -> None:
        """Nothing follows a step."""

    def tensors(self) -> dict[str, Tensor]:
        """Everything that training changes."""
        buffers = {f"buffer.{name}": buffer for name, buffer in self.model.named_buffers()}
        return {**{f"parameter.{name}": p for name, p in self.model.named_parameters() if p.requires_grad}, **buffers}

    def record(self) -> dict[str, Any]:
        """What identifies the objective; the model's first weights are drawn anew, so they do not."""
        shapes = [tuple(p.shape) for p in self.parameters]
        return {"shapes": shapes, "attack": called(self.attack), "loss": called(self.custom, "default")}
