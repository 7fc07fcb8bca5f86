"""Cross moments against float64: layouts, dtypes, masks, offsets, streaming, and what is refused."""

from __future__ import annotations

import pytest
import torch
from engine.helpers_engine import FLOATS, GPU, check_moments, placed, true_moments
from hypothesis import given, settings
from hypothesis import strategies as st

from pyalign import engine, errors

LAYOUTS = {
    "rows": ((37, 5), (37, 9), 1),
    "rows, many units": ((70, 300), (70, 517), 1),
    "nchw": ((3, 5, 7, 6), (3, 8, 7, 6), 1),
    "nhwc": ((3, 7, 6, 19), (3, 7, 6, 16), -1),
    "batch, time, units": ((4, 9, 33), (4, 9, 8), 2),
    "units first": ((6, 50), (3, 50), 0),
    "several tiles": ((5, 3, 40, 41), (5, 4, 40, 41), 1),
    "one sample": ((1, 4), (1, 3), 1),
    "one unit": ((20, 1), (20, 1), 1),
    "units on different axes": ((4, 6, 10), (4, 10, 7), (1, 2)),
}


@pytest.fixture(params=["reference", "cpu", GPU])
def backend(request):
    return request.param


def cross_moments(x, y, *, mask=None, backend="auto", **options):
    """The operation, with its inputs where the backend runs."""
    x, y, mask = (placed(value, backend) for value in (x, y, mask))
    return engine.cross_moments(x, y, mask=mask, backend=backend, **options)


def random(shape, generator, dtype=torch.float32, offset=0.0):
    return (torch.randn(shape, generator=generator, dtype=torch.float64) + offset).to(dtype)


def axes_of(axis, x, y):
    axis_x, axis_y = (axis, axis) if isinstance(axis, int) else axis
    return axis_x % x.dim(), axis_y % y.dim()


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(7)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_agrees_with_float64(layout, dtype, full, backend, generator):
    shape_x, shape_y, axis = LAYOUTS[layout]
    x, y = random(shape_x, generator, dtype, 0.5), random(shape_y, generator, dtype, -2.0)
    record = cross_moments(x, y, axis=axis, full=full, backend=backend)
    check_moments(record, true_moments(x, y, *axes_of(axis, x, y)), 1e-12 if dtype == torch.float64 else 1e-6)
    assert record.backend == backend


@pytest.mark.parametrize("layout", LAYOUTS)
def test_far_from_zero(layout, backend, generator):
    shape_x, shape_y, axis = LAYOUTS[layout]
    x, y = random(shape_x, generator, offset=1e4), random(shape_y, generator, offset=-1e4)
    check_moments(cross_moments(x, y, axis=axis, full=True, backend=backend), true_moments(x, y, *axes_of(axis, x, y)))


@pytest.mark.parametrize("share", [0.0, 0.1, 0.9, 1.0])
@pytest.mark.parametrize("layout", ["rows", "nchw", "nhwc", "several tiles", "rows, many units"])
def test_mask_leaves_samples_out(layout, share, backend, generator):
    shape_x, shape_y, axis = LAYOUTS[layout]
    x, y = random(shape_x, generator), random(shape_y, generator)
    axis_x, axis_y = axes_of(axis, x, y)
    samples = [size for d, size in enumerate(x.shape) if d != axis_x]
    mask = torch.rand(samples, generator=generator) < share
    x.movedim(axis_x, -1)[~mask] = float("nan")  # padding may hold anything
    y.movedim(axis_y, -1)[~mask] = float("inf")
    record = cross_moments(x, y, axis=axis, mask=mask, backend=backend)
    if not mask.any():
        assert record.count.item() == 0 and all(float(t.abs().sum()) == 0.0 for t in record.tensors)
    else:
        check_moments(record, true_moments(x, y, axis_x, axis_y, mask))


def test_mask_is_broadcast_and_may_be_numbers(backend, generator):
    x = random((4, 3, 6), generator)
    mask = torch.tensor([1, 0, 1, 1, 0, 1])
    record = cross_moments(x, x, mask=mask, backend=backend)
    check_moments(record, true_moments(x, x, 1, 1, mask.bool().expand(4, 6)))


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("units", [(5, 9), (300, 517)])
def test_streaming_equals_all_at_once(units, full, backend, generator):
    n, m = units
    batches = [(random((b, n), generator, offset=b), random((b, m), generator, offset=-b)) for b in (40, 1, 0, 7, 600)]
    record = None
    for x, y in batches:
        record = cross_moments(x, y, full=full, into=record, backend=backend)
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    check_moments(record, true_moments(x, y, 1, 1))


def test_into_is_updated_in_place(backend, generator):
    x = random((8, 3), generator)
    record = cross_moments(x, x, backend=backend)
    assert cross_moments(x, x, into=record, backend=backend) is record
    assert record.count.item() == 16


def test_backends_may_follow_each_other(generator):
    x = random((8, 3), generator)
    record = cross_moments(x, x, into=cross_moments(x, x, backend="cpu"), backend="reference")
    assert record.backend == "cpu+reference" and record.count.item() == 16


@pytest.mark.parametrize("scale", [1e-30, 1e-18, 1e18, 1e36])
def test_extreme_magnitudes(scale, backend, generator):
    x, y = random((50, 6), generator) * scale, random((50, 4), generator)
    check_moments(cross_moments(x, y, full=True, backend=backend), true_moments(x, y, 1, 1))


