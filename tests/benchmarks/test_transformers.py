"""The study of transformers: verdicts, the table, batches of text, and what happens without the shared networks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def study(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    return pytest.importorskip("benchmarks.studies.transformers")


@pytest.fixture
def tables(study):
    return pytest.importorskip("benchmarks.studies.transformer_tables")


def rows(tables, barriers):
    t, loss = [0.0, 0.5, 1.0], [1.0, 2.0, 1.0]
    return [
        {"network": "gpt", "method": m, "loss_barrier": b, "t": t, "loss": loss, "accuracy": [0.5, 0.25, 0.5]}
        for m, b in zip(tables.METHODS, barriers, strict=True)
    ]


def test_verdicts_are_those_of_the_paper(tables):
    assert tables.verdicts(rows(tables, (2.0, 1.4, 1.2, 0.3, 0.6, 0.05))) == []
    found = tables.verdicts(rows(tables, (2.0, 2.1, 0.32, 0.3, 0.2, 0.15)))
    assert len(found) == 4
    assert "activation (2.100) is not below vanilla" in found[0] and "well below" in found[2] and "0.15" in found[3]


def test_the_table_has_a_line_for_every_method(tables, tmp_path):
    settings = {"steps": [("gpt", 3)], "lr": 0.1, "torch": "t", "pyalign": "p", "machine": "m"}
    content = {"rows": rows(tables, (2.0, 1.4, 1.2, 0.3, 0.6, 0.2)), "falls_short": ["this"], "settings": settings}
    table = tables.write(tmp_path, content)
    assert "| learned, all classes | 0.200 | 0.02 | 1.000, 2.000, 1.000 | 0.250 |" in table and "- this" in table
    assert (tmp_path / "transformers.json").exists() and table in (tmp_path / "transformers.md").read_text()


def test_windows_of_text_follow_one_another_and_repeat_from_their_generator(study):
    text = torch.arange(1_000_400) % 65
    x, y = study.windows(text, torch.tensor([3, 200]))
    assert x.shape == (2, 128) and torch.equal(y[:, :-1], x[:, 1:])
    stream = study.Windows(text, 4, 2, seed=1)
    state = stream.generator.get_state()
    first = [b[0].clone() for b in stream]
    stream.generator.set_state(state)
    assert all(torch.equal(a, b[0]) for a, b in zip(first, stream, strict=True)) and len(stream) == 2
    held = study.held_out(text, count=3, size=2)
    assert [len(b[0]) for b in held] == [2, 1] and int(held[0][0][0, 0]) == 1_000_000 % 65


def test_without_the_shared_networks_it_is_skipped(study, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("PYALIGN_SHARED", str(tmp_path / "absent"))
    assert study.main(["--scale", "tiny", "--work", str(tmp_path / "w"), "--out", str(tmp_path / "o")]) == 0
    assert "skipped" in capsys.readouterr().out and not (tmp_path / "o").exists()
