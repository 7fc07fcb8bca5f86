"""The page: self-contained, escaped, readable without seeing it, one tree without clashing ids."""

import re

import pytest
import torch
from helpers_page import barriers
from report.helpers_html import hosts, read

from pyalign.errors import InputError
from pyalign.report import Picture, Section, Table, Tile, barrier_figure, correlation_figure, page

EVIL = "<script>alert('x')</script> & \"quoted\""


def picture(**changes):
    return Picture(barrier_figure(barriers()), **{"alt": "A line chart of losses.", "caption": "Losses.", **changes})


def full_page():
    matrix = torch.eye(5)
    items = [
        Tile("barrier", "1.0", "lower is better"),
        picture(),
        Picture(correlation_figure(matrix, matrix), "Two heat maps.", wide=True),
        Table("Numbers", ["method", "loss"], [["none", "1.5"], ["some", "-0.25"]], strong=[1]),
    ]
    return page("A title", [Section("First", ["A paragraph."], items), Section("Second", [], [picture()])], lead="Lead")


def test_it_has_every_part_once_and_in_order():
    root = read(full_page())
    assert [h.text() for h in root.all("h1")] == ["A title"]
    assert [h.text() for h in root.all("h2")] == ["First", "Second"]
    assert len(list(root.all("figure"))) == len(list(root.all("svg"))) == 3
    assert len(list(root.all("div", **{"class": "tile"}))) == 1
    (table,) = root.all("table")
    assert [c.text() for c in table.all("caption")] == ["Numbers"]
    assert [c.text() for c in table.all("th", scope="col")] == ["method", "loss"]
    assert [c.text() for c in table.all("td", **{"class": "number"})] == ["1.5", "-0.25"]
    assert next(root.all("html")).attributes["lang"] == "en"
    assert "width=device-width" in next(root.all("meta", name="viewport")).attributes["content"]


def test_every_figure_says_what_it_shows_and_hides_its_drawing_from_readers():
    root = read(full_page())
    labels = [box.attributes["aria-label"] for box in root.all("div", role="img")]
    assert labels == ["A line chart of losses.", "Two heat maps.", "A line chart of losses."]
    assert all(svg.attributes["aria-hidden"] == "true" for svg in root.all("svg"))


def test_it_asks_nothing_of_any_host():
    html = full_page()
    assert hosts(html) == []
    assert not re.search(r"<(script|link|iframe|object|embed|base)\b", html)


@pytest.mark.parametrize(
    "tag", ['<img src="https://host.example/x.png">', '<a href="//host.example">x</a>', "<style>@import 'x'</style>"]
)
def test_a_foreign_address_is_found(tag):
    assert hosts(full_page().replace("<main>", f"<main>{tag}"))


def test_texts_are_escaped_wherever_they_stand():
    table = Table(EVIL, [EVIL, "b"], [[EVIL, EVIL]])
    items = [Tile(EVIL, EVIL, EVIL), picture(alt=EVIL, caption=EVIL), table]
    html = page(EVIL, [Section(EVIL, [EVIL], items)], lead=EVIL, footer=EVIL)
    root = read(html)
    assert not list(root.all("script"))
    assert next(root.all("h1")).text() == next(root.all("caption")).text() == EVIL
    assert next(root.all("div", role="img")).attributes["aria-label"] == EVIL


def test_names_of_curves_are_escaped_inside_a_figure():
    record = barriers()["not aligned"]
    html = page("t", [Section("s", [], [Picture(barrier_figure({"<b>&": record}), "alt")])])
    assert not list(read(html).all("b"))
    assert "&lt;b&gt;&amp;" in html


def test_ids_do_not_clash_and_references_stay_inside_their_figure():
    root = read(full_page())
    ids = [element.attributes["id"] for element in root.all() if "id" in element.attributes]
    assert len(ids) == len(set(ids))
    for figure in root.all("figure"):
        own = {e.attributes["id"] for e in figure.all() if "id" in e.attributes}
        text = " ".join(str(v) for e in figure.all() for v in e.attributes.values())
        used = set(re.findall(r"url\(#([^)]+)\)", text))
        used |= {e.attributes["href"][1:] for e in figure.all() if e.attributes.get("href", "").startswith("#")}
        assert used and used <= own


def test_colours_follow_the_theme():
    html = full_page()
    variables = set(re.findall(r"var\((--c\d+)\)", html))
    assert len(variables) >= 4
    light, dark = html.split("@media screen and (prefers-color-scheme:dark)")[:2]
    for name in variables:
        first, second = (re.search(rf"{name}:(#\w+);", part)[1] for part in (light, dark))
        assert first != second
        assert first not in html.split("</style>")[1], "a colour that does not follow the theme"


def test_the_same_records_give_the_same_page():
    assert full_page() == full_page()


def test_a_picture_without_alternative_text_is_refused():
    with pytest.raises(InputError, match="alternative text"):
        page("t", [Section("s", [], [picture(alt=" ")])])


def test_only_columns_of_numbers_are_set_to_the_right():
    rows = [["a", "1.5", "12"], ["b", "text", "-3 %"]]
    root = read(page("t", [Section("s", [], [Table("t", ["x", "y", "z"], rows)])]))
    assert [cell.text() for cell in root.all("td", **{"class": "number"})] == ["12", "-3 %"]
    assert [cell.text() for cell in root.all("th", **{"class": "number"})] == ["z"]


def test_a_row_that_does_not_fit_its_head_is_refused():
    with pytest.raises(InputError, match=r"1 cells.*2, one per column"):
        Table("t", ["a", "b"], [["only one"]])
