"""Curves drawn with characters."""

import pytest

from pyalign.errors import InputError
from pyalign.report import terminal_plot


def rows(text):
    return [line.split("│", 1)[1] for line in text.splitlines() if "│" in line]


def test_a_rising_line_rises():
    cells = rows(terminal_plot({"x": ((0.0, 1.0), (0.0, 1.0))}, width=48, height=8))
    columns = [[r for r, line in enumerate(cells) if line.ljust(40)[c] == "■"] for c in range(40)]
    assert all(columns), "a column without a mark"
    tops = [min(column) for column in columns]
    assert tops == sorted(tops, reverse=True) and tops[0] == 7 and tops[-1] == 0


def test_steep_curves_stay_in_one_piece():
    cells = rows(terminal_plot({"x": ((0.0, 0.5, 0.501, 1.0), (0.0, 0.0, 1.0, 1.0))}, width=60, height=10))
    assert all("■" in line for line in cells)


def test_every_curve_has_its_own_mark_and_name():
    text = terminal_plot({"one": ((0, 1), (0, 0)), "two": ((0, 1), (1, 1))}, label="loss")
    assert text.splitlines()[0] == "loss"
    assert text.splitlines()[-2:] == ["■ one", "● two"]
    assert "■" in rows(text)[-1] and "●" in rows(text)[0]


def test_ascii_stays_ascii():
    assert terminal_plot({"x": ((0, 1), (0, 1))}, unicode=False).isascii()


def test_a_flat_curve_is_drawn():
    assert "■" in terminal_plot({"x": ((0, 1), (0.5, 0.5))})


LINE = {"x": ((0, 1), (0, 1))}


@pytest.mark.parametrize(
    ("curves", "size"),
    [
        ({}, (72, 14)),
        (LINE, (20, 14)),
        (LINE, (72, 2)),
        ({"x": ((0,), (0,))}, (72, 14)),
        ({"x": ((0, 1), (0,))}, (72, 14)),
    ],
)
def test_what_cannot_be_drawn_is_refused(curves, size):
    with pytest.raises(InputError):
        terminal_plot(curves, width=size[0], height=size[1])
