"""The study at the size of SDXL's U-Net: its architecture, its reduction, its record."""

from __future__ import annotations

import importlib
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def study(monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path, str(ROOT)])  # last: the installed package comes before the checkout's
    return importlib.import_module("benchmarks.studies.sdxl_unet")


@pytest.fixture
def small(study):
    return study.Plan((16, 32), (0, 1), 1, text=24, pooled=40, head=16, groups=4)


def test_the_full_unet_has_the_published_number_of_parameters(study):
    with torch.device("meta"):
        model = study.UNet(study.Plan())
    assert study.parameters(model) == 2_567_463_684
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert shapes["up.0.0.residual.conv1.weight"] == (1280, 2560, 3, 3)
    assert shapes["middle.0.transformer.blocks.9.wide.weight"] == (10240, 1280)
    assert shapes["down.1.0.transformer.blocks.0.text.k.weight"] == (640, 2048)


def test_the_default_reduction_is_about_an_eighth(study):
    with torch.device("meta"):
        assert 0.11 < study.parameters(study.UNet(study.reduced(2, 2))) / 2_567_463_684 < 0.15


def test_weights_are_drawn_in_bfloat16_and_depend_on_the_seed(study, small):
    one, same, other = (study.randomised(study.UNet, (small,), seed).state_dict() for seed in (0, 0, 1))
    assert {t.dtype for t in one.values()} == {torch.bfloat16}
    assert all(torch.equal(one[n], same[n]) and not torch.equal(one[n], other[n]) for n in one)


def test_a_small_one_computes(study, small):
    model = study.randomised(study.UNet, (small,), 0)
    with torch.no_grad():
        answer = model(*study.UNet.inputs(small))
    assert answer.shape == (2, 4, 8, 8) and bool(torch.isfinite(answer).all())


def test_a_small_block_is_matched_and_reported(study, small):
    found = study.block(replace(small, head=4))  # with so many heads the search gets beyond where it begins
    assert found["objective after"] > found["objective before"] and found["converged"]
    assert found["widest group"] == 128 and found["worst gap"] < 1e-6
    record = {"block": found, "reduced": found, "plan": vars(small), "full parameters": 10 * found["parameters"]}
    record |= {"machine": {"cores": "2"}, "estimate for full": 600.0, "estimate for reduced": 60.0}
    text = study.markdown(record)
    assert "10.0 minutes" in text and f"| parameters | {found['parameters']:,} | {found['parameters']:,} |" in text
    assert study.estimate({"seconds matching": 2.0, "parameters": 10}, 50) == 10.0
