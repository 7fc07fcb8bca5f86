"""The study of three transformers in one frame: on planted networks from end to end, and its table."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pyalign
from pyalign.symmetry import Kind, fold

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def study(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    return pytest.importorskip("benchmarks.studies.transformer_simplex")


class Small(nn.Module):
    """One pre-norm block with attention of two heads, between an embedding and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(7, 8), nn.Linear(8, 7)
        self.norms = nn.ModuleList(nn.LayerNorm(8) for _ in range(3))
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)
        self.up, self.down = nn.Linear(8, 12), nn.Linear(12, 8)

    def forward(self, ids):
        x = self.embed(ids)
        q, k, v = (t.unflatten(-1, (2, 4)).transpose(1, 2) for t in self.qkv(self.norms[0](x)).split(8, -1))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        x = x + self.down(F.gelu(self.up(self.norms[1](x))))
        return self.head(self.norms[2](x))


def planted(count):
    """Networks that compute the same, sure of their answers, each in coordinates of its own; and batches for them."""
    torch.manual_seed(0)
    model = Small().double().eval()
    with torch.no_grad():
        for tensor in (model.embed.weight, model.down.weight, model.head.weight):
            tensor *= 6
    ids = torch.randint(7, (16, 5), generator=torch.Generator().manual_seed(1))
    folded = fold(model, ids[:2])
    spec = pyalign.derive(folded.model, ids[:2], within=Kind.INVERTIBLE, constants=folded.constants)
    batches = [(ids, model(ids).argmax(-1))]
    return [spec.random(seed).apply(folded.model) for seed in range(count)], [ids], batches


def test_planted_networks_meet_and_are_read_back(study, tmp_path):
    models, inputs, batches = planted(3)
    scale = replace(study.SCALES["tiny"], sweeps=30, rounds=3)
    simplex = study.Simplex(models, study.Given(inputs, batches * 2, batches), scale, tmp_path)
    rows = [study.row_of(method, simplex.measured(method)) for method in study.METHODS]
    apart, first, together, learned = (row["centre_barrier"] for row in rows)
    assert apart > 0.1 and max(first, together, learned) < 0.01 * apart
    assert max(rows[2]["edges"].values()) < 0.01 * apart < min(rows[0]["edges"].values())
    again = study.Simplex(models, study.Given(inputs, [], []), scale, tmp_path)
    assert [study.row_of(method, again.measured(method)) for method in study.METHODS] == rows


def record(study, centre, edges=(2.0, 2.0, 2.0)):
    corners = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
    between = ((0.5, 0.5, 0.0), (0.5, 0.0, 0.5), (0.0, 0.5, 0.5), (1 / 3, 1 / 3, 1 / 3))
    return study.SimplexBarrier((*corners, *between), (1.0, 1.0, 1.03, *edges, centre))


def test_edges_and_centre(study):
    row = study.row_of("none", record(study, 3.0, (1.5, 2.0, 1.0)))
    assert row["edges"] == pytest.approx({"0-1": 0.5, "0-2": 0.985, "1-2": -0.015})
    assert row["centre_barrier"] == pytest.approx(1.99) and row["models"] == [1.0, 1.0, 1.03]


def test_verdicts_and_table(study, tmp_path):
    rows = [study.row_of(m, record(study, c)) for m, c in zip(study.METHODS, (3.0, 5.0, 2.5, 2.7), strict=True)]
    found = study.verdicts(rows)
    assert [line.split(" (")[0] for line in found] == [
        f"{at}: learned, universe" for at in ("centre of mass", "worst point")
    ]
    strangers = [{**row, "models": [1.0, 1.0, 1.2]} for row in rows[:1]]
    assert "differ by 0.200" in study.verdicts(strangers)[0]
    settings = {**study.asdict(study.SCALES["tiny"]), "torch": "t", "pyalign": "p", "machine": "m"}
    table = study.write(tmp_path, {"rows": rows, "falls_short": found, "settings": settings})
    assert "| weights, universe | 2.500 | 1.490 | 1.490 | 0.33, 0.33, 0.33 | 1.000 | 0.985 | 0.985 |" in table
    assert "Falls short: centre of mass" in table
    assert json.loads((tmp_path / "transformer_simplex.json").read_text())["falls_short"] == found


def test_without_the_shared_networks_it_is_skipped(study, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("PYALIGN_SHARED", str(tmp_path / "absent"))
    assert study.main(["--scale", "tiny", "--work", str(tmp_path / "w"), "--out", str(tmp_path / "o")]) == 0
    assert "skipped" in capsys.readouterr().out and not (tmp_path / "o").exists()
