"""Who may import whom: the layers contract of pyproject.toml, checked without any extra tool."""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
COMPILED = {"_cpu", "_cuda", "kernels"}


def contract() -> dict[str, int]:
    """Height of every layer member, lowest 0, from import-linter's own section."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    (layers,) = [c["layers"] for c in settings["contracts"] if c["type"] == "layers"]
    return {member.strip(" ()"): height for height, layer in enumerate(reversed(layers)) for member in layer.split("|")}


def sources() -> list[Path]:
    return sorted((ROOT / "pyalign").rglob("*.py"))


def room(module: str, heights: dict[str, int]) -> str | None:
    """The layer member that `module` belongs to."""
    return next((member for member in heights if module == member or module.startswith(f"{member}.")), None)


def imports(path: Path, module: str, is_package: bool) -> Iterator[tuple[int, str]]:
    """Line and full name of everything that the file imports, inside functions and `if TYPE_CHECKING` too."""
    package = module if is_package else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{source}.{alias.name}") for alias in node.names)


def violations(package: Path, heights: dict[str, int]) -> list[str]:
    """Every import that goes up, and every import between rooms of one floor."""
    found = []
    modules = {path.stem for path in package.iterdir()} | COMPILED
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        is_package = parts[-1] == "__init__"
        module = ".".join(parts[:-1] if is_package else parts)
        own = room(module, heights)
        if own is None:
            continue
        for line, target in imports(path, module, is_package):
            other = room(target, heights)
            from_top = target == package.name or (
                target.startswith(f"{package.name}.") and target.split(".")[1] not in modules
            )
            upward = other not in (None, own) and heights[other] >= heights[own]
            if upward or (from_top and heights[own] < max(heights.values())):
                found.append(f"{path.relative_to(package)}:{line}: {own} imports {target}")
    return found


def test_rooms_import_only_their_own_or_a_lower_room() -> None:
    assert violations(ROOT / "pyalign", contract()) == []


COMPILED_IMPORT = re.compile(rf"\b(?:import_module\(|import |from )[^#\n]*\b(?:{'|'.join(sorted(COMPILED))})\b")


def test_only_the_engine_imports_the_compiled_modules() -> None:
    files = {path.relative_to(ROOT / "pyalign"): path.read_text(encoding="utf-8") for path in sources()}
    assert {path.parts[0] for path, text in files.items() if COMPILED_IMPORT.search(text)} == {"engine"}


@pytest.mark.parametrize(
    "line",
    [
        "import pyalign._cpu",
        "from pyalign import _cpu",
        'm = import_module("pyalign._cuda")',
        "from ..kernels import k",
    ],
)
def test_an_import_of_a_compiled_module_is_found(line: str) -> None:
    assert COMPILED_IMPORT.search(line)
    assert not COMPILED_IMPORT.search("from pyalign.engine.cpu import build")


def test_every_room_has_a_place_in_the_contract() -> None:
    """A new file or folder of the package must be given a floor; the compiled modules and kernels stand outside."""
    free = {"__init__", "__main__", *COMPILED}
    names = {
        path.stem for path in (ROOT / "pyalign").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    placed = {member.removeprefix("pyalign.") for member in contract()}
    assert names - free - placed == set()


@pytest.mark.parametrize(
    ("file", "line", "forbidden"),
    [
        ("low/a.py", "import pkg.high", True),
        ("low/a.py", "from pkg.high import x", True),
        ("low/a.py", "from pkg import high", True),
        ("low/a.py", "from ..high import x", True),
        ("low/a.py", "from .. import high", True),
        ("low/a.py", "def f():\n    from pkg.high import x", True),
        ("low/__init__.py", "from ..high import x", True),
        ("low/a.py", "from pkg.level import x", True),
        ("low/a.py", "from pkg import top_function", True),
        ("low/a.py", "import pkg", True),
        ("high/a.py", "import pkg", False),
        ("low/a.py", "from . import b", False),
        ("low/a.py", "from pkg.low import b", False),
        ("high/a.py", "from ..low import b", False),
        ("high/a.py", "import json, torch", False),
        ("low/a.py", "import pkg.highest", False),
    ],
)
def test_the_check_can_fail(tmp_path: Path, file: str, line: str, forbidden: bool) -> None:
    package = tmp_path / "pkg"
    for name in ("low", "level", "high"):
        (package / name).mkdir(parents=True)
        (package / name / "__init__.py").write_text("")
    (package / "highest.py").write_text("")
    (package / file).write_text(line + "\n")
    heights = {"pkg.low": 0, "pkg.level": 0, "pkg.high": 1}
    assert bool(violations(package, heights)) is forbidden
