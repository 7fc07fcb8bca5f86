"""The tables of the study of transformers: what was measured, beside the published numbers, and what falls short."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from pyalign._atomic import replacing

__all__ = ["METHODS", "markdown", "verdicts", "write"]

METHODS = (
    "vanilla", "activation", "weight, permutations", "weight, all classes", "learned, permutations",
    "learned, all classes",
)  # fmt: skip
# Theus et al. 2025, table 2 (GPT-2 on tinyshakespeare, ViT on CIFAR-10); their weight matching is over all classes.
PUBLISHED = {
    "gpt": {"vanilla": 2.02, "activation": 1.43, "weight, all classes": 0.34, "learned, permutations": 0.63,
            "learned, all classes": 0.02},
    "vit": {"vanilla": 1.69, "activation": 1.27, "weight, all classes": 0.36, "learned, permutations": 0.45,
            "learned, all classes": 0.00},
}  # fmt: skip
MOST = {"gpt": 0.1, "vit": 0.05}
"""The largest barrier that learned matching over all classes may leave."""
TITLES = {"gpt": "character GPT, tinyshakespeare", "vit": "ViT, CIFAR-10"}


def verdicts(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What the paper shows and these numbers do not."""
    found = []
    for network in dict.fromkeys(row["network"] for row in rows):
        barriers = {row["method"]: row["loss_barrier"] for row in rows if row["network"] == network}
        order = [m for m in PUBLISHED[network] if m in barriers]
        order.sort(key=lambda m: -PUBLISHED[network][m])
        for high, low in pairwise(order):
            if barriers[low] >= barriers[high]:
                found.append(f"{network}: {low} ({barriers[low]:.3f}) is not below {high} ({barriers[high]:.3f})")
        if barriers["weight, all classes"] >= 0.9 * barriers["weight, permutations"]:
            found.append(f"{network}: weight matching over all classes is not well below permutations only")
        if barriers["learned, all classes"] > MOST[network]:
            found.append(
                f"{network}: learned over all classes leaves {barriers['learned, all classes']:.3f}, "
                f"expected at most {MOST[network]}"
            )
    return found


def markdown(content: dict[str, Any]) -> str:
    """The tables of the study."""
    out = ["| network | method | loss barrier | published | loss at t = 0, 0.5, 1 | accuracy at t = 0.5 |"]
    out.append("|---|---|---|---|---|---|")
    for row in content["rows"]:
        published = PUBLISHED[row["network"]].get(row["method"])
        losses = ", ".join(f"{row['loss'][i]:.3f}" for i in (0, len(row["t"]) // 2, -1))
        cells = [TITLES[row["network"]], row["method"], f"{row['loss_barrier']:.3f}"]
        cells += ["" if published is None else f"{published:.2f}", losses, f"{row['accuracy'][len(row['t']) // 2]:.3f}"]
        out.append("| " + " | ".join(cells) + " |")
    settings = content["settings"]
    out += [
        "",
        "Published: Theus et al. 2025 (arXiv 2506.22712), table 2, larger networks trained for longer. All classes: "
        "the scales of LayerNorm are folded into their readers, the residual stream is turned, heads are mixed inside; "
        "activation: heads and feed-forward units.",
        f"Steps of learning: {', '.join(f'{n} {k}' for n, k in settings['steps'])}, at a rate of {settings['lr']}; "
        f"t = 0, 0.1, ..., 1; torch "
        f"{settings['torch']}, pyalign {settings['pyalign']}, {settings['machine']}.",
    ]
    if content["falls_short"]:
        out += ["", "Short of what was published:", "", *(f"- {line}" for line in content["falls_short"])]
    return "\n".join(out) + "\n"


def write(folder: Path, content: dict[str, Any]) -> str:
    """Write the table as JSON and Markdown, each whole or not at all; return the Markdown."""
    folder.mkdir(parents=True, exist_ok=True)
    table = markdown(content)
    for name, text in (("json", json.dumps(content, indent=1) + "\n"), ("md", "# Transformers\n\n" + table)):
        with replacing(folder / f"transformers.{name}") as temporary:
            temporary.write_text(text, encoding="utf-8")
    return table
