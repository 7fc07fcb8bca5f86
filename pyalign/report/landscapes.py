"""Records of curves to figures: contours of a plane with curves in it, and correlations of layers along a path."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from pyalign.errors import InputError
from pyalign.report.style import INK, MUTED, SERIES, new_figure, styled

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matplotlib.figure import Figure

    from pyalign.paths import Correlations, PlaneRecord

__all__ = ["alignment_figure", "layers_figure", "plane_figure"]

LEVELS = 14


def plane_figure(
    record: PlaneRecord,
    *,
    quantity: str = "loss",
    names: tuple[str, str, str] = ("A", "B", "C"),
    title: str = "",
    size: tuple[float, float] | None = None,
) -> Figure:
    """Draw contours of the loss or accuracy on a plane, with the three models and the curves in it.

    Levels of the loss are spaced more closely near its minimum, where curves run, as in the papers.

    Args:
        record: What `pyalign.plane` measured.
        quantity: "loss" or "accuracy".
        names: Of the three models.
        title: Drawn above.
        size: Width and height in inches.

    Returns:
        A matplotlib figure; `savefig` writes it.

    Raises:
        InputError: The quantity is unknown or was not measured, or more curves than can be told apart.
        PyalignError: matplotlib is not installed.

    Source:
        Garipov et al. 2018 (arXiv 1802.10026), figure 1; Tatro et al. 2020 (arXiv 2009.02439), figure 2.
    """
    values = {"loss": record.loss, "accuracy": record.accuracy}.get(quantity)
    if values is None or len(record.curves) > len(SERIES):
        raise InputError(
            "this plane cannot be drawn",
            given=f"quantity={quantity!r}, {len(record.curves)} curves",
            expected=f"'loss', or 'accuracy' with class labels, and at most {len(SERIES)} curves",
        )
    rows = [[100.0 * v if quantity == "accuracy" else v for v in row] for row in values]
    levels = _levels(rows, quantity)
    clipped = [[min(max(v, levels[0]), levels[-1]) for v in row] for row in rows]
    with styled(**{"axes.grid": False, "axes.spines.top": True, "axes.spines.right": True}):
        figure = new_figure(*(size or (5.6, 4.2)))
        axes = figure.subplots()
        # Dark is worse in both, so that the valley which a curve follows is light.
        colours = "cividis_r" if quantity == "loss" else "cividis"
        drawn = axes.contourf(record.x, record.y, clipped, levels=levels, cmap=colours)
        axes.contour(record.x, record.y, clipped, levels=levels, colors=MUTED, linewidths=0.4)
        _draw_curves(axes, record)
        _draw_models(axes, record, names)
        axes.set(xlabel="distance along A to B", ylabel="distance from that line")
        label = "loss" if quantity == "loss" else "accuracy (%)"
        bar = figure.colorbar(drawn, ax=axes, label=label, format="%.3g", pad=0.02)
        bar.outline.set_edgecolor(MUTED)
        if title:
            figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=11)
    return figure


def _levels(rows: list[list[float]], quantity: str) -> list[float]:
    """Contour levels: even for accuracy; for the loss growing by a constant factor above its minimum."""
    finite = sorted(v for row in rows for v in row if math.isfinite(v))
    if not finite:
        raise InputError("this plane cannot be drawn", given="no finite value", expected="a finite loss somewhere")
    low, high = finite[0], finite[-1]
    span = max(high - low, 1e-6 * max(1.0, abs(low)))
    if quantity == "accuracy":
        return [low + span * i / LEVELS for i in range(LEVELS + 1)]
    first = max(span * 1e-3, min(span / LEVELS, 0.02))
    ratio = (span / first) ** (1.0 / (LEVELS - 1))
    return [low, *(low + first * ratio**i for i in range(LEVELS))]


def _draw_curves(axes: Any, record: PlaneRecord) -> None:
    for (name, points), look in zip(record.curves.items(), SERIES, strict=False):
        across, up = zip(*points, strict=True)
        axes.plot(across, up, color="white", linewidth=4.0)
        axes.plot(across, up, color=look.colour, linestyle=look.line, label=name)
    if len(record.curves) > 1:
        axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=3)


def _draw_models(axes: Any, record: PlaneRecord, names: tuple[str, str, str]) -> None:
    for (x, y), name in zip(record.anchors, names, strict=True):
        axes.plot([x], [y], marker="o", markersize=7, color=INK, markeredgecolor="white", linestyle="none")
        axes.annotate(
            name, (x, y), xytext=(6, 6), textcoords="offset points", color=INK, fontweight="bold",
            bbox={"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.8},
        )  # fmt: skip


def layers_figure(
    records: Mapping[str, Correlations],
    *,
    matched: bool = False,
    title: str = "",
    size: tuple[float, float] | None = None,
) -> Figure:
    """Draw the mean correlation over layers along paths, and that of every layer as a thin line.

    Args:
        records: What `pyalign.paths.correlations` measured, by name; at most six.
        matched: Draw correlations of units in their best order instead of slot by slot.
        title: Drawn above.
        size: Width and height in inches.

    Returns:
        A matplotlib figure.

    Raises:
        InputError: No records, or more than six.
        PyalignError: matplotlib is not installed.

    Source:
        Tatro et al. 2020 (arXiv 2009.02439), figure 3.
    """
    if not 0 < len(records) <= len(SERIES):
        raise InputError(
            "cannot tell that many paths apart in one figure",
            given=f"{len(records)} records",
            expected=f"1 to {len(SERIES)}",
        )
    with styled():
        figure = new_figure(*(size or (5.2, 3.4)))
        axes = figure.subplots()
        for (name, record), look in zip(records.items(), SERIES, strict=False):
            for row in record.matched if matched else record.slots:
                axes.plot(record.t, row, color=look.colour, linewidth=0.7, alpha=0.35)
            axes.plot(
                record.t, record.mean(matched), color=look.colour, marker=look.marker, linestyle=look.line, label=name
            )
        axes.set(xlabel="t  (0: model A, 1: model B)", xlim=(-0.02, 1.02))
        axes.set_ylabel(f"correlation with t = {next(iter(records.values())).reference:g}")
        axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=3)
        if title:
            figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=11)
    return figure


def alignment_figure(
    groups: Mapping[str, tuple[float, float]], *, title: str = "", size: tuple[float, float] | None = None
) -> Figure:
    """Draw the mean correlation of every group of units before and after aligning.

    Args:
        groups: Group -> correlation before and after, in the order of the computation.
        title: Drawn above.
        size: Width and height in inches.

    Returns:
        A matplotlib figure.

    Raises:
        InputError: No groups.
        PyalignError: matplotlib is not installed.
    """
    if not groups:
        raise InputError("nothing to draw", given="no groups", expected="at least one")
    with styled():
        figure = new_figure(*(size or (max(4.4, 0.28 * len(groups)), 3.4)))
        axes = figure.subplots()
        places = list(range(1, len(groups) + 1))
        for place, (before, after) in zip(places, groups.values(), strict=True):
            axes.plot([place, place], [before, after], color=MUTED, linewidth=1.0)
        for index, (name, look) in enumerate(zip(("before", "after"), SERIES, strict=False)):
            values = [pair[index] for pair in groups.values()]
            axes.plot(places, values, color=look.colour, marker=look.marker, linestyle="none", label=name)
        axes.set(xlabel="group, in the order of the computation", ylabel="mean correlation of units")
        axes.set_xticks(places[:: max(1, len(places) // 12)])
        axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=2)
        if title:
            figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=11)
    return figure
