"""Permuted blends against plain indexing in float64: axes, dtypes, memory layouts, out=, gradients, refusals."""

from __future__ import annotations

import pytest
import torch
from engine.helpers_engine import FLOATS, check_blend, permute
from hypothesis import given, settings
from hypothesis import strategies as st

from pyalign import _cpu, errors
from pyalign.engine import permuted_lerp, permuted_sum, triton
from pyalign.engine.permuted_lerp import permuted_dots

# shape, and for each axis how many indices its permutation has (0: none)
CASES = {
    "vector": ((17,), (17,)),
    "long vector": ((70_001,), (70_001,)),
    "rows": ((9, 31), (9, 0)),
    "columns": ((9, 31), (0, 31)),
    "both": ((40, 33), (40, 33)),
    "convolution": ((6, 10, 3, 3), (6, 10, 0, 0)),
    "long rows": ((3, 5000), (3, 5000)),
    "all axes": ((3, 4, 5, 2), (3, 4, 5, 2)),
    "product axis": ((5, 4 * 49), (5, 4)),
    "product rows": ((6 * 7, 300), (6, 0)),
    "product inside": ((3, 8, 5), (0, 4, 5)),
    "nothing moves": ((4, 5, 6), (0, 0, 0)),
    "scalar": ((), ()),
    "empty": ((0, 4), (0, 4)),
    "empty with indices": ((3, 0), (3, 0)),
    "ones": ((1, 7, 1), (1, 7, 1)),
    "rows together": ((50, 131), (50, 131)),
    "rows together, some left": ((37, 1100), (0, 1100)),
    "wide convolution": ((19, 70, 3, 3), (19, 70, 0, 0)),
    "runs of two": ((33, 140), (33, 70)),
    "one long run": ((9, 3 * 700), (9, 3)),
}


if triton.INTERPRETED:  # where every program takes milliseconds: what lies on the other side of each limit, and no more
    CASES.update(
        {
            "long vector": ((16_500,), (16_500,)),
            "both": ((20, 17), (20, 17)),
            "product rows": ((6 * 2, 300), (6, 0)),
            "rows together": ((20, 131), (20, 131)),
            "rows together, some left": ((3, 1100), (0, 1100)),
            "wide convolution": ((5, 70, 3, 3), (5, 70, 0, 0)),
            "runs of two": ((9, 140), (9, 70)),
            "one long run": ((2, 3 * 700), (2, 3)),
        }
    )
POSITIONS = (0.7,) if triton.INTERPRETED else (0.25, 0.7, -0.5, 1.5)


@pytest.fixture
def backend(blend_backend):
    return blend_backend


def random(shape, seed, dtype=torch.float32):
    """The same numbers on every device."""
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")
    return numbers.to(torch.get_default_device(), dtype)


def random_perms(counts, seed):
    generator = torch.Generator().manual_seed(seed)
    perms = [torch.randperm(n, generator=generator, device="cpu") if n else None for n in counts]
    return [None if perm is None else perm.to(torch.get_default_device()) for perm in perms]


def listed(perms):
    """Give the permutations that are there, and their places, as the operators take them."""
    places = {k: perm for k, perm in enumerate(perm for axes in perms for perm in axes) if perm is not None}
    return list(places.values()), list(places)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_agrees_with_float64(case, dtype, backend):
    shape, counts = CASES[case]
    a, b, perms = random(shape, 1, dtype), random(shape, 2, dtype), random_perms(counts, 3)
    for t in POSITIONS:
        got = permuted_lerp(a, b, t, perms, backend=backend)
        assert got.dtype == dtype
        check_blend(got, [a, b], [1 - t, t], [None, perms])


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_ends_are_exact_and_do_not_read_the_other(case, dtype, backend):
    shape, counts = CASES[case]
    a, b, perms = random(shape, 1, dtype), random(shape, 2, dtype), random_perms(counts, 3)
    a.flatten()[:1] = -0.0
    nan = torch.full_like(a, float("nan"))
    bits = {8: torch.int64, 4: torch.int32, 2: torch.int16}[a.element_size()]
    assert torch.equal(permuted_lerp(a, nan, 0.0, perms, backend=backend).view(bits), a.view(bits))
    assert torch.equal(permuted_lerp(nan, b, 1.0, perms, backend=backend).view(bits), permute(b, perms).view(bits))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_every_value_of_sixteen_bits_survives(dtype, backend):
    """Widening, and rounding back, is exact for each of the 65,536 bit patterns; NaN stays NaN."""
    values = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    got = permuted_lerp(values, values, 0.0, backend=backend)
    doubled = permuted_sum([values, values], [0.5, 0.5], backend=backend)
    for same in (got, doubled):
        nan = values.isnan()
        assert torch.equal(same.isnan(), nan) and torch.equal(same[~nan], values[~nan])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_rounding_to_sixteen_bits_is_to_nearest_even(dtype):
    values = random((20_000,), 5) * torch.logspace(-9, 6, 20_000)
    ones = torch.ones(20_000, dtype=dtype)
    for scale in values[::97].tolist():
        got = permuted_sum([ones[:8]], [scale], backend="cpu")
        assert torch.equal(got, torch.full((8,), scale, dtype=torch.float32).to(dtype)), scale


