"""One self-contained HTML page out of texts, tables, tiles and figures: no font and no address of any host."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from typing import TYPE_CHECKING

from pyalign.errors import InputError
from pyalign.report.svg import inline_svg, variables

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Picture", "Section", "Table", "Tile", "page"]

NUMBER = ' class="number"'


@dataclass(frozen=True)
class Picture:
    """A figure with what it shows.

    Args:
        figure: A matplotlib figure.
        alt: What a reader who cannot see it should know; at least a sentence.
        caption: Printed under it.
        wide: Takes the whole width of the page.
    """

    figure: Figure
    alt: str
    caption: str = ""
    wide: bool = False


@dataclass(frozen=True)
class Table:
    """Rows of cells under a head; columns of numbers are set to the right.

    Args:
        caption: What the table shows.
        head: One text per column.
        rows: Cells as texts, as many as the head has.
        strong: Numbers of the rows to print in bold.
    """

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    strong: Sequence[int] = ()

    def __post_init__(self) -> None:
        wrong = [row for row in self.rows if len(row) != len(self.head)]
        if wrong:
            raise InputError(
                f"a row of the table {self.caption!r} does not fit its head",
                given=f"{len(wrong[0])} cells",
                expected=f"{len(self.head)}, one per column",
            )


@dataclass(frozen=True)
class Tile:
    """A number that should be seen first: what it is, the number, and what to compare it with."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Section:
    """A heading, paragraphs and what follows them: pictures, tables and tiles; neighbours of a kind share rows."""

    title: str
    paragraphs: Sequence[str] = ()
    items: Sequence[Picture | Table | Tile] = ()


def page(
    title: str,
    sections: Sequence[Section],
    *,
    lead: str = "",
    footer: str = "",
    language: str = "en",
    numbers: str = "",
) -> str:
    """Build the HTML of a page that needs nothing but itself; it reads on a phone, in print, in light and dark.

    Args:
        title: The page's heading and its title in the browser.
        sections: From top to bottom.
        lead: One paragraph under the heading.
        footer: One line at the end, such as versions and the command that made the page.
        language: Of the texts, as in HTML's `lang`.
        numbers: A JSON text that a button under the heading copies to the clipboard. Without it the page has no script.

    Returns:
        The page. All texts are escaped: none of them is read as HTML.

    Raises:
        InputError: A picture without an alternative text.

    Example:
        >>> html = page("A < B", [Section("Numbers", items=[Table("Two", ["a", "b"], [["1", "2"]])])])
        >>> "<h1>A &lt; B</h1>" in html and "<script" not in html
        True
    """
    style = resources.files("pyalign.report").joinpath("page.css").read_text(encoding="utf-8")
    style = style.replace("/*light*/", variables(dark=False)).replace("/*dark*/", variables(dark=True))
    body = "".join(_section(section, number) for number, section in enumerate(sections))
    return (
        f'<!DOCTYPE html>\n<html lang="{escape(language)}">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        '<meta name="referrer" content="no-referrer">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n"
        f"<header><h1>{escape(title)}</h1>{_paragraph(lead, 'lead')}{_button(numbers)}</header>\n{body}</main>\n"
        f"<footer>{_paragraph(footer)}</footer>\n</body>\n</html>\n"
    )


def _section(section: Section, number: int) -> str:
    parts = [f'<section aria-labelledby="s{number}"><h2 id="s{number}">{escape(section.title)}</h2>\n']
    parts += [_paragraph(text) + "\n" for text in section.paragraphs]
    open_kind = ""
    for index, item in enumerate(section.items):
        kind = {Picture: "pictures", Table: "tables", Tile: "tiles"}[type(item)]
        if kind != open_kind:
            parts.append(("</div>\n" if open_kind else "") + f'<div class="{kind}">\n')
            open_kind = kind
        parts.append(_item(item, f"f{number}x{index}") + "\n")
    return "".join([*parts, "</div>\n" if open_kind else "", "</section>\n"])


def _item(item: Picture | Table | Tile, identifier: str) -> str:
    if isinstance(item, Picture):
        return _picture(item, identifier)
    if isinstance(item, Table):
        return _table(item)
    return (
        f'<div class="tile"><span class="label">{escape(item.label)}</span>'
        f'<span class="value">{escape(item.value)}</span><span class="note">{escape(item.note)}</span></div>'
    )


def _picture(item: Picture, identifier: str) -> str:
    if not item.alt.strip():
        raise InputError("a picture has no alternative text", given=repr(item.alt), expected="what the picture shows")
    caption = f"<figcaption>{escape(item.caption)}</figcaption>" if item.caption else ""
    wide = ' class="wide"' if item.wide else ""
    return (
        f'<figure{wide}><div role="img" aria-label="{escape(item.alt)}">{inline_svg(item.figure, identifier)}</div>'
        f"{caption}</figure>"
    )


def _table(item: Table) -> str:
    columns = list(zip(*item.rows, strict=True)) or [()] * len(item.head)
    kinds = [NUMBER if cells and all(map(_is_number, cells)) else "" for cells in columns]
    head = "".join(f'<th scope="col"{kind}>{escape(text)}</th>' for text, kind in zip(item.head, kinds, strict=True))
    rows = []
    for number, row in enumerate(item.rows):
        cells = "".join(f"<td{kind}>{escape(text)}</td>" for text, kind in zip(row[1:], kinds[1:], strict=True))
        strong = ' class="strong"' if number in item.strong else ""
        rows.append(f'<tr{strong}><th scope="row">{escape(row[0])}</th>{cells}</tr>')
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(item.caption)}"><table>'
        f"<caption>{escape(item.caption)}</caption><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody>"
        "</table></div>"
    )


def _is_number(text: str) -> bool:
    return text.strip("+-−% ").replace(".", "", 1).replace(" ", "").isdigit()


def _button(numbers: str) -> str:
    """A button that copies the numbers; the text lies in the page as data, where no `<` can end it."""
    if not numbers:
        return ""
    script = resources.files("pyalign.report").joinpath("copy.js").read_text(encoding="utf-8").strip()
    data = numbers.replace("<", "\\u003c")
    return (
        '<p class="copy"><button type="button" id="copy">Copy the numbers (JSON)</button> '
        f'<span id="copied" role="status"></span></p><script type="application/json" id="numbers">{data}</script>'
        f"<script>{script}</script>"
    )


def _paragraph(text: str, kind: str = "") -> str:
    if not text:
        return ""
    attribute = f' class="{kind}"' if kind else ""
    return f"<p{attribute}>{escape(text)}</p>"
