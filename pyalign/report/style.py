"""Colours and the plain look of every figure; the one place that loads matplotlib."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from pyalign.errors import PyalignError

if TYPE_CHECKING:
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

__all__ = ["DARK", "GRID", "INK", "MUTED", "SERIES", "Series", "correlation_map", "new_figure", "styled"]


class Series(NamedTuple):
    """How one curve looks: never by colour alone."""

    colour: str
    marker: str
    line: str


INK, MUTED, GRID = "#1f2328", "#59636e", "#d4dae0"
# Okabe and Ito's colours, in an order in which neighbours also differ in lightness.
SERIES = (
    Series("#d55e00", "s", "-"),
    Series("#0072b2", "o", "-"),
    Series("#009e73", "^", "--"),
    Series("#cc79a7", "D", "-."),
    Series("#b58900", "v", ":"),
    Series("#4d4d4d", "P", "-"),
)
# The same roles on a dark page.
DARK = {
    INK: "#e6edf3",
    MUTED: "#9da7b1",
    GRID: "#30363d",
    "#d55e00": "#ff8a3d",
    "#0072b2": "#58b2f0",
    "#009e73": "#3fcf9f",
    "#cc79a7": "#e79fc6",
    "#b58900": "#d9b441",
    "#4d4d4d": "#b9b9b9",
}
# Between the two ends a cell lets the page shine through, so that zero is the page's own colour, light or dark.
NEGATIVE, POSITIVE = (0.85, 0.40, 0.06), (0.13, 0.48, 0.82)

_SETTINGS: dict[str, Any] = {
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.titlecolor": INK,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "lines.linewidth": 2.0,
    "lines.markersize": 4.5,
    "svg.fonttype": "none",
}


@contextmanager
def styled(**settings: Any) -> Iterator[None]:
    """Inside the block matplotlib draws in this style; the user's own settings return after it.

    Raises:
        PyalignError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as missing:
        raise PyalignError(
            "figures need matplotlib, which is not installed", given=str(missing), do="pip install 'pyalign-nn[report]'"
        ) from missing
    chosen: Any = _SETTINGS | settings
    with matplotlib.rc_context(chosen):
        yield


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of that size in inches, tied to no window and not kept by pyplot."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", facecolor="white")


def correlation_map() -> Colormap:
    """Orange for -1, transparent for 0, blue for 1."""
    from matplotlib.colors import LinearSegmentedColormap

    ends = [(*NEGATIVE, 1.0), (*NEGATIVE, 0.0), (*POSITIVE, 0.0), (*POSITIVE, 1.0)]
    return LinearSegmentedColormap.from_list("correlation", list(zip((0.0, 0.5, 0.5, 1.0), ends, strict=True)), N=512)
