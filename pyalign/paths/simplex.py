"""Loss and accuracy over the simplex that several models span, and the barrier of that simplex (Theus et al. 2025)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from tqdm.auto import tqdm

from pyalign._atomic import json_text
from pyalign.errors import InputError
from pyalign.paths.blend import Blend
from pyalign.paths.measure import evaluate
from pyalign.statistics.batches import repeatable
from pyalign.statistics.batchnorm import reestimate_batchnorm
from pyalign.symmetry.calls import state_of
from pyalign.symmetry.copies import copy_of

__all__ = ["SimplexBarrier", "simplex_barrier"]


@dataclass(frozen=True)
class SimplexBarrier:
    """Losses and accuracies of weighted means of models, and how far they leave those of the models.

    Args:
        weights: The weights of the models at each point, each summing to one.
        loss: Mean loss at each point.
        accuracy: Share of right answers at each point; None without integer targets.

    Example:
        >>> record = SimplexBarrier(((1.0, 0.0), (0.5, 0.5), (0.0, 1.0)), (1.0, 2.5, 2.0))
        >>> record.loss_barrier, record.highest
        (1.0, (0.5, 0.5))
    """

    weights: tuple[tuple[float, ...], ...]
    loss: tuple[float, ...]
    accuracy: tuple[float, ...] | None = None

    @property
    def loss_barrier(self) -> float:
        """The largest loss of a mean above the same mean of the models' losses; below zero where all are better."""
        return max(self._heights(self.loss).values())

    @property
    def accuracy_barrier(self) -> float | None:
        """The largest mean of the models' accuracies above the accuracy of their mean; None without accuracy."""
        return None if self.accuracy is None else max(self._heights([-a for a in self.accuracy]).values())

    @property
    def highest(self) -> tuple[float, ...]:
        """The weights at the loss barrier."""
        heights = self._heights(self.loss)
        return max(heights, key=heights.__getitem__)

    def _heights(self, values: Sequence[float]) -> dict[tuple[float, ...], float]:
        alone = {w.index(1.0): v for w, v in zip(self.weights, values, strict=True) if 1.0 in w}
        return {
            w: value - sum(share * alone[k] for k, share in enumerate(w))
            for w, value in zip(self.weights, values, strict=True)
            if 1.0 not in w
        }

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain numbers and lists, the barriers included."""
        return {
            "weights": [list(w) for w in self.weights],
            "loss": list(self.loss),
            "accuracy": None if self.accuracy is None else list(self.accuracy),
            "loss_barrier": self.loss_barrier,
            "accuracy_barrier": self.accuracy_barrier,
            "highest": list(self.highest),
        }

    def to_json(self, path: str | os.PathLike[str] | None = None) -> str:
        """The record as JSON text, also written to `path` where one is given."""
        return json_text(self.to_dict(), path)


def simplex_barrier(
    models: Sequence[nn.Module],
    data: Iterable[Any],
    *,
    resolution: int = 4,
    loss: Callable[[Any, Any], Any] | None = None,
    recalibrate: Iterable[Any] | None = None,
    progress: bool | None = None,
) -> SimplexBarrier:
    r"""Measure weighted means of several models on a grid over their simplex.

    \(\max_w [L(\sum_m w_m \theta_m) - \sum_m w_m L(\theta_m)]\) is the loss barrier, over all weights that are
    multiples of 1 / `resolution`, sum to one and are no model alone. For two models it is that of the line.

    Args:
        models: Two or more models in one frame (see `pyalign.matching.universe`); they stay as they are.
        data: Batches with targets, read once for each point of the grid.
        resolution: Steps of the grid along an edge: (resolution + k - 1 choose k - 1) points for k models.
        loss: As for `pyalign.barrier`.
        recalibrate: As for `pyalign.barrier`.
        progress: Show a progress bar; None: on a terminal.

    Returns:
        The record.

    Raises:
        MismatchError: The architectures differ.
        DataError: `data` is empty or the models cannot take it.
        NonFiniteError: Weights, activations or the loss are NaN or infinite.
        InputError: Fewer than two models, or a grid without a point between them.

    Source:
        Theus et al. 2025 (arXiv 2506.22712), section 5.4.

    Example:
        >>> import torch
        >>> models = [nn.Linear(2, 2) for _ in range(3)]
        >>> len(simplex_barrier(models, [(torch.eye(2), torch.tensor([0, 1]))], resolution=3).weights)
        10
    """
    if len(models) < 2 or isinstance(resolution, bool) or not isinstance(resolution, int) or resolution < 2:
        raise InputError(
            "no simplex to measure",
            given=f"{len(models)} models, resolution={resolution!r}",
            expected="2 or more models and a resolution of at least 2",
        )
    points = list(_grid(len(models), resolution))
    data = repeatable(data, len(points))
    if recalibrate is not None:
        recalibrate = repeatable(recalibrate, len(points))
    blend = Blend([state_of(model) for model in models], [f"model {k}" for k in range(len(models))])
    blend.check()
    scratch = copy_of(models[0])
    losses, accuracies = [], []
    hidden = None if progress is None else not progress
    for weights in tqdm(points, desc="simplex", unit="point", leave=False, disable=hidden):
        blend.into(weights, scratch)
        if recalibrate is not None:
            reestimate_batchnorm(scratch, recalibrate)
        value, accuracy, _ = evaluate(scratch, data, loss, where=f" at weights {weights}")
        losses.append(value)
        accuracies.append(accuracy)
    known = tuple(a for a in accuracies if a is not None)
    return SimplexBarrier(tuple(points), tuple(losses), known if len(known) == len(losses) else None)


def _grid(models: int, steps: int) -> Iterator[tuple[float, ...]]:
    """All weights that are multiples of 1 / steps and sum to one."""

    def parts(left: int, count: int) -> Iterator[tuple[int, ...]]:
        if count == 1:
            yield (left,)
            return
        for first in range(left, -1, -1):
            yield from ((first, *rest) for rest in parts(left - first, count - 1))

    for split in parts(steps, models):
        yield tuple(part / steps for part in split)
