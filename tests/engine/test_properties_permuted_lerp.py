"""Blends that hypothesis chooses: permutations of any axes, layouts of every operand, weights, gradients."""

from __future__ import annotations

import math

import torch
from engine.helpers_engine import FLOATS, check_blend, permute
from engine.helpers_layouts import MAGNITUDES, laid_out, repeated, values
from hypothesis import given
from hypothesis import strategies as st

from pyalign import _cpu
from pyalign.engine import permuted_lerp, permuted_sum

SEEDS = st.integers(0, 10_000)
WEIGHTS = st.sampled_from([0.0, 1.0, -1.0, 0.5, 0.3, 2.0, -0.7, 1e-3])


@st.composite
def blends(draw, dtypes=FLOATS):
    """Tensors of one shape, their weights and permutations; an axis may hold runs of entries that move together."""
    rank = draw(st.integers(0, 4))
    axis = st.tuples(st.one_of(st.integers(0, 5), st.integers(6, 40) if rank < 3 else st.just(3)), st.integers(1, 3))
    axes = draw(st.lists(axis, min_size=rank, max_size=rank))
    shape = tuple(count * run for count, run in axes)
    dtype, number = draw(st.sampled_from(dtypes)), draw(st.integers(1, 4))
    kinds = [kind for kind in MAGNITUDES if dtype != torch.float16 or kind in ("plain", "ties", "constant")]
    tensors, perms = [], []
    for _ in range(number):
        tensor = values(shape, draw(st.sampled_from(kinds)), draw(SEEDS)).to(dtype)
        tensors.append(draw(laid_out(draw(repeated(tensor))) if draw(st.booleans()) else repeated(tensor)))
        generator = torch.Generator().manual_seed(draw(SEEDS))
        moved = [torch.randperm(n, generator=generator) if draw(st.booleans()) else None for n, _ in axes]
        perms.append(draw(st.sampled_from([moved, moved, None])))
    return tensors, draw(st.lists(WEIGHTS, min_size=number, max_size=number)), perms


@given(blends(), st.integers(1, 3))
def test_any_blend(blend, threads):
    torch.set_num_threads(threads)
    tensors, weights, perms = blend
    check_blend(permuted_sum(tensors, weights, perms, backend="cpu"), tensors, weights, perms)


@given(st.data(), blends())
def test_any_out(data, blend):
    """Into memory of any layout; what lies between its entries stays."""
    tensors, weights, perms = blend
    out = data.draw(laid_out(torch.zeros_like(tensors[0], memory_format=torch.contiguous_format)))
    whole = out.new_empty(0).set_(out.untyped_storage())
    gaps = int(whole.isnan().sum())
    assert permuted_sum(tensors, weights, perms, out=out, backend="cpu") is out
    check_blend(out, tensors, weights, perms)
    assert int(whole.isnan().sum()) == gaps


@given(blends(), st.integers(0, 3))
def test_weight_zero_is_not_read_and_weight_one_is_a_copy(blend, which):
    tensors, _, perms = blend
    which %= len(tensors)
    weights = [float(k == which) for k in range(len(tensors))]
    kept = permute(tensors[which], perms[which])
    nan = [tensor if k == which else torch.full_like(tensor, math.nan) for k, tensor in enumerate(tensors)]
    bits = {8: torch.int64, 4: torch.int32, 2: torch.int16}[kept.element_size()]
    got = permuted_sum(nan, weights, perms, backend="cpu")
    assert torch.equal(got.view(bits), kept.contiguous().view(bits))


@given(blends())
def test_simd_paths_agree(blend):
    tensors, weights, perms = blend
    try:
        for path in _cpu.simd_paths():
            _cpu.use_simd(path)
            check_blend(permuted_sum(tensors, weights, perms, backend="cpu"), tensors, weights, perms)
    finally:
        _cpu.use_simd(_cpu.simd_paths()[-1])


@given(blends([torch.float64]), st.sampled_from([0.0, 0.3, 1.0]), SEEDS)
def test_any_gradient(blend, t, seed):
    """Of a, b and t, with the weight of the other at zero too."""
    tensors, _, perms = blend
    a, b = tensors[0].detach().clone(), tensors[-1].detach().clone()
    leaves = [a.requires_grad_(), b.requires_grad_(), torch.tensor(t, dtype=torch.float64, requires_grad=True)]
    blended = permuted_lerp(*leaves, perms[0], backend="cpu")
    plain = (1 - leaves[2]) * a + leaves[2] * permute(b, perms[0])
    gradient = values(a.shape, "plain", seed)
    got, want = (torch.autograd.grad(value, leaves, gradient) for value in (blended, plain))
    for mine, theirs in zip(got[:2], want[:2], strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-14, atol=0.0)
    scale = ((a.abs() + permute(b, perms[0]).abs()) * gradient.abs()).sum()
    assert abs(got[2] - want[2]) <= 1e-13 * scale
