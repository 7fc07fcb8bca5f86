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


@pytest.fixture
def measure(study):
    return pytest.importorskip("benchmarks.studies.moe_measure")


def pairs_of(tables, setting, naive, exact, orders=((0, 1), (1, 0))):
    """Rows of as many pairs as there are barriers; the exact order is the second."""
    rows = []
    for number, (first, second) in enumerate(zip(naive, exact, strict=True)):
        rows.append(tables.Row(setting, (1, number), "none", (1.0, 2.0, 1.2), first, {"gate": orders[0]}, 0.5))
        rows.append(tables.Row(setting, (1, number), "exact", (1.0, 1.1, 1.2), second, {"gate": orders[1]}, 0.9))
    return rows


def test_shares_are_those_of_each_pair_and_their_mean_and_spread(tables):
    rows = pairs_of(tables, "frozen top2 first", (1.0, 0.5), (0.08, 0.06))
    assert tables.shares(rows, "frozen top2 first", "exact") == pytest.approx([0.08, 0.12])
    table = tables.markdown(rows, [], [], {"words": "Text."})
    assert "| frozen top2 first | exact | 1.100 | 1.100 | 0.0700 | 10.0 ± 2.8 % | 8.0, 12.0 | 0.90 |" in table
    assert "Text." in table and "24 orders" not in table and "nearest" not in table


def test_ranks_of_each_pair_and_what_they_are_above_the_best_order(tables):
    rows = pairs_of(tables, "frozen top2 first", (0.9,), (0.1,))
    barriers = {"[0, 1]": 0.4, "[1, 0]": 0.1}
    ranking = tables.Ranking("frozen top2 first", (1, 0), barriers, {"exact": "[1, 0]", "gate": "[0, 1]"})
    assert [ranking.rank(method) for method in ("exact", "gate")] == [1, 2]
    assert ranking.excess("exact", 0.9) == 0 and ranking.excess("gate", 0.9) == pytest.approx(0.375)
    table = tables.markdown(rows, [ranking], [], {"words": "Text."})
    assert "| frozen top2 first | gate | 2.0 | 2 | 37.5 % |" in table


def test_what_is_left_is_written_as_shares(tables):
    left = [tables.Remainder("frozen a", (1, k), 0.5, 0.05 * k, -0.01, 0.4, 0.5) for k in (1, 3)]
    table = tables.markdown(pairs_of(tables, "frozen a", (1.0,), (0.1,)), [], left, {"words": ""})
    assert "| frozen a | 20.0 ± 14.1 % | -2.0 ± 0.0 % | 0.40 | 0.50 |" in table


def test_without_the_shared_folder_it_is_skipped(study, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("PYALIGN_SHARED", str(tmp_path))
    assert study.main(["--work", str(tmp_path / "work"), "--out", str(tmp_path)]) == 0
    assert "skipped" in capsys.readouterr().out


def test_the_mean_over_pairs_falls_short_and_controls_do_not(tables):
    rows = [r for name in ("frozen a", "control a") for r in pairs_of(tables, name, (1.0, 1.0), (0.3, 0.5))]
    rows += pairs_of(tables, "frozen b", (1.0, 1.0), (0.05, 0.14))
    barriers = {str(order): float(order) for order in range(9)}
    rankings = [tables.Ranking(kind, (1, 0), barriers, {"exact": "8"}) for kind in ("frozen a", "control a")]
    found = tables.failures(rows, rankings)
    assert found == [
        "frozen a: barrier 40.0 ± 14.1 % of naive, expected at most 10 %",
        "frozen a: the exact order ranks 9.0 on average, expected at most 5",
    ]


class Reader(nn.Module):
    """Tokens, one mixture, logits; the parts that are not mixtures are the same for every seed."""

    def __init__(self, networks, seed, kind):
        super().__init__()
        torch.manual_seed(0)
        self.tok, self.head = nn.Embedding(7, 6), nn.Linear(6, 7)
        torch.manual_seed(seed)
        self.mlp = networks.Mixture(6, 5, kind)

    def forward(self, i):
        x = self.tok(i)
        return self.head(x + self.mlp(x))


@pytest.mark.parametrize("kind", ["dense", "top2", "shared"])
def test_the_mean_of_a_mixture_with_itself_is_itself(networks, kind):
    mixture, x = Reader(networks, 1, kind).mlp.double(), torch.randn(3, 4, 6, dtype=torch.float64)
    torch.testing.assert_close(networks.Averaged(mixture, mixture)(x), mixture(x))


def test_experts_averaged_as_functions_are_not_averaged_as_weights(networks):
    one, two = (Reader(networks, seed, "dense").mlp.double() for seed in (1, 2))
    x = torch.randn(5, 6, dtype=torch.float64)
    weight = ((one.gate(x) + two.gate(x)) / 2).softmax(-1)
    answers = torch.stack([(one.experts[e](x) + two.experts[e](x)) / 2 for e in range(4)], -1)
    torch.testing.assert_close(networks.Averaged(one, two)(x), (answers * weight.unsqueeze(-2)).sum(-1))


@pytest.mark.parametrize("kind", ["top2", "shared"])
def test_nothing_is_left_of_a_network_and_its_reordered_self(networks, measure, kind):
    model = Reader(networks, 1, kind).eval()
    generator = torch.Generator().manual_seed(3)
    data = [(torch.randint(7, (4, 8), generator=generator), torch.randint(7, (4, 8), generator=generator))] * 3
    spec = measure.mixtures_only(model, data[0][0])
    other = spec.random(1, measure.Kind.PERMUTATION).apply(model)
    rows = measure.frozen("frozen a", (1, 2), (model, other), [], data, 3, experts=("exact",))
    assert [row.method for row in rows] == ["none", "exact"] and abs(rows[1].barrier) < 1e-6
    left = measure.remainder("frozen a", (1, 2), (model, other), data, rows)
    assert abs(left.router) < 1e-6 and left.matched == pytest.approx(1, abs=1e-5)
    assert left.nearest == pytest.approx(1, abs=1e-5) and (left.naive, left.exact) == (rows[0].barrier, rows[1].barrier)


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
