"""The record of a measured plane: losses and accuracies on a grid and at the anchors, and curves drawn into it."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pyalign._atomic import json_text
from pyalign.errors import InputError

__all__ = ["PlaneRecord"]

Points = tuple[tuple[float, float], ...]
Rows = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class PlaneRecord:
    """Loss and accuracy on a plane of models.

    Args:
        x: Coordinates of the columns, distances in weight space.
        y: Coordinates of the rows.
        loss: `loss[row][column]`; infinite where the network overflows.
        accuracy: The same for accuracy; None without integer targets.
        anchors: Coordinates of the three models.
        anchor_loss: Loss of each of the three.
        anchor_accuracy: Accuracy of each, or None.
        curves: Points of curves in the plane, by name.
        samples: Number of samples that were measured.
        recalibrated: Whether BatchNorm was re-estimated at every point.
    """

    x: tuple[float, ...]
    y: tuple[float, ...]
    loss: Rows
    accuracy: Rows | None
    anchors: Points
    anchor_loss: tuple[float, ...]
    anchor_accuracy: tuple[float, ...] | None
    curves: dict[str, Points] = field(default_factory=dict)
    samples: int = 0
    recalibrated: bool = False

    def __post_init__(self) -> None:
        for rows in (self.loss, self.accuracy):
            if rows is not None and (len(rows) != len(self.y) or any(len(row) != len(self.x) for row in rows)):
                raise InputError(
                    "the values of a plane do not fit its grid",
                    given=f"{len(rows)} rows of {sorted({len(row) for row in rows})} values",
                    expected=f"{len(self.y)} rows of {len(self.x)}",
                )

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain numbers and lists; an infinite loss is None."""

        def plain(value: Any) -> Any:
            if isinstance(value, tuple):
                return [plain(child) for child in value]
            return None if isinstance(value, float) and not math.isfinite(value) else value

        content = {name: plain(getattr(self, name)) for name in self.__dataclass_fields__ if name != "curves"}
        return {**content, "curves": {name: plain(points) for name, points in self.curves.items()}}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> PlaneRecord:
        """The record that `to_dict` made.

        Raises:
            InputError: An entry is missing or of the wrong kind.
        """

        def frozen(value: Any) -> Any:
            if isinstance(value, (list, tuple)):
                return tuple(frozen(child) for child in value)
            return math.inf if value is None else value

        try:
            given = {name: content[name] for name in cls.__dataclass_fields__}
            curves = {name: frozen(points) for name, points in given.pop("curves").items()}
            optional = {n: None if given[n] is None else frozen(given[n]) for n in ("accuracy", "anchor_accuracy")}
            return cls(**{**{n: frozen(v) for n, v in given.items()}, **optional, "curves": curves})
        except (KeyError, TypeError, AttributeError) as failure:
            raise InputError(
                f"this is no record of a plane ({type(failure).__name__}: {failure})",
                expected="the content that PlaneRecord.to_dict gives",
                do="measure again",
            ) from failure

    def to_json(self, path: str | os.PathLike[str] | None = None) -> str:
        """The record as JSON text, also written to `path` where one is given."""
        return json_text(self.to_dict(), path, indent=1)
