"""Loss and accuracy along a path of models, with BatchNorm re-estimated at every position."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import nn
from tqdm.auto import tqdm

from pyalign.errors import DataError, InputError, PyalignWarning
from pyalign.paths.linear import LinearPath
from pyalign.paths.losses import IGNORED, sums_of
from pyalign.paths.path import Path, checked_t
from pyalign.paths.record import Barrier
from pyalign.statistics.batches import batch_size, checked, repeatable, split
from pyalign.statistics.batchnorm import has_batchnorm, reestimate_batchnorm
from pyalign.statistics.forward import evaluating, nonfinite_error, respond

__all__ = ["barrier", "evaluate", "measure", "warn_of_stale_statistics"]

logger = logging.getLogger("pyalign")
Loss = Callable[[Any, Any], Any]


def barrier(
    a: nn.Module,
    b: nn.Module,
    data: Iterable[Any],
    *,
    points: int = 25,
    t: Sequence[float] | None = None,
    loss: Loss | None = None,
    recalibrate: Iterable[Any] | None = None,
    progress: bool | None = None,
) -> Barrier:
    r"""Measure loss and accuracy on the straight line from `a` to `b`, and how far they rise or fall between the ends.

    \(\max_t [L(t) - ((1-t) L(0) + t L(1))]\) is the loss barrier,
    \(\max_t [(1-t)\,acc(0) + t\,acc(1) - acc(t)]\) the accuracy barrier, over the positions between the ends.
    Nothing is clipped: below zero the path is better than its ends.

    Args:
        a: Model A; stays as it is.
        b: Model B, brought to A before (`pyalign.align`); stays as it is.
        data: Batches with targets, read once per position (see `pyalign.statistics.split`).
        points: Number of equidistant positions, ends included.
        t: Positions instead of `points`; 0 and 1 are added where they are missing.
        loss: `loss(output, targets)`, the mean over a batch, given the model's whole answer. Default: cross-entropy for
            integer targets, of shape (B,) with outputs (B, K), (B, T) with (B, T, K) or (B, H, W) with (B, K, H, W),
            -100 left out; mean squared error for floating targets.
        recalibrate: Batches on which BatchNorm statistics are re-estimated at every position, the ends too.
        progress: Show a progress bar; None: on a terminal.

    Returns:
        The record: `t`, `loss`, `accuracy` (None without integer targets), `loss_barrier`, `accuracy_barrier`.

    Raises:
        MismatchError: The architectures differ.
        DataError: `data` is empty or the model cannot take it.
        NonFiniteError: Weights, activations or the loss are NaN or infinite; the layer is named.
        InputError: `points` or `t` are out of range.

    Source:
        Frankle et al. 2020 (arXiv 1912.05671); Entezari et al. 2022 (arXiv 2110.06296), definition 2.

    Example:
        >>> import torch
        >>> a, b = nn.Linear(2, 2), nn.Linear(2, 2)
        >>> data = [(torch.eye(2), torch.tensor([0, 1]))]
        >>> barrier(a, b, data, points=3).t
        (0.0, 0.5, 1.0)
    """
    positions = _positions(points, t)
    return measure(LinearPath(a, b), data, t=positions, loss=loss, recalibrate=recalibrate, progress=progress)


def measure(
    path: Path,
    data: Iterable[Any],
    *,
    t: Sequence[float],
    loss: Loss | None = None,
    recalibrate: Iterable[Any] | None = None,
    progress: bool | None = None,
) -> Barrier:
    """Measure loss and accuracy at the positions `t` of any path; memory holds one model beside the path's own.

    Args:
        path: A path of modules.
        data: Batches with targets.
        t: Positions in [0, 1]; 0 and 1 are added where they are missing, since barriers are measured against the ends.
        loss: As for `barrier`.
        recalibrate: As for `barrier`.
        progress: As for `barrier`.

    Returns:
        The record.

    Raises:
        DataError: As for `barrier`.
        NonFiniteError: As for `barrier`.
    """
    positions = _positions(2, t)
    shared = recalibrate is data
    data = repeatable(data, len(positions) * (2 if shared else 1))
    if recalibrate is not None:
        recalibrate = data if shared else repeatable(recalibrate, len(positions))
    scratch = path.at(positions[0])
    if recalibrate is None:
        warn_of_stale_statistics(scratch, stacklevel=4)
    losses, accuracies, samples = [], [], 0
    for position in tqdm(
        positions, desc="path", unit="t", leave=False, disable=None if progress is None else not progress
    ):
        path.into(position, scratch)
        if recalibrate is not None:
            reestimate_batchnorm(scratch, recalibrate)
        value, accuracy, samples = evaluate(scratch, data, loss, where=f" at t={position:g}")
        logger.debug("t=%g: loss %g, accuracy %s", position, value, accuracy)
        losses.append(value)
        accuracies.append(accuracy)
    known = [value for value in accuracies if value is not None]
    return Barrier(
        t=positions,
        loss=tuple(losses),
        accuracy=tuple(known) if len(known) == len(losses) else None,
        samples=samples,
        recalibrated=recalibrate is not None,
    )


def warn_of_stale_statistics(model: nn.Module, stacklevel: int = 3) -> None:
    """Warn where `model`, of a path or a plane that is measured without recalibration, has BatchNorm."""
    if has_batchnorm(model):
        warnings.warn(
            "the models have BatchNorm, whose statistics do not fit between the ends: pass recalibrate= with "
            "training batches, or read the numbers as those of weights and stale statistics together",
            PyalignWarning,
            stacklevel=stacklevel,
        )


def evaluate(
    model: nn.Module, data: Iterable[Any], loss: Loss | None = None, *, where: str = ""
) -> tuple[float, float | None, int]:
    """Mean loss, accuracy (None without integer targets) and number of samples of `model`, in evaluation mode.

    Example:
        >>> import torch
        >>> evaluate(nn.Identity(), [(torch.eye(2), torch.tensor([0, 0]))])[1:]
        (0.5, 2)
    """
    total = weight = 0.0
    hits, counted, samples, graded = 0, 0, 0, True
    with evaluating(model):
        for index, batch in enumerate(checked(data)):
            inputs, targets = split(batch)
            size = batch_size(inputs)
            sums = sums_of(respond(model, inputs, index), targets, size, loss, index)
            if not math.isfinite(sums.loss):
                raise nonfinite_error(model, inputs, index, where)
            total, weight, samples = total + sums.loss, weight + sums.weight, samples + size
            graded = graded and sums.hits is not None
            hits, counted = hits + (sums.hits or 0), counted + sums.counted
    if not weight:
        raise DataError(
            "no target of the data counts",
            given=f"{samples} samples, all targets {IGNORED}",
            expected="targets to compare with",
            do="look at how the targets are masked",
        )
    return total / weight, hits / counted if graded and counted else None, samples


def _positions(points: int, t: Sequence[float] | None) -> tuple[float, ...]:
    if t is not None:
        return tuple(sorted({0.0, 1.0, *map(checked_t, t)}))
    if isinstance(points, bool) or not isinstance(points, int) or points < 2:
        raise InputError(
            "points is too small",
            given=f"points={points}",
            expected="an integer of at least 2, the ends",
            do="leave it at 25, or give the positions as t=",
        )
    return tuple(i / (points - 1) for i in range(points))
