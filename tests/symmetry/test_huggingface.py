"""Hugging Face architectures with small random configurations: enough moves, all that should, and nothing changes."""

from __future__ import annotations

import functools
import re
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from pyalign import derive
from pyalign.symmetry import SymmetrySpec

from .architectures import generic
from .helpers import assert_untouched, axes_of, check_invariance, check_positions, fingerprint, inner_groups, state_of

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.hf


@dataclass(frozen=True)
class Case:
    """A configuration; the groups and units reasoned out by hand (see each case); weights that may stay fixed.

    `still` matches "tensor:axis" of axes that need not move, besides the first input and the class axis.
    """

    model: str
    config: str
    options: dict
    groups: int
    units: int
    still: str = r"$^"
    size: int = 32


CASES = {
    # streams: stem 6, stages 8 and 12; one inner group a block.
    "resnet_basic": Case(
        "ResNetForImageClassification", "ResNetConfig",
        {"embedding_size": 6, "hidden_sizes": [8, 12], "depths": [2, 2], "layer_type": "basic"},
        groups=3 + 4, units=(6 + 8 + 12) + 2 * 8 + 2 * 12,
    ),
    # inner width is a quarter of the stage's, twice a block.
    "resnet_bottleneck": Case(
        "ResNetForImageClassification", "ResNetConfig",
        {"embedding_size": 8, "hidden_sizes": [16, 24], "depths": [2, 2], "layer_type": "bottleneck"},
        groups=3 + 8, units=(8 + 16 + 24) + 4 * 4 + 4 * 6,
    ),
    # inner width is the stage's, twice a block (around the grouped convolution); squeezed widths 2, 2, 3.
    "regnet_y": Case(
        "RegNetForImageClassification", "RegNetConfig",
        {"embedding_size": 8, "hidden_sizes": [8, 12], "depths": [1, 2], "groups_width": 4, "layer_type": "y"},
        groups=3 + 6 + 3, units=(8 + 8 + 12) + 2 * 8 + 4 * 12 + 7,
    ),
    "regnet_x": Case(
        "RegNetForImageClassification", "RegNetConfig",
        {"embedding_size": 8, "hidden_sizes": [8, 12], "depths": [1, 2], "groups_width": 4, "layer_type": "x"},
        groups=3 + 6, units=(8 + 8 + 12) + 2 * 8 + 4 * 12,
    ),
    # streams 6 and 8; hidden widths are four times as many, three blocks.
    "convnext": Case(
        "ConvNextForImageClassification", "ConvNextConfig",
        {"hidden_sizes": [6, 8], "depths": [1, 2], "num_stages": 2, "patch_size": 2},
        groups=2 + 3, units=14 + 24 + 2 * 32,
    ),
    "convnext_v2": Case(
        "ConvNextV2ForImageClassification", "ConvNextV2Config",
        {"hidden_sizes": [6, 8], "depths": [1, 2], "num_stages": 2, "patch_size": 2},
        groups=2 + 3, units=14 + 24 + 2 * 32,
    ),
    # widths at multiplier 1/4: streams 8, 8, 8, 16, 24, 40, 80; first convolution 8; last 1280; sixteen expansions
    # of twice the incoming width: 6 of 16, 4 of 32, 3 of 48, 3 of 80.
    "mobilenet_v2": Case(
        "MobileNetV2ForImageClassification", "MobileNetV2Config",
        {"depth_multiplier": 0.25, "expand_ratio": 2, "classifier_dropout_prob": 0.0},
        groups=7 + 1 + 1 + 16, units=(8 + 8 + 8 + 16 + 24 + 40 + 80) + 8 + 1280 + 6 * 16 + 4 * 32 + 3 * 48 + 3 * 80,
    ),
    # widths at coefficient 1/4: stem 8 (the first block does not expand), streams 8, 8, 16, three expansions of 16,
    # four squeezes of 2, the last convolution 320.
    "efficientnet": Case(
        "EfficientNetForImageClassification", "EfficientNetConfig",
        {
            "width_coefficient": 0.25, "depth_coefficient": 1.0, "hidden_dim": 320, "image_size": 32,
            "kernel_sizes": [3, 3, 5], "in_channels": [32, 16, 24], "out_channels": [16, 24, 40],
            "strides": [1, 2, 2], "num_block_repeats": [1, 2, 1], "expand_ratios": [1, 2, 2],
            "drop_connect_rate": 0.0, "dropout_rate": 0.0, "depthwise_padding": [],
        },
        groups=1 + 3 + 3 + 4 + 1, units=8 + (8 + 8 + 16) + 3 * 16 + 4 * 2 + 320,
    ),
    # streams 6 and 8; hidden widths are twice as many, three blocks.
    "poolformer": Case(
        "PoolFormerForImageClassification", "PoolFormerConfig",
        {
            "hidden_sizes": [6, 8], "depths": [1, 2], "num_encoder_blocks": 2, "mlp_ratio": 2.0,
            "patch_sizes": [3, 3], "strides": [2, 2], "padding": [1, 1], "drop_path_rate": 0.0,
        },
        groups=2 + 3, units=14 + 12 + 2 * 16,
    ),
    # streams: stem 8, stages 16 and 32 (GroupNorm in two blocks); two inner groups of 8 in each of three blocks;
    # every weight is standardised row by row.
    "bit": Case(
        "BitForImageClassification", "BitConfig",
        {"embedding_size": 8, "hidden_sizes": [16, 32], "depths": [1, 2], "num_groups": 2},
        groups=3 + 6, units=8 + 16 + 32 + 6 * 8,
    ),
    # streams 8 and 12, feed-forward 16 and 24, the reduced keys' width 8, decoder 10 for either stage and 10 fused.
    # Inside attention, queries, keys and values may stay.
    "segformer": Case(
        "SegformerForSemanticSegmentation", "SegformerConfig",
        {
            "num_encoder_blocks": 2, "depths": [1, 1], "sr_ratios": [2, 1], "hidden_sizes": [8, 12],
            "patch_sizes": [7, 3], "strides": [4, 2], "num_attention_heads": [1, 2], "mlp_ratios": [2, 2],
            "decoder_hidden_size": 10, "drop_path_rate": 0.0, "classifier_dropout_prob": 0.0,
            "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
        },
        groups=2 + 2 + 1 + 3, units=8 + 12 + 16 + 24 + 8 + 3 * 10,
        still=r"(self\.(query|key|value)|[qkv]_proj)\.\w+:0|(output\.dense|o_proj)\.weight:1",
    ),
}  # fmt: skip
NAMES = sorted(CASES)


