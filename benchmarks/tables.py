"""Results as text: a Markdown report, the short table of README.md, a comparison with an earlier run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from statistics import geometric_mean
from typing import Any

from benchmarks.record import BEST, MeanGate, Result, Timing, Verdict, mean_verdict

__all__ = ["compared", "from_json", "report", "seconds", "short", "to_json", "verdicts"]


def seconds(value: float) -> str:
    """A time with three digits and a unit."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value * 1e6:.3g} µs"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table."""
    return ["| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *rows)]


def verdicts(results: Sequence[Result], means: Sequence[MeanGate]) -> list[Verdict]:
    """Of every gate, those over several cases last."""
    single = [v for r in results for v in r.verdicts]
    return single + [mean_verdict(g, results) for g in means if any(r.operation == g.operation for r in results)]


def to_json(results: Sequence[Result], settings: Mapping[str, Any], means: Sequence[MeanGate]) -> dict[str, Any]:
    """Everything that was measured, in plain containers."""
    judged = [{**asdict(v), "passed": v.passed} for v in verdicts(results, means)]
    return {"settings": dict(settings), "results": [asdict(r) for r in results], "verdicts": judged}


def from_json(content: Mapping[str, Any]) -> list[Result]:
    """The results of `to_json`."""
    made = []
    for entry in content["results"]:
        timings = {name: Timing(**t) for name, t in entry["timings"].items()}
        judged = [Verdict(**v) for v in entry["verdicts"]]
        made.append(Result(**{**entry, "timings": timings, "verdicts": judged}))
    return made


def _cells(result: Result) -> Iterable[Sequence[str]]:
    best = result.best()
    limit = next(iter(result.names("limit")), None)
    for name in (*result.names("ours"), *result.names("competitor"), *result.names("limit")):
        timing = result.timings[name]
        to_best = "" if best is None else f"{timing.median / result.timings[best].median:.2f}"
        to_limit = "" if limit is None else f"{timing.median / result.timings[limit].median:.2f}"
        yield name, seconds(timing.median), f"{timing.spread:.0%}", str(timing.repeats), to_best, to_limit


def report(results: Sequence[Result], settings: Mapping[str, Any], means: Sequence[MeanGate]) -> str:
    """The whole report: what it ran on, every gate, and every contestant of every case."""
    lines = ["# Speed of the engine's operations", ""]
    lines += [", ".join(f"{key} {value}" for key, value in settings.items()) + ".", ""]
    lines += ["Median of alternated repetitions in one process; spread: interquartile range over median.", ""]
    lines += ["## Gates", ""]
    words = {True: "reached", False: "**missed**", None: "not measured"}
    judged = verdicts(results, means)
    rows = [
        (v.case, _sides(v), "" if v.ratio is None else f"{v.ratio:.3f}", f"{v.most:.3g}", words[v.passed])
        for v in judged
    ]
    lines += table(("case", "ratio of", "measured", "at most", ""), rows)
    for operation in dict.fromkeys(r.operation for r in results):
        lines += ["", f"## {operation}"]
        for result in (r for r in results if r.operation == operation):
            lines += ["", f"### {result.name}", ""]
            if result.timings:
                lines += table(
                    ("contestant", "median", "spread", "repeats", "to best competitor", "to limit"), _cells(result)
                )
            left = [f"- {name + ': ' if name else ''}{why}" for name, why in result.skipped.items()]
            left += [f"- {name}: WRONG, {why}" for name, why in result.wrong.items()]
            left += [
                f"- {n}: {', '.join(f'{k} {v:.9g}' for k, v in f.items())}" for n, f in result.figures.items() if f
            ]
            lines += ["", *left] if left else []
    return "\n".join(lines) + "\n"


def _sides(verdict: Verdict) -> str:
    return f"{verdict.figure + ' of ' if verdict.figure else ''}{verdict.of} / {verdict.against}"


def short(results: Sequence[Result]) -> str:
    """The table of README.md: assignment by family, every other case by itself."""
    lines = table(
        ("linear assignment", "sizes", "time / best public solver: mean", "best", "worst"), _families(results)
    )
    head = ("operation", "in torch", "pyalign", "limit", "times as fast", "time / limit")
    other = [r for r in results if r.operation != "linear_assignment" and r.best() and r.names("ours")]
    rows = []
    for r in other:
        one, best = next(n for n, t in r.timings.items() if t.role == "ours"), r.best()
        limit = next(iter(r.names("limit")), None)
        times = [r.timings[n].median if n else None for n in (best, one, limit)]
        fast = f"{times[0] / times[1]:.1f}"  # type: ignore[operator]
        of_limit = "" if limit is None else f"{times[1] / times[2]:.2f}"  # type: ignore[operator]
        what = f"{r.operation.replace('_', ' ')}, {r.name}"
        rows.append((what, *("" if t is None else seconds(t) for t in times), fast, of_limit))
    return "\n".join([*lines, "", *table(head, rows)]) + "\n"


def _families(results: Sequence[Result]) -> Iterable[Sequence[str]]:
    for family in dict.fromkeys(r.family for r in results if r.operation == "linear_assignment"):
        mine = [r for r in results if r.operation == "linear_assignment" and r.family == family]
        first = next((v.of for r in mine for v in r.verdicts if v.against == BEST), None)
        pairs = [(r.size, r.ratio(first, BEST)) for r in mine] if first else []
        ratios = {size: ratio for size, ratio in pairs if ratio is not None}
        if not ratios:
            continue
        sizes = f"{min(ratios)} to {max(ratios)}" if len(ratios) > 1 else str(*ratios)
        values = [ratio for _, ratio in pairs if ratio is not None]
        yield family, sizes, *(f"{x:.2f}" for x in (geometric_mean(values), min(values), max(values)))


def compared(new: Sequence[Result], base: Sequence[Result]) -> tuple[list[str], list[float]]:
    """How every contestant of ours changed since an earlier run, and the ratios new / old.

    Each ratio is divided by the geometric mean of the same ratio over the competitors and limits measured in both
    runs, so that the state of the machine cancels.
    """
    earlier = {(r.operation, r.name): r for r in base}
    rows, ratios = [], []
    for result in new:
        old = earlier.get((result.operation, result.name))
        if old is None:
            continue
        steady = [n for n in old.timings if old.timings[n].role != "ours" and n in result.timings]
        drift = [result.timings[n].median / old.timings[n].median for n in steady]
        machine = geometric_mean(drift) if drift else 1.0
        for name in (n for n in result.timings if result.timings[n].role == "ours" and n in old.timings):
            before, after = old.timings[name].median, result.timings[name].median
            ratios.append(after / before / machine)
            change = f"{machine:.2f}" if drift else "unknown"
            cells = (result.operation, result.name, name, seconds(before), seconds(after), change, f"{ratios[-1]:.2f}")
            rows.append(cells)
    head = ("operation", "case", "contestant", "before", "now", "machine", "now / before, machine cancelled")
    return table(head, rows), ratios
