"""Records in, figures and one HTML page out; the only importer of matplotlib."""

from pyalign.report.figures import barrier_figure, correlation_figure
from pyalign.report.landscapes import alignment_figure, layers_figure, plane_figure
from pyalign.report.page import Picture, Section, Table, Tile, page
from pyalign.report.runs import Run, export_figures, run_page
from pyalign.report.terminal import terminal_plot

__all__ = [
    "Picture",
    "Run",
    "Section",
    "Table",
    "Tile",
    "alignment_figure",
    "barrier_figure",
    "correlation_figure",
    "export_figures",
    "layers_figure",
    "page",
    "plane_figure",
    "run_page",
    "terminal_plot",
]
