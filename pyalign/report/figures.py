"""Records to figures: the loss along a path, and correlations of units before and after aligning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pyalign.errors import InputError
from pyalign.report.style import INK, MUTED, SERIES, correlation_map, new_figure, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from pyalign.paths import Barrier

__all__ = ["barrier_figure", "correlation_figure"]

QUANTITIES = {"loss": "loss", "accuracy": "accuracy (%)"}
ENDS = "t  (0: model A, 1: model B)"


def barrier_figure(
    barriers: Mapping[str, Barrier],
    *,
    quantity: str | None = None,
    title: str = "",
    size: tuple[float, float] | None = None,
) -> Figure:
    r"""Draw the loss and accuracy along paths between two models, with the barrier of each in the legend.

    A thin line joins the ends of each curve; the barrier is the largest height of the loss above it (of the accuracy
    below it), as in `pyalign.barrier`.

    Args:
        barriers: Records by name, in the order of the legend; at most six.
        quantity: "loss", "accuracy", or None for both side by side (accuracy only where it was measured).
        title: Drawn above.
        size: Width and height in inches.

    Returns:
        A matplotlib figure; `savefig` writes it.

    Raises:
        InputError: No records, more than six, an unknown quantity, or accuracy that was not measured.
        PyalignError: matplotlib is not installed.

    Source:
        Frankle et al. 2020 (arXiv 1912.05671); Entezari et al. 2022 (arXiv 2110.06296) equation 1.
    """
    if not 0 < len(barriers) <= len(SERIES):
        raise InputError(
            "cannot tell that many curves apart in one figure",
            given=f"{len(barriers)} barriers",
            expected=f"1 to {len(SERIES)}",
            do="draw several figures",
        )
    shown = _quantities(barriers, quantity)
    with styled():
        figure = new_figure(*(size or (4.4 * len(shown), 3.3)))
        for axes, name in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
            _draw_curves(axes, barriers, name)
        if title:
            figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=11)
    return figure


def _quantities(barriers: Mapping[str, Barrier], quantity: str | None) -> list[str]:
    measured = [name for name in QUANTITIES if all(getattr(b, name) is not None for b in barriers.values())]
    if quantity is None:
        return measured
    if quantity not in measured:
        raise InputError(
            "this quantity cannot be drawn",
            given=repr(quantity),
            expected=" or ".join(map(repr, measured)),
            do="measure the barriers on data with class labels" if quantity in QUANTITIES else "",
        )
    return [quantity]


def _draw_curves(axes: Any, barriers: Mapping[str, Barrier], quantity: str) -> None:
    scale = 100.0 if quantity == "accuracy" else 1.0
    for (name, barrier), look in zip(barriers.items(), SERIES, strict=False):
        t = [float(x) for x in barrier.t]
        values = [scale * float(y) for y in getattr(barrier, quantity)]
        height = float(getattr(barrier, f"{quantity}_barrier"))
        text = f"{100 * height:.1f} points" if quantity == "accuracy" else f"{height:.3f}"
        every = max(1, len(t) // 12)
        axes.plot([t[0], t[-1]], [values[0], values[-1]], color=look.colour, linewidth=0.7, alpha=0.6)
        axes.plot(
            t, values, color=look.colour, marker=look.marker, linestyle=look.line, markevery=every,
            label=f"{name}: {text}",
        )  # fmt: skip
    axes.set(xlabel=ENDS, ylabel=QUANTITIES[quantity], xlim=(-0.02, 1.02))
    if quantity == "accuracy":
        axes.set_ylim(top=101)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "¼", "½", "¾", "1"])
    axes.legend(
        title=f"{quantity} barrier", alignment="left", loc="lower left", bbox_to_anchor=(-0.02, 1.0), borderaxespad=0.2
    )


def correlation_figure(
    before: Tensor, after: Tensor, *, name: str = "", size: tuple[float, float] | None = None
) -> Figure:
    """Draw the correlations of the units of A (rows) with those of B (columns), before and after aligning B to A.

    Args:
        before: (n, m) correlations in [-1, 1], B in its own order.
        after: (n, m) the same with B aligned; a match shows as the diagonal.
        name: The group or layer, drawn as the title.
        size: Width and height in inches.

    Returns:
        A matplotlib figure.

    Raises:
        InputError: The two are not matrices of one shape.
        PyalignError: matplotlib is not installed.
    """
    if before.ndim != 2 or before.shape != after.shape or 0 in before.shape:
        raise InputError(
            "correlations before and after must be two matrices of one shape",
            given=f"{tuple(before.shape)} and {tuple(after.shape)}",
            expected="(n, m) and (n, m)",
            do="pass the correlations of one group",
        )
    with styled(**{"axes.grid": False, "axes.spines.top": True, "axes.spines.right": True}):
        figure = new_figure(*(size or (5.2, 2.9)))
        pair = figure.subplots(1, 2, sharey=True)
        for axes, matrix, when in zip(pair, (before, after), ("before", "after"), strict=True):
            image = axes.imshow(
                matrix.detach().double().cpu().numpy(), cmap=correlation_map(), vmin=-1, vmax=1, interpolation="none"
            )
            axes.set_title(f"{when}: diagonal {_mean_diagonal(matrix):+.2f}", color=INK, fontweight="normal")
            axes.set_xlabel("unit of B" if when == "before" else "unit of aligned B")
            axes.tick_params(length=2)
        pair[0].set_ylabel("unit of A")
        bar = figure.colorbar(image, ax=pair, ticks=[-1, 0, 1], fraction=0.04, pad=0.02, label="correlation")
        bar.outline.set_edgecolor(MUTED)
        if name:
            figure.suptitle(name, x=0.01, ha="left", fontweight="bold", fontsize=11)
    return figure


def _mean_diagonal(matrix: Tensor) -> float:
    return float(matrix.detach().double().nan_to_num().diagonal().mean())