@functools.cache
def derived(name: str) -> tuple[nn.Module, Tensor, SymmetrySpec]:
    case = CASES[name]
    torch.manual_seed(0)
    config = getattr(transformers, case.config)(num_labels=4, **case.options)
    model = generic(getattr(transformers, case.model)(config).double().eval(), seed=1)
    size = (2, 3, case.size, case.size)
    inputs = torch.randn(size, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # no operator of these models may be unknown
        return model, inputs, derive(model, inputs)


@pytest.mark.parametrize("name", NAMES)
def test_as_many_groups_and_units_as_the_architecture_has(name: str) -> None:
    model, _, spec = derived(name)
    groups = inner_groups(spec)
    listing = "\n".join(f"{n}: {g.size} {g.kind.value} {sorted(axes_of(spec, n))[:3]}" for n, g in groups.items())
    assert len(groups) >= CASES[name].groups, listing
    assert sum(g.size for g in groups.values()) >= CASES[name].units, listing
    check_positions(spec, state_of(model))


@pytest.mark.parametrize("name", NAMES)
def test_every_layer_moves_but_the_first_input_and_the_classes(name: str) -> None:
    model, _, spec = derived(name)
    case, first = CASES[name], next(model.named_parameters())[0]
    moved = frozenset().union(*(axes_of(spec, n) for n in inner_groups(spec)))
    classes = {f"{n}.{p}" for n, m in model.named_modules() for p, _ in m.named_parameters() if "classifier" in n}
    missing = []
    for tensor, parameter in model.named_parameters():
        for at in range(min(2, parameter.ndim)):
            allowed = (tensor == first and at == 1) or (tensor in classes and at == 0)
            allowed = allowed or parameter.shape[at] == 1 or re.search(case.still, f"{tensor}:{at}")
            if not allowed and (tensor, at) not in moved:
                missing.append(f"{tensor}:{at}")
    fixed = {f"{f.tensor}:{f.axis}": f.reason for f in spec.fixed}
    assert not missing, "\n".join(f"{m} is fixed: {fixed.get(m, 'no reason given')}" for m in missing)


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("name", NAMES)
def test_random_element_leaves_outputs_unchanged(name: str, train: bool) -> None:
    model, inputs, spec = derived(name)
    check_invariance(model, spec, inputs, train=train, seeds=1)


@pytest.mark.parametrize("name", ["regnet_y", "convnext_v2", "segformer"])
def test_keyword_inputs_and_train_mode_give_the_same_groups_without_trace(name: str) -> None:
    model, inputs, spec = derived(name)
    model.train()
    try:
        before, state = fingerprint(model), state_of(model)
        again = derive(model, {"pixel_values": inputs})
        assert_untouched(before, state, model)
    finally:
        model.eval()
    assert {axes_of(again, n) for n in inner_groups(again)} == {axes_of(spec, n) for n in inner_groups(spec)}


def test_hidden_states_as_outputs_fix_their_streams() -> None:
    """Asked for all hidden states, the streams between blocks are outputs: only the blocks' insides move."""

    class AllStates(nn.Module):
        def __init__(self, inner: nn.Module, run: Callable[..., object]) -> None:
            super().__init__()
            self.inner, self.run = inner, run

        def forward(self, x: Tensor) -> object:
            return self.run(self.inner, x)

    model, inputs, _ = derived("resnet_basic")
    wrapped = AllStates(model, lambda inner, x: inner(x, output_hidden_states=True))
    spec = derive(wrapped, inputs)
    sizes = sorted(g.size for g in inner_groups(spec).values())
    assert sizes == [8, 8, 12, 12]
    check_invariance(wrapped, spec, inputs, train=False, seeds=1)


@pytest.mark.slow
def test_resnet50_is_derived_in_under_ten_seconds() -> None:
    config = transformers.ResNetConfig()
    model = transformers.ResNetForImageClassification(config).eval()
    images = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    start = time.perf_counter()
    spec = derive(model, images)
    seconds = time.perf_counter() - start
    # stem 64, streams 256, 512, 1024, 2048, and two inner groups in each of 3 + 4 + 6 + 3 blocks
    units = 64 + 256 + 512 + 1024 + 2048 + 2 * (3 * 64 + 4 * 128 + 6 * 256 + 3 * 512)
    assert sorted(g.size for g in inner_groups(spec).values())[-1] == 2048
    assert sum(g.size for g in inner_groups(spec).values()) == units
    assert len(inner_groups(spec)) == 5 + 2 * 16
    assert seconds < 10, f"took {seconds:.1f} s"
