"""The demo: honest numbers that fall, the same for the same seed, and a page that shows them."""

import re

import pytest
import torch
from report.helpers_html import hosts, read

from pyalign.demo import Settings, accuracy, batches, digits, make_page, network, run, terminal_text, train
from pyalign.demo.study import METHODS
from pyalign.errors import InputError, PyalignError

TINY = Settings(seed=3, epochs=1, width=4, points=3)


@pytest.fixture(scope="module")
def tiny():
    return run(TINY, progress=False)


@pytest.fixture(scope="module")
def study():
    """A run as a user sees it, a little shorter."""
    return run(Settings(epochs=10, points=9), progress=False)


def weights(model):
    return torch.cat([tensor.double().flatten() for tensor in model.state_dict().values()])


def test_both_networks_are_good_and_differ(study):
    assert study.accuracy_a > 0.95 and study.accuracy_b > 0.95
    assert not torch.allclose(weights(study.model_a), weights(study.model_b), atol=1e-2)


def test_alignment_lowers_a_large_barrier(study):
    """Width 16 leaves a barrier; both methods must still take most of it away once BatchNorm is re-estimated."""
    heights = {name: record.loss_barrier for name, record in study.recalibrated.items()}
    assert heights["naive"] > 0.5
    assert heights["activation"] < heights["naive"] / 4
    assert heights["weight"] < heights["naive"] / 2
    drops = {name: record.accuracy_barrier for name, record in study.recalibrated.items()}
    assert drops["naive"] > 0.1 and drops["activation"] < drops["naive"] / 2


def test_aligned_ends_are_as_good_as_model_b(study):
    for records in (study.barriers, study.recalibrated):
        for record in records.values():
            assert record.loss[-1] == pytest.approx(records["naive"].loss[-1], rel=1e-3)
            assert record.loss[0] == records["naive"].loss[0]


def test_correlations_gather_on_the_diagonal(study):
    assert len(study.correlations) == 4
    for before, after in study.correlations.values():
        assert before.shape == after.shape
        assert after.diagonal().mean() > before.diagonal().mean() + 0.2


def test_the_same_seed_gives_the_same_run_and_touches_no_global_state(tiny):
    state, threads = torch.random.get_rng_state(), torch.get_num_threads()
    again = run(TINY, progress=False)
    assert torch.equal(torch.random.get_rng_state(), state) and torch.get_num_threads() == threads
    assert torch.equal(weights(again.model_a), weights(tiny.model_a))
    for name in METHODS:
        assert again.barriers[name] == tiny.barriers[name]
        assert again.recalibrated[name] == tiny.recalibrated[name]


def test_another_seed_gives_other_networks(tiny):
    other = train(digits("train"), TINY.seed + 5, epochs=1, width=4, progress=False)
    assert not torch.equal(weights(other), weights(tiny.model_a))


def test_the_record_can_be_read_by_machines(tiny):
    record = tiny.to_dict()
    assert record["settings"] == {"seed": 3, "epochs": 1, "width": 4, "points": 3}
    assert set(record["barriers"]) == set(record["barriers_recalibrated"]) == set(METHODS)
    assert all(0 <= gap < 1e-6 for gap in record["worst_gap"].values())


def test_the_page_shows_every_number_of_the_run(tiny):
    root = read(make_page(tiny))
    tables = {next(t.all("caption")).text(): t for t in root.all("table")}
    barriers = next(table for caption, table in tables.items() if caption.startswith("Barriers"))
    cells = [[c.text() for c in row.all()] for row in next(barriers.all("tbody")).all("tr")]
    expected = [
        [METHODS[name], kind, f"{record.loss_barrier:.3f}", f"{100 * record.accuracy_barrier:.1f}"]
        for kind, records in (("interpolated", tiny.barriers), ("re-estimated", tiny.recalibrated))
        for name, record in records.items()
    ]
    assert cells == expected
    assert {"Settings", "Versions", "Time"} <= set(tables)
    assert "3 and 4" in tables["Settings"].text() and torch.__version__ in tables["Versions"].text()


def test_the_page_draws_curves_and_heat_maps_with_words_beside_them(tiny):
    html = make_page(tiny)
    root = read(html)
    labels = [box.attributes["aria-label"] for box in root.all("div", role="img")]
    assert sum(label.startswith("Line chart") for label in labels) == 4
    assert sum(label.startswith("Two heat maps") for label in labels) == len(tiny.correlations)
    assert len(list(root.all("svg"))) == len(labels)
    assert len(list(root.all("image"))) >= 2 * len(tiny.correlations)
    assert all(len(figure.text()) > 20 for figure in root.all("figcaption"))
    assert hosts(html) == []
    assert len(html) < 2_000_000


def test_the_text_for_a_terminal(tiny):
    text = terminal_text(tiny)
    assert re.search(r"not aligned +re-estimated +\d+\.\d{3} +\d+\.\d", text)
    assert "└" in text and "training" in text
    assert terminal_text(tiny, unicode=False).isascii()


def test_digits_are_split_once_and_for_all():
    train_part, test_part, whole = digits("train"), digits("test"), digits()
    assert torch.equal(torch.cat([test_part.images, train_part.images]), whole.images)
    assert whole.images.shape == (1797, 1, 8, 8) and whole.images.min() >= 0 and whole.images.max() == 1
    assert set(whole.labels.tolist()) == set(range(10))
    assert torch.equal(digits("test").labels, test_part.labels)


def test_batches_hold_everything_once():
    data = digits("train")
    parts = batches(data, size=100)
    assert {len(labels) for _, labels in parts} <= {99, 100}
    assert torch.equal(torch.cat([images for images, _ in parts]), data.images)


def test_accuracy_counts():
    data = digits("test")
    model = network(width=2)
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.copy_(torch.arange(10.0))
    assert accuracy(model, data) == float((data.labels == 9).double().mean())


@pytest.mark.parametrize("wrong", [{"epochs": 0}, {"width": 0}, {"points": 1}, {"seed": -1}])
def test_settings_that_make_no_sense_are_refused(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        Settings(**wrong)


def test_an_unknown_part_of_the_digits_is_refused():
    with pytest.raises(InputError, match="all, train, test"):
        digits("validation")


def test_without_scikit_learn_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sklearn.datasets", None)
    with pytest.raises(PyalignError, match=r"pip install 'pyalign-nn\[demo\]'"):
        digits()
