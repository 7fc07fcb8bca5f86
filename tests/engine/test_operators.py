"""The torch.library operators: opcheck, fake kernels, and use inside torch.compile(fullgraph=True)."""

from __future__ import annotations

import pytest
import torch

from pyalign.engine import cross_moments, linear_assignment, permuted_lerp

OPERATORS = torch.ops.pyalign


def zeros(*shape):
    return torch.zeros(shape, dtype=torch.float64)


def record(n, m, full):
    return (zeros(), zeros(n), zeros(m), zeros(n, m), *((zeros(n, n), zeros(m, m)) if full else (zeros(n), zeros(m))))


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("full", [False, True])
def test_opcheck_cross_moments(full, backend):
    x, y, mask = torch.rand(6, 3, 4), torch.rand(6, 5, 4), torch.rand(6, 4) < 0.5
    for m in (None, mask):
        torch.library.opcheck(OPERATORS.cross_moments_, (*record(3, 5, full), x, y, 1, 1, m, full, backend))


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_opcheck_linear_assignment(backend):
    costs = [torch.rand(2, 4, 5), torch.randint(9, (1, 3, 3))]
    torch.library.opcheck(OPERATORS.linear_assignment, (costs, True, [], backend))
    u, v, perm = (field.unsqueeze(0) for field in (zeros(4), zeros(4), torch.arange(4)))
    torch.library.opcheck(OPERATORS.linear_assignment, ([torch.rand(1, 4, 4)], False, [u, v, perm], backend))


@pytest.mark.parametrize("grad", [False, True])
def test_opcheck_permuted_sum(grad, blend_backend):
    tensors = [torch.rand(4, 6, requires_grad=grad) for _ in range(2)]
    weights = torch.tensor([0.3, 0.7], dtype=torch.float64, requires_grad=grad)
    for perms, places in (([torch.randperm(4), torch.randperm(3)], [2, 3]), ([], [])):
        torch.library.opcheck(OPERATORS.permuted_sum, (tensors, weights, perms, places, blend_backend))
        if not grad:
            out = torch.zeros(4, 6)
            torch.library.opcheck(OPERATORS.permuted_sum_out, (out, tensors, weights, perms, places, blend_backend))


@pytest.mark.parametrize("grad", [False, True])
def test_opcheck_permuted_dots(grad, blend_backend):
    factor, *tensors = (torch.rand(4, 6, requires_grad=grad) for _ in range(3))
    for perms, places in (([torch.randperm(4), torch.randperm(3)], [2, 3]), ([], [])):
        torch.library.opcheck(OPERATORS.permuted_dots, (factor, tensors, perms, places, blend_backend))


COMPILERS = ["eager", "aot_eager", pytest.param("inductor", marks=pytest.mark.slow)]


@pytest.fixture(params=COMPILERS)
def compiled(request):
    torch._dynamo.reset()

    def compile_whole(function):
        return torch.compile(function, fullgraph=True, backend=request.param)

    yield compile_whole
    torch._dynamo.reset()


def test_compiled_matching(compiled):
    def match(x, y):
        moments = cross_moments(x, y, full=True)
        answer = linear_assignment(moments.comoment, maximize=True)
        return moments.comoment, moments.square_a, answer.perm, answer.row_duals, answer.gap

    x, y = torch.rand(20, 6, 5), torch.rand(20, 8, 5)
    for got, want in zip(compiled(match)(x, y), match(x, y), strict=True):
        assert torch.equal(got, want)


def test_compiled_streaming(compiled):
    def stream(x, y):
        moments = cross_moments(x, x)
        return cross_moments(y, y, into=moments).tensors

    x, y = torch.rand(20, 6), torch.rand(30, 6)
    for got, want in zip(compiled(stream)(x, y), stream(x, y), strict=True):
        assert torch.equal(got, want)


def test_compiled_blend_with_gradients(compiled):
    perms = [torch.randperm(4), torch.randperm(3)]

    def blend(a, b, t):
        return permuted_lerp(a * 2, b, t, perms)

    leaves = [
        torch.rand(4, 6, requires_grad=True),
        torch.rand(4, 6, requires_grad=True),
        torch.tensor(0.3, requires_grad=True),
    ]
    got, want = compiled(blend)(*leaves), blend(*leaves)
    assert torch.equal(got, want)
    seed = torch.rand(4, 6)
    for a, b in zip(torch.autograd.grad(got, leaves, seed), torch.autograd.grad(want, leaves, seed), strict=True):
        assert torch.allclose(a, b, rtol=1e-6)


def test_compiled_in_place(compiled):
    def blend(a, b):
        return permuted_lerp(a, b, 0.25, [torch.tensor([2, 0, 1]), None], out=a)

    a, b = torch.rand(3, 5), torch.rand(3, 5)
    once, again = a.clone(), a.clone()
    compiled(blend)(once, b)
    blend(again, b)
    assert torch.equal(once, again)


def test_fake_tensors_have_the_right_shapes():
    with torch._subclasses.FakeTensorMode():
        x = torch.empty(8, 5, 3)
        assert cross_moments(x, x).comoment.shape == (5, 5)
        answer = linear_assignment(torch.empty(2, 4, 7))
        assert answer.perm.shape == (2, 4) and answer.col_duals.shape == (2, 7) and answer.perm.dtype == torch.int64
        assert permuted_lerp(x, x, 0.5).shape == (8, 5, 3)
