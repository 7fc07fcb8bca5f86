"""Every source that code or docs cite stands in references.bib, and every entry there is whole."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
KEY = re.compile(r"(?<![\w\]])\[([a-z]+[12]\d{3}[a-z0-9]+)\](?![(\[])")
ARXIV = re.compile(r"(?i)arxiv[:\s./a-z]{0,12}(\d{4}\.\d{4,5})")
FOLDERS = {"pyalign": "*.py", "kernels": "*.py", "csrc": "*.*", "benchmarks": "*.py", "docs": "*.md"}
FILES = sorted(path for folder, pattern in FOLDERS.items() for path in (ROOT / folder).rglob(pattern))
FILES += sorted(ROOT.glob("*.md"))


def entries() -> dict[str, dict[str, str]]:
    """Key -> fields of every entry of references.bib."""
    text = (ROOT / "references.bib").read_text(encoding="utf-8")
    blocks = re.findall(r"^@\w+\{([^,]+),\n(.*?)^\}", text, flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) == len(re.findall(r"^@", text, flags=re.MULTILINE)), "an entry does not parse"
    found = {key: dict(re.findall(r"^  (\w+) = \{(.*)\},?$", body, flags=re.MULTILINE)) for key, body in blocks}
    assert len(found) == len(blocks), "a key stands twice"
    return found


def unknown(text: str, known: dict[str, dict[str, str]]) -> set[str]:
    """Cited keys and arXiv numbers that the bibliography does not have."""
    numbers = {fields.get("eprint") for fields in known.values()}
    return (set(KEY.findall(text)) - known.keys()) | (set(ARXIV.findall(text)) - numbers)


def test_every_citation_is_in_the_bibliography() -> None:
    known = entries()
    missing = {str(p.relative_to(ROOT)): unknown(p.read_text(encoding="utf-8", errors="replace"), known) for p in FILES}
    assert {path: keys for path, keys in missing.items() if keys} == {}


def test_the_methods_are_cited_where_they_are_implemented() -> None:
    by_number = {fields["eprint"]: key for key, fields in entries().items() if "eprint" in fields}
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "pyalign").rglob("*.py")]
    cited = {key for text in texts for key in [*KEY.findall(text), *map(by_number.get, ARXIV.findall(text))]}
    assert {"tatro2020optimizing", "ainsworth2023git", "jordan2023repair", "frankle2020linear"} <= cited


@pytest.mark.parametrize("key", entries())
def test_entry_is_whole(key: str) -> None:
    fields = entries()[key]
    assert {"title", "author", "year"} <= fields.keys()
    assert fields["year"] in key


@pytest.mark.parametrize(
    ("text", "missing"),
    [
        ("weight matching [ainsworth2023git], eq. 3", set()),
        ("weight matching [ainsworth2023rebasin]", {"ainsworth2023rebasin"}),
        ("see arXiv 2209.04836", set()),
        ("see https://arxiv.org/abs/1234.56789", {"1234.56789"}),
        ("a link [tatro2020guide](page.md) and an index x[conv2000x]", set()),
    ],
)
def test_the_check_can_fail(text: str, missing: set[str]) -> None:
    assert unknown(text, entries()) == missing
