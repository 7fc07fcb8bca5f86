"""The study on mixtures of experts: ranks among all orders, and the tables."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def study(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    return pytest.importorskip("benchmarks.studies.moe")


def test_ranks_and_shares(study):
    barriers = {"[0, 1]": 0.4, "[1, 0]": 0.1}
    ranking = study.Ranking("frozen top2 first", barriers, {"exact": "[1, 0]", "gate": "[0, 1]"})
    assert [ranking.rank(method) for method in ("exact", "gate")] == [1, 2]
    rows = [
        study.Row("frozen top2 first", "none", (1.0, 2.0, 1.2), 0.9, {"gate": (0, 1)}, 0.5),
        study.Row("frozen top2 first", "exact", (1.0, 1.19, 1.2), 0.09, {"gate": (1, 0)}, 0.9),
    ]
    table = study.markdown(rows, [ranking], {"words": "Text."})
    assert "| frozen top2 first | exact | 1.000, 1.200 | 1.190 | 0.0900 | 10.0 % | 0.90 |" in table
    assert "| frozen top2 first | gate | 2 | 0.4000 | 0.1000 | 0.4000 | 0.4000 |" in table and "Text." in table


def test_without_the_shared_folder_it_is_skipped(study, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("PYALIGN_SHARED", str(tmp_path))
    assert study.main(["--work", str(tmp_path / "work"), "--out", str(tmp_path)]) == 0
    assert "skipped" in capsys.readouterr().out
