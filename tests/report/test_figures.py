"""Figures hold the numbers of their records, and leave matplotlib's settings alone."""

import matplotlib
import numpy as np
import pytest
import torch
from helpers_page import barriers

from pyalign.errors import InputError, PyalignError
from pyalign.report import barrier_figure, correlation_figure
from pyalign.report.style import SERIES, correlation_map


def test_curves_are_those_of_the_records():
    records = barriers()
    figure = barrier_figure(records)
    loss, rate = figure.axes
    for axes, values, scale in ((loss, "loss", 1), (rate, "accuracy", 100)):
        lines = [line for line in axes.lines if len(line.get_xdata()) > 2]
        assert [line.get_label().split(":")[0] for line in lines] == list(records)
        for line, record in zip(lines, records.values(), strict=True):
            np.testing.assert_allclose(line.get_xdata(), record.t)
            np.testing.assert_allclose(line.get_ydata(), [scale * v for v in getattr(record, values)])


def test_the_legend_tells_the_barriers_and_axes_are_labelled():
    loss, rate = barrier_figure(barriers()).axes
    texts = [text.get_text() for text in loss.get_legend().get_texts()]
    assert texts == ["not aligned: 1.800", "aligned: -0.000"] or texts == ["not aligned: 1.800", "aligned: 0.000"]
    assert rate.get_legend().get_texts()[0].get_text() == "not aligned: 77.0 points"
    for axes in (loss, rate):
        assert "model A" in axes.get_xlabel() and axes.get_ylabel()


def test_curves_differ_by_more_than_colour():
    looks = {(s.marker, s.line) for s in SERIES}
    assert len(looks) == len({s.marker for s in SERIES}) == len({s.colour for s in SERIES}) == len(SERIES)


def test_accuracy_is_left_out_where_it_was_not_measured():
    assert len(barrier_figure(barriers(accuracy=False)).axes) == 1
    with pytest.raises(InputError, match="class labels"):
        barrier_figure(barriers(accuracy=False), quantity="accuracy")


def test_a_single_quantity_takes_one_pair_of_axes():
    (axes,) = barrier_figure(barriers(), quantity="accuracy").axes
    assert axes.get_ylabel() == "accuracy (%)"


@pytest.mark.parametrize("count", [0, 7])
def test_no_or_too_many_curves_are_refused(count):
    record = barriers()["aligned"]
    with pytest.raises(InputError, match=f"{count} barriers"):
        barrier_figure({str(k): record for k in range(count)})


def test_heat_maps_show_the_matrices_and_their_diagonals():
    before, after = torch.full((3, 3), -0.5), torch.eye(3)
    figure = correlation_figure(before, after, name="layer")
    first, second = figure.axes[:2]
    np.testing.assert_array_equal(first.images[0].get_array(), before.numpy())
    np.testing.assert_array_equal(second.images[0].get_array(), after.numpy())
    assert (first.images[0].norm.vmin, first.images[0].norm.vmax) == (-1, 1)
    titles = [axes.get_title(loc="left") for axes in (first, second)]
    assert titles == ["before: diagonal -0.50", "after: diagonal +1.00"]


@pytest.mark.parametrize("shapes", [((2, 3), (3, 2)), ((2,), (2,)), ((0, 0), (0, 0))])
def test_matrices_that_do_not_fit_are_refused(shapes):
    with pytest.raises(InputError, match="two matrices of one shape"):
        correlation_figure(*(torch.zeros(shape) for shape in shapes))


def test_zero_correlation_is_transparent_and_the_signs_are_told_apart():
    colours = correlation_map()
    assert colours(0.5)[3] < 0.02
    negative, positive = colours(0.0), colours(1.0)
    assert negative[0] > negative[2] and positive[2] > positive[0] and negative[3] == positive[3] == 1


def test_the_users_settings_come_back():
    before = dict(matplotlib.rcParams)
    barrier_figure(barriers())
    assert dict(matplotlib.rcParams) == before


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(PyalignError, match=r"pip install 'pyalign-nn\[report\]'"):
        barrier_figure(barriers())
