"""Every engine test runs on poisoned memory, except those that trace, which must see torch as it is."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

from pyalign.engine import triton

BLENDS = ["triton"] if triton.INTERPRETED else ["reference", "cpu", pytest.param("triton", marks=pytest.mark.gpu)]


@pytest.fixture(autouse=True)
def poisoned_engine(request):
    if request.node.path.name != "test_operators.py":
        request.getfixturevalue("poisoned")


@pytest.fixture(params=["reference", "cpu"])
def backend(request):
    return request.param


@pytest.fixture(params=BLENDS)
def blend_backend(request):
    """The same tests for all: on a GPU too, and in Triton's interpreter where test_triton.py starts a file with it."""
    on_gpu = request.param == "triton" and not triton.INTERPRETED
    with torch.device("cuda") if on_gpu else nullcontext():
        yield request.param
