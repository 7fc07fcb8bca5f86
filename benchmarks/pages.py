"""Put the measured tables into README.md and the documentation, between their markers."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.record import MeanGate, Result
from benchmarks.tables import short, table, verdicts
from pyalign._atomic import replacing

__all__ = ["BEGIN", "END", "fill", "filled"]

BEGIN = "<!-- results of benchmarks/run.py: begin -->"
END = "<!-- results of benchmarks/run.py: end -->"
ROOT = Path(__file__).resolve().parents[1]
PLOT = "speed_linear_assignment.png"


def filled(text: str, content: str) -> str:
    """The text with `content` between its markers.

    Raises:
        ValueError: The markers are not there once each, in order.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in rest or END in after:
        raise ValueError(f"expected {BEGIN!r} and then {END!r}, once each")
    return f"{before}{begin}\n\n{content.strip()}\n\n{end}{after}"


def fill(results: Sequence[Result], settings: Mapping[str, Any], means: Sequence[MeanGate], out: Path) -> list[Path]:
    """Rewrite README.md and docs/speed.md; the plot is copied beside the documentation's other images."""
    judged = verdicts(results, means)
    reached = sum(v.passed is True for v in judged)
    measured = sum(v.passed is not None for v in judged)
    machine = (
        f"{settings['processor']}, {settings['threads']} thread(s), engine path {settings.get('engine simd', 'none')}"
    )
    versions = ", ".join(f"{name} {settings[name]}" for name in ("torch", "scipy", "lapx", "lapjv"))
    note = f"{machine}; {versions}. {reached} of {measured} gates reached."
    few = short([r for r in results if _telling(r)])
    image = f"![Time of linear assignment over n]({{}}/{PLOT})"
    missed = table(("case", "measured", "at most"), _missed(judged))
    for_readme = [image.format("benchmarks/results"), "", few, note]
    for_docs = [image.format("images"), "", short(results), note, "", "Gates that were missed:", "", *missed]
    content = {ROOT / "README.md": "\n".join(for_readme), ROOT / "docs" / "speed.md": "\n".join(for_docs)}
    pages = {page: filled(page.read_text(encoding="utf-8"), text) for page, text in content.items()}
    for page, text in pages.items():
        with replacing(page) as temporary:
            temporary.write_text(text, encoding="utf-8")
    with replacing(ROOT / "docs" / "images" / PLOT) as temporary:
        shutil.copyfile(out / PLOT, temporary)
    return [*pages]


def _telling(result: Result) -> bool:
    """Whether the short table of README.md shows a case: one permutation per shape, the commonest layouts."""
    if result.operation == "permuted_lerp":
        return result.name.endswith((", both", "sum of 4"))
    return result.operation != "cross_moments" or result.family in ("NCHW", "2-D")


def _missed(judged: Sequence[Any]) -> list[tuple[str, str, str]]:
    short_of = [v for v in judged if v.passed is False]
    return [(f"{v.case}: {v.figure} {v.of} / {v.against}", f"{v.ratio:.2f}", f"{v.most:.3g}") for v in short_of]
