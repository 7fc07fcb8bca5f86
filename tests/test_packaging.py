"""Metadata, pinned versions and the files that a release must carry agree with each other."""

import importlib.metadata
import importlib.resources
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import pyalign

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = SETTINGS["project"]
TEXTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "CITATION.cff", ROOT / ".ci" / "run"])


def direct_requirements() -> list[Requirement]:
    groups = [PROJECT["dependencies"], SETTINGS["build-system"]["requires"], *PROJECT["optional-dependencies"].values()]
    return [Requirement(line) for group in groups for line in group]


def pins() -> dict[str, Requirement]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    found = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(pin.name): pin for pin in found}


def unpinned(requirements: list[Requirement], pinned: dict[str, Requirement]) -> list[str]:
    """Requirements without a pin, or whose pin lies outside their own range."""
    wrong = []
    for requirement in requirements:
        pin = pinned.get(canonicalize_name(requirement.name))
        (specifier,) = pin.specifier if pin else (None,)
        if specifier is None or specifier.operator != "==" or specifier.version not in requirement.specifier:
            wrong.append(str(requirement))
    return wrong


def misnamed(text: str) -> list[str]:
    """`pip install` of the other project that is called pyalign on the package index."""
    return re.findall(r"pip3? install[^\n`]*?[\s\"']pyalign(?![\w-])[^\n`]*", text)


def test_every_direct_dependency_has_a_pin_inside_its_range() -> None:
    assert unpinned(direct_requirements(), pins()) == []


def test_a_missing_or_outdated_pin_is_found() -> None:
    outdated = {"torch": Requirement("torch==2.3.0"), "numpy": Requirement("numpy>=2")}
    assert unpinned([Requirement("torch>=2.4"), Requirement("numpy>=1"), Requirement("scipy")], outdated) == [
        "torch>=2.4",
        "numpy>=1",
        "scipy",
    ]


def test_torch_is_needed_to_run_and_never_to_build() -> None:
    assert "torch" in {Requirement(line).name for line in PROJECT["dependencies"]}
    assert "torch" not in {Requirement(line).name for line in SETTINGS["build-system"]["requires"]}


def test_distribution_name_and_version_agree_everywhere() -> None:
    assert PROJECT["name"] == "pyalign-nn"
    assert PROJECT["version"] == pyalign.__version__
    assert f"version: {PROJECT['version']}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert importlib.metadata.version("pyalign-nn") == PROJECT["version"]


def test_the_package_is_typed() -> None:
    assert importlib.resources.files("pyalign").joinpath("py.typed").is_file()


def test_the_console_script_is_installed() -> None:
    (script,) = importlib.metadata.entry_points(group="console_scripts", name="pyalign")
    assert callable(script.load())


def test_licence_is_the_whole_apache_text() -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert PROJECT["license"] == "Apache-2.0"
    for part in ("Apache License", "Grant of Patent License", "Limitation of Liability", "END OF TERMS AND CONDITIONS"):
        assert part in text


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_nobody_is_told_to_install_the_other_pyalign(path: Path) -> None:
    assert misnamed(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("line", ["pip install pyalign", "pip install -U pyalign[demo]", "pip3 install 'pyalign>=1'"])
def test_the_wrong_name_is_found(line: str) -> None:
    assert misnamed(line) == [line]


def test_the_right_name_and_a_later_command_pass() -> None:
    assert misnamed('pip install pyalign-nn[demo]\n.venv/bin/pip install ".[demo]" && .venv/bin/pyalign demo') == []


WHEELS = {
    "cpu": SETTINGS["tool"]["cibuildwheel"],
    "cuda": tomllib.loads((ROOT / ".ci" / "cuda-wheels.toml").read_text(encoding="utf-8"))["tool"]["cibuildwheel"],
}


@pytest.mark.parametrize("kind", WHEELS)
def test_wheels_are_built_for_every_python_and_tried(kind: str) -> None:
    wheels = WHEELS[kind]
    versions = re.findall(r"Python :: 3\.(\d+)", " ".join(PROJECT["classifiers"]))
    assert wheels["build"].split() == [f"cp3{minor}-*" for minor in versions]
    assert wheels["config-settings"]["cmake.define.PYALIGN_CUDA"] == {"cpu": "OFF", "cuda": "ON"}[kind]
    assert wheels["linux"]["archs"] == ["x86_64", "aarch64"]
    assert wheels["test-command"] == "python {project}/tests/smoke.py" and (ROOT / "tests" / "smoke.py").is_file()


def test_what_wheels_are_tried_with(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "tests" / "smoke.py")]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert run.returncode == 0, run.stderr
    assert "pyalign doctor" in run.stdout and "as they should be" in run.stdout
