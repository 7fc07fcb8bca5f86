"""Curves in a terminal, drawn with characters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pyalign.errors import InputError

__all__ = ["terminal_plot"]

MARKS = {True: "■●▲◆▼✚", False: "#o^x+*"}


def terminal_plot(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    width: int = 72,
    height: int = 14,
    label: str = "loss",
    unicode: bool = True,
) -> str:
    """Draw curves over t in [0, 1] as text.

    Args:
        curves: (t, values) by name, t rising; at most six curves. Later ones are drawn over earlier ones.
        width: Characters in a line, at least 30.
        height: Lines of the plotting area, at least 4.
        label: What is drawn upwards.
        unicode: False draws with ASCII characters only.

    Returns:
        Several lines without a trailing newline.

    Raises:
        InputError: No curve or more than six, curves of unequal or too small length, or too little room.

    Example:
        >>> print(terminal_plot({"a bump": ([0, 0.5, 1], [0, 1, 0])}, width=31, height=5, unicode=False))
        loss
         1.000 |          ###
         0.750 |       ###   ###
         0.500 |     ##         ##
         0.250 |  ###             ###
         0.000 |##                   ##
               +-----------------------
                0          t          1
        # a bump
    """
    marks = MARKS[unicode]
    if not 0 < len(curves) <= len(marks) or width < 30 or height < 4:
        raise InputError(
            "cannot draw this in a terminal",
            given=f"{len(curves)} curves, {width} x {height} characters",
            expected=f"1 to {len(marks)} curves, at least 30 x 4 characters",
        )
    columns = width - 8
    sampled = {name: _sample(name, t, values, columns) for name, (t, values) in curves.items()}
    low = min(min(values) for values in sampled.values())
    high = max(max(values) for values in sampled.values())
    span = high - low or 1.0
    grid = [[" "] * columns for _ in range(height)]
    for mark, values in zip(marks, sampled.values(), strict=False):
        rows = [height - 1 - round((value - low) / span * (height - 1)) for value in values]
        for column, (row, earlier) in enumerate(zip(rows, [rows[0], *rows], strict=False)):
            step = 1 if row > earlier else -1
            for filled in [row, *range(earlier + step, row, step)]:  # a steep curve stays in one piece
                grid[filled][column] = mark
    bar, corner, dash = ("│", "└", "─") if unicode else ("|", "+", "-")
    lines = [label]
    for row, cells in enumerate(grid):
        level = high - span * row / (height - 1)
        lines.append(f"{level:6.3f} {bar}{''.join(cells)}".rstrip())
    lines.append(f"{'':7}{corner}{dash * columns}")
    lines.append(f"{'':8}0{'t':^{columns - 2}}1")
    return "\n".join(lines + [f"{mark} {name}" for mark, name in zip(marks, curves, strict=False)])


def _sample(name: str, t: Sequence[float], values: Sequence[float], columns: int) -> list[float]:
    """The curve's height at the middle of every column, on straight lines between its points."""
    if len(t) != len(values) or len(t) < 2:
        raise InputError(
            f"the curve {name!r} cannot be drawn", given=f"{len(t)} positions, {len(values)} values",
            expected="as many of one as of the other, at least 2",
        )  # fmt: skip
    found, k = [], 0
    for column in range(columns):
        at = t[0] + (t[-1] - t[0]) * column / (columns - 1)
        while k < len(t) - 2 and t[k + 1] < at:
            k += 1
        step = (t[k + 1] - t[k]) or 1.0
        share = min(max((at - t[k]) / step, 0.0), 1.0)
        found.append(float(values[k]) * (1 - share) + float(values[k + 1]) * share)
    return found
