"""Time the contestants of a case in one process, alternated, after every answer was checked."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from benchmarks.record import Case, Contest, Contestant, Result, Timing

SHORTEST = 2e-4
"""Seconds that one sample lasts at least: quicker contestants run several times in it."""
FEWEST = ((0.2, 5), (1.0, 3), (3.0, 1), (math.inf, 0))
"""Fewest rounds, after the first run, of a case whose slowest contestant takes less than so many seconds."""


@dataclass(frozen=True)
class Effort:
    """How long to measure.

    Args:
        seconds: Time for the repetitions of one case.
        repeats: Most samples per contestant.
        longest: Predicted seconds above which a contestant is not run.
        slow: The same for competitors that were not among the two fastest of the family's preceding size.
        far: Competitors slower than this many times the fastest are run once.
        short: Contestants quicker than this run once untimed before each sample: caches and threads are then their own,
            not those of the contestant before.
    """

    seconds: float = 1.0
    repeats: int = 30
    longest: float = 20.0
    slow: float = 1.5
    far: float = 3.0
    short: float = 0.05


@dataclass
class Pace:
    """What each contestant took at the sizes of a family so far, to predict the next size."""

    effort: Effort
    seen: dict[tuple[str, str, str], tuple[int, float]] = field(default_factory=dict)
    leading: dict[tuple[str, str], list[str]] = field(default_factory=dict)

    def too_long(self, case: Case, contestant: Contestant) -> str:
        """Why not to run this contestant, or ""."""
        earlier = self.seen.get((case.operation, case.family, contestant.name))
        if earlier is None:
            return ""
        size, seconds = earlier
        predicted = seconds * max(1.0, case.size / max(size, 1)) ** case.growth
        leading = self.leading.get((case.operation, case.family), [])
        among = contestant.role != "competitor" or contestant.name in leading[:2]
        most = self.effort.longest if among else self.effort.slow
        if predicted <= most:
            return ""
        why = "" if among else ", and others were faster"
        return f"took {seconds:.2g} s at size {size}: about {predicted:.2g} s here{why}"

    def remember(self, case: Case, result: Result) -> None:
        """Note the times of a case."""
        for name, timing in result.timings.items():
            self.seen[case.operation, case.family, name] = (case.size, timing.median)
        if result.names("competitor"):
            self.leading[case.operation, case.family] = result.names("competitor")


def measure(case: Case, pace: Pace) -> Result:
    """Build a case, check every contestant's answer, then time those that are right.

    Raises:
        Skipped: The inputs are not at hand.
    """
    contest = case.build()
    result = Result(case.operation, case.family, case.name, case.size, skipped=dict(contest.missing))
    first = _first_runs(case, contest, pace, result)
    running = [c for c in contest.contestants if c.name in first]
    samples = _alternated(running, first, pace.effort)
    for contestant in running:
        result.timings[contestant.name] = summary(contestant.role, samples[contestant.name])
    pace.remember(case, result)
    result.judge(case.gates)
    return result


def summary(role: str, samples: Sequence[float]) -> Timing:
    """Median and quartiles."""
    if len(samples) == 1:
        return Timing(role, samples[0], samples[0], samples[0], 1)
    low, middle, high = statistics.quantiles(samples, n=4, method="inclusive")
    return Timing(role, middle, low, high, len(samples))


def _first_runs(case: Case, contest: Contest, pace: Pace, result: Result) -> dict[str, float]:
    """Run each once and check its answer; the seconds of those that are right."""
    first = {}
    for contestant in contest.contestants:
        why = pace.too_long(case, contestant)
        if why:
            result.skipped[contestant.name] = why
            continue
        try:
            seconds, answer = _timed(contestant, 1)
            wrong = contest.check(contestant.name, answer)
        except Exception as failure:  # one contestant's, which the others are measured without
            wrong = f"raised {type(failure).__name__}: {failure}"
        if wrong:
            result.wrong[contestant.name] = wrong
            continue
        if contest.figures is not None:
            result.figures[contestant.name] = dict(contest.figures(contestant.name, answer))
        first[contestant.name] = seconds
    return first


def _alternated(running: Sequence[Contestant], first: dict[str, float], effort: Effort) -> dict[str, list[float]]:
    """Samples by name: rounds in which everyone runs once, each round begun by another contestant."""
    samples: dict[str, list[float]] = {c.name: [] for c in running}
    fastest = min((first[c.name] for c in running if c.role == "competitor"), default=math.inf)
    again = [c for c in running if c.role != "competitor" or first[c.name] <= max(effort.far * fastest, 0.05)]
    loops = {c.name: max(1, math.ceil(SHORTEST / max(first[c.name], 1e-7))) for c in again}
    began = time.perf_counter()
    for round_ in range(effort.repeats):
        longest = max((first[c.name] for c in again), default=0.0)
        elapsed = time.perf_counter() - began
        enough = round_ >= next(rounds for seconds, rounds in FEWEST if longest < seconds)
        if enough and elapsed > effort.seconds:
            break
        start = round_ % max(len(again), 1)
        for contestant in (*again[start:], *again[:start]):
            if first[contestant.name] < effort.short:
                _timed(contestant, 1)
            seconds, _ = _timed(contestant, loops[contestant.name])
            samples[contestant.name].append(seconds)
    for name, seconds in first.items():
        # A long first run is as good as any other; a short one has warmed caches and pools for the rest.
        if not samples[name] or (seconds > 1.0 and len(samples[name]) < 3):
            samples[name].append(seconds)
    return samples


def _timed(contestant: Contestant, loops: int) -> tuple[float, Any]:
    """Seconds of one call, and its answer."""
    threads = torch.get_num_threads()
    if contestant.threads is not None:
        torch.set_num_threads(contestant.threads)
    run: Callable[[], Any] = contestant.run
    try:
        began = time.perf_counter()
        for _ in range(loops):
            answer = run()
        return (time.perf_counter() - began) / loops, answer
    finally:
        if contestant.threads is not None:
            torch.set_num_threads(threads)
