"""Permuted blends on a CUDA device: what only a device can show. The CPU's own tests run there from their own file."""

from __future__ import annotations

import pytest
import torch

from pyalign.engine import dispatch, permuted_lerp, permuted_sum, triton

pytestmark = pytest.mark.gpu


def pair(shape, dtype=torch.float32):
    generator = torch.Generator("cuda").manual_seed(1)
    a, b = (torch.randn(shape, generator=generator, device="cuda").to(dtype) for _ in range(2))
    return a, b, [torch.randperm(n, generator=generator, device="cuda") for n in shape]


def test_auto_takes_triton():
    assert dispatch.choose("permuted_lerp", "auto", [torch.zeros(2, device="cuda")]) == "triton"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(4096, 4096), (300, 14_336), (100, 32_768), (40, 70_000), (512, 512, 3, 3)], ids=str)
def test_large_tensors(shape, dtype):
    """Rows of every kind, against indexing in float64."""
    a, b, perms = pair(shape, dtype)
    perms = [perm if axis < 2 else None for axis, perm in enumerate(perms)]
    got = permuted_lerp(a, b, 0.3, perms, backend="triton")
    moved = b[perms[0]][:, perms[1]]
    want = 0.7 * a.double() + 0.3 * moved.double()
    assert ((got.double() - want).abs() <= 4 * torch.finfo(dtype).eps * (1 + want.abs())).all()
    copied = permuted_lerp(a, b, 1.0, perms, backend="triton")
    assert torch.equal(copied, moved)
    dots = triton.permuted_dots(a, [b], [perms])
    assert torch.allclose(dots[0], (a.double() * moved.double()).sum(), rtol=1e-9, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(2**31 + 5,), (2**19 + 3, 4096), (3, 2**30 + 1)], ids=str)
def test_more_entries_than_32_bits_count(shape):
    if torch.cuda.mem_get_info()[0] < 24 * 2**30:
        pytest.skip("needs 24 GiB of free device memory")
    a = torch.zeros(shape, dtype=torch.bfloat16, device="cuda")
    b = torch.zeros_like(a)
    b[-1], a[0] = 2.0, 1.0
    perms = [torch.arange(shape[0] - 1, -1, -1, device="cuda") if len(shape) == 2 else None] + [None] * (len(shape) - 1)
    permuted_sum([a, b], [1.0, 0.5], [None, perms], out=a, backend="triton")
    first, last = (a.view(-1)[0], a.view(-1)[-1]) if len(shape) == 1 else (a[0], a[-1])
    assert (first == (1.0 if len(shape) == 1 else 2.0)).all() and (last == (1.0 if len(shape) == 1 else 0.0)).all()
    assert int((a != 0).sum()) == (2 if len(shape) == 1 else shape[1])


def test_runs_on_the_current_stream():
    a, b, perms = pair((1024, 1024))
    want = permuted_lerp(a, b, 0.3, perms)
    late, stream = torch.zeros_like(a), torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)
        late.copy_(a)
        got = permuted_lerp(late, b, 0.3, perms)
    stream.synchronize()
    assert torch.equal(got, want)


def test_in_a_graph():
    """Once the indices are known and the kernel is compiled, a call can be captured."""
    a, b, perms = pair((300, 500))
    out = torch.empty_like(a)
    permuted_lerp(a, b, 0.3, perms, out=out)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        permuted_lerp(a, b, 0.3, perms, out=out)
    a.mul_(2.0)
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(out, permuted_lerp(a, b, 0.3, perms))


def test_the_same_bits_in_every_run():
    a, b, perms = pair((2000, 3000))
    first, *others = (triton.permuted_dots(a, [a, b], [[None, None], perms]) for _ in range(4))
    assert all(torch.equal(first, other) for other in others)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_a_device_that_is_not_the_current_one():
    a, b, perms = pair((100, 200))
    want = permuted_lerp(a, b, 0.3, perms)
    there = permuted_lerp(a.to("cuda:1"), b.to("cuda:1"), 0.3, [perm.to("cuda:1") for perm in perms])
    assert there.device == torch.device("cuda:1") and torch.equal(there.cpu(), want.cpu())
