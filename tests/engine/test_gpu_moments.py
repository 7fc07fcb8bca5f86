"""What only a device can show of the CUDA kernels of cross moments: size, streams, memory, the matrix instructions."""

from __future__ import annotations

import gc

import pytest
import torch
from engine.helpers_engine import FLOATS, check_moments

from pyalign import errors
from pyalign.engine import cross_moments

pytestmark = pytest.mark.gpu
SHAPES = {
    "nchw": ((64, 200, 28, 28), (64, 300, 28, 28), 1),
    "batch, time, units": ((32, 300, 768), (32, 300, 512), 2),
    "7 x 7": ((128, 513, 7, 7), (128, 130, 7, 7), 1),
    "many units": ((3000, 2048), (3000, 2100), 1),
}


def on_device(shape, dtype, offset=0.0, seed=0):
    generator = torch.Generator("cuda").manual_seed(seed)
    return (torch.randn(shape, generator=generator, device="cuda", dtype=torch.float64) + offset).to(dtype)


def truth(x, y, axis):
    rows = [z.movedim(axis, -1).flatten(0, -2).double() for z in (x, y)]
    means = [z.mean(0) for z in rows]
    a, b = (z - mean for z, mean in zip(rows, means, strict=True))
    return len(a), *(t.cpu() for t in (*means, a.T @ b, a.T @ a, b.T @ b))


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("shapes", SHAPES)
def test_agrees_with_float64_at_size(shapes, dtype, full):
    shape_x, shape_y, axis = SHAPES[shapes]
    x, y = on_device(shape_x, dtype, 0.5), on_device(shape_y, dtype, -3.0, 1).relu_()
    record = cross_moments(x, y, axis=axis, full=full)
    assert record.backend == "cuda" and record.comoment.is_cuda
    check_moments(record, truth(x, y, axis), 1e-12 if dtype == torch.float64 else 1e-6)


@pytest.mark.parametrize("offset", [1, 2, 4])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("shapes", ["nchw", "batch, time, units"])
def test_streams_that_begin_anywhere(shapes, dtype, offset):
    (shape, _, axis), memory = SHAPES[shapes], torch.empty(offset, dtype=dtype, device="cuda")
    x = on_device(shape, dtype, 0.5)
    moved = torch.cat([memory, x.flatten()])[offset:].view(shape)
    one, two = (cross_moments(z, z, axis=axis) for z in (x, moved))
    assert all(torch.equal(a, b) for a, b in zip(one.tensors, two.tensors, strict=True))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_the_same_call_gives_the_same_bits(dtype):
    x = on_device((40_000, 300), dtype, 1.0)
    one, two = (cross_moments(x, x.flip(1), full=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.tensors, two.tensors, strict=True))


def test_on_the_stream_that_is_current():
    x = torch.zeros(20_000, 256, device="cuda")
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(50_000_000)
        x.copy_(on_device(x.shape, torch.float32))  # queued behind the sleep: another stream would read zeros
        record = cross_moments(x, x)
    side.synchronize()
    check_moments(record, truth(x, x, 1))


def test_tf32_follows_torchs_flag():
    x = on_device((4096, 256), torch.float32)
    before = torch.backends.cuda.matmul.allow_tf32
    try:
        torch.backends.cuda.matmul.allow_tf32 = True
        with pytest.raises(AssertionError, match="off by"):
            check_moments(cross_moments(x, x), truth(x, x, 1))
        check_moments(cross_moments(x, x), truth(x, x, 1), 1e-3)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    check_moments(cross_moments(x, x), truth(x, x, 1))


def test_tensors_on_two_devices_are_an_error():
    x = on_device((8, 4), torch.float32)
    with pytest.raises(errors.InputError, match="different devices"):
        cross_moments(x, x.cpu())
    with pytest.raises(errors.BackendError, match="a tensor is on cuda"):
        cross_moments(x, x, backend="cpu")


def test_more_than_two_to_the_31_elements():
    units, samples = 64, 2**25 + 1024
    if torch.cuda.mem_get_info()[0] < 3 * units * samples * 2:
        pytest.skip("the device has less memory than the test needs")
    x = torch.empty(units, samples, dtype=torch.bfloat16, device="cuda")
    for part in x.split(2**21, 1):
        part.normal_()
    record = cross_moments(x.T, x.T)
    rows = x[-2:].double()
    wanted = torch.cov(rows, correction=0).cpu() * samples
    scale = wanted.diagonal().max()
    assert record.count.item() == samples
    assert float((record.comoment[-2:, -2:].cpu() - wanted).abs().max() / scale) < 1e-6


def test_out_of_memory_names_the_workspace_and_leaks_nothing():
    _, total = torch.cuda.mem_get_info()
    x = on_device((4, 8192), torch.float32)
    record = cross_moments(x, x)
    held = torch.cuda.memory_allocated()
    torch.cuda.empty_cache()  # what earlier calls left to torch would be room enough
    try:
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 2**20) / total)
        with pytest.raises(errors.WorkspaceError, match=r"a workspace of .* MiB; .* are free.*What to do: free memory"):
            cross_moments(x, x, into=record)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    gc.collect()  # frames of the error
    assert torch.cuda.memory_allocated() == held
    assert cross_moments(x, x, into=record).count.item() == 8
