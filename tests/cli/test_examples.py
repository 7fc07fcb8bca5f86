"""The example in every command's --help works as it is printed, one after another in one folder."""

import json
import re
import shlex

import pytest
from cli.helpers_cli import inside

from pyalign.cli import main
from pyalign.cli.commands import COMMANDS
from pyalign.cli.main import make_parser


def examples(name):
    """The examples of a command, read out of the help it prints."""
    (subparsers,) = [a for a in make_parser()._actions if a.dest == "command"]
    text = subparsers.choices[name].format_help()
    block = text.split("example:\n", 1)[1].replace("\\\n", " ")
    return [shlex.split(line)[1:] for line in block.splitlines() if line.strip().startswith("pyalign ")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the demo has left its two models, and `align` its answers."""
    place = tmp_path_factory.mktemp("examples")
    with inside(place):
        for words in examples("demo") + examples("align"):
            assert main([*words, "--quiet"]) == 0, words
    return place


@pytest.mark.parametrize("name", [command.NAME for command in COMMANDS])
def test_every_command_has_an_example(name):
    found = examples(name)
    assert found and all(words[0] == name for words in found)


def test_the_demo_left_a_page_and_two_models(folder):
    assert "<h1>" in (folder / "pyalign-demo.html").read_text(encoding="utf-8")
    assert {"a.safetensors", "b.safetensors", "b_aligned.safetensors", "alignment.safetensors"} <= {
        path.name for path in folder.iterdir()
    }


@pytest.mark.parametrize("name", [c.NAME for c in COMMANDS if c.NAME not in ("demo", "align")])
def test_examples_run_and_answer_machines(folder, name, capsys):
    with inside(folder):
        for words in examples(name):
            capsys.readouterr()
            assert main([*words, "--json"]) == 0
            record = json.loads(capsys.readouterr().out)
            assert all((folder / path).is_file() for path in record.get("written", []))


def test_alignment_in_a_file_does_what_the_written_model_does(folder, capsys):
    common = ["barrier", "--model", "pyalign.demo:network", "--a", "a.safetensors", "--data", "digits:test"]
    common += ["--recalibrate", "digits:train", "-t", "0.5", "--json"]
    answers = []
    ends = [["--b", "b_aligned.safetensors"], ["--b", "b.safetensors"]]
    ends.insert(1, [*ends[1], "--alignment", "alignment.safetensors"])
    with inside(folder):
        for words in ends:
            capsys.readouterr()
            assert main([*common, *words]) == 0
            answers.append(json.loads(capsys.readouterr().out))
    assert answers[0]["loss"] == answers[1]["loss"]
    assert answers[0]["loss_barrier"] < answers[2]["loss_barrier"] / 2
    assert answers[0]["t"] == [0.0, 0.5, 1.0] and answers[0]["recalibrated"] is True


def test_every_option_is_explained():
    (subparsers,) = [a for a in make_parser()._actions if a.dest == "command"]
    for name, parser in subparsers.choices.items():
        for action in parser._actions:
            assert action.help, f"{name} {action.dest}"
        assert not re.search(r"^usage: (?!pyalign)", parser.format_help())
