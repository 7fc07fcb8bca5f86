"""Specs as tables a person can read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyalign.symmetry.encoding import affine
from pyalign.symmetry.groups import AxisBinding, Wreath

if TYPE_CHECKING:
    from pyalign.symmetry.spec import SymmetrySpec

__all__ = ["describe", "report", "table"]


def table(head: list[str], rows: list[list[str]], limit: int = 60) -> str:
    """A plain text table; cells longer than `limit` characters are shortened."""
    cells = [[cell if len(cell) <= limit else cell[: limit - 1] + "…" for cell in row] for row in [head, *rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def describe(binding: AxisBinding, shape: tuple[int, ...]) -> str:
    """A binding in a few characters: `fc.weight[1: x49]`, with the part of the axis the group owns."""
    units, runs = binding.positions.shape
    length = binding.blocks * shape[binding.axis]
    text = str(binding.axis) if binding.blocks == 1 else f"{binding.axis} of {binding.blocks} blocks"
    if units * runs != length or affine(binding.positions) is None:
        first, last = int(binding.positions.min()), int(binding.positions.max())
        text += f", {first}..{last}"
    if runs > 1:
        text += f", x{runs}"
    return f"{binding.tensor}[{text}]"


def report(spec: SymmetrySpec) -> str:
    """What is aligned, what is left alone, and why."""
    rows = []
    for group in spec.groups.values():
        s = group.structure
        structure = f"within {s.blocks} blocks of {s.outer}" if isinstance(s, Wreath) else "flat"
        bound = ", ".join(describe(b, spec.shapes[b.tensor]) for b in spec.of(group.name)) or "(blocks only)"
        rows.append([group.name, str(group.size), str(group.kind), structure, bound, group.reason])
    parts = [f"aligned: {len(rows)} groups, {sum(g.size for g in spec.groups.values())} units"]
    if rows:
        parts.append(table(["group", "units", "class", "structure", "axes", "no larger class because"], rows))
    why: dict[str, list[str]] = {}
    for f in spec.fixed:
        why.setdefault(f.reason, []).append(f"{f.tensor}[{f.axis}]")
    if why:
        parts.append(f"left alone: {len(spec.fixed)} axes")
        parts.append(table(["why", "axes", "which"], [[r, str(len(a)), ", ".join(a)] for r, a in why.items()], 90))
    parts.extend(f"note: {note}" for note in spec.notes)
    return "\n\n".join(parts)
