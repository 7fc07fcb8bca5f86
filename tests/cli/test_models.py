"""What a model may be on the command line, and what is written back."""

import json

import pytest
import torch
from cli.helpers_cli import pyalign

from pyalign import io
from pyalign.cli.targets import is_target

PAIR = ("--model", "nets_of_a_user:factory", "--a", "a.safetensors", "--b", "b.safetensors")
DATA = ("--data", "nets_of_a_user:data")


def test_a_pair_is_aligned_and_written(workplace, capsys):
    outcome = pyalign(
        capsys, "align", *PAIR, *DATA, "--out", "out.safetensors", "--save", "found.safetensors", "--json"
    )
    assert outcome.code == 0 and outcome.json()["written"] == ["out.safetensors", "found.safetensors"]
    before, after = io.load_state("b.safetensors"), io.load_state("out.safetensors")
    assert not torch.equal(before["0.weight"], after["0.weight"])
    assert torch.allclose(before["0.weight"].sum(0), after["0.weight"].sum(0), atol=1e-5)


def test_learned_matching_goes_on_from_its_checkpoint(workplace, capsys):
    words = ("align", *PAIR, *DATA, "--method", "learned", "--lr", "0.05", "--steps", "12", "--json")
    states = {}
    checkpoint = ("--checkpoint", "run.safetensors")
    for name, options in {"whole": (), "kept": checkpoint, "again": checkpoint}.items():
        outcome = pyalign(capsys, *words, *options, "--out", f"{name}.safetensors")
        assert outcome.code == 0 and "learned" in outcome.json()["method"]
        states[name] = io.load_state(f"{name}.safetensors")
    for name in ("kept", "again"):
        assert all(torch.equal(tensor, states["whole"][key]) for key, tensor in states[name].items())
    before, x = io.load_state("b.safetensors"), torch.randn(8, 4)
    assert not torch.equal(before["0.weight"], states["whole"]["0.weight"])
    outputs = []
    for state in (before, states["whole"]):
        hidden = torch.relu(x @ state["0.weight"].T + state["0.bias"])
        outputs.append(hidden @ state["2.weight"].T + state["2.bias"])
    assert torch.allclose(*outputs, atol=1e-5)
    other = pyalign(capsys, *words[:-2], "13", "--checkpoint", "run.safetensors", "--json")
    assert other.code == 1 and "run.safetensors" in other.err


@pytest.mark.parametrize("name", ["factory", "zoo.small"])
def test_a_factory_in_a_file_with_options(workplace, capsys, name):
    words = ("derive", "--model", f"nets_of_a_user.py:{name}", "--model-options", '{"width": 9}', "--shape", "2,4")
    assert pyalign(capsys, *words, "--json").json()["groups"][0]["size"] == 9


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("nets_of_a_user:no_model", "makes no model"),
        ("nets_of_a_user:not_callable", "cannot be called"),
        ("nets_of_a_user:missing", "has no 'missing'"),
        ("no_such_module_at_all:factory", "cannot be imported: ModuleNotFoundError"),
        ("no_such_file.py:factory", "there is no file no_such_file.py"),
        ("broken.py:factory", "cannot be imported: SyntaxError"),
    ],
)
def test_factories_that_give_no_model(workplace, capsys, model, message):
    (workplace / "broken.py").write_text("def factory(:\n")
    outcome = pyalign(capsys, "derive", "--model", model, "--shape", "2,4")
    assert outcome.code == 1 and message in outcome.err and len(outcome.err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("checkpoint", "message"),
    [("none.safetensors", "there is no file none.safetensors"), ("torn.safetensors", "torn.safetensors")],
)
def test_checkpoints_that_cannot_be_read(workplace, capsys, checkpoint, message):
    (workplace / "torn.safetensors").write_bytes((workplace / "a.safetensors").read_bytes()[:100])
    outcome = pyalign(capsys, "align", *PAIR[:4], "--b", checkpoint, *DATA, "--out", "out.safetensors")
    assert outcome.code == 1 and message in outcome.err
    assert not (workplace / "out.safetensors").exists()


def test_a_checkpoint_of_another_model_is_named(workplace, capsys):
    words = ("--model-options", '{"width": 7}')
    outcome = pyalign(capsys, "align", *PAIR, *words, *DATA, "--out", "out.safetensors")
    assert outcome.code == 1 and "0.weight" in outcome.err and "(7, 4)" in outcome.err
    assert not (workplace / "out.safetensors").exists()


def test_three_models_are_aligned_and_merged(workplace, capsys):
    words = ("merge", "--model", "nets_of_a_user:factory", "a.safetensors", "b.safetensors", "c.safetensors")
    outcome = pyalign(
        capsys, *words, "--align", "weight", *DATA, "--weights", "0.5", "0.3", "0.2", "--out", "m.pt", "--json"
    )
    assert outcome.code == 0 and len(outcome.json()["alignments"]) == 2
    assert set(io.load_state("m.pt")) == set(io.load_state("a.safetensors"))


def test_merging_alike_models_gives_the_model(workplace, capsys):
    words = ("merge", "--model", "nets_of_a_user:factory", "a.safetensors", "a.safetensors", "--out", "m.safetensors")
    assert pyalign(capsys, *words).code == 0
    before, after = io.load_state("a.safetensors"), io.load_state("m.safetensors")
    assert all(torch.allclose(before[name], after[name]) for name in before)


def test_the_ends_of_an_interpolation_are_the_models(workplace, capsys):
    for t, name in (("0", "a"), ("1", "b")):
        assert pyalign(capsys, "interpolate", *PAIR, "-t", t, "--out", "x.safetensors").code == 0
        expected, found = io.load_state(f"{name}.safetensors"), io.load_state("x.safetensors")
        assert all(torch.equal(expected[key], found[key]) for key in expected)


