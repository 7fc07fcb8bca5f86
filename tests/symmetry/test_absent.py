"""Models without their weights: the same symmetry as with them, little memory, and clear words where it cannot be."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from pyalign import derive
from pyalign.errors import DataError
from pyalign.symmetry import Kind, state_of, weightless

IDS = {"input_ids": torch.arange(24).reshape(1, 24), "use_cache": False}
BODY = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 4}
WORDS = {**BODY, "vocab_size": 40, "num_key_value_heads": 2}
CASES: dict[str, tuple[str, dict[str, Any], Any]] = {
    "Llama": ("ForCausalLM", WORDS, IDS),
    "GPT2": ("LMHeadModel", {"vocab_size": 40, "n_embd": 16, "n_layer": 1, "n_head": 4, "n_positions": 32}, IDS),
    "ViT": ("ForImageClassification", {**BODY, "image_size": 8, "patch_size": 4}, torch.randn(2, 3, 8, 8)),
    "ResNet": (
        "ForImageClassification", {"embedding_size": 4, "hidden_sizes": [4, 8], "depths": [1, 1]},
        torch.randn(2, 3, 32, 32),
    ),
}  # fmt: skip


def made(name: str) -> tuple[Any, Any]:
    transformers = pytest.importorskip("transformers")
    kind, options, inputs = CASES[name]
    config = getattr(transformers, f"{name}Config")(**options)
    return lambda: getattr(transformers, name + kind)(config).eval(), inputs


@pytest.mark.hf
@pytest.mark.parametrize("name", CASES)
def test_the_spec_is_that_of_the_model_with_weights(name: str) -> None:
    build, inputs = made(name)
    torch.manual_seed(0)
    real = derive(build(), inputs, within=Kind.INVERTIBLE)
    with torch.device("meta"):
        bare = build()
    found = derive(bare, inputs, within=Kind.INVERTIBLE)
    assert found.fingerprint == real.fingerprint
    assert [s.key for s in found.sites] == [s.key for s in real.sites]
    assert all(t.device.type == "meta" for t in bare.parameters())


MIXTURES: dict[str, dict[str, Any]] = {
    "Mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "Qwen2Moe": {
        "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12, "shared_expert_intermediate_size": 20
    },
    # the second layer is dense, and routing is limited to one of two groups of experts
    "DeepseekV3": {
        "num_key_value_heads": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1,
        "moe_intermediate_size": 12, "n_shared_experts": 1, "first_k_dense_replace": 1, "num_hidden_layers": 2,
        "q_lora_rank": 12, "kv_lora_rank": 10, "qk_rope_head_dim": 4, "qk_nope_head_dim": 6, "v_head_dim": 8,
    },
}  # fmt: skip


def mixture(name: str, **sizes: int) -> Any:
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{name}Config")(**{**WORDS, **MIXTURES[name], **sizes}, pad_token_id=0)
    return getattr(transformers, f"{name}ForCausalLM")(config).eval()


@pytest.mark.hf
@pytest.mark.parametrize("name", MIXTURES)
def test_the_order_of_experts_is_that_of_a_small_model(name: str) -> None:
    torch.manual_seed(0)
    real = derive(mixture(name), IDS, within=Kind.INVERTIBLE)
    with weightless():
        found = derive(mixture(name), IDS, within=Kind.INVERTIBLE)
    assert found.fingerprint == real.fingerprint
    assert any(g.size == 4 and "experts" in g.reason for g in found.groups.values())


@pytest.mark.hf
def test_a_mixtral_of_full_width_is_derived_without_its_weights() -> None:
    with weightless():
        model = mixture("Mixtral", hidden_size=4096, intermediate_size=14336, num_attention_heads=32, vocab_size=32000)
    spec = derive(model, IDS, within=Kind.INVERTIBLE)
    assert spec.groups["model.layers.0.mlp.gate"].size == 4
    assert spec.groups["model.layers.0.mlp.experts"].size == 4 * 14336


def test_experts_stay_where_no_small_model_can_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """All else is the same: the units of experts then move in all experts alike."""
    monkeypatch.setattr("pyalign.symmetry.miniature.LARGEST", 0)
    with weightless():
        found = derive(mixture("Mixtral"), IDS)
    assert found.groups["model.layers.0.mlp.experts"].size == 24
    assert sum("without weights" in f.reason for f in found.fixed) == 3


@pytest.mark.hf
def test_a_llama_of_full_width_is_derived_without_its_weights() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(hidden_size=4096, intermediate_size=11008, num_hidden_layers=3)
    with weightless():
        model = transformers.LlamaForCausalLM(config)
    spec = derive(model, {"input_ids": torch.arange(8)[None], "use_cache": False}, within=Kind.INVERTIBLE)
    # the stream; in each layer the heads, matrices within them for keys and for values, and the inner units
    assert len(spec.groups) == 1 + 3 * 4
    assert sum(g.size for g in spec.groups.values()) == 4096 + 3 * (32 + 2 * 4096 + 11008)


class Counted(nn.Module):
    """Reads a table of whole numbers, as relative positions and BERT do."""

    def __init__(self) -> None:
        super().__init__()
        self.places = nn.Embedding(6, 8)
        self.first, self.tied, self.out = nn.Linear(3, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.out.weight = self.tied.weight
        self.last = nn.Linear(8, 2)
        self.register_buffer("order", torch.arange(6))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x) + self.places(self.order[: x.shape[1]]))
        return self.last(torch.relu(self.out(torch.relu(self.tied(x)))))


def test_weightless_models_keep_their_tables_and_their_ties() -> None:
    real, x = Counted(), torch.randn(2, 4, 3)
    with weightless():
        bare = Counted()
    assert derive(bare, x).fingerprint == derive(real, x).fingerprint
    assert bare.out.weight is bare.tied.weight and bare.order.device.type == "cpu"
    assert {n: t.shape for n, t in state_of(bare).items()} == {n: t.shape for n, t in state_of(real).items()}
    assert nn.Linear(2, 2).weight.device.type == "cpu"
    with torch.device("meta"):
        bare = Counted()
    with pytest.raises(DataError, match="weightless"):
        derive(bare, x)


def test_fake_tensors_and_absent_inputs_will_do() -> None:
    def build() -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 2))

    x = torch.randn(2, 3, 8, 8)
    real = derive(build(), x)
    with FakeTensorMode():
        fake, fake_x = build(), torch.randn(2, 3, 8, 8)
    assert derive(fake, x).fingerprint == derive(fake, fake_x).fingerprint == real.fingerprint
    with torch.device("meta"):
        bare, bare_x = build(), torch.randn(2, 3, 8, 8)
    assert derive(bare, bare_x).fingerprint == real.fingerprint


def test_control_flow_by_weights_is_refused_with_what_to_do() -> None:
    class Fickle(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if float(self.weight.sum()) > 0 else x

    with weightless():
        model = Fickle(3, 3)
    with pytest.raises(DataError, match=r"cannot be followed without its weights.*derive from the model with its"):
        derive(model, torch.randn(2, 3))
