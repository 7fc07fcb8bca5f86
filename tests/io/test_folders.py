"""Hugging Face folders: single, sharded, damaged; written whole or not at all."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from pyalign.errors import CheckpointError, InputError, MismatchError, PyalignWarning
from pyalign.io import folders, load_model, load_state, open_state, save_folder

INDEX = "model.safetensors.index.json"


def state():
    generator = torch.Generator().manual_seed(0)
    return {f"layer.{i}.weight": torch.randn(4, 4, generator=generator) for i in range(5)}


def source(folder):
    """A sharded folder with the files that a model brings along."""
    save_folder(state(), folder, max_shard_bytes=130)
    (folder / "config.json").write_text('{"architectures": ["Nobody"]}')
    (folder / "tokenizer.json").write_text("{}")
    (folder / "tokenizer.model").write_bytes(b"pieces")
    (folder / "pytorch_model.bin").write_bytes(b"stale")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text("{}")
    (folder / ".git").mkdir()
    (folder / ".git" / "HEAD").write_text("main")
    return folder


def names_of(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def assert_holds(folder, expected):
    loaded = load_state(folder)
    assert sorted(loaded) == sorted(expected)
    assert all(torch.equal(loaded[name], tensor) for name, tensor in expected.items())


def test_one_file(tmp_path):
    save_folder(state(), tmp_path / "out")
    assert names_of(tmp_path / "out") == ["model.safetensors"]
    assert_holds(tmp_path / "out", state())
    assert (tmp_path / "out" / "model.safetensors").stat().st_mode & 0o400


def test_shards_and_index(tmp_path):
    folder = tmp_path / "out"
    save_folder(state(), folder, max_shard_bytes=130)
    shards = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    assert names_of(folder) == [*shards, INDEX]
    index = json.loads((folder / INDEX).read_text())
    assert index["metadata"]["total_size"] == 5 * 64
    assert index["weight_map"]["layer.4.weight"] == shards[2]
    assert len(load_file(folder / shards[0])) == 2
    assert_holds(folder, state())


def test_a_tensor_larger_than_a_shard_has_its_own(tmp_path):
    save_folder(state(), tmp_path / "out", max_shard_bytes=1)
    assert len(names_of(tmp_path / "out")) == 6
    with pytest.raises(InputError, match="max_shard_bytes"):
        save_folder(state(), tmp_path / "other", max_shard_bytes=0)


def test_like_brings_everything_but_weights(tmp_path):
    like = source(tmp_path / "source")
    save_folder({name: tensor + 1 for name, tensor in state().items()}, tmp_path / "out", like=like)
    assert names_of(tmp_path / "out") == sorted(
        ["1_Pooling/config.json", "config.json", "model.safetensors", "tokenizer.json", "tokenizer.model"]
    )
    assert_holds(tmp_path / "out", {name: tensor + 1 for name, tensor in state().items()})


def test_like_of_another_architecture(tmp_path):
    like = source(tmp_path / "source")
    with pytest.raises(MismatchError, match=r"missing: 'layer\.0\.weight'.*surplus: 'other'"):
        save_folder({"other": torch.ones(1)}, tmp_path / "out", like=like)
    assert not (tmp_path / "out").exists()


def test_a_reader_is_streamed_shard_by_shard(tmp_path, monkeypatch):
    source(tmp_path / "source")
    alive, most = [], []
    with open_state(tmp_path / "source") as reader:
        fetch = reader._fetch
        monkeypatch.setattr(reader, "_fetch", lambda name: alive.append(name) or fetch(name))
        write = folders.write_safetensors

        def counting(*arguments):
            most.append(len(alive))
            alive.clear()
            write(*arguments)

        monkeypatch.setattr(folders, "write_safetensors", counting)
        save_folder(reader, tmp_path / "out", max_shard_bytes=64)
    assert most == [1, 1, 1, 1, 1]
    assert_holds(tmp_path / "out", state())


def test_tied_tensors_keep_the_name_of_the_source(tmp_path):
    weight = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    (tmp_path / "source").mkdir()
    save_file({"head": weight.clone()}, tmp_path / "source" / "model.safetensors")
    save_folder({"embedding": weight, "head": weight}, tmp_path / "out", like=tmp_path / "source")
    assert list(load_file(tmp_path / "out" / "model.safetensors")) == ["head"]
    loaded = load_state(tmp_path / "out")
    assert torch.equal(loaded["embedding"], weight)
    assert loaded["embedding"].data_ptr() == loaded["head"].data_ptr()


def test_tied_tensors_across_shards(tmp_path):
    weight = torch.ones(4)
    save_folder({"a": weight, "b": torch.zeros(4), "c": weight}, tmp_path / "out", max_shard_bytes=16)
    loaded = load_state(tmp_path / "out")
    assert sorted(loaded) == ["a", "b", "c"]
    assert torch.equal(loaded["c"], weight)


def test_an_existing_folder_is_replaced_only_when_asked(tmp_path):
    folder = source(tmp_path / "source")
    with pytest.raises(InputError, match="exists already"):
        save_folder(state(), folder)
    assert (folder / "tokenizer.json").exists()
    save_folder({"new": torch.ones(1)}, folder, overwrite=True)
    assert names_of(folder) == ["model.safetensors"]
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("years")
    with pytest.raises(InputError, match="exists already"):
        save_folder(state(), precious, overwrite=True)
    assert names_of(precious) == ["thesis.txt"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["precious", "source"]


def test_a_folder_may_be_rewritten_like_itself(tmp_path):
    folder = source(tmp_path / "source")
    save_folder({n: t * 2 for n, t in load_state(folder).items()}, folder, like=folder, overwrite=True)
    assert "tokenizer.model" in names_of(folder)
    assert_holds(folder, {name: tensor * 2 for name, tensor in state().items()})


@pytest.mark.parametrize(
    "failure", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["full", "ctrl-c"]
)
@pytest.mark.parametrize("where", ["write_safetensors", "_copy_others", "_swap"])
def test_a_failed_write_leaves_what_was_there(tmp_path, monkeypatch, failure, where):
    folder = source(tmp_path / "source")
    before = names_of(folder)
    real, calls = getattr(folders, where), []

    def fail(*arguments):
        calls.append(1)
        if where == "write_safetensors" and len(calls) < 2:
            return real(*arguments)
        raise failure

    monkeypatch.setattr(folders, where, fail)
    new = {name: tensor + 1 for name, tensor in state().items()}
    for target in (folder, tmp_path / "new"):
        calls.clear()
        with pytest.raises(type(failure)):
            save_folder(new, target, like=folder, max_shard_bytes=64, overwrite=True)
    assert names_of(folder) == before
    assert_holds(folder, state())
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_failed_rename_brings_the_old_folder_back(tmp_path, monkeypatch):
    folder = source(tmp_path / "source")
    rename, calls = folders.os.rename, []

    def fail_second(old, new):
        calls.append(1)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        rename(old, new)

    monkeypatch.setattr(folders.os, "rename", fail_second)
    with pytest.raises(OSError, match="No space"):
        save_folder({"new": torch.ones(1)}, folder, overwrite=True)
    assert_holds(folder, state())
    assert len(calls) == 3


def lose_shard(folder):
    (folder / "model-00002-of-00003.safetensors").unlink()


def cut_shard(folder):
    shard = folder / "model-00002-of-00003.safetensors"
    shard.write_bytes(shard.read_bytes()[:-7])


def lose_tensor(folder):
    save_file({"layer.0.weight": torch.ones(4, 4)}, folder / "model-00001-of-00003.safetensors")


def surplus_tensor(folder):
    save_file({"layer.4.weight": torch.ones(4, 4), "ghost": torch.ones(1)}, folder / "model-00003-of-00003.safetensors")


def cut_index(folder):
    (folder / INDEX).write_text((folder / INDEX).read_text()[:40])


def foreign_index(folder):
    (folder / INDEX).write_text('{"layers": 3}')


def hostile_index(folder):
    (folder / INDEX).write_text('{"weight_map": {"a": "../../secret.safetensors"}}')


def lose_index(folder):
    (folder / INDEX).unlink()
    (folder / "pytorch_model.bin").unlink()


DAMAGES = {
    lose_shard: r"lacks shards.*model-00002-of-00003\.safetensors",
    cut_shard: r"model-00002-of-00003\.safetensors cannot be read",
    lose_tensor: r"missing from their shards: layer\.1\.weight",
    surplus_tensor: r"in shards but not so in the index: ghost",
    cut_index: r"index\.json is no index",
    foreign_index: r"index\.json is no index",
    hostile_index: r"outside its folder.*secret",
    lose_index: r"shards need their index",
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("read", [load_state, open_state], ids=["load", "open"])
def test_damaged_folders_are_told(tmp_path, damage, read):
    folder = source(tmp_path / "source")
    damage(folder)
    with pytest.raises(CheckpointError, match=DAMAGES[damage]):
        read(folder)


def test_a_surplus_shard_is_named(tmp_path):
    folder = source(tmp_path / "source")
    save_file({"old": torch.ones(1)}, folder / "model-00001-of-00002.safetensors")
    with pytest.warns(PyalignWarning, match=r"does not name.*model-00001-of-00002\.safetensors"):
        assert_holds(folder, state())


def test_an_empty_folder_and_an_adapter(tmp_path):
    with pytest.raises(CheckpointError, match=r"which file holds the weights.*no weights"):
        load_state(tmp_path)
    save_file({"lora": torch.ones(1)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match="merge an adapter"):
        load_state(tmp_path)


def test_pytorch_shards(tmp_path):
    torch.save({"a": torch.ones(1)}, tmp_path / "pytorch_model-00001-of-00002.bin")
    torch.save({"b": torch.zeros(1)}, tmp_path / "pytorch_model-00002-of-00002.bin")
    files = {"a": "pytorch_model-00001-of-00002.bin", "b": "pytorch_model-00002-of-00002.bin"}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": files}))
    assert_holds(tmp_path, {"a": torch.ones(1), "b": torch.zeros(1)})


def test_a_module_is_its_state(tmp_path):
    save_folder(nn.Linear(2, 1), tmp_path / "out")
    assert sorted(load_state(tmp_path / "out")) == ["bias", "weight"]


@pytest.mark.hf
def test_transformers_folders_there_and_back(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    torch.manual_seed(0)
    model = transformers.BertForMaskedLM(config).eval()
    model.save_pretrained(tmp_path / "source", max_shard_size=1000)
    save_folder(model, tmp_path / "out", like=tmp_path / "source")
    ids = torch.arange(6).reshape(1, 6)
    for folder in ("source", "out"):
        loaded = load_model(tmp_path / folder)
        assert not loaded.training
        assert torch.equal(loaded(ids).logits, model(ids).logits)


def test_load_model_names_what_is_wrong(tmp_path):
    with pytest.raises(CheckpointError, match=r"config\.json does not name the architecture"):
        load_model(tmp_path)
    pytest.importorskip("transformers")
    with pytest.raises(InputError, match=r"does not know the architecture.*Nobody"):
        load_model(source(tmp_path / "source"))
