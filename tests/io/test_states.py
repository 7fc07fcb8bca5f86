"""State dicts through files and back, and every bad file told clearly."""

import os
import pickle
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, load_model, save_model
from torch import nn

from pyalign.errors import CheckpointError, InputError, MismatchError
from pyalign.io import load_into, load_state, open_state, save_state, states

SUFFIXES = [".safetensors", ".pt", ".pth", ".bin", ".ckpt"]


def state():
    generator = torch.Generator().manual_seed(0)
    return {
        "weight": torch.randn(4, 3, generator=generator),
        "half": torch.randn(5, generator=generator).to(torch.bfloat16),
        "steps": torch.tensor(7),
        "mask": torch.tensor([True, False]),
        "empty": torch.zeros(0, 3),
        "transposed": torch.randn(3, 4, generator=generator).t(),
    }


def assert_same(given, expected):
    assert sorted(given) == sorted(expected)
    for name, tensor in expected.items():
        assert given[name].dtype == tensor.dtype and torch.equal(given[name], tensor), name


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_round_trip(tmp_path, suffix):
    path = tmp_path / "new folder" / f"model{suffix}"
    save_state(state(), path)
    assert_same(load_state(path), state())
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    with open_state(path) as reader:
        assert reader.shapes() == {name: tuple(tensor.shape) for name, tensor in state().items()}
        assert len(reader) == 6 and "weight" in reader and "nothing" not in reader
        assert torch.equal(reader["weight"], state()["weight"])
        assert reader.entry("half").nbytes == 10
    with pytest.raises(KeyError):
        reader["nothing"]


def test_a_comparison_of_states_can_fail():
    with pytest.raises(AssertionError):
        assert_same(state(), state() | {"weight": torch.zeros(4, 3)})


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
        self.head.weight = self.embedding.weight


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_tied_tensors_are_stored_once_and_come_back_tied(tmp_path, suffix):
    torch.manual_seed(0)
    model, path = Tied(), tmp_path / f"tied{suffix}"
    save_state(model, path)
    loaded = load_state(path)
    assert sorted(loaded) == ["embedding.weight", "head.weight"]
    assert loaded["embedding.weight"].data_ptr() == loaded["head.weight"].data_ptr()
    if suffix == ".safetensors":
        assert list(load_file(path)) == ["embedding.weight"]
    other = Tied()
    load_into(other, path)
    assert torch.equal(other.head.weight, model.head.weight)


def test_files_of_safetensors_save_model_and_back(tmp_path):
    torch.manual_seed(0)
    model, path = Tied(), tmp_path / "theirs.safetensors"
    save_model(model, str(path))
    assert torch.equal(load_state(path)["embedding.weight"], model.embedding.weight)
    ours, other = tmp_path / "ours.safetensors", Tied()
    save_state(model, ours)
    load_model(other, str(ours))
    assert torch.equal(other.embedding.weight, model.embedding.weight)


def test_overlapping_views_are_copied(tmp_path):
    base = torch.arange(10.0)
    path = tmp_path / "views.safetensors"
    save_state({"all": base, "part": base[2:4], "row": base.view(2, 5)}, path)
    assert load_file(path)["part"].tolist() == [2.0, 3.0]


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model", "net"])
def test_nested_checkpoints_are_unwrapped(tmp_path, key):
    path = tmp_path / "nested.pt"
    weights = nn.Linear(2, 2).state_dict()
    torch.save({"epoch": 3, key: weights, "optimizer": {"state": {}, "param_groups": []}}, path)
    assert_same(load_state(path), weights)


def optimiser(path):
    model = nn.Linear(2, 2)
    adam = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    adam.step()
    torch.save(adam.state_dict(), path)


