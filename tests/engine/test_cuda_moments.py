"""The CUDA kernels of cross moments, run by the host, against float64: everything that the CPU's are tested with."""

from __future__ import annotations

import math
import mmap
import sys

import pytest
import torch
from engine.helpers_cuda import ADA, H200, emulated_moments
from engine.helpers_engine import FLOATS, check_moments, true_moments
from engine.helpers_layouts import laid_out
from engine.test_cross_moments import LAYOUTS, axes_of, random
from engine.test_properties_cross_moments import streams
from hypothesis import assume, given, settings
from hypothesis import strategies as st

# Where tiles end and where vectors can be used; unit and sample axes first.
MORE = {
    "nchw, whole vectors": ((5, 12, 8, 16), (5, 4, 8, 16), 1),
    "nhwc, whole vectors": ((3, 7, 5, 16), (3, 7, 5, 132), 3),
    "two tiles of units": ((9, 130), (9, 257), 1),
    "two tables": ((1, 2, 700), (1, 3, 700), 1),
    "mixed layouts": ((6, 10, 4), (6, 4, 10), (2, 1)),
}


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(7)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("layout", [layout for layout in (*LAYOUTS, *MORE) if layout != "several tiles"])
def test_agrees_with_float64(layout, dtype, full, generator):
    shape_x, shape_y, axis = {**LAYOUTS, **MORE}[layout]
    x, y = random(shape_x, generator, dtype, 0.5), random(shape_y, generator, dtype, -2.0)
    steps = []
    record = emulated_moments(x, y, axis, full=full, steps=steps)
    check_moments(record, true_moments(x, y, *axes_of(axis, x, y)), 1e-12 if dtype == torch.float64 else 1e-6)
    assert steps[0] == ("few", [0, 0])


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("layout", ["nchw, whole vectors", "nhwc, whole vectors", "two tiles of units"])
def test_the_order_of_threads_changes_nothing(layout, dtype, generator):
    """A thread that read what another writes between two barriers would read it too early or too late."""
    shape_x, shape_y, axis = {**LAYOUTS, **MORE}[layout]
    x, y = random(shape_x, generator, dtype), random(shape_y, generator, dtype, 4.0)
    one, two = (emulated_moments(x, y, axis, full=True, backwards=b) for b in (False, True))
    assert all(torch.equal(a, b) for a, b in zip(one.tensors, two.tensors, strict=True))


def shifted(tensor, offset):
    """The same tensor so many entries behind the beginning of its memory."""
    return tensor.new_empty(offset + tensor.numel())[offset:].view(tensor.shape).copy_(tensor)


@pytest.mark.parametrize("offset", [1, 2, 4])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("layout", ["nchw, whole vectors", "nhwc, whole vectors"])
def test_streams_that_begin_anywhere(layout, dtype, offset, generator):
    """Four entries are read at once only where their address allows it; the host refuses what a device would."""
    shape_x, shape_y, axis = MORE[layout]
    x, y = random(shape_x, generator, dtype, 0.5), random(shape_y, generator, dtype, -2.0)
    want = emulated_moments(x, y, axis, full=True)
    got = emulated_moments(shifted(x, offset), shifted(y, offset), axis, full=True)
    assert all(torch.equal(a, b) for a, b in zip(got.tensors, want.tensors, strict=True))


@pytest.mark.parametrize("device", [H200, ADA], ids=["second sums", "no room for second sums"])
@pytest.mark.parametrize("most", [0, 1], ids=["one launch", "a launch per slice"])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_many_slices(device, most, dtype, generator):
    """Slices, tables, flushes and launches in numbers that do not divide each other, with an earlier record."""
    x, y = random((3001, 5), generator, dtype, 1e2), random((3001, 6), generator, dtype)
    record = emulated_moments(x[:2600], y[:2600], full=True, device=device, most=most)
    assert emulated_moments(x[2600:], y[2600:], full=True, into=record, device=device, most=most) is record
    check_moments(record, true_moments(x, y, 1, 1), 1e-12 if dtype == torch.float64 else 1e-6)


