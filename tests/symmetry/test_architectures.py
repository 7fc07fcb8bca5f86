"""Groups written out by hand against derived ones, invariance in float64, and no trace left on the model."""

from __future__ import annotations

import copy
import dataclasses
import functools
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pyalign import derive, errors
from pyalign.symmetry import SymmetrySpec, Wreath, verify

from .architectures import ARCHITECTURES
from .helpers import (
    assert_untouched,
    axes_of,
    check_groups,
    check_invariance,
    check_positions,
    fingerprint,
    inner_groups,
    state_of,
)

NAMES = sorted(ARCHITECTURES)


@functools.cache
def derived(name: str) -> tuple[nn.Module, Any, SymmetrySpec]:
    architecture = ARCHITECTURES[name]
    model, inputs = architecture.model(), architecture.inputs()
    return model, inputs, derive(model, inputs)


def signature(spec: SymmetrySpec) -> set:
    """What a spec moves and how, free of group names and order."""
    return {
        (g.size, g.kind, type(g.structure), getattr(g.structure, "blocks", 1), axes_of(spec, name))
        for name, g in spec.groups.items()
    }


@pytest.mark.parametrize("name", NAMES)
def test_groups_are_those_written_by_hand(name: str) -> None:
    model, _, spec = derived(name)
    check_groups(spec, ARCHITECTURES[name])
    check_positions(spec, state_of(model))


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("name", NAMES)
def test_random_element_leaves_outputs_unchanged(name: str, train: bool) -> None:
    if train and not ARCHITECTURES[name].train:
        pytest.skip("elementwise dropout falls on units that move: train mode is random per unit")
    model, inputs, spec = derived(name)
    check_invariance(model, spec, inputs, train=train)


@pytest.mark.parametrize("name", NAMES)
def test_verify_accepts_what_was_derived(name: str) -> None:
    model, inputs, spec = derived(name)
    before, state = fingerprint(model), state_of(model)
    verify(spec, model, inputs, seed=5)
    assert_untouched(before, state, model)


@pytest.mark.parametrize("name", NAMES)
def test_derive_leaves_no_trace_and_modes_agree(name: str) -> None:
    _, inputs, spec = derived(name)
    model = ARCHITECTURES[name].model().train()
    for i, module in enumerate(model.modules()):
        module.training = i % 3 != 1 if i else True  # a mixture, as with frozen normalisations
    model.register_forward_hook(lambda *_: None)
    given = copy.deepcopy(inputs)
    torch.manual_seed(3), np.random.seed(3), random.seed(3)
    before, state = fingerprint(model), state_of(model)
    again = derive(model, given)
    assert_untouched(before, state, model)
    assert repr(given) == repr(inputs), "derive changed the example inputs"
    assert signature(again) == signature(spec), "train mode must give the same groups as eval mode"


def test_derive_restores_the_model_when_forward_fails() -> None:
    model = ARCHITECTURES["resnet_basic_batchnorm"].model().train()
    before, state = fingerprint(model), state_of(model)
    with pytest.raises((errors.PyalignError, RuntimeError)):
        derive(model, torch.zeros(2, 5, 8, 8, dtype=torch.float64))
    assert_untouched(before, state, model)


@pytest.mark.parametrize("name", ["resnet_basic_batchnorm", "densenet", "shared_twice", "convnext", "resnext"])
def test_derive_is_deterministic(name: str) -> None:
    model, inputs, spec = derived(name)
    again = derive(copy.deepcopy(model), inputs)
    assert again.fingerprint == spec.fingerprint
    assert [*again.groups] == [*spec.groups]


@pytest.mark.parametrize("name", ["mlp_relu", "unet", "resnet_option_a", "swiglu_fused"])
def test_derive_works_on_the_meta_of_float32_too(name: str) -> None:
    model, inputs, spec = derived(name)
    single = derive(copy.deepcopy(model).float(), inputs.float())
    assert signature(single) == signature(spec)


def _broken(spec: SymmetrySpec, index: int, change: dict | None) -> SymmetrySpec:
    """`spec` with one binding dropped (`change` None) or altered."""
    bindings = list(spec.bindings)
    old = bindings.pop(index)
    if change is not None:
        bindings.insert(index, dataclasses.replace(old, **change))
    return dataclasses.replace(spec, bindings=tuple(bindings))


CONTROLS = ["mlp_gelu", "vgg_batchnorm", "resnet_basic_batchnorm", "densenet", "convnext", "resnext"]