def truncated(path):
    save_state({"weight": torch.ones(1000)}, path)
    os.truncate(path, path.stat().st_size // 2)


def legacy_truncated(path):
    torch.save({"weight": torch.ones(1000)}, path, _use_new_zipfile_serialization=False)
    os.truncate(path, path.stat().st_size // 2)


def whole_module(path):
    torch.save(nn.Linear(2, 2), path)


def legacy_module(path):
    torch.save(nn.Linear(2, 2), path, _use_new_zipfile_serialization=False)


class Hostile:
    def __reduce__(self):
        return os.mkdir, (os.environ["PYALIGN_HOSTILE"],)


def hostile(path):
    path.write_bytes(pickle.dumps({"weight": Hostile()}, protocol=2))


BAD_FILES = {
    "truncated.safetensors": (truncated, "corrupt, truncated"),
    "truncated.pt": (truncated, "corrupt, truncated"),
    "legacy_truncated.pt": (legacy_truncated, "corrupt, truncated"),
    "empty.safetensors": (lambda path: path.touch(), "corrupt, truncated.* 0 bytes"),
    "empty.pt": (lambda path: path.touch(), "corrupt, truncated.* 0 bytes"),
    "page.safetensors": (lambda path: path.write_text("<html>not found</html>"), "another format"),
    "page.pt": (lambda path: path.write_text("<html>not found</html>"), "another format"),
    "missing.pt": (lambda path: None, "there is no file"),
    "missing.safetensors": (lambda path: None, "there is no file"),
    "model.h5": (lambda path: path.touch(), "unknown suffix"),
    "nothing.safetensors": (lambda path: save_state({}, path), "holds no tensors"),
    "nothing.pt": (lambda path: save_state({}, path), "holds no model's tensors"),
    "numbers.pt": (lambda path: torch.save({"epoch": 3}, path), "holds no model's tensors.*Given: epoch"),
    "optimiser.pt": (optimiser, "optimiser and no model"),
    "module.pt": (whole_module, "not a weights-only file.*state_dict"),
    "legacy_module.pt": (legacy_module, "not a weights-only file"),
    "hostile.pt": (hostile, "not a weights-only file.*mkdir"),
}


@pytest.mark.parametrize("name", BAD_FILES)
@pytest.mark.parametrize("read", [load_state, open_state], ids=["load", "open"])
def test_bad_files_are_told(tmp_path, monkeypatch, name, read):
    monkeypatch.setenv("PYALIGN_HOSTILE", str(tmp_path / "hostile was here"))
    make, message = BAD_FILES[name]
    path = tmp_path / name
    make(path)
    with pytest.raises(CheckpointError, match=message) as caught:
        read(path)
    assert name in str(caught.value)
    assert not (tmp_path / "hostile was here").exists()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_is_no_weights_only_file(tmp_path):
    path = tmp_path / "scripted.pt"
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), path)
    with pytest.raises(CheckpointError, match="not a weights-only file"):
        load_state(path)


def test_saving_refuses_what_is_no_tensor_or_suffix(tmp_path):
    with pytest.raises(InputError, match="'step' is no dense tensor"):
        save_state({"step": 3}, tmp_path / "a.pt")
    with pytest.raises(InputError, match="unknown suffix"):
        save_state(state(), tmp_path / "a.npz")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "failure", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["full", "ctrl-c"]
)
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch, failure, suffix):
    path = tmp_path / f"model{suffix}"
    save_state({"old": torch.ones(3)}, path)

    def fail(content, file, **_):
        with open(file, "wb") as opened:
            opened.write(b"partial")
        raise failure

    monkeypatch.setattr(states, "save_file", fail)
    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(type(failure)):
        save_state({"new": torch.zeros(3)}, path)
    monkeypatch.undo()
    assert list(load_state(path)) == ["old"]
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.skipif(sys.platform == "win32", reason="needs resource limits")
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_real_limit_of_the_disk(tmp_path, suffix):
    path = tmp_path / f"model{suffix}"
    save_state({"old": torch.ones(3)}, path)
    program = f"""
import resource, torch
from pyalign.errors import CheckpointError
from pyalign.io import save_state
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
try:
    save_state({{"new": torch.zeros(100_000)}}, {str(path)!r})
except (CheckpointError, OSError) as error:
    print(type(error).__name__, error)
"""
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert answer.stdout.startswith("WriteError"), answer.stderr
    assert list(load_state(path)) == ["old"]
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_load_into_names_what_does_not_fit_and_changes_nothing():
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    given = {
        "0.weight": torch.zeros(3, 2),
        "0.bias": torch.zeros(4),
        "1.weight": torch.zeros(1, 3),
        "2.bias": torch.ones(1),
    }
    with pytest.raises(MismatchError) as caught:
        load_into(model, given)
    text = str(caught.value)
    assert "missing: '1.bias'" in text and "surplus: '2.bias'" in text and "'0.bias' (4,) instead of (3,)" in text
    assert_same(model.state_dict(), before)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod."])
def test_load_into_takes_off_a_wrappers_prefix(prefix):
    source, model = nn.Linear(2, 2), nn.Linear(2, 2)
    load_into(model, {prefix + name: tensor for name, tensor in source.state_dict().items()})
    assert_same(model.state_dict(), source.state_dict())


def test_load_into_a_model_with_tied_tensors():
    model = Tied()
    load_into(model, {"embedding.weight": torch.ones(5, 3)})
    assert torch.equal(model.head.weight, torch.ones(5, 3))
    with pytest.raises(MismatchError, match="missing: 'embedding\\.weight', 'head\\.weight'"):
        load_into(model, {})


def test_load_into_keeps_parametrisations():
    torch.manual_seed(0)
    source = torch.nn.utils.parametrizations.weight_norm(nn.Linear(3, 2))
    model = torch.nn.utils.parametrizations.weight_norm(nn.Linear(3, 2))
    load_into(model, source.state_dict())
    assert torch.equal(model.weight, source.weight)
