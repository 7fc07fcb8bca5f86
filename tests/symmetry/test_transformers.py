"""Transformers of Hugging Face with small random configurations: groups, classes and sizes as reasoned out by hand.

Every case has one layer (T5 and Whisper one on either side). An entry such as "invertible 4x8" is four blocks that
change places, with matrices of size eight inside each; "permutation 4" reorders four units.
"""

from __future__ import annotations

import copy
import functools
import runpy
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pyalign import align, derive
from pyalign.errors import SymmetryError
from pyalign.symmetry import Alignment, Kind, Role, ScaledPermutation, Side, SymmetrySpec, verify

from .helpers import listed

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.hf

IDS = torch.randint(0, 40, (2, 9), generator=torch.Generator().manual_seed(0))
PIXELS = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
SOUND = torch.randn(2, 6, 20, generator=torch.Generator().manual_seed(0))
TEXT: dict[str, Any] = {"input_ids": IDS}
WRITER = {**TEXT, "use_cache": False}
TRANSLATOR = {**WRITER, "decoder_input_ids": IDS[:, :5]}
MARKS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
BODY = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 24}
WORDS = {"vocab_size": 40, "max_position_embeddings": 40}
SHARED = {**BODY, **WORDS, **MARKS, "num_key_value_heads": 2}
GPT = {"vocab_size": 40, "n_embd": 32, "n_layer": 1, "n_head": 4, "n_positions": 32, **MARKS}
IMAGE = {**BODY, "image_size": 8, "patch_size": 4, "num_labels": 5}
SPEECH = {
    "vocab_size": 40, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "num_mel_bins": 6,
    "max_source_positions": 10, "max_target_positions": 12, "decoder_start_token_id": 1, **MARKS,
}  # fmt: skip
LATENT = {
    **SHARED, "num_key_value_heads": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 2,
    "topk_group": 1, "moe_intermediate_size": 12, "n_shared_experts": 1, "first_k_dense_replace": 0,
    "q_lora_rank": 12, "kv_lora_rank": 10, "qk_rope_head_dim": 4, "qk_nope_head_dim": 6, "v_head_dim": 8,
}  # fmt: skip
# Values over their length keep signs; those less their mean and over their deviation only the scales of one norm.
STREAM, SIGNED, HEADS = "scaled permutation 32", "signed permutation 32", "permutation 4"
CIRCUITS = {"invertible 4x8": 2}
# Two key-value heads that change places, two query heads within each that do: rotations for queries and keys, matrices
# for values and outputs, each shared by the query heads of its key-value head.
GROUPED = {SIGNED: 1, "permutation 2": 1, "permutation 2x2": 1, "scaled rotation of pairs 2x8": 1, "invertible 2x8": 1}
GATED = {"scaled permutation 24": 1}

