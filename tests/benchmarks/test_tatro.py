"""The study of curves: loaders that resume, records that are kept, verdicts, tables."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def study(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    return pytest.importorskip("benchmarks.studies.tatro")


def row(method, minimum, pair=0):
    return {
        "network": "net", "width": 4, "pair": pair, "method": method, "ends": [90.0, 91.0], "average": 89.0,
        "minimum": minimum, "largest_loss": 1.0,
    }  # fmt: skip


def test_verdicts_are_those_of_the_paper(study):
    layers = {"net-0": {"unaligned": 0.4, "aligned": 0.6}}
    good = [row("unaligned", 80.0), row("aligned", 85.0), row("PAM aligned", 85.5)]
    assert study.verdicts(good, layers, {"unaligned": 0.3, "aligned": 0.1}) == []
    bad = [row("unaligned", 85.0), row("aligned", 84.0), row("PAM aligned", 86.0)]
    found = study.verdicts(bad, {"net-0": {"unaligned": 0.6, "aligned": 0.4}}, {"unaligned": 0.1, "aligned": 0.2})
    assert len(found) == 4 and "not above unaligned" in found[0] and "robust" in found[-1]


def test_the_table_has_a_column_for_every_method(study):
    rows = [row(method, 80.0 + i) for i, method in enumerate(study.METHODS)]
    settings = {"scale": "tiny", "device": "cpu", "torch": "t", "pyalign": "p", "machine": "m"}
    content = {"rows": rows, "layers": {}, "robust": {}, "falls_short": ["this"], "settings": settings}
    table = pytest.importorskip("benchmarks.studies.tatro_tables").markdown(content)
    assert "| 89.0 / 80.0 | 89.0 / 81.0 | 89.0 / 82.0 | 89.0 / 83.0 |" in table and "Falls short: this." in table


def test_records_are_kept_and_time_stops_the_work(study, tmp_path):
    images = study.Images(torch.zeros(4, 3, 8, 8), torch.tensor([0, 1, 2, 3]))
    made = study.Study(study.SCALES["tiny"], tmp_path, images, images, "cpu", None)
    calls = []
    for _ in range(2):
        assert made.kept("phase", lambda: calls.append(1) or {"x": 1.5})["x"] == 1.5
    assert len(calls) == 1
    late = study.Study(study.SCALES["tiny"], tmp_path, images, images, "cpu", -1.0)
    assert late.kept("phase", lambda: {})["x"] == 1.5
    with pytest.raises(study.TimeUp):
        late.kept("other", lambda: {"x": 2.0})
    assert not (tmp_path / "other.json").exists()


def test_augmented_batches_repeat_from_the_state_of_their_generator(study):
    images = study.Images(torch.rand(10, 3, 8, 8), torch.arange(10))
    stream = study.Augmented(images, 4, seed=1)
    state = stream.generator.get_state()
    first = list(stream)
    assert len(first) == len(stream) == 2 and first[0][0].shape == (4, 3, 8, 8)
    assert not torch.equal(next(iter(stream))[0], first[0][0])
    stream.generator.set_state(state)
    assert all(torch.equal(x, u) and torch.equal(y, v) for (x, y), (u, v) in zip(stream, first, strict=True))


def test_networks_have_the_published_sizes(study):
    sizes = {name: sum(p.numel() for p in make(16, 10).parameters()) for name, make in study.NETWORKS.items()}
    assert 0.08e6 < sizes["tinyten"] < 0.1e6 and 0.46e6 < sizes["resnet32"] < 0.48e6
    for make in study.NETWORKS.values():
        assert make(4, 10)(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_image_folders_are_read(study, tmp_path):
    image = pytest.importorskip("PIL.Image")
    for name, value in (("cat", 0), ("dog", 255)):
        (tmp_path / "train" / name).mkdir(parents=True)
        image.new("RGB", (40, 30), (value,) * 3).save(tmp_path / "train" / name / "1.png")
    found = study.image_folder(tmp_path, "train", None, seed=0)
    assert found.x.shape == (2, 3, 32, 32) and sorted(found.y.tolist()) == [0, 1]
    assert found.x[found.y == 0].max() < found.x[found.y == 1].min()
    with pytest.raises(study.Absent):
        study.image_folder(tmp_path, "test", None, seed=0)
