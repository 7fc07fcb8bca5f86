"""The model card of an aligned checkpoint: what was done, with what, and how well it went."""

from __future__ import annotations

import platform
from collections import Counter
from importlib.metadata import PackageNotFoundError, version

from torch import nn

from pyalign.symmetry import Alignment

__all__ = ["card_of", "folded_card_of"]

_PACKAGES = ("pyalign-nn", "torch", "transformers", "safetensors")


def card_of(alignment: Alignment, name_a: str, name_b: str, model: nn.Module) -> str:
    """A README.md in the form that model hubs read, of the checkpoint that was moved.

    Args:
        alignment: What was applied.
        name_a: The folder that stayed.
        name_b: The folder that was moved.
        model: Of the architecture.
    """
    return _card(
        alignment,
        f"{name_b} in the coordinates of {name_a}",
        f"The weights of `{name_b}` ({type(model).__name__}), transformed by a symmetry of the architecture so that",
        f"its units correspond to those of `{name_a}`{' with folded scales' if alignment.spec.constants else ''}. The",
        f"function is that of `{name_b}`, up to the rounding of its dtype; nothing was trained and nothing averaged.",
        licence=f"This is a derivative of `{name_b}`, found by comparison with `{name_a}`: look at both licences",
    )


def folded_card_of(alignment: Alignment, name_a: str, name_b: str, model: nn.Module) -> str:
    """The same of the checkpoint that stayed and whose scales were folded."""
    return _card(
        alignment,
        f"{name_a} with folded scales",
        f"The weights of `{name_a}` ({type(model).__name__}), the scales of its norms moved into the weights that read",
        f"them. The function is that of `{name_a}`, up to the rounding of its dtype. `{name_b}` was brought into these",
        "coordinates: its aligned weights are to be averaged with these, not with those of the original.",
        licence=f"This is a derivative of `{name_a}`: look at its licence",
    )


def _card(alignment: Alignment, title: str, *text: str, licence: str) -> str:
    classes = Counter((str(g.kind), g.size) for g in alignment.spec.groups.values())
    rows = [f"| {count} | {kind} | {size} |" for (kind, size), count in classes.items()]
    fixed = Counter(f.reason for f in alignment.spec.fixed)
    lines = [
        "---",
        "library_name: transformers",
        "tags:",
        "- pyalign",
        "---",
        "",
        f"# {title}",
        "",
        *text,
        "",
        "| | |",
        "|---|---|",
        f"| method | {alignment.method} |",
        *([f"| objective after | {alignment.objective:.6g} |"] if alignment.objective is not None else []),
        *[f"| {phase} | {seconds:.1f} s |" for phase, seconds in alignment.seconds.items()],
        *([f"| largest duality gap | {alignment.worst_gap:.3g} |"] if alignment.worst_gap is not None else []),
        f"| fingerprint of the symmetry | `{alignment.spec.fingerprint}` |",
        *[f"| {name} | {found} |" for name in _PACKAGES if (found := _version(name))],
        f"| Python | {platform.python_version()} |",
        "",
        "## Groups",
        "",
        "| groups | class | units each |",
        "|---|---|---|",
        *rows,
        "",
        *[f"- left alone: {count} axes ({reason})" for reason, count in fixed.items()],
        *[f"- {note}" for note in alignment.notes],
        "",
        "## Licence",
        "",
        f"{licence}, and",
        "state the licence here before you publish it.",
        "",
    ]
    return "\n".join(lines)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
