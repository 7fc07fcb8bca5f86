"""A griffe extension: doctests become code blocks, whether they stand under `Example:` or bare in the text."""

import re
from typing import Any

import griffe


def with_sections(text: str) -> str:
    r"""Give every doctest the `Examples:` heading that griffe parses.

    >>> with_sections("One.\n\n>>> 1 + 1\n2")
    'One.\n\nExamples:\n    >>> 1 + 1\n    2'
    """
    text = re.sub(r"^Example:$", "Examples:", text, flags=re.MULTILINE)

    def section(paragraph: re.Match[str]) -> str:
        return "Examples:\n" + re.sub(r"^", "    ", paragraph[0], flags=re.MULTILINE)

    return re.sub(r"^>>>.*(?:\n.+)*", section, text, flags=re.MULTILINE)


class DoctestSections(griffe.Extension):
    """Rewrites docstrings before they are parsed."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called for every module, class, function and attribute that was loaded."""
        if obj.docstring is not None:
            obj.docstring.value = with_sections(obj.docstring.value)
