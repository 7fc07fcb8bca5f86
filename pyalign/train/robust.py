"""Clean and robust loss and accuracy along a path: the robust loss barrier (Tatro et al. 2020, section 6)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from tqdm.auto import tqdm

from pyalign.errors import InputError
from pyalign.paths import Barrier, Path
from pyalign.paths.measure import evaluate, warn_of_stale_statistics
from pyalign.paths.path import checked_t
from pyalign.paths.point import Attack
from pyalign.paths.randomness import forked
from pyalign.statistics.batches import checked, repeatable, split
from pyalign.statistics.batchnorm import has_batchnorm, reestimate_batchnorm
from pyalign.statistics.forward import evaluating

__all__ = ["RobustRecord", "attacked", "robust_measure"]


@dataclass(frozen=True)
class RobustRecord:
    """Clean and attacked inputs along one path.

    Args:
        clean: Loss and accuracy on the inputs themselves.
        robust: On attacked inputs; its `loss_barrier` is the robust loss barrier.

    Example:
        >>> line = Barrier(t=(0.0, 0.5, 1.0), loss=(1.0, 2.0, 1.0))
        >>> RobustRecord(line, line).robust.loss_barrier
        1.0
    """

    clean: Barrier
    robust: Barrier

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain numbers and lists."""
        return {"clean": self.clean.to_dict(), "robust": self.robust.to_dict()}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> RobustRecord:
        """The record that `to_dict` made.

        Raises:
            InputError: An entry is missing or of the wrong kind.
        """
        if not {"clean", "robust"} <= set(content):
            raise InputError("this is no robust record", given=str(sorted(content)), expected="clean and robust")
        return cls(Barrier.from_dict(content["clean"]), Barrier.from_dict(content["robust"]))


def attacked(model: nn.Module, data: Iterable[Any], attack: Attack) -> Iterator[tuple[Any, Any]]:
    """The batches of `data` with inputs attacked against `model` in evaluation mode, one at a time.

    Args:
        model: The model.
        data: Batches with targets.
        attack: Such as `PGD()`.

    Yields:
        Pairs of attacked inputs and targets.

    Example:
        >>> import torch
        >>> from pyalign.train import PGD
        >>> batches = [(torch.zeros(3, 2), torch.zeros(3).long())]
        >>> [x.shape for x, _ in attacked(nn.Linear(2, 2), batches, PGD())]
        [torch.Size([3, 2])]
    """
    for batch in checked(data):
        inputs, targets = split(batch)
        with evaluating(model):
            moved = attack(model, inputs, targets)
        yield moved, targets


def robust_measure(
    path: Path,
    data: Iterable[Any],
    attack: Attack,
    *,
    points: int = 25,
    t: Sequence[float] | None = None,
    loss: Callable[[Any, Any], Any] | None = None,
    recalibrate: Iterable[Any] | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> RobustRecord:
    """Measure clean and robust loss and accuracy along a path, against attacks on the very model at each t.

    BatchNorm statistics are re-estimated on the clean batches of `recalibrate` for the clean numbers. For the robust
    numbers they are re-estimated once more, on the same batches attacked against the clean model.

    Args:
        path: A path of modules that take what the attack changes (pixels: see `Normalised`).
        data: Batches with targets, read twice per position.
        attack: Such as `PGD()`.
        points: Number of equidistant positions, ends included.
        t: Positions instead of `points`; 0 and 1 are added where they are missing.
        loss: As for `pyalign.barrier`.
        recalibrate: Batches with targets for BatchNorm statistics.
        seed: Of the attacks' random starts: the same at every position.
        progress: Show a progress bar; None: on a terminal.

    Returns:
        Two barriers.

    Raises:
        InputError: A position outside the path.
        DataError: As for `pyalign.barrier`; inputs that cannot be attacked.
        NonFiniteError: As for `pyalign.barrier`.

    Source:
        Tatro et al. 2020 (arXiv 2009.02439), section 6.
    """
    if t is None and (isinstance(points, bool) or not isinstance(points, int) or points < 2):
        raise InputError("points is too small", given=f"points={points}", expected="an integer of at least 2")
    given = [i / (points - 1) for i in range(points)] if t is None else t
    positions = tuple(sorted({0.0, 1.0, *map(checked_t, given)}))
    shared = recalibrate is data
    data = repeatable(data, 2 * len(positions))
    recalibrate = data if shared else None if recalibrate is None else repeatable(recalibrate, 2 * len(positions))
    model, victim = path.at(positions[0]), path.at(positions[0])
    if recalibrate is None:
        warn_of_stale_statistics(model)
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.is_cuda})
    hidden = None if progress is None else not progress
    found: dict[str, list[tuple[float, float | None, int]]] = {"clean": [], "robust": []}
    for position in tqdm(positions, desc="robust path", unit="t", leave=False, disable=hidden):
        path.into(position, model)
        if recalibrate is not None:
            reestimate_batchnorm(model, recalibrate)
        found["clean"].append(evaluate(model, data, loss, where=f" at t={position:g}"))
        with forked(seed, devices):
            if recalibrate is not None and has_batchnorm(model):
                victim.load_state_dict(model.state_dict())
                reestimate_batchnorm(model, attacked(victim, recalibrate, attack))
            robust = evaluate(model, attacked(model, data, attack), loss, where=f" under attack at t={position:g}")
        found["robust"].append(robust)
    return RobustRecord(*(_barrier(positions, found[name], recalibrate is not None) for name in ("clean", "robust")))


def _barrier(
    positions: tuple[float, ...], values: list[tuple[float, float | None, int]], recalibrated: bool
) -> Barrier:
    accuracies = [accuracy for _, accuracy, _ in values if accuracy is not None]
    graded = tuple(accuracies) if len(accuracies) == len(values) else None
    return Barrier(positions, tuple(loss for loss, _, _ in values), graded, values[0][2], recalibrated)
