"""Records in, figures and one HTML page out; the only importer of matplotlib."""

from pyalign.report.figures import barrier_figure, correlation_figure
from pyalign.report.landscapes import layers_figure, plane_figure
from pyalign.report.page import Picture, Section, Table, Tile, page
from pyalign.report.terminal import terminal_plot

__all__ = [
    "Picture",
    "Section",
    "Table",
    "Tile",
    "barrier_figure",
    "correlation_figure",
    "layers_figure",
    "page",
    "plane_figure",
    "terminal_plot",
]
