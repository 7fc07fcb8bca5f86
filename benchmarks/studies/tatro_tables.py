"""The tables of the study of curves: what was measured, beside the published numbers, and what falls short."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pyalign._atomic import replacing
from pyalign.paths import CurveRecord
from pyalign.report import Run, export_figures, run_page

__all__ = ["METHODS", "markdown", "row_of", "verdicts", "write"]

METHODS = ("unaligned", "PAM unaligned", "PAM aligned", "aligned")
PUBLISHED = {"tinyten": ((87.4, 82.8), (87.6, 84.0), (88.4, 87.6), (88.5, 87.8)),
             "resnet32": ((92.2, 89.1), (92.4, 89.9), (92.7, 92.1), (92.7, 92.2))}  # fmt: skip


def row_of(network: str, width: int, pair: int, method: str, record: CurveRecord) -> dict[str, Any]:
    """One line of the table: accuracies in per cent."""
    accuracy = record.summary("accuracy")
    ends = (record.accuracy or (0.0,))[0], (record.accuracy or (0.0,))[-1]
    return {
        "network": network, "width": width, "pair": pair, "method": method, "ends": [100 * x for x in ends],
        "average": 100 * accuracy.mean, "minimum": 100 * accuracy.min, "largest_loss": record.summary("loss").max,
    }  # fmt: skip


def verdicts(
    rows: Sequence[dict[str, Any]], layers: dict[str, dict[str, float]], robust: dict[str, float]
) -> list[str]:
    """What the paper shows and these numbers do not."""
    found = []
    for key in dict.fromkeys((r["network"], r["pair"]) for r in rows):
        mine = {r["method"]: r for r in rows if (r["network"], r["pair"]) == key}
        if mine["aligned"]["minimum"] <= mine["unaligned"]["minimum"]:
            found.append(f"{key}: the minimum of aligned is not above unaligned")
        if "PAM aligned" in mine and mine["PAM aligned"]["minimum"] > mine["aligned"]["minimum"] + 1.0:
            found.append(f"{key}: PAM from the aligned start is better by more than a point")
    found += [
        f"{key}: correlation along the aligned curve is not higher"
        for key, means in layers.items() if means["aligned"] <= means["unaligned"]
    ]  # fmt: skip
    if robust and robust["aligned"] >= robust["unaligned"]:
        found.append("the robust loss barrier is not lower with alignment")
    return found


def markdown(content: dict[str, Any]) -> str:
    """The tables of the study."""
    out = ["| network (width), pair | ends | " + " | ".join(METHODS) + " |", "|---|---|" + "---|" * len(METHODS)]
    rows = content["rows"]
    for key in dict.fromkeys((r["network"], r["width"], r["pair"]) for r in rows):
        mine = {r["method"]: r for r in rows if (r["network"], r["width"], r["pair"]) == key}
        ends = " / ".join(f"{x:.1f}" for x in next(iter(mine.values()))["ends"])
        cells = [f"{mine[m]['average']:.1f} / {mine[m]['minimum']:.1f}" if m in mine else "" for m in METHODS]
        out.append(f"| {key[0]} ({key[1]}), {key[2]} | {ends} | " + " | ".join(cells) + " |")
    for name, values in PUBLISHED.items():
        out.append(f"| {name}, published | | " + " | ".join(f"{a} / {m}" for a, m in values) + " |")
    out += ["", "Average / minimum test accuracy along the curve, per cent.", ""]
    out += ["| pair | mean correlation along the curve: unaligned | aligned |", "|---|---|---|"]
    out += [f"| {k} | {v['unaligned']:.3f} | {v['aligned']:.3f} |" for k, v in content["layers"].items()]
    if content["robust"]:
        r = content["robust"]
        out += ["", f"Robust loss barrier along the curve: unaligned {r['unaligned']:.4f}, aligned {r['aligned']:.4f}."]
    out += ["", *(f"Falls short: {line}." for line in content["falls_short"])]
    s = content["settings"]
    out += ["", f"Scale {s['scale']}, {s['device']}, torch {s['torch']}, pyalign {s['pyalign']}, {s['machine']}."]
    return "\n".join(out) + "\n"


def write(folder: Path, content: dict[str, Any], run: Run) -> str:
    """Write table, numbers, page and figures; return the table."""
    table = markdown(content)
    texts = {"tatro.json": json.dumps(content, indent=1) + "\n", "tatro.html": run_page(run)}
    texts["tatro.md"] = "# Curves between aligned networks\n\n" + table
    for name, text in texts.items():
        with replacing(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    export_figures(run, folder / "tatro", ("png",))
    return table
