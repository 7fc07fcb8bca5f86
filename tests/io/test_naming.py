"""Names of files and names of modules: there and back for architectures whose files hold experts one by one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pyalign.errors import MismatchError
from pyalign.io import StateReader, bare_model, load_into, load_model, load_state, open_state, save_folder
from pyalign.io.naming import entries_of, naming

transformers = pytest.importorskip("transformers", minversion="5")
pytestmark = pytest.mark.hf

BODY = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 40,
    "num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
CASES: dict[str, dict[str, Any]] = {
    "Mixtral": {"num_local_experts": 4},
    # more than ten experts: their order is that of numbers, not of letters
    "Qwen2Moe": {"num_experts": 12, "moe_intermediate_size": 12, "shared_expert_intermediate_size": 20},
    "Olmoe": {"num_experts": 4},
    "GraniteMoe": {"num_local_experts": 4},
    "Jamba": {
        "num_experts": 4, "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2,
        "expert_layer_offset": 1, "mamba_d_state": 4,
    },
    "Llama": {},
}  # fmt: skip


def built(name: str, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    config = getattr(transformers, f"{name}Config")(**BODY, **CASES[name])
    return getattr(transformers, f"{name}ForCausalLM")(config).eval()


@pytest.mark.parametrize("name", sorted(CASES))
def test_files_become_modules_and_modules_files(name: str, tmp_path: Path) -> None:
    model = built(name)
    model.save_pretrained(tmp_path)
    state: dict[str, Tensor] = model.state_dict()
    with open_state(tmp_path) as stored:
        names = naming(bare_model(tmp_path), stored.entries)
        held = names.held(stored)
        assert names.plain == (name == "Llama")
        assert set(held) == set(state) - (set() if "lm_head.weight" in stored else {"lm_head.weight"})
        for key in held:
            assert torch.equal(held[key], state[key])
            assert held.entry(key).shape == tuple(state[key].shape) and held.entry(key).nbytes == state[key].nbytes
        back = names.stored(held)
        assert set(back) == set(stored) and all(torch.equal(back[key], stored[key]) for key in stored)


@pytest.mark.parametrize("kind", ["module", "state"])
def test_a_module_is_written_in_the_names_of_the_folder_it_came_from(kind: str, tmp_path: Path) -> None:
    built("Mixtral").save_pretrained(tmp_path / "a")
    other = built("Mixtral", seed=1)
    save_folder(other if kind == "module" else other.state_dict(), tmp_path / "b", like=tmp_path / "a")
    assert set(load_state(tmp_path / "b")) == set(load_state(tmp_path / "a"))
    for key, tensor in load_model(tmp_path / "b").state_dict().items():
        assert torch.equal(tensor, other.state_dict()[key])
    fresh = built("Mixtral")
    load_into(fresh, tmp_path / "b")
    assert all(torch.equal(t, other.state_dict()[key]) for key, t in fresh.state_dict().items())


def test_parts_that_do_not_fit_are_named(tmp_path: Path) -> None:
    model = built("Mixtral")
    model.save_pretrained(tmp_path)
    state = load_state(tmp_path)
    first = next(n for n in state if "experts.0.w1" in n)
    with pytest.raises(MismatchError, match=r"gate_up_proj' cannot be converted.*experts\.0\.w1"):
        naming(model, entries_of({**state, first: torch.ones(3, 3)}))
    with pytest.raises(MismatchError, match=r"of another shape: .*down_proj' \(3, 16, 24\) instead of \(4, 16, 24\)"):
        load_into(model, {n: t for n, t in state.items() if "layers.0.mlp.experts.3.w2" not in _module(n)})


def _module(name: str) -> str:
    return name.replace("block_sparse_moe", "mlp")


def test_what_cannot_be_taken_apart_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = built("Mixtral")
    model.save_pretrained(tmp_path)
    with open_state(tmp_path) as stored:
        names = naming(model, stored.entries)
        part = next(p for p in names.parts if p.converter is not None)
        state = StateReader(names.held(stored).entries, names.held(stored).__getitem__)
        wrong = type(part.converter.operations[0]).reverse_op.fget
        monkeypatch.setattr(
            type(part.converter.operations[0]), "reverse_op", property(lambda self: Reversed(wrong(self)))
        )
        with pytest.raises(MismatchError, match="cannot be taken apart"):
            _ = names.stored(state)[part.stored[0]]


class Reversed:
    """A conversion whose answers are in another order."""

    def __init__(self, operation: Any) -> None:
        self.operation = operation

    def convert(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        found = self.operation.convert(*args, **kwargs)
        return dict(zip(found, reversed(found.values()), strict=True))