def test_long_slices(generator):
    """One processor: slices as long as they may be, so that sums are flushed many times."""
    x = random((9_000, 3), generator, offset=1e4)
    record = emulated_moments(x, x.relu(), device=(1, H200[1]))
    check_moments(record, true_moments(x, x.relu(), 1, 1))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_units_that_are_mostly_off(dtype, generator):
    """Equal terms are rounded, and by tensor cores cut off, in one direction."""
    x = (torch.randn(2000, 16, generator=generator) - 2).relu().to(dtype)
    check_moments(emulated_moments(x, x, full=True, device=(1, H200[1])), true_moments(x, x, 1, 1))
    two = (torch.rand(2000, 4, generator=generator) < 0.3).to(dtype) * 0.7
    check_moments(emulated_moments(two, x, full=True, device=(1, H200[1])), true_moments(two, x, 1, 1))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_units_without_spread_are_exactly_zero(dtype, generator):
    x = random((300, 5), generator, dtype)
    x[:, 2] = 0.0
    x[:, 3] = 1.0 / 3.0
    record = emulated_moments(x, x, full=True)
    for unit in (2, 3):
        assert record.square_a[unit].abs().max() == 0.0 and record.comoment[unit].abs().max() == 0.0
    rest = x[:, [0, 1, 4]]
    check_moments(emulated_moments(rest, rest, full=True), true_moments(rest, rest, 1, 1))


@pytest.mark.parametrize("scale", [1e-42, 1e-30, 1e-18, 1e18, 1e36])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_extreme_magnitudes(scale, dtype, generator):
    x, y = (random((50, 6), generator) * scale).to(dtype), random((50, 4), generator, dtype)
    check_moments(emulated_moments(x, y, full=True), true_moments(x, y, 1, 1))


def test_doubles_of_any_magnitude(generator):
    x, y = random((70, 6), generator, torch.float64) * 1e-140, random((70, 4), generator, torch.float64) * 1e120
    check_moments(emulated_moments(x, y, full=True), true_moments(x, y, 1, 1), 1e-12)


def looked_at():
    """Of 3000 samples the 256 that are looked at: one, anywhere, of every eleven (csrc/.../moments_look.h)."""
    k = torch.arange(256)
    return torch.zeros(3000, dtype=torch.bool).index_fill_(0, k * 11 + k * 2654435761 % 2**32 % 11, True)


def misleading(kind, generator):
    """Only the samples that are looked at are ordinary; or ordinary are all but one that nobody looked at."""
    x, seen = random((3000, 4), generator), looked_at()
    if kind == "far":
        x[~seen] += 1e3
    elif kind == "large":
        x[~seen] *= 1e6
    else:
        x[(~seen).nonzero()[5]] *= 200.0
    return x


@pytest.mark.parametrize("kind", ["far", "large", "one outlier"])
def test_samples_that_mislead_are_found_out(kind, generator):
    x, steps = misleading(kind, generator), []
    record = emulated_moments(x, x.flip(1), full=True, steps=steps)
    check_moments(record, true_moments(x, x.flip(1), 1, 1))
    names = [name for name, _ in steps]
    assert names == (["few", "commit"] if kind == "one outlier" else ["few", "every", "commit"]), steps


def test_raw_products_that_would_not_be_exact_are_found_out(generator):
    """The samples looked at have mean zero, all others a mean far from it: raw 16-bit products would not do."""
    x = random((3000, 4), generator, torch.bfloat16)
    x[~looked_at()] += 3.0
    steps = []
    check_moments(emulated_moments(x, x, full=True, steps=steps), true_moments(x, x, 1, 1))
    assert [name for name, _ in steps] == ["few", "every", "commit"]


def test_raw_and_shifted_products_side_by_side(generator):
    """One of three blocks of units is far from zero; pairs of the other two are of raw values."""
    x = random((200, 300), generator, torch.bfloat16)
    x[:, 140] += 50.0
    y = random((200, 150), generator, torch.bfloat16)
    check_moments(emulated_moments(x, y, full=True), true_moments(x, y, 1, 1))