@pytest.mark.parametrize("case", CASES)
def test_out(case, backend):
    shape, counts = CASES[case]
    a, b, perms = random(shape, 1), random(shape, 2), random_perms(counts, 3)
    want = permuted_lerp(a, b, 0.3, perms, backend=backend)
    out = torch.full_like(a, float("nan"))
    assert permuted_lerp(a, b, 0.3, perms, out=out, backend=backend) is out
    assert torch.equal(out, want)
    for target, other in ((0, 1), (1, 0)):
        pair = [a.clone(), b.clone()]
        assert permuted_lerp(*pair, 0.3, perms, out=pair[target], backend=backend) is pair[target]
        assert torch.equal(pair[target], want) and torch.equal(pair[other], (a, b)[other])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("counts", [(0, 0), (3001, 0), (0, 1101), (3001, 1101), (0, 367)], ids=str)
def test_tensors_beyond_the_caches(counts, dtype):
    """Their results are stored past the caches, from whatever address on."""
    shape = (3001, 1101) if dtype == torch.float32 else (2 * 3001, 1101)
    counts = (counts[0] and shape[0], counts[1])
    a, b, perms = random(shape, 1, dtype), random(shape, 2, dtype), random_perms(counts, 3)
    memory = torch.full((a.numel() + 9,), float("nan"), dtype=dtype)
    out = memory[5:-4].view(shape)
    check_blend(permuted_lerp(a, b, 0.3, perms, out=out, backend="cpu"), [a, b], [0.7, 0.3], [None, perms])
    assert memory[:5].isnan().all() and memory[-4:].isnan().all()


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_results_do_not_depend_on_threads(case, dtype):
    shape, counts = CASES[case]
    tensors = [random(shape, k, dtype) for k in range(3)]
    perms = [random_perms(counts, k) for k in range(3)]
    factor = random(shape, 4, dtype)
    given = factor, tensors, *listed(perms), "cpu"
    answers = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        total = permuted_sum(tensors, [0.3, -0.5, 0.9], perms, backend="cpu")
        answers.append((total, torch.ops.pyalign.permuted_dots(*given)))
    assert all(torch.equal(x, y) for other in answers[1:] for x, y in zip(answers[0], other, strict=True))


@pytest.mark.parametrize("simd", _cpu.simd_paths())
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_every_simd_path(case, dtype, simd):
    shape, counts = CASES[case]
    a, b, perms = random(shape, 1, dtype), random(shape, 2, dtype), random_perms(counts, 3)
    _cpu.use_simd(simd)
    try:
        check_blend(permuted_lerp(a, b, 0.3, perms, backend="cpu"), [a, b], [0.7, 0.3], [None, perms])
        got = torch.ops.pyalign.permuted_dots(a, [b], *listed([perms]), "cpu")
    finally:
        _cpu.use_simd(_cpu.simd_paths()[-1])
    products = a.double() * permute(b.double(), perms)
    assert torch.allclose(got[0], products.sum(), rtol=0, atol=1e-14 * (1 + products.abs().sum().item()))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_inner_products_are_those_in_float64(case, dtype, backend):
    shape, counts = CASES[case]
    factor, perms = random(shape, 4, dtype), [random_perms(counts, k) for k in range(2)]
    tensors = [random(shape, k, dtype) for k in range(2)]
    got = permuted_dots(factor, tensors, perms, backend=backend)
    assert got.dtype == torch.float64
    for k, moved in enumerate(perms):
        products = factor.double() * permute(tensors[k].double(), moved)
        bound = 1e-14 * (1 + products.abs().sum().item())
        assert torch.allclose(got[k], products.sum(), rtol=0, atol=bound)
        if products.numel() > 1:
            assert not torch.allclose(got[k] + 3 * bound, products.sum(), rtol=0, atol=bound)


