"""Training the bends of a curve: one uniform t a batch, the loss at that point (Garipov et al. 2018, equation 2)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import nn

from pyalign.paths.curves import Curve
from pyalign.paths.point import Attack, CurveObjective, Loss
from pyalign.paths.training import Callback, Settings, train

__all__ = ["SGD", "curve", "garipov_schedule"]

SGD = partial(torch.optim.SGD, momentum=0.9, nesterov=True)
"""The default optimiser: stochastic gradient descent with Nesterov's momentum of 0.9."""


def garipov_schedule(fraction: float) -> float:
    """The factor of the learning rate after a share of the training: 1 to one half, then linearly to 0.01 at 0.9.

    Source:
        Garipov et al. 2018 (arXiv 1802.10026), appendix A.

    Example:
        >>> [round(garipov_schedule(x), 3) for x in (0.0, 0.5, 0.7, 0.95)]
        [1.0, 1.0, 0.505, 0.01]
    """
    return 1.0 - 0.99 * min(1.0, max(0.0, (fraction - 0.5) / 0.4))


def curve(
    model_a: nn.Module,
    model_b: nn.Module,
    data: Iterable[Any],
    *,
    kind: str = "bezier",
    bends: int = 1,
    steps: int | None = None,
    epochs: int | None = None,
    optimizer: Callable[..., torch.optim.Optimizer] = SGD,
    lr: float = 0.03,
    weight_decay: float = 5e-4,
    schedule: Callable[[float], float] = garipov_schedule,
    loss: Loss | None = None,
    clip: float | None = None,
    precision: torch.dtype | None = None,
    attack: Attack | None = None,
    seed: int = 0,
    checkpoint: str | os.PathLike[str] | None = None,
    every: int = 500,
    callback: Callback | None = None,
    progress: bool | None = None,
) -> Curve:
    r"""Find a low-loss curve between two models by training its inner control points.

    Minimises \(\mathbb{E}_{t \sim U[0, 1]} [L(\phi(t)) + \tfrac{\lambda}{2} \|\phi(t)\|^2]\) with one t per batch. The
    point on the curve is one weighted sum of all control points and is run by `torch.func.functional_call`, in training
    mode: any module will do, and neither model is changed. Align B to A first (`pyalign.align`): curves between
    aligned models are better everywhere.

    Args:
        model_a: The model at t = 0. Its parameters that require gradients follow the curve, the others the line.
        model_b: The model at t = 1, of the same architecture.
        data: Training batches with targets, read once per epoch. To resume to the bit, their order must come from the
            global generators of torch, Python or NumPy, or from a `generator` of the data, as a DataLoader's does.
        kind: "bezier" or "polychain".
        bends: Number of inner control points.
        steps: Number of batches to train on; or
        epochs: number of passes over `data`.
        optimizer: Called as `optimizer(parameters, lr=lr)`; its own weight decay should be 0.
        lr: Learning rate.
        weight_decay: \(\lambda\), acting on the point on the curve and not on the control points.
        schedule: Factor of the learning rate, given the share of the training that is done; `lambda _: 1.0` keeps it.
        loss: `loss(output, targets)`, the mean over a batch; None as for `pyalign.barrier`.
        clip: Largest norm of the gradient of all control points together.
        precision: torch.bfloat16 or torch.float16 for mixed precision; weights stay as they are.
        attack: Called as `attack(model, inputs, targets)` with the model at t before each step; returns the inputs to
            train on, such as `pyalign.train.PGD()`.
        seed: Of the draws of t and of the global generators during training, which return to what they were.
        checkpoint: A `.safetensors` file that is written every `every` steps and at the end; where it exists, the run
            goes on from it, to the bit.
        every: Steps between checkpoints.
        callback: Called after every step with its `Step`; a true answer ends the training.
        progress: Show a progress bar; None: on a terminal.

    Returns:
        The curve; `curve.evaluate(test, recalibrate=train)` measures it.

    Raises:
        MismatchError: The models are of different architecture; the tensors are named.
        InputError: No bends, an unknown kind, neither or both of steps and epochs, nothing to train.
        DataError: The data is empty, runs out, or does not fit the model.
        NonFiniteError: The loss became NaN or infinite; tells step and t. The last checkpoint is kept.
        CheckpointError: The checkpoint is damaged or belongs to another run.

    Source:
        Garipov et al. 2018 (arXiv 1802.10026), section 3; Tatro et al. 2020 (arXiv 2009.02439), section 3.

    Example:
        >>> a, b = nn.Linear(2, 2), nn.Linear(2, 2)
        >>> data = [(torch.eye(2), torch.tensor([0, 1]))]
        >>> path = curve(a, b, data, steps=5)
        >>> path.evaluate(data, points=3).t, torch.equal(path.at(0.0).weight, a.weight)
        ((0.0, 0.5, 1.0), True)
    """
    # While it is trained the curve borrows the ends: two copies less at the peak.
    path = Curve.borrowing(model_a, model_b, kind=kind, bends=bends)
    objective = CurveObjective(
        path, model_a, loss=loss, weight_decay=weight_decay, attack=attack, precision=precision, seed=seed
    )
    settings = Settings(
        lr=lr, optimizer=optimizer, steps=steps, epochs=epochs, schedule=schedule, clip=clip, precision=precision,
        seed=seed, checkpoint=checkpoint, every=every, callback=callback, progress=progress,
    )  # fmt: skip
    path.settings, path.history = train(objective, data, settings, f"{kind} curve")
    path.own()
    return path