def test_a_position_outside_the_path_is_refused(workplace, capsys):
    outcome = pyalign(capsys, "interpolate", *PAIR, "-t", "1.5", "--out", "x.safetensors")
    assert outcome.code == 1 and not (workplace / "x.safetensors").exists()


def test_batchnorm_without_recalibration_is_noted(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    from pyalign.demo import network

    io.save_state(network(width=2), "n.safetensors")
    words = ("interpolate", "--model", "pyalign.demo:network", "--model-options", '{"width": 2}')
    outcome = pyalign(
        capsys, *words, "--a", "n.safetensors", "--b", "n.safetensors", "--out", "x.safetensors", "--json"
    )
    assert outcome.code == 0 and "BatchNorm" in outcome.json()["notes"][0]


def test_an_alignment_of_another_architecture_is_refused(workplace, capsys):
    assert pyalign(capsys, "align", *PAIR, *DATA, "--save", "found.safetensors").code == 0
    words = ("--model-options", '{"width": 7}')
    io.save_state(torch.nn.Sequential(torch.nn.Linear(4, 7), torch.nn.ReLU(), torch.nn.Linear(7, 3)), "w.safetensors")
    pair = ("--model", "nets_of_a_user:factory", "--a", "w.safetensors", "--b", "w.safetensors", *words)
    outcome = pyalign(capsys, "barrier", *pair, *DATA, "--alignment", "found.safetensors")
    assert outcome.code == 1 and "error:" in outcome.err


@pytest.mark.parametrize(
    ("text", "answer"),
    [("a.b:c", True), ("a.py:c.d", True), ("/x/a.py:c", True), ("folder", False), ("C:/folder", False), ("a:1", False)],
)
def test_what_names_something_to_import(text, answer):
    assert is_target(text) is answer


@pytest.fixture
def folders(tmp_path):
    """Two Hugging Face folders of a tiny ResNet with random weights."""
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(
        num_channels=1, embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic", num_labels=10
    )
    for seed, name in enumerate("ab"):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            transformers.ResNetForImageClassification(config).save_pretrained(tmp_path / name)
    return tmp_path


@pytest.mark.hf
def test_hugging_face_folders_go_in_and_out(folders, capsys):
    pair = ("--a", folders / "a", "--b", folders / "b", "--data", "digits:test")
    outcome = pyalign(capsys, "align", *pair, "--out", folders / "aligned", "--json")
    assert outcome.code == 0, outcome.err
    assert json.loads((folders / "aligned" / "config.json").read_text())["architectures"] == [
        "ResNetForImageClassification"
    ]
    before, after = io.load_model(folders / "b"), io.load_model(folders / "aligned")
    x = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(before(x).logits, after(x).logits, atol=1e-5)
    measured = pyalign(capsys, "barrier", *pair, "--recalibrate", "--points", "3", "--json").json()
    assert len(measured["loss"]) == 3 and measured["samples"] == 500


@pytest.mark.hf
def test_a_curve_between_folders_is_measured_with_one_of_them(folders, capsys):
    curve, data = folders / "curve.safetensors", ("--data", "digits:test", "--limit", "64")
    pair = ("--a", folders / "a", "--b", folders / "b")
    assert pyalign(capsys, "curve", *pair, *data, "--steps", "2", "--out", curve).code == 0
    words = ("--model", folders / "a", "--curve", curve, *data, "--recalibrate")
    measured = pyalign(capsys, "evaluate", *words, "--points", "3", "--json").json()
    assert len(measured["loss"]) == 3 and measured["settings"]["taken"] == 2
    plane = pyalign(capsys, "plane", *words, "--resolution", "2", "--save", folders / "plane.json", "--json").json()
    assert plane["anchor_loss"][:2] == pytest.approx([measured["loss"][0], measured["loss"][-1]], rel=1e-5)


@pytest.mark.hf
def test_folders_are_aligned_by_weights_without_data_or_models(folders, capsys, monkeypatch):
    pair = ("--a", folders / "a", "--b", folders / "b")
    before = io.load_model(folders / "b")
    monkeypatch.setattr(io, "load_model", None)
    outcome = pyalign(capsys, "align", *pair, "--method", "weight", "--out", folders / "aligned", "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json()["written"] == [str(folders / "aligned")]
    monkeypatch.undo()
    x = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(io.load_model(folders / "aligned")(x).logits, before(x).logits, rtol=1e-4, atol=1e-4)
    assert "weight matching" in (folders / "aligned" / "README.md").read_text()
    outcome = pyalign(capsys, "align", *pair, "--method", "activation")
    assert outcome.code == 2 and "--data is needed" in outcome.err


@pytest.mark.hf
def test_code_in_a_folder_is_run_only_when_asked(folders, capsys, monkeypatch):
    """The folder's own code would write a file; it must not exist without --trust-remote-code."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(folders / "cache"))
    folder = folders / "a"
    config = json.loads((folder / "config.json").read_text())
    config["architectures"] = ["OwnModel"]
    config["auto_map"] = {"AutoModelForImageClassification": "own.OwnModel"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(
        "import pathlib\nfrom transformers import ResNetForImageClassification\n"
        f"pathlib.Path({str(folders / 'ran')!r}).write_text('ran')\n"
        "class OwnModel(ResNetForImageClassification):\n    pass\n"
    )
    words = ("derive", "--a", folder, "--shape", "2,1,16,16", "--json")
    outcome = pyalign(capsys, *words)
    assert outcome.code == 1 and "OwnModel" in outcome.err and not (folders / "ran").exists()
    outcome = pyalign(capsys, *words, "--trust-remote-code")
    assert outcome.code == 0, outcome.err
    assert (folders / "ran").exists() and outcome.json()["groups"]