@pytest.mark.parametrize("name", CONTROLS)
def test_verify_names_the_group_and_a_dropped_binding(name: str) -> None:
    model, inputs, spec = derived(name)
    inner = inner_groups(spec)
    candidates = [i for i, b in enumerate(spec.bindings) if b.group in inner and "running" not in b.tensor]
    for index in candidates[:: len(candidates) // 2 + 1]:
        dropped = spec.bindings[index]
        with pytest.raises(errors.SymmetryError) as failure:
            verify(_broken(spec, index, None), model, inputs)
        assert dropped.group in str(failure.value)
        assert dropped.tensor in str(failure.value), f"dropped {dropped.tensor}:{dropped.axis}: {failure.value}"


@pytest.mark.parametrize("name", ["shared_twice", "tied_modules", "dict_in_dataclass_out", "resnet_basic_batchnorm"])
def test_verify_names_the_group_and_a_binding_on_the_wrong_axis(name: str) -> None:
    model, inputs, spec = derived(name)
    square = [
        i
        for i, b in enumerate(spec.bindings)
        if len(spec.shapes[b.tensor]) >= 2
        and spec.shapes[b.tensor][0] == spec.shapes[b.tensor][1]
        and sum(other.tensor == b.tensor and other.group == b.group for other in spec.bindings) == 1
    ]
    if not square:  # recurrent matrices carry the group on both axes: drop one of them instead
        square = [i for i, b in enumerate(spec.bindings) if len(spec.shapes[b.tensor]) == 2 and b.axis == 1][:1]
        broken = [(i, _broken(spec, i, None)) for i in square]
    else:
        broken = [(i, _broken(spec, i, {"axis": 1 - spec.bindings[i].axis})) for i in square[:3]]
    assert broken
    for index, wrong in broken:
        binding = spec.bindings[index]
        with pytest.raises(errors.SymmetryError) as failure:
            verify(wrong, model, inputs)
        assert binding.group in str(failure.value)
        assert binding.tensor in str(failure.value), f"moved {binding.tensor}:{binding.axis}: {failure.value}"


def test_verify_catches_a_wrong_order_inside_a_flattened_axis() -> None:
    model, inputs, spec = derived("vgg_batchnorm")
    index = next(i for i, b in enumerate(spec.bindings) if b.tensor == "classifier.1.weight" and b.axis == 1)
    right = spec.bindings[index].positions
    assert torch.equal(right.sort(1).values, torch.arange(96).view(6, 16)), "unit s is its own run of 4 x 4"
    assert (right - right[:1]).eq((right - right[:1])[:, :1]).all(), "the pixels are in one order for every unit"
    with pytest.raises(errors.SymmetryError) as failure:
        verify(_broken(spec, index, {"positions": torch.arange(96).view(16, 6).t().contiguous()}), model, inputs)
    assert "classifier.1.weight" in str(failure.value)


def test_verify_catches_a_scale_that_the_activation_does_not_allow() -> None:
    model, inputs, spec = derived("mlp_gelu")
    scaling = derived("mlp_relu")[2]
    assert scaling.shapes == spec.shapes
    with pytest.raises(errors.SymmetryError, match=r"fc[12]"):
        verify(scaling, model, inputs)


@pytest.mark.parametrize("name", ["resnext", "resnet_basic_groupnorm", "grouped_transposed"])
def test_wreath_elements_keep_blocks_together(name: str) -> None:
    _, _, spec = derived(name)
    crossed = False
    for seed in range(3):
        transforms = spec.random(seed).transforms
        for group, g in spec.groups.items():
            if not isinstance(g.structure, Wreath):
                continue
            blocks, each = g.structure.blocks, g.size // g.structure.blocks
            perm = transforms[group].perm.view(blocks, each)
            source = perm // each
            assert (source == source[:, :1]).all(), "units of one block must come from one block"
            assert torch.equal(source[:, 0], transforms[g.structure.outer].perm), "blocks follow the outer group"
            crossed |= not torch.equal(source[:, 0], torch.arange(blocks))
    assert crossed, "some block must move"


def test_sites_observe_every_group_of_a_convolutional_net() -> None:
    model, _, spec = derived("resnet_basic_batchnorm")
    names = dict(model.named_modules())
    for group, g in inner_groups(spec).items():
        sites = spec.sites_of(group)
        assert sites, f"{group} is observed nowhere"
        assert all(site.module in names and len(site.positions) == g.size for site in sites)
