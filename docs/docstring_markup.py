"""A griffe extension: doctests become code blocks, also those that stand bare in the text, and :math: a formula."""

import re
from typing import Any

import griffe


def marked_up(text: str) -> str:
    r"""Give every doctest the `Examples:` heading that griffe parses, every formula the marks that MathJax finds.

    >>> marked_up("One.\n\n>>> 1 + 1\n2")
    'One.\n\nExamples:\n    >>> 1 + 1\n    2'
    """
    text = re.sub(r":math:`([^`]*)`", r"\\(\1\\)", text)
    text = re.sub(r"^Example:$", "Examples:", text, flags=re.MULTILINE)

    def section(paragraph: re.Match[str]) -> str:
        return "Examples:\n" + re.sub(r"^", "    ", paragraph[0], flags=re.MULTILINE)

    return re.sub(r"^>>>.*(?:\n.+)*", section, text, flags=re.MULTILINE)


class DocstringMarkup(griffe.Extension):
    """Rewrites docstrings before they are parsed."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called for every module, class, function and attribute that was loaded."""
        if obj.docstring is not None:
            obj.docstring.value = marked_up(obj.docstring.value)
