"""The tables of the study on mixtures of experts, and what falls short of the paper."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from pyalign._atomic import replacing

__all__ = ["Ranking", "Remainder", "Row", "failures", "markdown", "shares", "write"]

MOST_LEFT, MOST_RANK = 0.1, 5


@dataclass(frozen=True)
class Row:
    """One way to align one pair, and the line between the two networks."""

    setting: str
    seeds: tuple[int, int]
    method: str
    loss: tuple[float, ...]
    barrier: float
    orders: dict[str, tuple[int, ...]] = field(default_factory=dict)
    overlap: float | None = None


@dataclass(frozen=True)
class Ranking:
    """Every order of four experts with its best inner matching, by the barrier that is left; the found ones' ranks."""

    setting: str
    seeds: tuple[int, int]
    barriers: dict[str, float]
    found: dict[str, str]

    def rank(self, method: str) -> int:
        """Place of the order a method found, 1 for the best."""
        return 1 + sum(b < self.barriers[self.found[method]] for b in self.barriers.values())

    def excess(self, method: str, naive: float) -> float:
        """Barrier of the order found above that of the best order, of the naive barrier above the same (Table 2)."""
        best = min(self.barriers.values())
        return (self.barriers[self.found[method]] - best) / (naive - best)


@dataclass(frozen=True)
class Remainder:
    """What the barrier that is left is made of: in the middle with experts averaged as functions; cosines of units."""

    setting: str
    seeds: tuple[int, int]
    naive: float
    exact: float
    router: float
    matched: float
    nearest: float


def shares(rows: Sequence[Row], setting: str, method: str) -> list[float]:
    """The barrier of each pair as a share of its naive barrier."""
    naive = {r.seeds: r.barrier for r in rows if (r.setting, r.method) == (setting, "none")}
    return [r.barrier / naive[r.seeds] for r in rows if (r.setting, r.method) == (setting, method)]


def markdown(
    rows: Sequence[Row], rankings: Sequence[Ranking], remainders: Sequence[Remainder], settings: dict[str, Any]
) -> str:
    """The tables of the study: means over the pairs of a setting, with what each pair gives."""
    parts = [_barriers(rows), _ranks(rows, rankings), _left(remainders), [settings["words"]]]
    short = [f"Falls short: {line}." for line in failures(rows, rankings)]
    return "\n\n".join("\n".join(part) for part in [*parts, short] if part) + "\n"


def _barriers(rows: Sequence[Row]) -> list[str]:
    out = [
        "| networks | aligned by | loss at the ends | in the middle | barrier | of naive | each pair | experts shared |"
    ]
    out += ["|---|---|---|---|---|---|---|---|"]
    for setting, method in dict.fromkeys((r.setting, r.method) for r in rows):
        own = [r for r in rows if (r.setting, r.method) == (setting, method)]
        ends = mean((r.loss[0] + r.loss[-1]) / 2 for r in own)
        middle = mean(r.loss[len(r.loss) // 2] for r in own)
        parts = shares(rows, setting, method)
        known = [r.overlap for r in own if r.overlap is not None]
        overlap = f"{mean(known):.2f}" if known else ""
        cells = [setting, method, f"{ends:.3f}", f"{middle:.3f}", f"{mean(r.barrier for r in own):.4f}"]
        out.append("| " + " | ".join([*cells, _spread(parts), _each(parts), overlap]) + " |")
    return out


def _ranks(rows: Sequence[Row], rankings: Sequence[Ranking]) -> list[str]:
    if not rankings:
        return []
    out = ["| networks | order of | rank among 24 orders, mean | each pair | above the best order, of naive |"]
    out += ["|---|---|---|---|---|"]
    for setting, method in dict.fromkeys((r.setting, m) for r in rankings for m in r.found):
        own = [r for r in rankings if r.setting == setting]
        naive = {r.seeds: r.barrier for r in rows if (r.setting, r.method) == (setting, "none")}
        ranks = [r.rank(method) for r in own]
        above = _spread([r.excess(method, naive[r.seeds]) for r in own])
        out.append(f"| {setting} | {method} | {mean(ranks):.1f} | {', '.join(map(str, ranks))} | {above} |")
    return out


def _left(remainders: Sequence[Remainder]) -> list[str]:
    if not remainders:
        return []
    out = ["| networks | left of naive | with experts averaged as functions | cosine of matched units | of nearest |"]
    out += ["|---|---|---|---|---|"]
    for setting in dict.fromkeys(r.setting for r in remainders):
        own = [r for r in remainders if r.setting == setting]
        cells = [_spread([r.exact / r.naive for r in own]), _spread([r.router / r.naive for r in own])]
        cells += [f"{mean(r.matched for r in own):.2f}", f"{mean(r.nearest for r in own):.2f}"]
        out.append("| " + " | ".join([setting, *cells]) + " |")
    return out


def _spread(parts: Sequence[float]) -> str:
    """Mean and, of several, standard deviation, in per cent."""
    return f"{100 * mean(parts):.1f} ± {100 * stdev(parts):.1f} %" if len(parts) > 1 else f"{100 * parts[0]:.1f} %"


def _each(parts: Iterable[float]) -> str:
    return ", ".join(f"{100 * part:.1f}" for part in parts)


def failures(rows: Sequence[Row], rankings: Sequence[Ranking]) -> list[str]:
    """What falls short of the paper in frozen networks, over the pairs: a tenth of naive, an order among the best."""
    found = []
    for setting in dict.fromkeys(r.setting for r in rows if r.setting.startswith("frozen")):
        parts = shares(rows, setting, "exact")
        if parts and mean(parts) > MOST_LEFT:
            found.append(f"{setting}: barrier {_spread(parts)} of naive, expected at most 10 %")
    for setting in dict.fromkeys(r.setting for r in rankings if r.setting.startswith("frozen")):
        ranks = [r.rank("exact") for r in rankings if r.setting == setting]
        if mean(ranks) > MOST_RANK:
            found.append(f"{setting}: the exact order ranks {mean(ranks):.1f} on average, expected at most {MOST_RANK}")
    return found


def write(
    folder: Path,
    rows: Sequence[Row],
    rankings: Sequence[Ranking],
    remainders: Sequence[Remainder],
    settings: dict[str, Any],
) -> str:
    """Write JSON and Markdown, each whole or not at all; return the Markdown."""
    table = markdown(rows, rankings, remainders, settings)
    content = {
        "settings": settings,
        "falls_short": failures(rows, rankings),
        "rows": [asdict(r) for r in rows],
        "rankings": [{**asdict(r), "ranks": {m: r.rank(m) for m in r.found}} for r in rankings],
        "remainders": [asdict(r) for r in remainders],
    }
    for file, text in (
        ("moe.json", json.dumps(content, indent=1) + "\n"),
        ("moe.md", "# Mixtures of experts of several seeds\n\n" + table),
    ):
        with replacing(folder / file) as temporary:
            temporary.write_text(text)
    return table
