"""What all commands share: streams, exit codes, errors of one line."""

import importlib.metadata
import json
import logging
import math
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import pytest
import torch
from cli.helpers_cli import pyalign

from pyalign.cli import main
from pyalign.cli.answers import Answer, plain
from pyalign.cli.commands import barrier as barrier_command
from pyalign.cli.commands import derive as derive_command
from pyalign.errors import PyalignWarning

DERIVE = ("derive", "--model", "nets_of_a_user:factory", "--shape", "3,4")


def test_json_is_all_there_is_on_stdout(workplace, capsys):
    outcome = pyalign(capsys, *DERIVE, "--json")
    assert outcome.code == 0
    assert [group["size"] for group in outcome.json()["groups"]] == [6]
    assert "a user's own print" in outcome.err


def test_text_is_for_people(workplace, capsys):
    outcome = pyalign(capsys, *DERIVE)
    assert outcome.code == 0 and "aligned: 1 groups, 6 units" in outcome.out and "verified:" in outcome.out


def test_an_error_is_one_line_and_code_1(workplace, capsys):
    outcome = pyalign(capsys, *DERIVE[:2], "nets_of_a_user:fails", *DERIVE[3:], "--json")
    assert outcome.code == 1 and outcome.out == ""
    lines = outcome.err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("pyalign derive: error:") and "RuntimeError: no weights today" in lines[0]
    assert "What to do:" in lines[0]


