"""The tables of the study on mixtures of experts, and what falls short of the paper."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pyalign._atomic import replacing

__all__ = ["Ranking", "Row", "failures", "markdown", "write"]

MOST_LEFT, MOST_RANK = 0.1, 5


@dataclass(frozen=True)
class Row:
    """One way to align one pair, and the line between the two networks."""

    setting: str
    method: str
    loss: tuple[float, ...]
    barrier: float
    orders: dict[str, tuple[int, ...]] = field(default_factory=dict)
    overlap: float | None = None


@dataclass(frozen=True)
class Ranking:
    """Every order of four experts with its best inner matching, by the barrier that is left; the found ones' ranks."""

    setting: str
    barriers: dict[str, float]
    found: dict[str, str]

    def rank(self, method: str) -> int:
        """Place of the order a method found, 1 for the best."""
        return 1 + sum(b < self.barriers[self.found[method]] for b in self.barriers.values())


def markdown(rows: Sequence[Row], rankings: Sequence[Ranking], settings: dict[str, Any]) -> str:
    """The tables of the study."""
    out = [
        "| networks | aligned by | loss at the ends | in the middle | barrier | of naive | least overlap of experts |"
    ]
    out += ["|---|---|---|---|---|---|---|"]
    for row in rows:
        naive = next(r.barrier for r in rows if r.setting == row.setting and r.method == "none")
        share = f"{100 * row.barrier / naive:.1f} %" if naive > 0 else ""
        overlap = "" if row.overlap is None else f"{row.overlap:.2f}"
        ends = f"{row.loss[0]:.3f}, {row.loss[-1]:.3f}"
        middle = f"{row.loss[len(row.loss) // 2]:.3f}"
        out.append(f"| {row.setting} | {row.method} | {ends} | {middle} | {row.barrier:.4f} | {share} | {overlap} |")
    out += ["", "| networks | order of | rank among 24 orders | barrier | best | worst | median |"]
    out += ["|---|---|---|---|---|---|---|"]
    for ranking in rankings:
        every = sorted(ranking.barriers.values())
        for method, order in ranking.found.items():
            cells = [ranking.setting, method, str(ranking.rank(method)), f"{ranking.barriers[order]:.4f}"]
            cells += [f"{x:.4f}" for x in (every[0], every[-1], every[len(every) // 2])]
            out.append("| " + " | ".join(cells) + " |")
    out += ["", settings["words"], "", *(f"Falls short: {line}." for line in failures(rows, rankings))]
    return "\n".join(out) + "\n"


def failures(rows: Sequence[Row], rankings: Sequence[Ranking]) -> list[str]:
    """What falls short of the paper: a tenth of the naive barrier in frozen networks, an order among the best five."""
    found = []
    for row in (r for r in rows if r.setting.startswith("frozen") and r.method == "exact"):
        naive = next(r.barrier for r in rows if r.setting == row.setting and r.method == "none")
        if row.barrier > MOST_LEFT * naive:
            found.append(f"{row.setting}: barrier {100 * row.barrier / naive:.1f} % of naive, expected at most 10 %")
    for ranking in (r for r in rankings if r.setting.startswith("frozen")):
        if ranking.rank("exact") > MOST_RANK:
            found.append(
                f"{ranking.setting}: the exact order ranks {ranking.rank('exact')}, expected at most {MOST_RANK}"
            )
    return found


def write(folder: Path, rows: Sequence[Row], rankings: Sequence[Ranking], settings: dict[str, Any]) -> str:
    """Write JSON and Markdown, each whole or not at all; return the Markdown."""
    table = markdown(rows, rankings, settings)
    ranks = [{**asdict(r), "ranks": {m: r.rank(m) for m in r.found}} for r in rankings]
    content = {
        "settings": settings,
        "falls_short": failures(rows, rankings),
        "rows": [asdict(r) for r in rows],
        "rankings": ranks,
    }
    for file, text in (
        ("moe.json", json.dumps(content, indent=1) + "\n"),
        ("moe.md", "# Mixtures of experts of two seeds\n\n" + table),
    ):
        with replacing(folder / file) as temporary:
            temporary.write_text(text)
    return table
