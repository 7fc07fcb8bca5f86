"""What a benchmark is made of: cases, the contestants of each, the gates they must pass, and the results."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import geometric_mean
from typing import Any

BEST = "best competitor"


class Skipped(Exception):
    """A case cannot run here; says why."""


@dataclass(frozen=True)
class Contestant:
    """One way to compute the answer of a case.

    Args:
        name: Unique within the case.
        role: "ours", "competitor", or "limit": work that no implementation can avoid.
        run: Computes the answer.
        threads: Number of torch threads, where it is not the run's.
    """

    name: str
    role: str
    run: Callable[[], Any]
    threads: int | None = None


@dataclass(frozen=True)
class Gate:
    """A demanded ratio: the time of `of`, divided by that of `against`, is at most `most`.

    Args:
        of: Name of a contestant.
        against: Name of another, or `BEST`: the fastest correct competitor.
        most: The greatest ratio that passes.
        figure: Compare this figure of merit instead of the time: `against` divided by `of` (greater is better).
    """

    of: str
    against: str
    most: float
    figure: str = ""


@dataclass(frozen=True)
class MeanGate:
    """A demanded geometric mean of the ratios of one contestant over all cases of an operation that gate it."""

    operation: str
    of: str
    against: str
    most: float


@dataclass
class Contest:
    """The inputs of a case, ready to run.

    Args:
        contestants: All that can run here.
        check: Given a contestant's name and answer, says what is wrong with it, or "".
        missing: Why each absent contestant is absent.
        figures: Figures of merit of an answer, such as the value of an objective.
    """

    contestants: Sequence[Contestant]
    check: Callable[[str, Any], str]
    missing: Mapping[str, str] = field(default_factory=dict)
    figures: Callable[[str, Any], Mapping[str, float]] | None = None


@dataclass(frozen=True)
class Case:
    """One operation on one input.

    Args:
        operation: The operation's stem.
        family: The kind of input; times of one family are drawn over `size`.
        name: Unique within the operation.
        size: The length that grows within a family.
        names: The contestants by name, those included that may be missing.
        gates: What is demanded.
        build: Makes the inputs; raises `Skipped` where they are not at hand.
        growth: Time is predicted to grow with this power of the size, which spares runs that would take too long.
    """

    operation: str
    family: str
    name: str
    size: int
    names: tuple[str, ...]
    gates: tuple[Gate, ...]
    build: Callable[[], Contest]
    growth: float = 1.0


@dataclass(frozen=True)
class Timing:
    """Seconds of one contestant: median, quartiles, and how often it ran."""

    role: str
    median: float
    low: float
    high: float
    repeats: int

    @property
    def spread(self) -> float:
        """Interquartile range over median."""
        return (self.high - self.low) / self.median if self.median else 0.0


@dataclass(frozen=True)
class Verdict:
    """What came of one gate; `passed` is None where a side of it did not run."""

    case: str
    of: str
    against: str
    ratio: float | None
    most: float
    figure: str = ""

    @property
    def passed(self) -> bool | None:
        return None if self.ratio is None else self.ratio <= self.most

    def __str__(self) -> str:
        what = f"{self.figure} of " if self.figure else ""
        ratio = "not measured" if self.ratio is None else f"{self.ratio:.3g}"
        return f"{self.case}: {what}{self.of} / {self.against} = {ratio}, at most {self.most:g}"


@dataclass
class Result:
    """What one case gave.

    Args:
        operation: The operation's stem.
        family: The kind of input.
        name: The case.
        size: The length that grows within a family.
        timings: By contestant.
        skipped: Contestants that did not run, and why; the key "" stands for the whole case.
        wrong: Contestants whose answer is wrong, and how.
        figures: Figures of merit by contestant.
        verdicts: One per gate.
    """

    operation: str
    family: str
    name: str
    size: int
    timings: dict[str, Timing] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    wrong: dict[str, str] = field(default_factory=dict)
    figures: dict[str, dict[str, float]] = field(default_factory=dict)
    verdicts: list[Verdict] = field(default_factory=list)

    def names(self, role: str) -> list[str]:
        """The contestants of a role that gave right answers, fastest first."""
        found = [n for n, t in self.timings.items() if t.role == role]
        return sorted(found, key=lambda name: self.timings[name].median)

    def best(self) -> str | None:
        """The fastest competitor."""
        return next(iter(self.names("competitor")), None)

    def ratio(self, of: str, against: str) -> float | None:
        """Median time of one over that of another, None where either is absent."""
        other = self.best() if against == BEST else against
        if other not in self.timings or of not in self.timings:
            return None
        return self.timings[of].median / self.timings[other].median

    def judge(self, gates: Sequence[Gate]) -> None:
        """Compare with the gates."""
        for gate in gates:
            if gate.figure:
                one, two = (self.figures.get(n, {}).get(gate.figure) for n in (gate.of, gate.against))
                ratio = None if one is None or two is None else two / one
            else:
                ratio = self.ratio(gate.of, gate.against)
            case = f"{self.operation}, {self.name}"
            self.verdicts.append(Verdict(case, gate.of, gate.against, ratio, gate.most, gate.figure))


def mean_verdict(gate: MeanGate, results: Sequence[Result]) -> Verdict:
    """The geometric mean over every case of the operation that gates this contestant against the same opponent."""
    ratios = [
        v.ratio
        for r in results
        if r.operation == gate.operation
        for v in r.verdicts
        if (v.of, v.against, v.figure) == (gate.of, gate.against, "") and v.ratio is not None
    ]
    mean = geometric_mean(ratios) if ratios else None
    return Verdict(f"{gate.operation}, geometric mean of {len(ratios)} cases", gate.of, gate.against, mean, gate.most)
