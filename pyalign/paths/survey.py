"""Measuring a plane: every grid point and the three anchors, with BatchNorm re-estimated, point by point resumable."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path as FilePath
from typing import Any

from torch import nn
from tqdm.auto import tqdm

from pyalign._atomic import replacing
from pyalign.errors import CheckpointError, InputError, NonFiniteError
from pyalign.paths.measure import evaluate, warn_of_stale_statistics
from pyalign.paths.path import Path
from pyalign.paths.plane_record import PlaneRecord
from pyalign.paths.planes import Plane, grid
from pyalign.paths.point import called, digest
from pyalign.statistics.batches import repeatable
from pyalign.statistics.batchnorm import reestimate_batchnorm
from pyalign.symmetry.calls import state_of

__all__ = ["plane"]

FORMAT = "pyalign-plane-1"
ALONG = tuple(i / 60 for i in range(61))
Measured = tuple[float, float | None, int]


def plane(
    a: nn.Module,
    b: nn.Module,
    c: nn.Module,
    data: Iterable[Any],
    *,
    resolution: int = 21,
    margin: float = 0.2,
    curves: Mapping[str, Path] | None = None,
    loss: Callable[[Any, Any], Any] | None = None,
    recalibrate: Iterable[Any] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool | None = None,
) -> PlaneRecord:
    """Measure loss and accuracy on the plane through three models.

    Args:
        a: The model at the origin.
        b: The model to its right.
        c: The third model, above the line through the two: `curve.at(0.5)` shows the whole of a curve with one bend.
        data: Batches with targets, read once per point.
        resolution: Number of rows and of columns of the grid.
        margin: How far the grid reaches beyond the models, as a share of their extent.
        curves: Paths to draw into the plane, by name: each is projected to it at 61 positions.
        loss: `loss(output, targets)`, the mean over a batch; None as for `pyalign.barrier`.
        recalibrate: Batches on which BatchNorm statistics are re-estimated at every point, the anchors too.
        checkpoint: A `.json` file that is written after every point; where it exists, the measurement goes on from it.
        progress: Show a progress bar; None: on a terminal.

    Returns:
        The record; `pyalign.report.plane_figure` draws it.

    Raises:
        InputError: The models lie on one line, or resolution or margin are out of range.
        MismatchError: The architectures differ; the tensors are named.
        DataError: As for `pyalign.barrier`.
        CheckpointError: The checkpoint is damaged or belongs to another plane.

    Source:
        Garipov et al. 2018 (arXiv 1802.10026), section 3.1; Tatro et al. 2020 (arXiv 2009.02439), figure 2.

    Example:
        >>> import torch
        >>> models = [nn.Linear(2, 2) for _ in range(3)]
        >>> record = plane(*models, [(torch.eye(2), torch.tensor([0, 1]))], resolution=3)
        >>> len(record.loss), len(record.loss[0]), record.anchors[0]
        (3, 3, (0.0, 0.0))
    """
    whole = isinstance(resolution, int) and not isinstance(resolution, bool)
    if not (whole and resolution >= 2 and 0.0 <= margin < math.inf):
        raise InputError(
            "no grid can be laid",
            given=f"resolution={resolution!r}, margin={margin!r}",
            expected="a resolution of 2 or more, a finite margin of 0 or more",
        )
    ground = Plane(a, b, c)
    x, y = grid(ground.anchors, resolution, margin)
    places = [*ground.anchors, *((column, row) for row in y for column in x)]
    shared = recalibrate is data
    data = repeatable(data, len(places) * (2 if shared else 1))
    recalibrate = data if shared else None if recalibrate is None else repeatable(recalibrate, len(places))
    if recalibrate is None:
        warn_of_stale_statistics(a)
    measured = {"loss": called(loss), "recalibrated": recalibrate is not None}
    anchors = [digest(list(state_of(model).values())) for model in (a, b, c)]
    found = _Found(checkpoint, {"anchors": anchors, "x": x, "y": y, **measured})
    model = ground.at(*places[0])
    hidden = None if progress is None else not progress
    with tqdm(total=len(places), desc="plane", unit="point", initial=len(found.values), disable=hidden) as bar:
        for place in places[len(found.values) :]:
            ground.into(*place, model)
            found.add(_measured(model, data, loss, recalibrate, place))
            bar.update()
    drawn = {name: tuple(ground.coordinates(path.state(t)) for t in ALONG) for name, path in (curves or {}).items()}
    return _record(found.values, ground, (x, y), drawn, recalibrate is not None)


def _measured(
    model: nn.Module, data: Iterable[Any], loss: Callable[[Any, Any], Any] | None,
    recalibrate: Iterable[Any] | None, place: tuple[float, float],
) -> Measured:  # fmt: skip
    try:
        if recalibrate is not None:
            reestimate_batchnorm(model, recalibrate)
        return evaluate(model, data, loss, where=f" at x={place[0]:g}, y={place[1]:g}")
    except NonFiniteError:  # far from the anchors a network may overflow: that is what the plane shows there
        return math.inf, None, 0


class _Found:
    """The values so far, kept in a file where one is given."""

    def __init__(self, path: str | os.PathLike[str] | None, identity: Mapping[str, Any]) -> None:
        self.path = None if path is None else FilePath(path)
        self.identity = json.loads(json.dumps(identity))
        self.values: list[Measured] = []
        if self.path is None or not self.path.exists():
            return
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
            kind, theirs = content["format"], content["identity"]
            self.values = [(math.inf if v[0] is None else float(v[0]), v[1], int(v[2])) for v in content["values"]]
        except (ValueError, KeyError, TypeError, IndexError) as failure:
            raise CheckpointError(
                f"{path} cannot be read as the checkpoint of a plane ({type(failure).__name__}: {failure})",
                do="delete it, or name another file",
            ) from failure
        if kind != FORMAT or theirs != self.identity:
            raise CheckpointError(
                f"{path} is the checkpoint of another plane",
                expected="the models, resolution, margin, loss and recalibration of the run that wrote it",
                do="repeat them, or name another file",
            )

    def add(self, value: Measured) -> None:
        self.values.append(value)
        if self.path is not None:
            plain = [[v[0] if math.isfinite(v[0]) else None, *v[1:]] for v in self.values]
            with replacing(self.path) as temporary:
                temporary.write_text(json.dumps({"format": FORMAT, "identity": self.identity, "values": plain}))


def _record(
    values: list[Measured], ground: Plane, axes: tuple[tuple[float, ...], tuple[float, ...]],
    curves: dict[str, tuple[tuple[float, float], ...]], recalibrated: bool,
) -> PlaneRecord:  # fmt: skip
    graded = all(accuracy is not None or math.isinf(loss) for loss, accuracy, _ in values)
    graded = graded and any(accuracy is not None for _, accuracy, _ in values)
    losses = tuple(loss for loss, _, _ in values)
    accuracies = tuple(0.0 if accuracy is None else accuracy for _, accuracy, _ in values)
    width = len(axes[0])

    def rows(series: tuple[float, ...]) -> tuple[tuple[float, ...], ...]:
        return tuple(series[3 + start : 3 + start + width] for start in range(0, width * len(axes[1]), width))

    return PlaneRecord(
        *axes,
        rows(losses),
        rows(accuracies) if graded else None,
        ground.anchors,
        losses[:3],
        accuracies[:3] if graded else None,
        curves,
        max(samples for _, _, samples in values),
        recalibrated,
    )
