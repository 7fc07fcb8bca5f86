"""Whole checkpoints: folders aligned without their models in memory, and everything that does not fit found at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pyalign.errors import CheckpointError, InputError, MismatchError
from pyalign.io import bare_model, load_model, load_state, open_state, save_folder
from pyalign.io.huggingface import example_of
from pyalign.matching import WeightMatching, align_folders
from pyalign.symmetry import Kind, derive

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.hf
SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 40}
SHARDED = {"max_shard_bytes": 4000}


def written(folder: Path, state: dict[str, Tensor] | None = None, tied: bool = False, **changes: Any) -> Path:
    """A folder with a tiny Llama of random weights, or of the given ones."""
    config = transformers.LlamaConfig(num_key_value_heads=2, tie_word_embeddings=tied, **{**SIZES, **changes})
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config)
    for p in model.parameters():
        torch.nn.init.normal_(p)
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text("{}")
    (folder / "README.md").write_text("what the author wrote")
    save_folder(model if state is None else state, folder / "new", like=folder, **SHARDED)
    return folder / "new"


def pair(place: Path, noise: float = 1e-4, **changes: Any) -> tuple[Path, Path]:
    """A, and B: a random element of the whole group applied to A, plus noise."""
    a = written(place / "a", **changes)
    spec = derive(bare_model(a), example_of(bare_model(a)), within=Kind.INVERTIBLE)
    state = load_state(a)
    moved = spec.random(3).apply({n: t.double() for n, t in state.items()})
    b = {n: (t + noise * torch.randn(t.shape)).float() for n, t in moved.items() if n not in spec.aliases}
    return a, written(place / "b", b, **changes)


def far(one: dict[str, Tensor], two: dict[str, Tensor]) -> float:
    """Relative distance of two states."""
    names = [n for n in one if n in two]
    squares = sum((one[n] - two[n]).square().sum() for n in names), sum(one[n].square().sum() for n in names)
    return float((squares[0] / squares[1]) ** 0.5)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_a_moved_checkpoint_comes_back(tmp_path: Path, tied: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = pair(tmp_path, tied=tied)
    before = load_model(b)
    monkeypatch.setattr(transformers.PreTrainedModel, "from_pretrained", None)
    found = align_folders(a, b, tmp_path / "out", progress=False, **SHARDED)
    monkeypatch.undo()
    assert far(load_state(a), load_state(b)) > 0.5 and far(load_state(a), load_state(tmp_path / "out")) < 1e-3
    assert list(found.trace) == sorted(found.trace)
    with torch.no_grad():
        ids = torch.arange(9)[None]
        after = load_model(tmp_path / "out")
        torch.testing.assert_close(after(ids).logits, before(ids).logits, rtol=1e-3, atol=1e-2)
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert {"config.json", "tokenizer.json", "model.safetensors.index.json", "source.README.md"} <= names
    card = (tmp_path / "out" / "README.md").read_text()
    assert found.spec.fingerprint in card and "permutation" in card and "weight matching" in card
    with open_state(tmp_path / "out") as reader, open_state(b) as source:
        assert reader.shapes() == source.shapes()


def test_half_precision_is_moved_exactly_where_nothing_is_mixed(tmp_path: Path) -> None:
    a = written(tmp_path / "a")
    half = {n: t.bfloat16() for n, t in load_state(a).items()}
    a = written(tmp_path / "a16", half)
    spec = derive(bare_model(a), example_of(bare_model(a)), within=Kind.SIGNED)
    b = written(tmp_path / "b16", spec.random(1).apply(half))
    align_folders(a, b, tmp_path / "out", method=WeightMatching(within=Kind.SIGNED), progress=False)
    out = load_state(tmp_path / "out")
    assert all(torch.equal(out[n], half[n]) and out[n].dtype == torch.bfloat16 for n in half)


def test_tied_weights_may_be_stored_twice_but_not_differ(tmp_path: Path) -> None:
    _, b = pair(tmp_path, tied=True)
    state = load_state(b)
    embedding = state["model.embed_tokens.weight"]
    for factor, fails in ((1, False), (2, True)):
        twice = {**state, "lm_head.weight": factor * embedding.clone()}
        save_folder(twice, tmp_path / f"twice{factor}", **SHARDED)
        (tmp_path / f"twice{factor}" / "config.json").write_text((b / "config.json").read_text())
        if fails:
            with pytest.raises(MismatchError, match="two different tensors where its configuration ties them"):
                align_folders(tmp_path / "twice1", tmp_path / "twice2", progress=False)
    found = align_folders(tmp_path / "twice1", tmp_path / "twice1", tmp_path / "out", progress=False)
    out = load_state(tmp_path / "out")
    assert found.objective == 0 and torch.equal(out["lm_head.weight"], out["model.embed_tokens.weight"])


def change_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def test_what_does_not_fit_is_found_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a = written(tmp_path / "a")
    state = load_state(a)
    first = "model.layers.0.mlp.up_proj.weight"
    rest = {n: t for n, t in state.items() if n != first}
    monkeypatch.setattr("pyalign.matching.checkpoints.derive", None)
    cases = {
        "missing": (rest, rf"missing: '{first}'"),
        "surplus": ({**state, "extra": torch.ones(2)}, "surplus: 'extra'"),
        "shape": ({**state, first: torch.ones(3, 16)}, r"of another shape: .*\(3, 16\) instead of \(24, 16\)"),
        "dtype": ({**state, first: state[first].half()}, f"'{first}' is float16 in B and float32 in A"),
    }
    for name, (broken, message) in cases.items():
        save_folder(broken, tmp_path / name)
        (tmp_path / name / "config.json").write_text((a / "config.json").read_text())
        with pytest.raises(MismatchError, match=message):
            align_folders(a, tmp_path / name, tmp_path / "out")
    heads = written(tmp_path / "heads", state)
    change_config(heads, num_attention_heads=8)
    with pytest.raises(MismatchError, match="num_attention_heads is 8 in B and 4 in A"):
        align_folders(a, heads)
    change_config(heads, num_attention_heads=4, quantization_config={"quant_method": "gptq"})
    with pytest.raises(CheckpointError, match=r"quantised.*gptq.*align the checkpoint it was quantised from"):
        align_folders(a, heads)
    with pytest.raises(InputError, match="exists already"):
        align_folders(a, a, tmp_path / "missing")
    with pytest.raises(InputError, match="one of the inputs"):
        align_folders(a, a, a, overwrite=True)
    assert not (tmp_path / "out").exists()


def test_weights_that_are_not_those_of_the_configuration(tmp_path: Path) -> None:
    a = written(tmp_path / "a")
    change_config(a, num_hidden_layers=2)
    with pytest.raises(MismatchError, match="not those of the architecture"):
        align_folders(a, a)


def test_code_in_a_folder_is_not_run(tmp_path: Path) -> None:
    a = written(tmp_path / "a")
    (a / "own.py").write_text(f"import pathlib\npathlib.Path({str(tmp_path / 'ran')!r}).write_text('ran')\n")
    change_config(a, auto_map={"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"})
    assert type(bare_model(a)).__module__.startswith("transformers.")
    change_config(a, architectures=["OwnLlama"])
    with pytest.raises(InputError, match="OwnLlama"):
        align_folders(a, a)
    assert not (tmp_path / "ran").exists()
