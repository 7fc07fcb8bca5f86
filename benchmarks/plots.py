"""Plots of a run: times over the size for linear assignment, bars against the limit for the other operations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.record import Result

__all__ = ["draw"]

OURS, THEIRS, LIMIT = "#0072b2", "#d55e00", "#999999"


def draw(results: Sequence[Result], operation: str, path: Path) -> None:
    """Draw one operation's results into a PNG file."""
    import matplotlib

    matplotlib.use("Agg")
    mine = [r for r in results if r.operation == operation and r.timings]
    (_curves if operation == "linear_assignment" else _bars)(mine, path)


def _curves(results: Sequence[Result], path: Path) -> None:
    """One panel per family: our time, every competitor's, and one read of the matrix, over the size."""
    from matplotlib import pyplot

    families = [
        f for f in dict.fromkeys(r.family for r in results) if len({r.size for r in results if r.family == f}) > 1
    ]
    families = [f for f in families if any(r.best() for r in results if r.family == f)] or families[:1]
    columns = min(4, len(families)) or 1
    rows = -(-len(families) // columns) or 1
    figure, axes = pyplot.subplots(
        rows, columns, figsize=(3.6 * columns, 3.2 * rows), squeeze=False, layout="constrained"
    )
    for axis, family in zip(axes.flat, families, strict=False):
        mine = sorted((r for r in results if r.family == family), key=lambda r: r.size)
        for name, role in _contestants(mine):
            points = [(r.size, r.timings[name].median) for r in mine if name in r.timings]
            colour = {"ours": OURS, "limit": LIMIT}.get(role, THEIRS)
            wide = 2.0 if role == "ours" else 0.8
            dash = ":" if role == "limit" else "-" if name == _first(mine, role) else "--"
            label = name if role != "competitor" else "public solvers" if name == _first(mine, role) else None
            axis.loglog(*zip(*points, strict=True), color=colour, linewidth=wide, linestyle=dash, label=label, base=2)
        axis.set_yscale("log", base=10)
        axis.set(title=family, xlabel="n", ylabel="seconds")
        axis.grid(alpha=0.3)
    for axis in list(axes.flat)[len(families) :]:
        axis.set_visible(False)
    if families:
        axes.flat[0].legend(frameon=False, fontsize="small")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _contestants(results: Sequence[Result]) -> dict[tuple[str, str], None]:
    return dict.fromkeys((n, t.role) for r in results for n, t in r.timings.items())


def _first(results: Sequence[Result], role: str) -> str:
    return next(n for n, r in _contestants(results) if r == role)


def _bars(results: Sequence[Result], path: Path) -> None:
    """Per case the times of all contestants over that of the limit (of the first of ours where there is none)."""
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(9, 1.2 + 0.42 * len(results)), layout="constrained")
    labels: set[str] = set()
    for place, result in enumerate(reversed(results)):
        unit = next((result.timings[n].median for n in (*result.names("limit"), *result.timings)), 1.0)
        shown = [(n, t) for n, t in result.timings.items() if t.role != "limit"]
        for k, (name, timing) in enumerate(shown):
            colour = OURS if timing.role == "ours" else THEIRS
            height = 0.8 / len(shown)
            label = name if name not in labels else None
            fade = 1.0 if name in (shown[0][0], _first([result], timing.role)) else 0.5
            labels.add(name)
            axis.barh(
                place + 0.4 - (k + 0.5) * height, timing.median / unit, height, color=colour, alpha=fade, label=label
            )
    axis.margins(y=0.01)
    axis.axvline(1.0, color=LIMIT, linewidth=1)
    axis.set_yticks(range(len(results)), [r.name for r in reversed(results)], fontsize="small")
    axis.set_xscale("log")
    axis.set_xlabel("time / limit" if any(r.names("limit") for r in results) else "time / pyalign")
    axis.legend(frameon=False, fontsize="small")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
