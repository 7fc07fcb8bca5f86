"""Whole checkpoints whose norms have scales of their own: folded as they are read, turned as a whole, loadable."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pyalign.cli import main
from pyalign.errors import InputError
from pyalign.io import bare_model, load_model, load_state, save_folder
from pyalign.io.huggingface import example_of
from pyalign.matching import align_folders, expert_orders
from pyalign.symmetry import Kind, derive
from pyalign.symmetry.foldable import FoldPlan, multiplied, plan_fold

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.hf

BODY = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 40}
GROUPED = {**BODY, "num_key_value_heads": 2}
GPT = {"n_embd": 16, "n_layer": 2, "n_head": 4, "n_inner": 24, "n_positions": 32, "vocab_size": 40}
IDS = torch.arange(9)[None]


@dataclass(frozen=True)
class Case:
    """An architecture, the class that its stream has once scales are folded, and whether its embedding is tied."""

    model: str
    options: dict[str, Any]
    stream: Kind
    tied: bool = False


CASES = {
    "llama": Case("LlamaForCausalLM", GROUPED, Kind.ORTHOGONAL),
    "qwen2, tied": Case("Qwen2ForCausalLM", GROUPED, Kind.ORTHOGONAL, tied=True),
    # Gemma stores scales as their difference from one.
    "gemma": Case("GemmaForCausalLM", {**GROUPED, "head_dim": 4}, Kind.ORTHOGONAL),
    # LayerNorms with biases.
    "gpt2": Case("GPT2LMHeadModel", GPT, Kind.CENTRED),
    "gpt2, tied": Case("GPT2LMHeadModel", GPT, Kind.CENTRED, tied=True),
    # Files hold every expert by itself, the module all of them as one tensor; routers read the norm too.
    "mixtral": Case("MixtralForCausalLM", {**GROUPED, "num_local_experts": 4}, Kind.ORTHOGONAL),
}


def written(folder: Path, case: Case) -> Path:
    """A folder with random weights and scales between one half and three halves."""
    name = f"{case.model.partition('For')[0].partition('LMHead')[0]}Config"
    marks = {"bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": case.tied}
    torch.manual_seed(0)
    model = getattr(transformers, case.model)(getattr(transformers, name)(**marks, **case.options))
    for n, p in model.named_parameters():
        torch.nn.init.normal_(p, std=0.2)
        if "norm" in n or ".ln_" in n:
            torch.nn.init.uniform_(p, -0.5 if "Gemma" in case.model or "bias" in n else 0.5, 1.5)
    model.save_pretrained(folder)
    return folder


def with_scales(model: nn.Module, plan: FoldPlan, seed: int) -> None:
    """Give a folded model scales again, other ones."""
    state, generator = model.state_dict(), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, one in plan.scales.items():
            scale = 0.5 + torch.rand(state[name].shape, generator=generator, dtype=torch.float64)
            for tensor, axis in one.readers:
                state[tensor].copy_(multiplied(state[tensor], axis, 1 / scale))
            if one.shift:
                state[one.shift].mul_(scale)
            state[name].copy_(scale - one.offset)


def pair(place: Path, case: Case) -> tuple[Path, Path, FoldPlan]:
    """A, and B: the folded A turned by a random element of its group, with other scales, plus noise.

    With a tied embedding no other scales would do: there B is A moved by a random element of its own group.
    """
    a = written(place / "a", case)
    bare, model = bare_model(a), load_model(a).double()
    inputs, state = example_of(bare), model.state_dict()
    parted, plan = plan_fold(bare, inputs, [state])
    spec = derive(parted, inputs, within=Kind.INVERTIBLE, constants=tuple(plan.scales))
    assert [g.kind for g in spec.groups.values() if g.size == 16 and g.kind.isometric] == [case.stream]
    if case.tied:
        model = derive(bare, inputs, within=Kind.INVERTIBLE).random(3).apply(model)
    else:
        model.load_state_dict({n: plan.folded(n, state) for n in state})
        model = spec.random(3).apply(model)
        with_scales(model, plan, seed=1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1e-5 * torch.randn(p.shape, dtype=torch.float64))
    model.float().save_pretrained(place / "b")
    return a, place / "b", plan


def far(one: dict[str, Tensor], two: dict[str, Tensor]) -> float:
    """Relative distance of two states of one folder's names."""
    assert set(one) == set(two)
    squares = sum((one[n] - two[n]).square().sum() for n in one), sum(one[n].square().sum() for n in one)
    return float((squares[0] / squares[1]) ** 0.5)


