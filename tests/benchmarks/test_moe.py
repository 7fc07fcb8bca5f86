"""The study on mixtures of experts: ranks among all orders, and the tables."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def study(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    return pytest.importorskip("benchmarks.studies.moe")


@pytest.fixture
def tables(study):
    return pytest.importorskip("benchmarks.studies.moe_tables")


@pytest.fixture
def networks(study):
    return pytest.importorskip("benchmarks.studies.moe_networks")


def test_ranks_and_shares(study, tables):
    barriers = {"[0, 1]": 0.4, "[1, 0]": 0.1}
    ranking = study.Ranking("frozen top2 first", barriers, {"exact": "[1, 0]", "gate": "[0, 1]"})
    assert [ranking.rank(method) for method in ("exact", "gate")] == [1, 2]
    rows = [
        study.Row("frozen top2 first", "none", (1.0, 2.0, 1.2), 0.9, {"gate": (0, 1)}, 0.5),
        study.Row("frozen top2 first", "exact", (1.0, 1.19, 1.2), 0.09, {"gate": (1, 0)}, 0.9),
    ]
    table = tables.markdown(rows, [ranking], {"words": "Text."})
    assert "| frozen top2 first | exact | 1.000, 1.200 | 1.190 | 0.0900 | 10.0 % | 0.90 |" in table
    assert "| frozen top2 first | gate | 2 | 0.4000 | 0.1000 | 0.4000 | 0.4000 |" in table and "Text." in table


def test_without_the_shared_folder_it_is_skipped(study, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("PYALIGN_SHARED", str(tmp_path))
    assert study.main(["--work", str(tmp_path / "work"), "--out", str(tmp_path)]) == 0
    assert "skipped" in capsys.readouterr().out


def test_controls_do_not_count_as_short(tables):
    def rows(setting):
        return [tables.Row(setting, m, (1.0, 1.0), b) for m, b in (("none", 1.0), ("exact", 0.5))]

    barriers = {str(order): float(order) for order in range(9)}
    rankings = [tables.Ranking(kind, barriers, {"exact": "8"}) for kind in ("frozen a", "control a")]
    found = tables.failures([*rows("frozen a"), *rows("control a")], rankings)
    assert len(found) == 2 and all(line.startswith("frozen a") for line in found)


def test_decay_falls_on_weights_alone_and_a_trained_network_is_read_back(networks, tmp_path):
    text = networks.Text(torch.arange(200) % 6, torch.arange(20) % 6, 8)

    def network():
        torch.manual_seed(0)
        return nn.Sequential(nn.Embedding(7, 4), networks.Mixture(4, 5, "dense"), nn.Linear(4, 7))

    how = networks.Training(decay=0.5, lr=0.1)
    before = network()
    model = networks.trained(network(), text, tmp_path / "n.safetensors", steps=2, batch=3, seed=1, how=how)
    unseen = before[0].weight[6] * (1 - 0.1 * 0.5) * (1 - 0.05 * 0.5)  # the rate falls by half a cosine
    torch.testing.assert_close(model[0].weight[6], unseen)
    other = networks.Training(decay=0.0, lr=0.1)
    free = networks.trained(network(), text, tmp_path / "o.safetensors", steps=1, batch=3, seed=1, how=other)
    once = networks.trained(network(), text, tmp_path / "p.safetensors", steps=1, batch=3, seed=1, how=how)
    torch.testing.assert_close(free[2].bias, once[2].bias)
    assert not torch.equal(free[2].weight, once[2].weight)
    again = networks.trained(network(), text, tmp_path / "n.safetensors", steps=9, batch=3, seed=1, how=how)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))


def test_first_weights_have_the_deviation_asked_for(networks):
    try:
        model = networks.transplanted("shared", "first", 1, networks.Training(hidden=64, deviation=0.01))
    except networks.Absent as reason:
        pytest.skip(str(reason))
    mixture = model.blocks[0].mlp
    assert mixture.experts[0][0].weight.shape == (64, 128) and not mixture.experts[0][0].bias.any()
    assert abs(float(mixture.shared[2].weight.detach().std()) - 0.01) < 5e-4
    assert not isinstance(model.blocks[1].mlp, networks.Mixture)
    assert [p.requires_grad for p in (model.tok.weight, mixture.gate.weight)] == [False, True]