def test_debug_shows_the_traceback(workplace, capsys):
    outcome = pyalign(capsys, *DERIVE[:2], "nets_of_a_user:fails", *DERIVE[3:], "--debug")
    assert outcome.code == 1 and "Traceback" in outcome.err and "in fails" in outcome.err


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["no-such-command"],
        ["derive"],
        ["derive", "--model", "nets_of_a_user:factory"],
        ["derive", "--model", "nets_of_a_user:factory", "--shape", "3,4", "--data", "digits"],
        ["derive", "--model", "nets_of_a_user", "--shape", "3,4"],
        ["derive", "--model", "nets_of_a_user:factory", "--shape", "x"],
        ["derive", "--model", "nets_of_a_user:factory", "--shape", "3,4", "--model-options", "[1]"],
        ["derive", "--a", "a.safetensors", "--shape", "3,4"],
        ["align", "--model", "m:f", "--a", "a.safetensors"],
        ["merge", "--model", "m:f", "a.safetensors", "--out", "x.safetensors"],
        ["merge", "--model", "m:f", "a.safetensors", "b.safetensors", "--repair", "repair", "--out", "x.safetensors"],
        ["merge", "--model", "m:f", "a.safetensors", "b.safetensors", "--out", "x.safetensors", "--weights", "1"],
        ["demo", "--out", "x.txt"],
        ["align", "--model", "m:f", "--a", "a.pt", "--b", "b.pt", "--data", "digits", "--out", "x.onnx"],
        ["align", "--model", "m:f", "--a", "a.pt", "--b", "b.pt", "--data", "digits", "--save", "x.json"],
        ["align", "--model", "m:f", "--a", "a.pt", "--b", "b.pt", "--data", "digits", "--restarts", "3"],
        ["align", "--model", "m:f", "--a", "a.pt", "--b", "b.pt", "--data", "digits", "--steps", "3"],
        ["align", "--model", "m:f", "--a", "a.pt", "--b", "b.pt", "--method", "learned", "--steps", "3"],
        ["barrier", "--model", "m:f", "--a", "a.pt", "--b", "b.pt", "--data", "digits", "--plot", "x.html"],
        ["barrier", "--model", "m:f", "--a", "a.pt", "--b", "b.pt", "--data", "digits", "-t", "x"],
        ["curve", "--model", "m:f", "--a", "a.pt", "--b", "b.pt", "--data", "digits", "--out", "c.safetensors"],
        ["curve", "--model", "m:f", "--a", "a.pt", "--b", "b.pt", "--data", "digits", "--steps", "1", "--out", "c.pt"],
        ["evaluate", "--model", "m:f", "--checkpoint", "a.pt", "--data", "digits", "--points", "5"],
        ["evaluate", "--model", "m:f", "--data", "digits"],
        ["plane", "--model", "m:f", "--anchors", "a.pt", "b.pt", "c.pt", "--data", "digits"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_code_2(workplace, capsys, words):
    before = sorted(workplace.iterdir())
    outcome = pyalign(capsys, *words)
    assert outcome.code == 2 and outcome.out == "" and outcome.err
    assert "Traceback" not in outcome.err
    assert sorted(p for p in workplace.iterdir() if p.name != "__pycache__") == [
        p for p in before if p.name != "__pycache__"
    ]


def test_ctrl_c_is_code_130(workplace, capsys, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(derive_command, "derive", interrupted)
    outcome = pyalign(capsys, *DERIVE, "--out", "spec.json")
    assert outcome.code == 130 and outcome.out == ""
    assert "interrupted" in outcome.err and "Traceback" not in outcome.err
    assert not (workplace / "spec.json").exists()


def test_ctrl_c_while_writing_leaves_the_earlier_file(workplace, capsys, monkeypatch):
    (workplace / "plot.svg").write_text("earlier")
    words = ["barrier", "--model", "nets_of_a_user:factory", "--a", "a.safetensors", "--b", "b.safetensors"]
    words += ["--data", "nets_of_a_user:data", "--points", "2", "--plot", "plot.svg"]

    class Figure:
        def savefig(self, path, **options):
            path.write_text("half")
            raise KeyboardInterrupt

    monkeypatch.setattr(barrier_command, "barrier_figure", lambda records: Figure())
    files = {path.name for path in workplace.iterdir()}
    assert pyalign(capsys, *words).code == 130
    assert (workplace / "plot.svg").read_text() == "earlier"
    assert {path.name for path in workplace.iterdir()} - {"__pycache__"} == files - {"__pycache__"}


def test_a_full_disk_is_an_error_of_one_line(workplace, capsys, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device", "spec.json")

    monkeypatch.setattr(derive_command, "write_text", full)
    outcome = pyalign(capsys, *DERIVE, "--out", "spec.json")
    assert outcome.code == 1 and "No space left on device" in outcome.err and len(outcome.err.splitlines()) <= 2


@pytest.mark.parametrize("target", ["/dev/null", "folder", "a.safetensors/spec.json"])
def test_a_place_that_cannot_be_written_to_is_told_before_the_work(workplace, capsys, monkeypatch, target):
    (workplace / "folder").mkdir()
    monkeypatch.setattr(derive_command, "derive", lambda *args: pytest.fail("the work had begun"))
    outcome = pyalign(capsys, *DERIVE, "--out", target)
    assert outcome.code == 1 and "--out" in outcome.err and len(outcome.err.splitlines()) == 1
    assert Path("/dev/null").is_char_device()


def test_what_nobody_expected_is_told_as_such(workplace, capsys, monkeypatch):
    def broken(*args, **kwargs):
        raise TypeError("first line\nsecond line")

    monkeypatch.setattr(derive_command, "derive", broken)
    outcome = pyalign(capsys, *DERIVE)
    assert outcome.code == 1
    assert "TypeError: first line second line (this was not expected; repeat with --debug" in outcome.err


def test_warnings_are_one_line_and_quiet_silences_them(workplace, capsys, monkeypatch):
    real = derive_command.derive

    def warns(*args):
        warnings.warn("look at this", PyalignWarning, stacklevel=1)
        return real(*args)

    monkeypatch.setattr(derive_command, "derive", warns)
    assert "pyalign: warning: look at this\n" in pyalign(capsys, *DERIVE).err
    assert "look at this" not in pyalign(capsys, *DERIVE, "--quiet").err


def test_the_process_is_left_as_it_was(workplace, capsys):
    logger = logging.getLogger("pyalign")
    before = (list(logger.handlers), logger.level, warnings.showwarning, sys.stdout)
    pyalign(capsys, *DERIVE, "--verbose")
    assert (list(logger.handlers), logger.level, warnings.showwarning) == before[:3]


def test_numbers_that_json_lacks_are_null():
    record = {"loss": [math.nan, math.inf, 1.0], "t": torch.tensor([0.5]), "kind": (1, None, True)}
    assert json.loads(Answer("", record).json()) == {"loss": [None, None, 1.0], "t": [0.5], "kind": [1, None, True]}
    assert plain(torch.float32) == "float32"


def test_doctor_tells_versions_build_and_backends(capsys):
    record = pyalign(capsys, "doctor", "--json").json()
    assert record["packages"]["torch"] == importlib.metadata.version("torch")
    rows = {(row["operation"], row["implementation"]): row for row in record["backends"]}
    for operation in ("cross_moments", "linear_assignment", "permuted_lerp"):
        assert rows[operation, "reference"]["available"] is True
        assert rows[operation, "reference"]["reasons"] == []
        assert len([1 for name, _ in rows if name == operation]) == 3
    assert all(row["reasons"] for row in rows.values() if not row["available"])
    assert record["build"]
    text = pyalign(capsys, "doctor").out
    assert "linear_assignment" in text and "why not" in text and record["platform"] in text


def test_python_m_pyalign_is_the_same_command():
    done = subprocess.run(
        [sys.executable, "-m", "pyalign", "doctor", "--json"],
        capture_output=True,
        check=True,
        cwd=tempfile.gettempdir(),
    )
    assert json.loads(done.stdout)["python"] == sys.version.split()[0]


def test_a_reader_that_stops_early_is_no_error():
    command = f"{sys.executable} -m pyalign derive --model pyalign.demo:network --shape 2,1,8,8 | head -c 1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, cwd=tempfile.gettempdir())
    assert done.returncode == 0 and done.stdout and b"Traceback" not in done.stderr


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("pyalign ")
