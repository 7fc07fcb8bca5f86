"""The examples of README.md and docs/ run as they are written.

In each file, from top to bottom and in one folder and one namespace: `python` blocks are executed, a block with a title
is first written to that file, lines of `sh` blocks that begin with `pyalign ` are run by the command line.
"""

import importlib
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
FENCE = re.compile(r'^```(\w*)(?: title="([^"]+)")?[^\n]*\n(.*?)^```$', flags=re.MULTILINE | re.DOTALL)
LANGUAGES = {"python", "sh", "text", "bibtex"}
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


class Block(NamedTuple):
    """A fenced block and the line of its first content line."""

    language: str
    title: str
    content: str
    line: int


def blocks(text: str) -> list[Block]:
    return [Block(m[1], m[2] or "", m[3], text.count("\n", 0, m.start(3)) + 1) for m in FENCE.finditer(text)]


def run_python(block: Block, page: Path, namespace: dict[str, Any]) -> None:
    padded = "\n" * (block.line - 1) + block.content
    exec(compile(padded, str(page), "exec"), namespace)


def run_shell(block: Block) -> None:
    script = Path(sys.executable).with_name("pyalign")
    for line in block.content.replace("\\\n", " ").splitlines():
        if line.startswith("pyalign "):
            subprocess.run([script, *shlex.split(line, comments=True)[1:]], check=True, timeout=300)


def run_page(page: Path) -> int:
    """Run every block of the page in the current folder; return how many ran."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    ran = 0
    for block in blocks(page.read_text(encoding="utf-8")):
        if block.title:
            Path(block.title).write_text(block.content, encoding="utf-8")
            sys.modules.pop(Path(block.title).stem, None)  # a module of that name from an earlier page
            importlib.invalidate_caches()
        elif block.language == "python":
            run_python(block, page, namespace)
            ran += 1
        elif block.language == "sh":
            run_shell(block)
    return ran


@pytest.fixture
def one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Small networks gain nothing from threads, and lose much where several processes share few cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    yield
    torch.set_num_threads(before)


def relative(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", [p for p in PAGES if "```" in p.read_text(encoding="utf-8")], ids=relative)
@pytest.mark.filterwarnings("default::pyalign.errors.PyalignWarning")
@pytest.mark.usefixtures("one_thread")
def test_examples_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("MPLBACKEND", "Agg")
    run_page(page)


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_every_block_names_a_known_language(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    found = blocks(text)
    assert len(re.findall(r"^```", text, flags=re.MULTILINE)) == 2 * len(found), "a fence is not closed"
    assert {block.language for block in found} <= LANGUAGES


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_images_exist(page: Path) -> None:
    for target in re.findall(r"!\[[^\]]*\]\(([^)\s]+)", page.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (page.parent / target).is_file(), target


def test_the_readme_has_one_line_to_try_and_one_to_test() -> None:
    """`.ci/run` runs these very lines; here is what they may look like."""
    lines = re.findall(r"^python3 -m venv .*$", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    begin = "python3 -m venv .venv && .venv/bin/pip install -c constraints.txt "
    assert [line.startswith(begin) for line in lines] == [True, True]
    assert [line.rpartition(" && ")[2] for line in lines] == [".venv/bin/pyalign demo", ".venv/bin/pytest -n 2"]


def test_a_failing_example_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = tmp_path / "page.md"
    page.write_text("text\n\n```python\nx = 1\n```\n\n```text\nnot python\n```\n\n```python\nassert x == 2\n```\n")
    with pytest.raises(AssertionError) as caught:
        run_page(page)
    assert caught.traceback[-1].lineno + 1 == 12
    page.write_text("```sh\npyalign no-such-command\n```\n")
    with pytest.raises(subprocess.CalledProcessError):
        run_page(page)
