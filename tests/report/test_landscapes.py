"""Contours and correlations of layers: what is drawn is what was measured."""

import math

import pytest

pytest.importorskip("matplotlib")

from pyalign.errors import InputError
from pyalign.paths import Correlations, PlaneRecord
from pyalign.report import layers_figure, plane_figure


def record(accuracy=True, corner=4.0):
    rows = ((1.0, 2.0, corner), (1.5, 0.5, 3.0))
    rates = ((0.5, 0.4, 0.1), (0.4, 0.9, 0.2)) if accuracy else None
    anchors = ((0.0, 0.0), (1.0, 0.0), (0.5, 1.0))
    curve = {"curve": ((0.0, 0.0), (0.5, 0.6), (1.0, 0.0))}
    return PlaneRecord(
        (0.0, 0.5, 1.0), (0.0, 1.0), rows, rates, anchors, (1.0, 2.0, 0.5), (0.5,) * 3 if accuracy else None, curve
    )


@pytest.mark.parametrize("corner", [4.0, math.inf])
@pytest.mark.parametrize("quantity", ["loss", "accuracy"])
def test_a_plane_has_its_models_and_its_curve(quantity, corner):
    figure = plane_figure(record(corner=corner), quantity=quantity, names=("one", "two", "three"), title="title")
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.texts] == ["one", "two", "three"]
    drawn = [tuple(map(tuple, line.get_xydata().tolist())) for line in axes.lines]
    assert record().curves["curve"] in drawn and ((0.5, 1.0),) in drawn
    figure.draw_without_rendering()


def test_planes_that_cannot_be_drawn():
    for given in ({"quantity": "accuracy", "record": record(accuracy=False)}, {"quantity": "x", "record": record()}):
        with pytest.raises(InputError, match="cannot be drawn"):
            plane_figure(given["record"], quantity=given["quantity"])


def test_layers_are_thin_and_their_mean_is_marked():
    found = Correlations(
        0.0, (0.0, 0.5, 1.0), ("a", "b"), ("a", "b"), ((1.0, 0.8, 0.5), (1.0, 0.6, 0.3)), ((1.0,) * 3,) * 2
    )
    axes = layers_figure({"aligned": found}).axes[0]
    assert len(axes.lines) == 3
    assert axes.lines[-1].get_ydata().tolist() == pytest.approx([1.0, 0.7, 0.4])
    assert layers_figure({"aligned": found}, matched=True).axes[0].lines[-1].get_ydata().tolist() == [1.0] * 3
    with pytest.raises(InputError):
        layers_figure({})