def test_tf32_has_the_precision_of_tf32(generator):
    x, y = random((500, 7), generator, offset=1e3), random((500, 5), generator)
    truth = true_moments(x, y, 1, 1)
    check_moments(emulated_moments(x, y, full=True, tf32=True), truth, 1e-3)
    with pytest.raises(AssertionError, match="comoment is off"):
        check_moments(emulated_moments(x, y, full=True, tf32=True), truth, 1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_not_finite_changes_nothing(bad, dtype, generator):
    x, y = random((1500, 6), generator, dtype), random((1500, 4), generator, dtype)
    record = emulated_moments(x, y)
    before = [tensor.clone() for tensor in record.tensors]
    x[1401, 5] = bad
    assert emulated_moments(x, y, into=record) is None
    assert all(torch.equal(a, b) for a, b in zip(before, record.tensors, strict=True))


@pytest.mark.parametrize("share", [0.0, 0.1, 0.9])
@pytest.mark.parametrize("layout", ["nchw, whole vectors", "nhwc, whole vectors", "nchw", "rows"])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_mask_leaves_samples_out(layout, share, dtype, generator):
    shape_x, shape_y, axis = {**LAYOUTS, **MORE}[layout]
    x, y = random(shape_x, generator, dtype), random(shape_y, generator, dtype)
    axis_x, axis_y = axes_of(axis, x, y)
    mask = torch.rand([size for d, size in enumerate(x.shape) if d != axis_x], generator=generator) < share
    x.movedim(axis_x, -1)[~mask] = math.nan
    y.movedim(axis_y, -1)[~mask] = math.inf
    record = emulated_moments(x, y, axis, mask=mask)
    if mask.any():
        check_moments(record, true_moments(x, y, axis_x, axis_y, mask), 1e-12 if dtype == torch.float64 else 1e-6)
    else:
        assert all(float(tensor.abs().sum()) == 0.0 for tensor in record.tensors)


@settings(max_examples=60)
@given(streams(), st.booleans(), st.sampled_from([H200, ADA]))
def test_any_streams(given_streams, full, device):
    x, y, axes = given_streams
    assume(x.numel() and y.numel())
    check_moments(emulated_moments(x, y, axes, full=full, device=device), true_moments(x, y, *axes))


@settings(max_examples=25)
@given(st.data(), streams([2, 3, 5]), st.booleans())
def test_any_mask(data, given_streams, full):
    x, y, axes = given_streams
    assume(0 not in (*x.shape, *y.shape))
    mask = torch.tensor(data.draw(st.lists(st.booleans(), min_size=30, max_size=30))).view(2, 3, 5)
    assume(bool(mask.any()))
    x, y = x.clone(), y.clone()
    x.movedim(axes[0], -1)[~mask], y.movedim(axes[1], -1)[~mask] = math.nan, math.inf
    record = emulated_moments(x, y, axes, mask=data.draw(laid_out(mask)), full=full)
    check_moments(record, true_moments(x, y, *axes, mask))


@pytest.mark.skipif(sys.platform != "linux", reason="memory without pages as Linux gives it")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16], ids=str)
def test_entries_beyond_two_to_the_31(dtype, generator):
    """Units that lie 2^31 entries apart, in memory of which only the ends have pages."""
    stride, item = 2**31 + 4, torch.empty(0, dtype=dtype).element_size()
    no_reserve = 0x4000  # mmap.MAP_NORESERVE, which Python names since 3.13
    memory = mmap.mmap(-1, (stride + 64) * item, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | no_reserve)
    x = torch.frombuffer(memory, dtype=dtype).as_strided((40, 2), (1, stride))
    x.copy_(random((40, 2), generator, dtype))
    check_moments(emulated_moments(x, x, full=True), true_moments(x, x, 1, 1))
