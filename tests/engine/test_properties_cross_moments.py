"""Moments that hypothesis chooses: axes, layouts, magnitudes, masks, streams; against float64."""

from __future__ import annotations

import math

import pytest
import torch
from engine.helpers_engine import FLOATS, GPU, check_moments, placed, true_moments
from engine.helpers_layouts import MAGNITUDES, laid_out, repeated, values
from hypothesis import assume, given
from hypothesis import strategies as st

from pyalign import _cpu, engine, errors

COMPILED = pytest.mark.parametrize("backend", ["cpu", GPU])
SEEDS = st.integers(0, 10_000)
# The promise is relative to the spread: units without any, and very many equal numbers, have tests of their own.
KINDS = [kind for kind in MAGNITUDES if kind != "constant"]
UNITS = st.one_of(st.integers(0, 5), st.integers(6, 40))


@st.composite
def streams(draw, samples=None):
    """Two streams of the same samples, each with its own unit axis, dtype, magnitude and layout."""
    samples = draw(st.lists(st.integers(0, 6), max_size=3)) if samples is None else samples
    axes = tuple(draw(st.integers(0, len(samples))) for _ in range(2))
    tensors = []
    for axis in axes:
        shape = (*samples[:axis], draw(UNITS), *samples[axis:])
        dtype = draw(st.sampled_from(FLOATS))
        kinds = KINDS if dtype != torch.float16 else ["plain", "ties"]
        tensor = values(shape, draw(st.sampled_from(kinds)), draw(SEEDS)).to(dtype)
        spread = [d for d, size in enumerate(shape) if d != axis and size > 1]
        if draw(st.booleans()):  # stride 0, but not along the only axis that units vary on
            tensor = draw(repeated(tensor, [axis, *spread[:-1]]))
        tensors.append(draw(laid_out(tensor)) if draw(st.booleans()) else tensor)
    return *tensors, axes


def cross_moments(x, y, *, mask=None, backend, **options):
    """The operation, with its inputs where the backend runs."""
    x, y, mask = (placed(value, backend) for value in (x, y, mask))
    return engine.cross_moments(x, y, mask=mask, backend=backend, **options)


def truth(x, y, axes, mask=None):
    return true_moments(x, y, *axes, mask)


@COMPILED
@given(streams(), st.booleans(), st.integers(1, 3))
def test_any_streams(backend, given_streams, full, threads):
    x, y, axes = given_streams
    torch.set_num_threads(threads)
    record = cross_moments(x, y, axis=axes, full=full, backend=backend)
    if x.numel() and y.numel():
        check_moments(record, truth(x, y, axes))
    elif x.shape[axes[0]] and y.shape[axes[1]]:
        assert all(float(tensor.abs().sum()) == 0.0 for tensor in record.tensors)
    else:
        assert record.comoment.numel() == 0


@COMPILED
@given(st.data(), streams([2, 3, 5]), st.booleans())
def test_any_mask(backend, data, given_streams, full):
    """What is left out may be NaN; a mask of any layout and width."""
    x, y, axes = given_streams
    assume(0 not in (*x.shape, *y.shape))
    mask = torch.tensor(data.draw(st.lists(st.booleans(), min_size=30, max_size=30))).view(2, 3, 5)
    kept = data.draw(laid_out(mask))
    x, y = x.clone(), y.clone()
    x.movedim(axes[0], -1)[~mask] = math.nan
    y.movedim(axes[1], -1)[~mask] = math.inf
    record = cross_moments(x, y, axis=axes, mask=kept, full=full, backend=backend)
    if mask.any():
        check_moments(record, truth(x, y, axes, mask))
    else:
        assert all(float(tensor.abs().sum()) == 0.0 for tensor in record.tensors)


@COMPILED
@given(st.data(), st.lists(st.integers(0, 30), min_size=1, max_size=5), st.booleans())
def test_any_stream_in_pieces(backend, data, pieces, full):
    n, m = data.draw(st.integers(1, 20)), data.draw(st.integers(1, 20))
    kind = data.draw(st.sampled_from(["plain", "ties", "offset", "wide"]))
    parts = [(values((size, n), kind, size), values((size, m), kind, 100 + size)) for size in pieces]
    record = None
    for x, y in parts:
        record = cross_moments(data.draw(laid_out(x)), y, full=full, into=record, backend=backend)
    x, y = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    if len(x):
        check_moments(record, truth(x, y, (1, 1)))


@COMPILED
@given(st.data(), streams([4, 6]), st.sampled_from([math.nan, math.inf, -math.inf]), st.booleans())
def test_what_is_not_finite_changes_nothing(backend, data, given_streams, bad, first):
    x, y, axes = given_streams
    assume(0 not in (*x.shape, *y.shape))
    record = cross_moments(x, y, axis=axes, backend=backend)
    before = [tensor.clone() for tensor in record.tensors]
    x, y = x.clone(), y.clone()
    wrong = x if first else y
    wrong[tuple(data.draw(st.integers(0, size - 1)) for size in wrong.shape)] = bad
    with pytest.raises(errors.NonFiniteError, match="x holds NaN" if first else "y holds NaN"):
        cross_moments(x, y, axis=axes, into=record, backend=backend)
    assert all(torch.equal(old, new) for old, new in zip(before, record.tensors, strict=True))


@given(streams(), st.booleans())
def test_simd_paths_agree(given_streams, full):
    """Each path is within 1e-6 of the truth, and of every other, in terms of the units' spread."""
    x, y, axes = given_streams
    assume(0 not in (*x.shape, *y.shape))
    try:
        for path in _cpu.simd_paths():
            _cpu.use_simd(path)
            check_moments(cross_moments(x, y, axis=axes, full=full, backend="cpu"), truth(x, y, axes))
    finally:
        _cpu.use_simd(_cpu.simd_paths()[-1])


@COMPILED
@given(st.integers(1, 300), st.floats(-(2.0**99), 2.0**99, width=32), st.sampled_from(FLOATS), st.booleans())
def test_units_without_spread(backend, count, value, dtype, full):
    """What rounding leaves of them is below that of their mean."""
    x = torch.full((count, 3), value % 100.0 if dtype == torch.float16 else value).to(dtype)
    y = values((count, 2), "plain", count)
    record = cross_moments(x, y, full=full, backend=backend)
    size = 1e-6 * x[0, 0].double().abs().item()
    spread = y.norm(dim=0)
    assert float(record.square_a.abs().max()) <= count * size**2
    assert bool((record.comoment.cpu().abs() <= count**0.5 * size * spread).all())


def test_rectified_units_on_every_simd_path():
    """Most samples of a unit are one number; rounding then has one direction."""
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(2000, 16, generator=generator) - 2).relu()
    try:
        for path in _cpu.simd_paths():
            _cpu.use_simd(path)
            check_moments(cross_moments(x, x, full=True, backend="cpu"), truth(x, x, (1, 1)))
    finally:
        _cpu.use_simd(_cpu.simd_paths()[-1])
