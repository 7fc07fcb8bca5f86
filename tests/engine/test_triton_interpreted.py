"""What only the Triton implementation does, in its interpreter: test_triton.py starts this file."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from engine.helpers_engine import check_blend, permute
from engine.test_permuted_lerp import random, random_perms

from pyalign.engine import dispatch, permuted_lerp, permuted_sum, triton

pytestmark = pytest.mark.skipif(not triton.INTERPRETED, reason="for a process with TRITON_INTERPRET=1")


def test_triton_runs_only_by_name():
    assert dispatch.choose("permuted_lerp", "auto", [torch.zeros(2)]) == "cpu"
    assert dispatch.choose("permuted_lerp", "triton", [torch.zeros(2)]) == "triton"


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_triton_adds_more_tensors_than_one_kernel_does(dtype):
    """In turn, unrounded; and so are the gradients of their weights."""
    shape, k = (6, 7), 35
    tensors = [random(shape, i, dtype) for i in range(k)]
    perms = [random_perms(shape, 20 + i) if i % 4 else None for i in range(k)]
    weights = torch.tensor([(-0.9) ** i for i in range(k)], dtype=torch.float64, requires_grad=True)
    got = permuted_sum(tensors, weights, perms, backend="triton")
    check_blend(got.detach(), tensors, weights.tolist(), perms)
    seed = random(shape, 99, dtype)
    (slopes,) = torch.autograd.grad(got, weights, seed)
    moved = [permute(tensor, axes).double() for tensor, axes in zip(tensors, perms, strict=True)]
    want = torch.stack([(seed.double() * tensor).sum() for tensor in moved])
    assert torch.allclose(slopes, want, rtol=0, atol=1e-13)


def test_triton_counts_in_64_bits(monkeypatch):
    """The same kernels with their indices in 64 bits, as beyond 2^31 rows or columns."""
    from pyalign.kernels import permuted_lerp as kernels

    assert not kernels.tiles(kernels.walk((9,), (((1,), (None,)),), 4), 4, True).settings["LONG"]
    assert kernels.tiles(kernels.walk((2**31,), (((1,), (None,)),), 2), 2, True).settings["LONG"]
    usual = kernels.tiles
    long = lambda *given: dataclasses.replace(cut := usual(*given), settings={**cut.settings, "LONG": True})  # noqa: E731
    monkeypatch.setattr(kernels, "tiles", long)
    shape = (5, 4, 30)
    a, b, perms = random(shape, 1), random(shape, 2), random_perms((5, 0, 10), 3)
    check_blend(permuted_lerp(a, b, 0.3, perms, backend="triton"), [a, b], [0.7, 0.3], [None, perms])
    got = triton.permuted_dots(a, [b], [perms])
    assert torch.allclose(got[0], (a.double() * permute(b.double(), perms)).sum())


@pytest.mark.parametrize("axis", [0, 1])
def test_triton_reaches_beyond_32_bits(axis):
    """Rows, or columns, 2^31 entries apart: memory that is reserved, and used in a few places only."""
    apart = torch.from_numpy(np.zeros(2**32 + 64, dtype=np.int16)).view(torch.bfloat16)
    strides = (2**31, 1) if axis == 0 else (1, 2**31)
    shape = (3, 5) if axis == 0 else (5, 3)
    a, out = apart.as_strided(shape, strides), apart.as_strided(shape, strides, 32)
    a.copy_(random(shape, 1, torch.bfloat16))
    kept, b, perms = a.clone(), random(shape, 2, torch.bfloat16), random_perms(shape, 3)
    permuted_sum([a, b], [0.7, 0.3], [perms, None], out=out, backend="triton")
    check_blend(out, [kept, b], [0.7, 0.3], [perms, None])


def test_triton_steps_through_several_tiles(monkeypatch):
    from pyalign.kernels import permuted_lerp as kernels

    monkeypatch.setattr(kernels, "FEWEST_PROGRAMS", 1)
    shape = (11, 2, 600)
    a, b, perms = random(shape, 1), random(shape, 2), random_perms((11, 0, 600), 3)
    kernels.tiles.cache_clear()
    try:
        check_blend(permuted_lerp(a, b, 0.3, perms, backend="triton"), [a, b], [0.7, 0.3], [None, perms])
    finally:
        kernels.tiles.cache_clear()


def test_triton_is_deterministic():
    a, b, perms = random((30, 70), 1), random((30, 70), 2), random_perms((30, 70), 3)
    first, again = (triton.permuted_dots(a, [a, b], [[None, None], perms]) for _ in range(2))
    assert torch.equal(first, again)
