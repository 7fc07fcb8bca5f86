"""Weight matching over all classes: planted elements of the full group are found, and the distance only falls."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pyalign
from pyalign.matching import ActivationMatching, WeightMatching
from pyalign.matching.nearest import Grams, nearest
from pyalign.symmetry import Kind, Role, SymmetrySpec, fold

IDS = torch.randint(0, 40, (2, 9), generator=torch.Generator().manual_seed(0))
WRITER = {"input_ids": IDS, "use_cache": False}


def noisy(model: nn.Module, seed: int = 1) -> nn.Module:
    """The model in float64 with noise on every weight, so that no bias is zero and no scale one."""
    generator = torch.Generator().manual_seed(seed)
    model = model.double().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator, dtype=torch.float64))
    return model


def transformer(name: str) -> tuple[nn.Module, Any]:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    marks = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    if name == "gpt2":
        config = transformers.GPT2Config(vocab_size=40, n_embd=32, n_layer=2, n_head=4, n_positions=16, **marks)
        return noisy(transformers.GPT2LMHeadModel(config)), WRITER
    body = {"hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
    if name == "llama":
        config = transformers.LlamaConfig(vocab_size=40, num_key_value_heads=2, **body, **marks)
        return noisy(transformers.LlamaForCausalLM(config)), WRITER
    config = transformers.ViTConfig(image_size=8, patch_size=4, num_labels=5, **body)
    pixels = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    return noisy(transformers.ViTForImageClassification(config)), {"pixel_values": pixels}


def distance(a: nn.Module, b: nn.Module, spec: SymmetrySpec) -> float:
    """Relative distance of the matched weights."""
    names = {x.tensor for x in spec.bindings if x.role is Role.MATCHED}
    one, two = a.state_dict(), b.state_dict()
    return float(
        (sum((one[n] - two[n]).square().sum() for n in names) / sum(one[n].square().sum() for n in names)) ** 0.5
    )


@pytest.mark.hf
@pytest.mark.parametrize("kind", [Kind.PERMUTATION, Kind.SIGNED, Kind.SCALED, Kind.INVERTIBLE])
@pytest.mark.parametrize("name", ["gpt2", "llama", "vit"])
def test_a_random_element_of_the_full_group_is_recovered(name: str, kind: Kind) -> None:
    model, inputs = transformer(name)
    spec = pyalign.derive(model, inputs, within=kind)
    moved = spec.random(3).apply(model)
    found = pyalign.align(model, moved, method="weight", spec=spec, verify=False)
    assert distance(model, moved, spec) > 0.5
    assert distance(model, found.apply(moved), spec) < 1e-5
    assert all(x <= y + 1e-9 for x, y in zip(found.trace, found.trace[1:], strict=False))
    assert "weight matching" in found.report()


@pytest.mark.hf
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_random_element_of_a_folded_networks_group_is_recovered(name: str) -> None:
    model, inputs = transformer(name)
    folding = fold(model, inputs)
    spec = pyalign.derive(folding.model, inputs, within=Kind.INVERTIBLE, constants=folding.constants)
    stream = [g for g in spec.groups.values() if g.kind.isometric]
    assert [(g.size, g.kind) for g in stream] == [(32, Kind.CENTRED if name == "gpt2" else Kind.ORTHOGONAL)]
    moved = spec.random(3).apply(folding.model)
    found = pyalign.align(folding.model, moved, method="weight", spec=spec, verify=False)
    assert distance(folding.model, moved, spec) > 0.5
    assert distance(folding.model, found.apply(moved), spec) < 1e-5
    with torch.no_grad():
        torch.testing.assert_close(found.apply(moved)(**inputs).logits, model(**inputs).logits, rtol=1e-6, atol=1e-6)


@pytest.mark.hf
def test_networks_that_differ_come_nearer_with_every_class() -> None:
    one, inputs = transformer("llama")
    two = noisy(transformer("llama")[0], seed=5)
    distances = []
    for within in (Kind.PERMUTATION, Kind.INVERTIBLE):
        found = pyalign.align(one, two, method=WeightMatching(within=within, sweeps=5), example_inputs=inputs)
        assert all(x <= y + 1e-9 for x, y in zip(found.trace, found.trace[1:], strict=False))
        distances.append(distance(one, found.apply(two), pyalign.derive(one, inputs)))
        with torch.no_grad():
            torch.testing.assert_close(found.apply(two)(**inputs).logits, two(**inputs).logits, rtol=1e-4, atol=1e-4)
    assert distances[1] < distances[0]


@pytest.mark.hf
def test_activation_matching_leaves_what_it_cannot_mix() -> None:
    model, inputs = transformer("gpt2")
    spec = pyalign.derive(model, inputs, within=Kind.INVERTIBLE)
    moved = spec.random(0, Kind.PERMUTATION).apply(model)
    found = pyalign.align(model, moved, [inputs], method=ActivationMatching(), spec=spec)
    with torch.no_grad():
        torch.testing.assert_close(found.apply(moved)(**inputs).logits, model(**inputs).logits)


def grams(a: Tensor, a2: Tensor, b: Tensor, b2: Tensor) -> Grams:
    return Grams(a @ b.mT, a2 @ b2.mT, b @ b.mT, b2 @ b2.mT)


@pytest.mark.parametrize("kind", [Kind.ORTHOGONAL, Kind.CENTRED, Kind.TURN, Kind.INVERTIBLE, Kind.ROTATION], ids=str)
@pytest.mark.parametrize("noise", [0.0, 0.01, 1.0])
def test_nearest_is_no_worse_than_the_planted_element(kind: Kind, noise: float) -> None:
    from pyalign.symmetry import BlockLinear

    generator = torch.Generator().manual_seed(0)
    a, a2 = (torch.randn(3, 6, n, generator=generator, dtype=torch.float64) for n in (40, 30))
    planted = BlockLinear.random(3, 6, kind, generator=generator).matrices
    inverse = torch.linalg.inv(planted)
    b, b2 = inverse @ a, planted.mT @ a2
    b, b2 = (x + noise * torch.randn(x.shape, generator=generator, dtype=torch.float64) for x in (b, b2))
    problem = grams(a, a2, b, b2)
    found = nearest(problem, kind)
    assert bool((problem.cost(found) <= problem.cost(planted) + 1e-9).all())
    if noise == 0:
        torch.testing.assert_close(found, planted, rtol=1e-6, atol=1e-6)
    elif noise < 1:
        # At a minimum no small change within the class helps.
        for seed in range(5):
            step = BlockLinear.random(3, 6, kind, generator=torch.Generator().manual_seed(seed)).matrices
            near = found @ torch.linalg.matrix_exp(1e-4 * (step - step.mT if kind.isometric else step))
            assert bool((problem.cost(found) <= problem.cost(near) + 1e-9).all())