def test_dead_units_have_exactly_zero_moments(backend, generator):
    x = random((64, 5, 4, 4), generator)
    x[:, 2] = 0.0
    x[:, 3] = 1.0 / 3.0
    record = cross_moments(x, x, backend=backend)
    for unit in (2, 3):
        assert record.square_a[unit] == 0.0 and float(record.comoment[unit].abs().max()) == 0.0


def test_ten_million_samples(generator):
    """Accuracy must not fade with the number of samples: here 1e7 of them, mean / std = 1e4."""
    x = random((100_000, 4), generator, offset=1e4)
    y = random((100_000, 3), generator, offset=-1e4)
    record = None
    for _ in range(100):
        record = cross_moments(x, y, into=record)
    count, mean_a, mean_b, *sums = true_moments(x, y, 1, 1)
    check_moments(record, (100 * count, mean_a, mean_b, *(100 * s for s in sums)))


@pytest.mark.parametrize(
    "change", [lambda x: x[::2, :, 1:], lambda x: x.transpose(0, 2), lambda x: x[:1].expand(5, -1, -1)]
)
def test_strided_inputs(change, backend, generator):
    x, y = change(random((6, 7, 8), generator)), change(random((6, 7, 8), generator))
    check_moments(cross_moments(x, y, backend=backend), true_moments(x, y, 1, 1))


def test_channels_last_memory(backend, generator):
    x = random((4, 24, 9, 9), generator).to(memory_format=torch.channels_last)
    y = random((4, 16, 9, 9), generator)
    check_moments(cross_moments(x, y, backend=backend), true_moments(x, y, 1, 1))


def test_no_units_and_no_samples(backend):
    assert cross_moments(torch.zeros(5, 0), torch.zeros(5, 3), backend=backend).comoment.shape == (0, 3)
    assert cross_moments(torch.zeros(0, 2), torch.zeros(0, 3), backend=backend).count.item() == 0


def test_mixed_dtypes(backend, generator):
    x, y = random((30, 4), generator, torch.float64), random((30, 5), generator, torch.bfloat16)
    check_moments(cross_moments(x, y, backend=backend), true_moments(x, y, 1, 1), 1e-12)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("units", [6, 600])
def test_not_finite_is_named_and_changes_nothing(bad, units, backend, generator):
    x, y = random((3000, units), generator), random((3000, 4), generator)
    record = cross_moments(x, y, backend=backend)
    before = [tensor.clone() for tensor in record.tensors]
    x[2900, 5] = bad
    with pytest.raises(errors.NonFiniteError, match=r"x holds NaN or infinity.*1 of \d+ units \(5\)"):
        cross_moments(x, y, into=record, backend=backend)
    assert all(torch.equal(a, b) for a, b in zip(before, record.tensors, strict=True))


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_an_empty_record_stays_empty(backend, full, generator):
    # Wide enough that the sums go straight into the record, with the bad sample in the last of several tiles.
    x, y = random((1700, 600), generator), random((1700, 550), generator)
    zeros = [torch.zeros(t.shape, dtype=t.dtype) for t in cross_moments(x[:0], y[:0], full=full).tensors]
    record = engine.CrossMoments(*(t.clone() for t in zeros), backend="none")
    x[1690, 599] = float("nan")
    with pytest.raises(errors.NonFiniteError, match="x holds NaN or infinity"):
        cross_moments(x, y, full=full, into=record, backend=backend)
    assert all(torch.equal(a, b) for a, b in zip(zeros, record.tensors, strict=True))


X = torch.zeros(4, 3, 5)
REFUSED = {
    "samples differ": lambda: cross_moments(X, torch.zeros(5, 3, 5)),
    "no such axis": lambda: cross_moments(X, X, axis=3),
    "integers": lambda: cross_moments(X.long(), X.long()),
    "mask of another shape": lambda: cross_moments(X, X, mask=torch.ones(4, 4)),
    "mask with too many axes": lambda: cross_moments(X, X, mask=torch.ones(1, 4, 5)),
    "record of other units": lambda: cross_moments(X, X, into=cross_moments(X, X, axis=2)),
    "record without full": lambda: cross_moments(X, X, full=True, into=cross_moments(X, X)),
    "on two devices": lambda: cross_moments(X, X.to("meta")),
    "scalar": lambda: cross_moments(torch.tensor(1.0), torch.tensor(1.0), axis=0),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    with pytest.raises(errors.InputError, match=r"Given: .*Expected: "):
        REFUSED[case]()


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_shape_and_stride(data):
    rank = data.draw(st.integers(1, 4))
    sizes = data.draw(st.lists(st.integers(1, 9), min_size=rank, max_size=rank))
    axis = data.draw(st.integers(0, rank - 1))
    order = data.draw(st.permutations(range(rank)))
    dtype = data.draw(st.sampled_from(FLOATS))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    offset = data.draw(st.sampled_from([0.0, 1.0, 100.0]))
    x = random([sizes[d] for d in order], generator, dtype, offset).permute(*(order.index(d) for d in range(rank)))
    width = data.draw(st.integers(1, 9))
    y = random([*sizes[:axis], width, *sizes[axis + 1 :]], generator, dtype)
    check_moments(cross_moments(x, y, axis=axis, full=True, backend="cpu"), true_moments(x, y, axis, axis))
