"""The record of a measured curve: a barrier with the arc length of every position, and what sums the curve up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

from pyalign.errors import InputError
from pyalign.paths.record import Barrier

__all__ = ["CurveRecord", "Summary"]


class Summary(NamedTuple):
    """One quantity over a curve: its least and greatest value, the mean over t, and the mean over arc length."""

    min: float
    max: float
    mean: float
    arc_mean: float


@dataclass(frozen=True)
class CurveRecord(Barrier):
    r"""Loss and accuracy along a curve.

    The mean over arc length is \(\int L\,d\phi / \int d\phi\) by trapezoids between the measured positions: unlike the
    mean over t it does not depend on how fast the curve is run through.

    Args:
        arc: Length from model A to each position, in the space of all parameters.

    Source:
        Garipov et al. 2018 (arXiv 1802.10026), equation 1.

    Example:
        >>> record = CurveRecord(t=(0.0, 0.5, 1.0), loss=(1.0, 3.0, 1.0), arc=(0.0, 1.0, 4.0))
        >>> record.summary("loss")
        Summary(min=1.0, max=3.0, mean=1.6666666666666667, arc_mean=2.0)
    """

    arc: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.arc) != len(self.t):
            raise InputError(
                "the arc lengths of a curve do not fit its positions",
                given=f"{len(self.arc)} values",
                expected=f"{len(self.t)}, one a position",
                do="use Curve.evaluate",
            )

    @classmethod
    def of(cls, barrier: Barrier, arc: Sequence[float]) -> CurveRecord:
        """The record of a measured path whose arc lengths are known."""
        return cls(barrier.t, barrier.loss, barrier.accuracy, barrier.samples, barrier.recalibrated, tuple(arc))

    @property
    def length(self) -> float:
        """Length of the chords between the measured positions."""
        return self.arc[-1]

    def summary(self, quantity: str = "loss") -> Summary:
        """Minimum, maximum and means of "loss" or "accuracy".

        Raises:
            InputError: The quantity is unknown or was not measured.
        """
        values = {"loss": self.loss, "accuracy": self.accuracy}.get(quantity)
        if values is None:
            raise InputError(
                "this quantity was not measured",
                given=repr(quantity),
                expected="'loss', or 'accuracy' with class labels",
            )
        pieces = [high - low for low, high in pairwise(self.arc)]
        middles = [(low + high) / 2 for low, high in pairwise(values)]
        mean = sum(values) / len(values)
        weighted = sum(p * m for p, m in zip(pieces, middles, strict=True)) / self.length if self.length else mean
        return Summary(min(values), max(values), mean, weighted)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain numbers and lists, barriers and summaries included."""
        known = ["loss"] if self.accuracy is None else ["loss", "accuracy"]
        summaries = {name: self.summary(name)._asdict() for name in known}
        return {**super().to_dict(), "arc": list(self.arc), "length": self.length, "summary": summaries}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> CurveRecord:
        """The record that `to_dict` made.

        Raises:
            InputError: An entry is missing or of the wrong kind.
        """
        arc = content.get("arc")
        if not isinstance(arc, Sequence):
            raise InputError("this is no record of a curve", given=f"arc={arc!r}", do="measure again")
        return cls.of(Barrier.from_dict(content), tuple(map(float, arc)))

    def __str__(self) -> str:
        """A table of positions, with barriers and summaries below it."""
        known = ["loss"] if self.accuracy is None else ["loss", "accuracy"]
        lines = [
            f"{name}: min {s.min:.4f}, max {s.max:.4f}, mean {s.mean:.4f}, mean over arc length {s.arc_mean:.4f}"
            for name, s in ((name, self.summary(name)) for name in known)
        ]
        return "\n".join([super().__str__(), *lines])