def test_inner_products_refuse_what_does_not_fit():
    with pytest.raises(errors.InputError, match="does not fit tensor 0"):
        permuted_dots(torch.zeros(3), [torch.zeros(4)])
    with pytest.raises(errors.InputError, match="permutation of axis 0 does not fit"):
        permuted_dots(torch.zeros(3), [torch.zeros(3)], [[torch.arange(2)]])


def test_out_that_overlaps_an_input_elsewhere(backend):
    memory = random((60,), 1)
    a, b, out = memory[:40].clone(), memory[5:45], memory[10:50]
    want = permuted_lerp(a, b.clone(), 0.3, backend=backend)
    assert torch.equal(permuted_lerp(a, b, 0.3, out=out, backend=backend), want)


LAYOUTS = {
    "transposed": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "every other": lambda x: torch.stack([x, x * 0 + float("nan")], -1).flatten(-2)[..., ::2],
    "last first": lambda x: x.movedim(0, -1).contiguous().movedim(-1, 0),
    "expanded": lambda x: x[:1].expand_as(x),
}


@pytest.mark.parametrize("where", ["a", "b", "out", "all"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", ["both", "convolution", "product axis", "nothing moves"])
def test_strided(case, layout, where, backend):
    shape, counts = CASES[case]
    a, b, perms = random(shape, 1), random(shape, 2), random_perms(counts, 3)
    out = torch.full_like(a, float("nan"))
    a = LAYOUTS[layout](a) if where in ("a", "all") else a
    b = LAYOUTS[layout](b) if where in ("b", "all") else b
    out = LAYOUTS[layout](out) if where in ("out", "all") and layout != "expanded" else out
    check_blend(permuted_lerp(a, b, 0.3, perms, out=out, backend=backend), [a, b], [0.7, 0.3], [None, perms])


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_many_tensors(dtype, backend):
    shape, counts = CASES["convolution"]
    tensors = [random(shape, k, dtype) for k in range(5)]
    weights = [0.2, 0.0, -0.5, 1.0, 0.3]
    perms = [random_perms(counts, 10 + k) if k else None for k in range(5)]
    tensors[1].fill_(float("nan"))
    keep = [0, 2, 3, 4]
    got = permuted_sum(tensors, weights, perms, backend=backend)
    check_blend(got, [tensors[k] for k in keep], [weights[k] for k in keep], [perms[k] for k in keep])
    assert torch.equal(permuted_sum(tensors, torch.tensor(weights, dtype=torch.float64), perms, backend=backend), got)
    assert permuted_sum(tensors, [0.0] * 5, backend=backend).abs().max() == 0.0


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("shape", [(34, 203), (34, 5003)], ids=str)
def test_many_filed_tensors(shape, dtype):
    """Rows that are added up as they are filed, also more than a cache holds, give the bits of the plain sum."""
    k = 12
    tensors = [random(shape, i, dtype) for i in range(k)]
    weights = [(-0.8) ** i for i in range(k)]
    perms = [random_perms(shape, 20 + i) if i % 4 else None for i in range(k)]
    got = permuted_sum(tensors, weights, perms, backend="cpu")
    check_blend(got, tensors, weights, perms)
    moved = [permute(tensor, axes) for tensor, axes in zip(tensors, perms, strict=True)]
    assert torch.equal(permuted_sum(moved, weights, backend="cpu"), got)


def test_t_as_a_tensor(backend):
    a, b = random((5, 5), 1), random((5, 5), 2)
    for dtype in (torch.float32, torch.float64):
        got = permuted_lerp(a, b, torch.tensor(0.25, dtype=dtype), backend=backend)
        assert torch.equal(got, permuted_lerp(a, b, 0.25, backend=backend))


@pytest.mark.parametrize("case", ["both", "convolution", "product axis", "product inside"])
def test_gradients(case, backend):
    shape, counts = CASES[case]
    a, b = (random(shape[:1] + shape[1:], k, torch.float64).requires_grad_() for k in (1, 2))
    t = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    perms = random_perms(counts, 3)

    def blend(a, b, t):
        return permuted_lerp(a, b, t, perms, backend=backend)

    def plain(a, b, t):
        return (1 - t) * a + t * permute(b, perms)

    seed = random(shape, 4, torch.float64)
    for got, want in zip(
        torch.autograd.grad(blend(a, b, t), (a, b, t), seed),
        torch.autograd.grad(plain(a, b, t), (a, b, t), seed),
        strict=True,
    ):
        assert torch.allclose(got, want, rtol=1e-12, atol=1e-12)


def test_gradient_that_is_one_number_everywhere(backend):
    """The gradient of a sum is expanded: all its strides are 0."""
    a, b = (random((70, 90), k).requires_grad_() for k in (1, 2))
    t = torch.tensor(0.3, requires_grad=True)
    perms = random_perms((70, 90), 3)
    permuted_lerp(a, b, t, perms, backend=backend).sum().backward()
    assert torch.allclose(b.grad, torch.full_like(b, 0.3)) and torch.allclose(a.grad, torch.full_like(a, 0.7))
    assert torch.allclose(t.grad, (b - a).sum(), rtol=1e-5)


def test_gradcheck(backend):
    perms = random_perms((4, 3), 3)
    leaves = [random((4, 6), k, torch.float64).requires_grad_() for k in (1, 2)]
    weights = torch.tensor([0.3, -0.8], dtype=torch.float64, requires_grad=True)

    def blend(a, b, weights):
        return permuted_sum([a, b], weights, [perms, None], backend=backend)

    fast = triton.INTERPRETED
    assert torch.autograd.gradcheck(blend, (*leaves, weights), fast_mode=fast)
    if not fast:
        assert torch.autograd.gradgradcheck(blend, (*leaves, weights))


@pytest.mark.parametrize("wanted", ["a", "b", "t"])
def test_gradient_of_one_input_alone(wanted, backend):
    leaves = {"a": random((4, 6), 1), "b": random((4, 6), 2), "t": torch.tensor(0.3)}
    leaves[wanted].requires_grad_()
    permuted_lerp(**leaves, perms=random_perms((4, 3), 3), backend=backend).sum().backward()
    assert leaves[wanted].grad is not None
    assert all(leaves[name].grad is None for name in leaves if name != wanted)


A = torch.zeros(4, 6)
REFUSED = {
    "shapes differ": lambda: permuted_lerp(A, torch.zeros(6, 4), 0.5),
    "dtypes differ": lambda: permuted_lerp(A, A.double(), 0.5),
    "integers": lambda: permuted_lerp(A.long(), A.long(), 0.5),
    "too few perms": lambda: permuted_lerp(A, A, 0.5, [None]),
    "length does not divide": lambda: permuted_lerp(A, A, 0.5, [torch.arange(3), None]),
    "int32 indices": lambda: permuted_lerp(A, A, 0.5, [torch.arange(4, dtype=torch.int32), None]),
    "index twice": lambda: permuted_lerp(A, A, 0.5, [torch.tensor([0, 1, 1, 3]), None]),
    "index too large": lambda: permuted_lerp(A, A, 0.5, [torch.tensor([0, 1, 4, 3]), None]),
    "unassigned row": lambda: permuted_lerp(A, A, 0.5, [torch.tensor([0, 1, -1, 3]), None]),
    "reference, index twice": lambda: permuted_lerp(A, A, 0.5, [torch.tensor([0, 1, 1, 3]), None], backend="reference"),
    "t has an axis": lambda: permuted_lerp(A, A, torch.tensor([0.5])),
    "out of another shape": lambda: permuted_lerp(A, A, 0.5, out=torch.zeros(4)),
    "out of another dtype": lambda: permuted_lerp(A, A, 0.5, out=A.double()),
    "out with gradients": lambda: permuted_lerp(A.clone().requires_grad_(), A, 0.5, out=A.clone()),
    "no tensors": lambda: permuted_sum([], []),
    "too few weights": lambda: permuted_sum([A, A], [1.0]),
    "too few lists": lambda: permuted_sum([A, A], [1.0, 1.0], [None]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    with pytest.raises(errors.InputError, match=r"Given: .*Expected: "):
        REFUSED[case]()


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_any_shape_and_stride(data):
    rank = data.draw(st.integers(0, 4))
    counts = data.draw(st.lists(st.integers(1, 7), min_size=rank, max_size=rank))
    runs = data.draw(st.lists(st.integers(1, 4), min_size=rank, max_size=rank))
    moved = data.draw(st.lists(st.booleans(), min_size=rank, max_size=rank))
    shape = [n * r for n, r in zip(counts, runs, strict=True)]
    order = data.draw(st.permutations(range(rank)))
    dtype, seed = data.draw(st.sampled_from(FLOATS)), data.draw(st.integers(0, 99))
    back = [order.index(d) for d in range(rank)]
    a, b = random([shape[d] for d in order], seed, dtype).permute(back), random(shape, seed + 1, dtype)
    perms = [p if keep else None for p, keep in zip(random_perms(counts, seed), moved, strict=True)]
    weights = [data.draw(st.floats(-2, 2)), data.draw(st.floats(-2, 2))]
    check_blend(permuted_sum([a, b], weights, [perms, perms], backend="cpu"), [a, b], weights, [perms, perms])