@pytest.mark.parametrize("name", sorted(CASES))
def test_a_turned_checkpoint_with_other_scales_comes_back(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    a, b, plan = pair(tmp_path, case)
    out, folded = tmp_path / "out", tmp_path / "folded"
    found = align_folders(a, b, out, fold=True, out_a=folded, progress=False, max_shard_bytes=4000)
    assert found.spec.constants == tuple(plan.scales) and len(plan.scales) == 5
    assert far(load_state(folded), load_state(out)) < 1e-3
    assert len(expert_orders(found)) == (2 if name == "mixtral" else 0)
    with torch.no_grad():
        for written_to, source in ((out, b), (folded, a)):
            after, before = load_model(written_to), load_model(source)
            torch.testing.assert_close(after(IDS).logits, before(IDS).logits, rtol=1e-4, atol=1e-4)
            state = after.state_dict()
            assert all(bool((state[n] == 1 - plan.scales[n].offset).all()) for n in plan.scales)
            assert after.config.tie_word_embeddings is False
    assert "scales of norms were moved" in (out / "README.md").read_text()
    assert "folded scales" in (folded / "README.md").read_text()
    assert ("source.config.json" in {p.name for p in out.iterdir()}) == case.tied


def test_without_folding_scales_hold_the_stream_and_are_kept(tmp_path: Path) -> None:
    a, b, _ = pair(tmp_path, CASES["llama"])
    found = align_folders(a, b, tmp_path / "out", progress=False)
    assert found.spec.constants == () and not any(g.kind.isometric for g in found.spec.groups.values())
    assert far(load_state(a), load_state(tmp_path / "out")) > 0.1
    with torch.no_grad():
        torch.testing.assert_close(load_model(tmp_path / "out")(IDS).logits, load_model(b)(IDS).logits)


def test_half_precision_is_rounded_once(tmp_path: Path) -> None:
    a = written(tmp_path / "a", CASES["llama"])
    half = {n: t.bfloat16() for n, t in load_state(a).items()}
    save_folder(half, tmp_path / "half", like=a)
    align_folders(
        tmp_path / "half", tmp_path / "half", tmp_path / "out", fold=True, out_a=tmp_path / "folded", progress=False
    )
    name, scale = "model.layers.0.mlp.up_proj.weight", "model.layers.0.post_attention_layernorm.weight"
    expected = (half[name].double() * half[scale].double()).bfloat16()
    for folder in ("out", "folded"):
        assert torch.equal(load_state(tmp_path / folder)[name], expected)


def test_outputs_that_may_not_be_written_are_refused_before_any_work(tmp_path: Path) -> None:
    a = written(tmp_path / "a", CASES["llama"])
    with pytest.raises(InputError, match="only written where its scales are folded"):
        align_folders(a, a, out_a=tmp_path / "out")
    with pytest.raises(InputError, match="both outputs are one"):
        align_folders(a, a, tmp_path / "out", fold=True, out_a=tmp_path / "out")
    with pytest.raises(InputError, match="exists already"):
        align_folders(a, a, tmp_path / "out", fold=True, out_a=a)


def test_the_command_folds_and_writes_both(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = written(tmp_path / "a", CASES["llama"])
    words = ["align", "--a", str(a), "--b", str(a), "--method", "weight", "--quiet"]
    assert main([*words, "--fold", "--out", str(tmp_path / "out"), "--out-a", str(tmp_path / "folded")]) == 0
    assert "5 scales of norms were moved" in capsys.readouterr().out
    one, two = load_state(tmp_path / "out"), load_state(tmp_path / "folded")
    assert all(torch.equal(one[n], two[n]) for n in one)
    assert main([*words, "--out-a", str(tmp_path / "other")]) == 1
    assert main(["align", "--a", "a.pt", "--b", "b.pt", "--method", "weight", "--fold", "--quiet"]) == 2