CASES: dict[str, tuple[str, str, dict[str, Any], dict[str, Any], dict[str, int]]] = {
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", GPT, WRITER, {STREAM: 1, HEADS: 1, "permutation 128": 1, **CIRCUITS}),
    "opt": (
        "OPTForCausalLM", "OPTConfig",
        {**BODY, **WORDS, **MARKS, "ffn_dim": 24, "word_embed_proj_dim": 32}, WRITER,
        {STREAM: 1, HEADS: 1, "positive-scaled permutation 24": 1, **CIRCUITS},
    ),
    # Four of eight entries of each head rotate (neighbours are pairs), the other four are free.
    "gptj": (
        "GPTJForCausalLM", "GPTJConfig", {**GPT, "rotary_dim": 4}, WRITER,
        {
            STREAM: 1, HEADS: 1, "permutation 128": 1, "scaled rotation of pairs 4x4": 1, "invertible 4x4": 1,
            "invertible 4x8": 1,
        },
    ),
    # One key and one value for all four query heads, which change places freely; the latter share their matrices.
    "gemma": (
        "GemmaForCausalLM", "GemmaConfig", {**SHARED, "head_dim": 8, "num_key_value_heads": 1}, WRITER,
        {HEADS: 1, "scaled rotation of pairs 8": 1, "invertible 8": 1, **GATED},
    ),
    "llama": ("LlamaForCausalLM", "LlamaConfig", SHARED, WRITER, {**GROUPED, **GATED}),
    "mistral": ("MistralForCausalLM", "MistralConfig", SHARED, WRITER, {**GROUPED, **GATED}),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", SHARED, WRITER, {**GROUPED, **GATED}),
    # The norms of queries and keys have scales inside every head: nothing rotates, heads move.
    "qwen3": (
        "Qwen3ForCausalLM", "Qwen3Config", {**SHARED, "head_dim": 8}, WRITER,
        {SIGNED: 1, "permutation 2": 1, "permutation 2x2": 1, "invertible 2x8": 1, **GATED},
    ),
    "gemma2": (
        "Gemma2ForCausalLM", "Gemma2Config", {**SHARED, "head_dim": 8}, WRITER,
        {**GROUPED, **GATED},
    ),
    "phi3": ("Phi3ForCausalLM", "Phi3Config", SHARED, WRITER, {**GROUPED, **GATED}),
    "bert": ("BertModel", "BertConfig", {**BODY, **WORDS}, TEXT, {HEADS: 1, "permutation 24": 1, **CIRCUITS}),
    "roberta": (
        "RobertaForMaskedLM", "RobertaConfig", {**BODY, **WORDS, **MARKS}, TEXT,
        {STREAM: 1, HEADS: 1, "permutation 24": 1, **CIRCUITS},
    ),
    # The encoder's states are an output, so the stream stays; a table of positions moves with its heads.
    "t5": (
        "T5ForConditionalGeneration", "T5Config",
        {
            "vocab_size": 40, "d_model": 32, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 4,
            "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 2,
        },
        TRANSLATOR,
        {HEADS: 3, "positive-scaled permutation 24": 2, "invertible 4x8": 6},
    ),
    "vit": (
        "ViTForImageClassification", "ViTConfig", IMAGE, {"pixel_values": PIXELS},
        {STREAM: 1, HEADS: 1, "permutation 24": 1, **CIRCUITS},
    ),
    "deit": (
        "DeiTForImageClassification", "DeiTConfig", IMAGE, {"pixel_values": PIXELS},
        {STREAM: 1, HEADS: 1, "permutation 24": 1, **CIRCUITS},
    ),
    "clip": (
        "CLIPModel", "CLIPConfig",
        {
            "text_config": {**BODY, **WORDS, **MARKS}, "projection_dim": 16,
            "vision_config": {**BODY, "image_size": 8, "patch_size": 4},
        },
        {**TEXT, "pixel_values": PIXELS},
        {HEADS: 2, "permutation 24": 2, "invertible 4x8": 4},
    ),
    "whisper": (
        "WhisperForConditionalGeneration", "WhisperConfig", SPEECH,
        {"input_features": SOUND, "decoder_input_ids": IDS[:, :5], "use_cache": False},
        {HEADS: 3, "permutation 24": 2, "invertible 4x8": 6},
    ),
    "mixtral": (
        "MixtralForCausalLM", "MixtralConfig", {**SHARED, "num_local_experts": 4}, WRITER,
        {**GROUPED, "permutation 4": 1, "scaled permutation 4x24": 1},
    ),
    # Gates and ups are neighbours, with biases; sinks keep nothing in place.
    "gpt_oss": (
        "GptOssForCausalLM", "GptOssConfig",
        {**SHARED, "num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8}, WRITER,
        {SIGNED: 1, "permutation 4": 1, "permutation 4x24": 1},
    ),
    "olmoe": (
        "OlmoeForCausalLM", "OlmoeConfig", {**SHARED, "num_experts": 4, "num_experts_per_tok": 2}, WRITER,
        {SIGNED: 1, "permutation 4": 1, "scaled permutation 4x24": 1},
    ),
    "qwen2_moe": (
        "Qwen2MoeForCausalLM", "Qwen2MoeConfig",
        {
            **SHARED, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12,
            "shared_expert_intermediate_size": 20,
        },
        WRITER,
        {**GROUPED, "permutation 4": 1, "scaled permutation 4x12": 1, "scaled permutation 20": 1},
    ),
    # Latents are units of their own. Heads change places as heads; the key's rotated part is one for all of them, so
    # its pairs rotate for all alike. Entries without position are mixed in every head, and values with outputs. Experts
    # move within the two groups of routing, and the groups change places.
    "deepseek_v3": (
        "DeepseekV3ForCausalLM", "DeepseekV3Config", LATENT, WRITER,
        {
            SIGNED: 1, "signed permutation 12": 1, "signed permutation 10": 1, "scaled permutation 12": 1,
            HEADS: 1, "scaled rotation of pairs 4": 1, "invertible 4x6": 1, "invertible 4x8": 1,
            "permutation 2": 1, "permutation 2x2": 1, "scaled permutation 4x12": 1,
        },
    ),
    "mamba": (
        "MambaForCausalLM", "MambaConfig",
        {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 1, "state_size": 4, **MARKS}, WRITER,
        {SIGNED: 1, "permutation 64": 1, "permutation 4": 1, "invertible 2": 1},
    ),
    # Heads with a decay of their own; the entries of the state are read and written by all of them alike.
    "mamba2": (
        "Mamba2ForCausalLM", "Mamba2Config",
        {
            "vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 1, "num_heads": 4, "head_dim": 16,
            "state_size": 6, "n_groups": 1, "expand": 2, "chunk_size": 4, **MARKS,
        },
        WRITER,
        {SIGNED: 1, "scaled permutation 4": 1, "permutation 6": 1},
    ),
    # As version 3, its rotations written with complex numbers and one group of routing.
    "deepseek_v2": (
        "DeepseekV2ForCausalLM", "DeepseekV2Config", {**LATENT, "n_group": 1}, WRITER,
        {
            SIGNED: 1, "signed permutation 12": 1, "signed permutation 10": 1, "scaled permutation 12": 1,
            "permutation 4": 2,
            "scaled rotation of pairs 4": 1, "invertible 4x6": 1, "invertible 4x8": 1, "scaled permutation 4x12": 1,
        },
    ),
    # The second layer's state is a part of a tensor that the first one has written to.
    "rwkv": (
        "RwkvForCausalLM", "RwkvConfig",
        {
            "vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "attention_hidden_size": 32,
            "intermediate_size": 24, "context_length": 16, **MARKS,
        },
        WRITER,
        {STREAM: 1, "permutation 32": 2, "permutation 24": 2},
    ),
    # Windows of keys and values as strides; what is padded with -1 keeps values from being mixed.
    "longformer": (
        "LongformerForMaskedLM", "LongformerConfig", {**BODY, **WORDS, **MARKS, "attention_window": 4}, TEXT,
        {STREAM: 1, HEADS: 1, "permutation 24": 1, "invertible 4x8": 1},
    ),
    # A linear attention (two key heads with two value heads each) and an ordinary one.
    "qwen3_next": (
        "Qwen3NextForCausalLM", "Qwen3NextConfig",
        {
            **SHARED, "num_hidden_layers": 2, "head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
            "linear_key_head_dim": 8, "linear_value_head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2,
            "moe_intermediate_size": 12, "shared_expert_intermediate_size": 20,
            "layer_types": ["linear_attention", "full_attention"],
        },
        WRITER,
        {"permutation 2": 2, "permutation 2x2": 2, "permutation 4": 2, "scaled permutation 4x12": 2},
    ),
}  # fmt: skip
NAMES = sorted(CASES)


@functools.cache
def derived(name: str) -> tuple[nn.Module, Mapping[str, Any], SymmetrySpec]:
    model, config, options, inputs, _ = CASES[name]
    torch.manual_seed(0)
    built = getattr(transformers, model)(getattr(transformers, config)(**options)).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # no operator of these models may be unknown
        warnings.filterwarnings("ignore", message=".*never used.*")
        return built, inputs, derive(built, inputs, within=Kind.INVERTIBLE)


@pytest.mark.parametrize("name", NAMES)
def test_groups_classes_and_sizes(name: str) -> None:
    _, _, spec = derived(name)
    found, expected = listed(spec), CASES[name][-1]
    assert {key: found[key] for key in expected} == expected, f"{dict(found)}\n{spec.report()}"


@pytest.mark.parametrize("name", NAMES)
def test_random_elements_of_every_class_leave_the_outputs_unchanged(name: str) -> None:
    model, inputs, spec = derived(name)
    assert verify(spec, model, inputs, seed=1).passed


@pytest.mark.parametrize("name", [name for name in NAMES if "use_cache" in CASES[name][3]])
def test_keys_and_values_that_the_model_returns_for_itself_hold_nothing(name: str) -> None:
    model, inputs, spec = derived(name)
    natural = {key: value for key, value in inputs.items() if key != "use_cache"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        cached = derive(model, natural, within=Kind.INVERTIBLE)
    assert listed(cached) == listed(spec)
    assert any("takes it back" in note for note in cached.notes)
    assert verify(cached, model, natural, seed=1).passed


@pytest.mark.parametrize("name", ["gpt2", "gptj", "phi3"])
def test_a_wrong_side_or_place_is_found(name: str) -> None:
    model, inputs, spec = derived(name)
    other = {Side.COVARIANT: Side.CONTRAVARIANT, Side.CONTRAVARIANT: Side.COVARIANT}
    mixing = [b for b in spec.bindings if spec.groups[b.group].kind.mixes]
    for wrong in (mixing[0], mixing[-1]):
        for changed in (replace(wrong, side=other[wrong.side]), replace(wrong, positions=wrong.positions.roll(1, 0))):
            broken = replace(spec, bindings=tuple(changed if b is wrong else b for b in spec.bindings))
            with pytest.raises(SymmetryError, match="mixing units is not"):
                verify(broken, model, inputs, seed=1)


@pytest.mark.parametrize("name", ["gpt2", "gptj", "llama", "qwen3"])
def test_elements_form_a_group(name: str, tmp_path: Any) -> None:
    model, _, spec = derived(name)
    model = model.double()
    g, h = spec.random(1), spec.random(2)
    assert_close(g.compose(h).apply(model), g.apply(h.apply(model)))
    assert_close(g.inverse().apply(g.apply(model)), model)
    g.save(tmp_path / "g.safetensors")
    loaded = Alignment.load(tmp_path / "g.safetensors", spec)
    assert_close(loaded.apply(model), g.apply(model), 0.0)
    assert spec.identity().is_identity


def test_a_smaller_class_is_part_of_the_symmetry() -> None:
    model, inputs, spec = derived("llama")
    small = spec.within(Kind.PERMUTATION)
    assert {str(g.kind) for g in small.groups.values()} == {"permutation"}
    assert verify(small, model, inputs).passed
    assert not any(g.kind.mixes for g in derive(model, inputs).groups.values())


def test_plain_attention_and_encoder_layers() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 4, 24, batch_first=True, dropout=0.0).double().eval()
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).double().eval()
    x = torch.randn(2, 5, 16, dtype=torch.float64)
    spec = derive(encoder, x, within=Kind.INVERTIBLE)
    assert listed(spec)["invertible 4x4"] == 4
    assert verify(spec, encoder, x).passed
    attention = nn.MultiheadAttention(16, 4, batch_first=True).double().eval()
    inputs = (x, x.flip(1), x)
    spec = derive(attention, inputs, within=Kind.INVERTIBLE)
    assert sum(n for key, n in listed(spec).items() if key.startswith("invertible")) >= 2
    assert verify(spec, attention, inputs).passed


