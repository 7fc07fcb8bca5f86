"""The study of trained pairs: its verdicts, its files, and what it does without the shared folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def study(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    return pytest.importorskip("benchmarks.studies.cifar10_pairs")


def row(study, method, loss_barrier, draw=0, pair="mlp"):
    t = study.POSITIONS
    loss = tuple(1.5 + (loss_barrier if x == 0.5 else 0.0) for x in t)
    return study.Row(pair, method, False, draw, t, loss, (0.5,) * 5, loss_barrier, 0.1, 0.4, 1.0, 2.0)


COST = {"mlp": {"align_wall_seconds": 1.2, "forward_wall_seconds": 1.0, "wall_ratio": 1.2, "processor_ratio": 1.1}}


def test_verdicts_follow_the_plain_methods_numbers(study):
    good = [row(study, "activation", 0.108), row(study, "weight", 0.131), row(study, "none", 0.99)]
    assert study.failures(study.summary(good), COST) == []
    bad = [row(study, "activation", 0.110), row(study, "weight", 0.131)]
    (line,) = study.failures(study.summary(bad), COST)
    assert "activation" in line and "0.110" in line and "0.109" in line
    slow = {"mlp": {**COST["mlp"], "wall_ratio": 1.31}}
    assert len(study.failures(study.summary(good), slow)) == 1


def test_draws_are_summed_up_by_their_median(study):
    (line,) = study.summary([row(study, "weight", value, draw) for draw, value in enumerate((0.1, 0.3, 0.2))])
    assert line["loss_barrier"] == 0.2 and line["loss_barrier_range"] == [0.1, 0.3] and line["draws"] == 3


def test_files_are_written_whole(study, tmp_path):
    pytest.importorskip("matplotlib")
    settings = {"images": 5, "draws": 1, "machine": "m", "threads": 1, "torch": "t", "pyalign": "p"}
    rows = [row(study, "none", 0.9), row(study, "activation", 0.1)]
    table = study.write(tmp_path, rows, COST, settings)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cifar10_mlp.png", "cifar10_pairs.json", "cifar10_pairs.md"]
    content = json.loads((tmp_path / "cifar10_pairs.json").read_text())
    assert [r["loss_barrier"] for r in content["rows"]] == [0.9, 0.1]
    assert "| mlp | activation |  | 0.100 | 0.104 |" in table and table in (tmp_path / "cifar10_pairs.md").read_text()


def test_without_the_shared_folder_it_says_so(study, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("PYALIGN_SHARED", str(tmp_path / "nowhere"))
    assert study.main(["--out", str(tmp_path / "out")]) == 0
    assert "skipped" in capsys.readouterr().out and not (tmp_path / "out").exists()
