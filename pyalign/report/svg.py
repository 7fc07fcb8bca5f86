"""Figures as text for a page: inline SVG whose colours follow the page's light or dark theme."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING

from pyalign.report.style import DARK, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["inline_svg", "variables"]

_ROLES = {colour: f"--c{number}" for number, colour in enumerate(DARK)}


def variables(dark: bool) -> str:
    """The CSS variables of all colours, for one theme."""
    return "".join(f"{role}:{DARK[colour] if dark else colour};" for colour, role in _ROLES.items())


def inline_svg(figure: Figure, identifier: str) -> str:
    """A figure as an `<svg>` element without a fixed size, external addresses or ids that others could share.

    Args:
        figure: The figure.
        identifier: Letters and digits, unique on the page; makes the ids inside unique and the text reproducible.

    Returns:
        The element; hidden from screen readers, since the page says the same in words beside it.
    """
    buffer = io.StringIO()
    with styled(**{"svg.hashsalt": identifier}):
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :].strip()
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    head, _, body = text.partition(">")
    view = re.search(r'viewBox="[^"]*"', head)
    used = set(re.findall(r'(?:url\(#|xlink:href="#)([^")]+)', body))
    body = re.sub(r' id="([^"]+)"', lambda m: f' id="{identifier}-{m[1]}"' if m[1] in used else "", body)
    body = re.sub(r'(url\(#|xlink:href="#)([^")]+)', rf"\1{identifier}-\2", body)
    body = body.replace('xlink:href="', 'href="')
    for colour, role in _ROLES.items():
        body = re.sub(re.escape(colour) + r"\b", f"var({role})", body, flags=re.IGNORECASE)
    return f'<svg {view.group(0) if view else ""} aria-hidden="true" focusable="false">{body}'