def assert_close(one: nn.Module, two: nn.Module, tolerance: float = 1e-9) -> None:
    state: Mapping[str, Tensor] = two.state_dict()
    for key, tensor in one.state_dict().items():
        torch.testing.assert_close(tensor, state[key], rtol=tolerance, atol=tolerance)


def test_matched_tensors_are_parameters_only() -> None:
    _, _, spec = derived("llama")
    assert all(b.role is Role.MATCHED for b in spec.bindings if spec.groups[b.group].kind.mixes)


@pytest.mark.parametrize("name", ["gptmoe"])
def test_the_trained_pairs_architectures(name: str) -> None:
    path = Path(__file__).parents[3] / "shared" / "pairs" / "zoo.py"
    if not path.exists():
        pytest.skip("the trained pairs are not here")
    model = runpy.run_path(str(path))["ZOO"][name]().eval()
    tokens = torch.randint(0, 65, (2, 6))
    spec = derive(model, tokens, within=Kind.INVERTIBLE)
    experts = {"permutation 4x256": 4}
    assert dict(listed(spec)) == {"scaled permutation 128": 1, "permutation 4": 8, "invertible 4x32": 8, **experts}
    assert verify(spec, model, tokens).passed


@pytest.mark.parametrize("name", ["llama", "gemma2", "qwen3"])
def test_flipped_signs_of_a_stream_without_means_are_found(name: str) -> None:
    """Written by hand: every second unit of the stream changes its sign, the scales of norms stay."""
    model, inputs, spec = derived(name)
    stream = next(n for n, g in spec.groups.items() if g.size == 32 and g.kind is Kind.SIGNED)
    flips = torch.tensor([1.0, -1.0]).repeat(16)
    flipped = copy.deepcopy(model)
    with torch.no_grad():
        for key, tensor in flipped.named_parameters():
            if tensor.dim() > 1:
                reads = not key.endswith(("o_proj.weight", "down_proj.weight"))
                tensor.mul_(flips if reads else flips.unsqueeze(1))
        torch.testing.assert_close(flipped(**inputs).logits, model(**inputs).logits, rtol=1e-4, atol=1e-5)
    found = align(model, flipped, method="weight", spec=spec, example_inputs=inputs)
    element = found.transforms[stream]
    assert isinstance(element, ScaledPermutation) and element.scale is not None
    assert torch.equal(element.scale.float(), flips) or torch.equal(element.scale.float(), -flips)
    assert_close(found.apply(flipped), model, 1e-5)
