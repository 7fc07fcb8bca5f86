"""The record of a measured path: losses and accuracies by position, barriers, and how it is shown and stored."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

from pyalign._atomic import json_text, replacing
from pyalign.errors import InputError

__all__ = ["Barrier"]

BASELINES = ("linear", "mean", "midpoint")


@dataclass(frozen=True)
class Barrier:
    """Loss and accuracy along a path, and how far they leave the line between the ends.

    Args:
        t: Positions, ascending from 0 to 1; t multiplies B.
        loss: Mean loss at each position.
        accuracy: Share of right answers at each position; None without integer targets.
        samples: Number of samples that were measured.
        recalibrated: Whether BatchNorm was re-estimated at every position.

    Example:
        >>> record = Barrier(t=(0.0, 0.5, 1.0), loss=(1.0, 2.5, 2.0))
        >>> record.loss_barrier, record.loss_height("mean")
        (1.0, 1.0)
    """

    t: tuple[float, ...]
    loss: tuple[float, ...]
    accuracy: tuple[float, ...] | None = None
    samples: int = 0
    recalibrated: bool = False

    def __post_init__(self) -> None:
        series = [self.loss] + ([] if self.accuracy is None else [self.accuracy])
        ascending = all(low < high for low, high in zip(self.t, self.t[1:], strict=False))
        if len(self.t) < 2 or self.t[0] != 0.0 or self.t[-1] != 1.0 or not ascending:
            raise InputError(
                "the positions of a barrier are wrong",
                given=f"t={self.t}",
                expected="ascending from 0 to 1",
                do="measure both ends",
            )
        if any(len(values) != len(self.t) for values in series):
            raise InputError(
                "a barrier's series differ in length",
                given=f"{[len(s) for s in series]} values",
                expected=f"{len(self.t)}, one a position",
                do="give loss and accuracy for every t",
            )

    @property
    def loss_barrier(self) -> float:
        """The highest L(t) - ((1 - t) L(0) + t L(1)) between the ends, below zero on a path better than its ends."""
        return self.loss_height()

    @property
    def accuracy_barrier(self) -> float | None:
        """The highest (1 - t) acc(0) + t acc(1) - acc(t) between the ends; None without accuracy."""
        return self.accuracy_height()

    def loss_height(self, baseline: str = "linear") -> float:
        """The loss barrier by another definition.

        Args:
            baseline: "linear" (Frankle et al.), "mean" of the ends (Ainsworth et al.), "midpoint" (t = 0.5 alone).

        Returns:
            The barrier; never clipped.
        """
        return self._height(self.loss, baseline)

    def accuracy_height(self, baseline: str = "linear") -> float | None:
        """The accuracy barrier by another definition, see `loss_height`; None without accuracy."""
        return None if self.accuracy is None else self._height([-value for value in self.accuracy], baseline)

    def _height(self, values: Sequence[float], baseline: str) -> float:
        first, last = values[0], values[-1]
        if baseline == "linear":
            # the ends give exactly zero: with them in the maximum, no barrier could fall below it
            inner = list(zip(self.t, values, strict=True))[1:-1] or [(0.0, first)]
            return max(value - ((1.0 - t) * first + t * last) for t, value in inner)
        if baseline == "mean":
            return max(values) - (first + last) / 2
        if baseline == "midpoint" and 0.5 in self.t:
            return values[self.t.index(0.5)] - (first + last) / 2
        raise InputError(
            "the baseline of a barrier is unknown or was not measured",
            given=repr(baseline),
            expected=f"one of {BASELINES}; midpoint needs t = 0.5",
            do="use the default",
        )

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain numbers and lists, the barriers included."""
        return {
            "t": list(self.t),
            "loss": list(self.loss),
            "accuracy": None if self.accuracy is None else list(self.accuracy),
            "loss_barrier": self.loss_barrier,
            "accuracy_barrier": self.accuracy_barrier,
            "samples": self.samples,
            "recalibrated": self.recalibrated,
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Barrier:
        """The record that `to_dict` made.

        Raises:
            InputError: An entry is missing or of the wrong kind.
        """
        try:
            accuracy = content.get("accuracy")
            return cls(
                t=tuple(map(float, content["t"])),
                loss=tuple(map(float, content["loss"])),
                accuracy=None if accuracy is None else tuple(map(float, accuracy)),
                samples=int(content.get("samples", 0)),
                recalibrated=bool(content.get("recalibrated", False)),
            )
        except (KeyError, TypeError, AttributeError) as failure:
            raise InputError(
                f"this is no barrier record ({type(failure).__name__}: {failure})",
                expected="the content that Barrier.to_dict gives",
                do="measure again",
            ) from failure

    def to_json(self, path: str | os.PathLike[str] | None = None) -> str:
        """The record as JSON text, also written to `path` where one is given."""
        return json_text(self.to_dict(), path)

    def plot(self, target: Any = None, *, label: str | None = None) -> Any:
        """Draw loss, and accuracy on a second scale, over t.

        Args:
            target: A file to write (its suffix decides the format), matplotlib axes to draw on, or None.
            label: Name of the curve.

        Returns:
            The axes of the loss.

        Raises:
            InputError: matplotlib is not installed.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError as failure:
            raise InputError(
                "plotting needs the package matplotlib", do="pip install 'pyalign-nn[report]'"
            ) from failure
        written = isinstance(target, (str, os.PathLike))
        axes: Any = Figure(figsize=(5, 3.5), layout="constrained").subplots() if target is None or written else target
        axes.plot(self.t, self.loss, marker="o", markersize=3, label=label or "loss")
        axes.plot((0, 1), (self.loss[0], self.loss[-1]), color="0.6", linewidth=1, linestyle=":")
        axes.set(xlabel="t (0: model A, 1: model B)", ylabel="loss")
        if self.accuracy is not None:
            second = axes.twinx()
            second.plot(self.t, self.accuracy, linestyle="--", color="tab:green", label="accuracy")
            second.set(ylabel="accuracy (dashed)", ylim=(0, 1))
        if label:
            axes.legend()
        if written:
            with replacing(target) as temporary:
                axes.figure.savefig(temporary, format=FilePath(target).suffix.lstrip(".") or "png")
        return axes

    def __str__(self) -> str:
        """A table of positions, with the barriers below it."""
        accuracies: Sequence[float | None] = self.accuracy or [None] * len(self.t)
        rows = [
            f"{t:5.3f}  {loss:10.4f}" + ("" if acc is None else f"  {acc:8.4f}")
            for t, loss, acc in zip(self.t, self.loss, accuracies, strict=True)
        ]
        head = "    t        loss" + ("" if self.accuracy is None else "  accuracy")
        foot = f"loss barrier {self.loss_barrier:.4f}"
        if self.accuracy_barrier is not None:
            foot += f", accuracy barrier {self.accuracy_barrier:.4f}"
        return "\n".join([head, *rows, foot])
