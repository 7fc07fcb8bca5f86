"""Linear assignment against scipy, with its certificate; ties, ranges, forbidden pairs, warm starts, refusals."""

from __future__ import annotations

import dataclasses
import pickle

import numpy as np
import pytest
import torch
from engine.helpers_engine import check_assignment
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment as scipy_assignment

from pyalign import errors
from pyalign.engine import Assignment, linear_assignment, linear_sum_assignment


def uniform(rng, n, m):
    return rng.random((n, m))


def correlation(rng, n, m):
    """Two noisy views of the same units in another order, as in activation matching (negated: a cost)."""
    x = rng.normal(size=(200, max(n, m)))
    y = x[:, rng.permutation(max(n, m))] + rng.normal(size=x.shape)
    return -np.corrcoef(x[:, :n].T, y[:, :m].T)[:n, n:]


FAMILIES = {
    "uniform": uniform,
    "gaussian": lambda rng, n, m: rng.normal(size=(n, m)),
    "correlation": correlation,
    "i * j": lambda rng, n, m: np.outer(np.arange(n), np.arange(m)).astype(float),
    "ties": lambda rng, n, m: rng.integers(0, 4, (n, m)).astype(float),
    "constant": lambda rng, n, m: np.full((n, m), 3.5),
    "huge range": lambda rng, n, m: rng.normal(size=(n, m)) * 10.0 ** rng.integers(-30, 31, (n, m)),
    "huge": lambda rng, n, m: rng.normal(size=(n, m)) * 1e30,
    "tiny": lambda rng, n, m: rng.normal(size=(n, m)) * 1e-30,
    "subnormal": lambda rng, n, m: rng.normal(size=(n, m)) * 1e-310,
    "near ties": lambda rng, n, m: 1.0 + rng.integers(0, 3, (n, m)) * 2.0**-50,
}
SHAPES = [(1, 1), (2, 2), (7, 7), (33, 33), (64, 64), (5, 9), (9, 5), (1, 6), (6, 1), (30, 47), (47, 30)]


def field(answer, problem):
    """One problem of a batch."""
    parts = {f.name: getattr(answer, f.name) for f in dataclasses.fields(Assignment)}
    return Assignment(**{k: v[problem] if isinstance(v, (torch.Tensor, tuple)) else v for k, v in parts.items()})


@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_optimal_and_certified(family, maximize, backend):
    rng = np.random.default_rng(3)
    for n, m in SHAPES:
        cost = torch.from_numpy(FAMILIES[family](rng, n, m))
        answer = linear_assignment(cost, maximize, backend=backend)
        check_assignment(cost, answer, maximize)
        assert answer.backend == backend and answer.maximize == maximize


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64], ids=str
)
@pytest.mark.parametrize("shape", [(20, 20), (13, 20), (20, 13)])
def test_dtypes(dtype, shape, backend):
    generator = torch.Generator().manual_seed(1)
    cost = torch.randint(0, 100, shape, generator=generator).to(dtype)
    check_assignment(cost, linear_assignment(cost, backend=backend))
    check_assignment(cost, linear_assignment(cost, True, backend=backend), True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.bool], ids=str)
def test_narrow_dtypes_are_widened(dtype, backend):
    cost = (torch.rand(9, 9, generator=torch.Generator().manual_seed(1)) * 3 - 1).to(dtype)
    check_assignment(cost.float(), linear_assignment(cost, backend=backend))


def test_integers_are_exact_to_two_to_the_53(backend):
    high = 2**52
    cost = torch.tensor([[high, high - 1], [high - 2, high - 2]])
    answer = linear_assignment(cost, backend=backend)
    assert answer.perm.tolist() == [1, 0] and answer.objective.item() == 2 * high - 3


@pytest.mark.parametrize("size", [64, 257])
def test_planted(size, backend):
    """A permutation hidden in noise comes back."""
    generator = torch.Generator().manual_seed(size)
    hidden = torch.randperm(size, generator=generator)
    cost = torch.rand(size, size, generator=generator)
    cost[torch.arange(size), hidden] += 1.0
    assert torch.equal(linear_assignment(cost, True, backend=backend).perm, hidden)


@pytest.mark.parametrize("family", ["uniform", "correlation", "ties"])
def test_larger(family):
    rng = np.random.default_rng(5)
    for n, m in ((300, 300), (200, 333), (520, 520)):
        cost = torch.from_numpy(FAMILIES[family](rng, n, m)).float()
        check_assignment(cost, linear_assignment(cost, backend="cpu"))


@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_wide_enough_for_candidates(family, maximize):
    """Rows of more than 512 columns are known by their candidates; beyond 640, paths go through them too."""
    rng = np.random.default_rng(7)
    for n, m in ((170, 170), (210, 700), (700, 180), (530, 540)):
        cost = torch.from_numpy(FAMILIES[family](rng, n, m))
        check_assignment(cost, linear_assignment(cost, maximize, backend="cpu"), maximize)


def test_paths_through_candidates_with_near_ties():
    """Labels at equal distances that a row's further columns add must be taken before anything farther away."""
    rng = np.random.default_rng(11)
    for seed in range(12):
        scale = np.random.default_rng(seed).random((1, 660)) ** 3
        cost = torch.from_numpy((rng.random((640, 660)) * scale).astype(np.float32))
        check_assignment(cost, linear_assignment(cost, backend="cpu"))


def test_forbidden_pairs_among_candidates():
    rng = np.random.default_rng(8)
    for share in (0.5, 0.9, 0.97):
        cost = np.where(rng.random((530, 530)) < share, np.inf, rng.random((530, 530)))
        np.fill_diagonal(cost, 2.0)
        check_assignment(torch.from_numpy(cost), linear_assignment(torch.from_numpy(cost), backend="cpu"))


def test_fields_of_a_small_answer_are_tensors_of_their_own():
    cost = torch.rand(6, 9, generator=torch.Generator().manual_seed(1))
    answer = linear_assignment(cost)
    slow = linear_assignment([cost])
    for name in ("perm", "row_duals", "col_duals", "gap", "objective"):
        assert (
            torch.equal(getattr(answer, name), getattr(slow, name)[0]) and getattr(answer, name).device == cost.device
        )
        assert getattr(answer, name) is getattr(answer, name)
    assert "perm=tensor" in repr(answer) and "gap=tensor" in repr(linear_assignment(cost))
    assert torch.equal(pickle.loads(pickle.dumps(linear_assignment(cost))).perm, answer.perm)
    with pytest.raises(AttributeError, match="duals"):
        answer.duals  # noqa: B018


@pytest.mark.parametrize("n, m", [(0, 0), (0, 4), (4, 0)])
def test_empty(n, m, backend):
    answer = linear_assignment(torch.zeros(n, m), backend=backend)
    assert answer.perm.tolist() == [-1] * n
    assert answer.row_duals.tolist() == [0.0] * n and answer.col_duals.tolist() == [0.0] * m
    assert answer.gap.item() == 0.0 and answer.objective.item() == 0.0


@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("shape", [(6, 12, 12), (6, 7, 12), (6, 12, 7), (1, 3, 3), (0, 3, 3)])
def test_batch_equals_one_by_one(shape, maximize, backend):
    cost = torch.rand(shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    answer = linear_assignment(cost, maximize, backend=backend)
    assert answer.perm.shape == shape[:2] and answer.gap.shape == shape[:1]
    for problem in range(shape[0]):
        one = linear_assignment(cost[problem], maximize, backend=backend)
        assert torch.equal(one.perm, answer.perm[problem]) and torch.equal(one.row_duals, answer.row_duals[problem])
        check_assignment(cost[problem], field(answer, problem), maximize)


def test_ragged(backend):
    generator = torch.Generator().manual_seed(4)
    costs = [torch.rand(shape, generator=generator) for shape in ((3, 3), (40, 17), (2, 5, 5), (0, 2))]
    answer = linear_assignment([*costs, torch.ones(2, 2, dtype=torch.int32)], backend=backend)
    assert [tuple(p.shape) for p in answer.perm] == [(3,), (40,), (2, 5), (0,), (2,)]
    check_assignment(costs[0], field(answer, 0))
    check_assignment(costs[1], field(answer, 1))
    assert linear_assignment([], backend=backend).perm == ()


def test_threads_and_repetition_change_nothing():
    """Ties are broken the same way for every number of threads and in every run."""
    cost = torch.randint(0, 3, (40, 30, 30), generator=torch.Generator().manual_seed(6))
    first = linear_assignment(cost, backend="cpu")
    for threads in (1, 3, 2):
        torch.set_num_threads(threads)
        again = linear_assignment(cost, backend="cpu")
        assert torch.equal(first.perm, again.perm) and torch.equal(first.col_duals, again.col_duals)


def test_layout_of_the_costs_changes_nothing():
    cost = torch.randint(0, 3, (30, 21), generator=torch.Generator().manual_seed(6)).float()
    expected = linear_assignment(cost, backend="cpu")
    wide = torch.full((60, 63), float("nan"))
    wide[::2, ::3] = cost
    for same in (cost.T.contiguous().T, wide[::2, ::3]):
        answer = linear_assignment(same, backend="cpu")
        assert torch.equal(answer.perm, expected.perm) and torch.equal(answer.col_duals, expected.col_duals)


@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("shape", [(12, 12), (8, 14), (14, 8)])
def test_forbidden_pairs(shape, maximize, backend):
    rng = np.random.default_rng(9)
    solved = 0
    for _ in range(20):
        cost = np.where(rng.random(shape) < 0.5, -np.inf if maximize else np.inf, rng.random(shape))
        try:
            scipy_assignment(cost, maximize)
        except ValueError:
            with pytest.raises(errors.InfeasibleError):
                linear_assignment(torch.from_numpy(cost), maximize, backend=backend)
            continue
        check_assignment(
            torch.from_numpy(cost), linear_assignment(torch.from_numpy(cost), maximize, backend=backend), maximize
        )
        solved += 1
    assert solved > 5


def test_infeasible_is_named(backend):
    cost = torch.rand(3, 4, 4)
    cost[2, 1] = float("inf")
    with pytest.raises(errors.InfeasibleError, match="problem 2 of the batch has no finite solution"):
        linear_assignment(cost, backend=backend)
    with pytest.raises(errors.InfeasibleError, match="matrix 1 of the list"):
        linear_assignment([torch.rand(2, 2), cost[2]], backend=backend)
    cost = torch.full((2, 2), float("inf"))
    cost[0, 0] = cost[1, 0] = 1.0
    with pytest.raises(errors.InfeasibleError):
        linear_assignment(cost, backend=backend)


@pytest.mark.parametrize("shape", [(5, 6, 6), (5, 6, 40), (5, 40, 6)])
@pytest.mark.parametrize("bad, maximize", [(float("nan"), False), (float("-inf"), False), (float("inf"), True)])
def test_not_finite_is_named(shape, bad, maximize, backend):
    cost = torch.rand(shape)
    cost[3, 4, 5] = bad
    with pytest.raises(errors.NonFiniteError, match=rf"problem 3 of the batch.*cost\[4, 5\] = {bad}"):
        linear_assignment(cost, maximize, backend=backend)


@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("shape", [(40, 40), (25, 40), (38, 40), (40, 38), (3, 12, 12), (200, 200), (190, 200)])
@pytest.mark.parametrize("noise", [0.0, 1e-3, 10.0])
def test_warm_start_is_optimal(shape, noise, maximize, backend):
    generator = torch.Generator().manual_seed(8)
    cost = torch.rand(shape, generator=generator, dtype=torch.float64)
    earlier = linear_assignment(cost, maximize, backend=backend)
    cost = cost + noise * torch.rand(shape, generator=generator, dtype=torch.float64)
    answer = linear_assignment(cost, maximize, start=earlier, backend=backend)
    for problem in range(shape[0] if len(shape) == 3 else 0):
        check_assignment(cost[problem], field(answer, problem), maximize)
    if len(shape) == 2:
        check_assignment(cost, answer, maximize)


def test_warm_start_with_nonsense_is_still_optimal():
    cost = torch.rand(20, 30, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    good = linear_assignment(cost)
    for junk in (float("nan"), float("inf"), 1e300, -1e300, -0.5, 7.0):
        start = dataclasses.replace(
            good, col_duals=torch.full((30,), junk, dtype=torch.float64), perm=good.perm * 0 + 3
        )
        check_assignment(cost, linear_assignment(cost, start=start, backend="cpu"))


@pytest.mark.parametrize("n", [30, 200, 600])
def test_warm_start_with_nonsense_for_as_many_columns_as_rows(n):
    """Duals so large that nothing of the costs is left beside them are noticed."""
    cost = torch.rand(n, n, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    good = linear_assignment(cost)
    for junk in (1e300, -1e300, 1e17, -7.0):
        for perm in (good.perm * 0, good.perm.flip(0)):
            start = dataclasses.replace(good, col_duals=torch.full((n,), junk, dtype=torch.float64), perm=perm)
            check_assignment(cost, linear_assignment(cost, start=start))


@pytest.mark.parametrize("shape", [(40, 40), (38, 40), (200, 200), (600, 600), (560, 600)])
def test_a_start_that_is_of_no_use_changes_nothing(shape):
    """Few rows can keep what the answer to another problem gave them: the search is the one without a start."""
    generator = torch.Generator().manual_seed(8)
    cost, other = (torch.rand(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    with_start, cold = linear_assignment(cost, start=linear_assignment(other)), linear_assignment(cost)
    assert torch.equal(with_start.perm, cold.perm) and torch.equal(with_start.col_duals, cold.col_duals)
    kept = linear_assignment(cost, start=cold)
    assert torch.equal(kept.perm, cold.perm) and torch.equal(kept.col_duals, cold.col_duals)


@pytest.mark.parametrize("dead", [1, 3, 30])
@pytest.mark.parametrize("shape", [(70, 70), (65, 70), (70, 65), (200, 200), (600, 600)])
def test_units_that_cost_the_same_everywhere(shape, dead, backend):
    generator = torch.Generator().manual_seed(dead)
    for planted in (0.0, 5.0):
        cost = torch.rand(shape, generator=generator, dtype=torch.float64) - planted * torch.eye(*shape)
        cost[torch.randperm(shape[0], generator=generator)[:dead]] = 0.25
        cost[:, torch.randperm(shape[1], generator=generator)[:dead]] = 0.0
        check_assignment(cost, linear_assignment(cost, backend=backend))


def test_warm_start_of_a_list(backend):
    costs = [torch.rand(4, 4), torch.rand(6, 3)]
    answer = linear_assignment(costs, start=linear_assignment(costs, backend=backend), backend=backend)
    check_assignment(costs[1], field(answer, 1))


COST = torch.rand(4, 4)
REFUSED = {
    "vector": lambda: linear_assignment(torch.rand(4)),
    "four axes": lambda: linear_assignment(torch.rand(1, 1, 4, 4)),
    "complex": lambda: linear_assignment(torch.rand(4, 4) * 1j),
    "not a tensor": lambda: linear_assignment([[1.0, 2.0]]),
    "start of another shape": lambda: linear_assignment(COST, start=linear_assignment(torch.rand(5, 5))),
    "start of the other sense": lambda: linear_assignment(COST, start=linear_assignment(COST, True)),
    "start of a list": lambda: linear_assignment(COST, start=linear_assignment([COST])),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    with pytest.raises(errors.InputError, match=r"Given: .*Expected: "):
        REFUSED[case]()


INPUTS = {
    "list": [[4, 1, 3], [2, 0, 5], [3, 2, 2]],
    "integers": np.arange(12).reshape(3, 4) * 7 % 5,
    "unsigned": (np.arange(12).reshape(4, 3) * 7 % 5).astype(np.uint16),
    "booleans": np.eye(4, dtype=bool),
    "big endian": np.arange(9.0).reshape(3, 3).astype(">f8"),
    "float32": np.arange(12.0, dtype=np.float32).reshape(4, 3) * 7 % 5,
    "int8": (np.arange(12).reshape(3, 4) * 7 % 5).astype(np.int8),
    "columns first": np.asfortranarray(np.arange(12.0).reshape(3, 4) * 7 % 5),
    "not aligned": np.frombuffer(b"\0" + np.arange(9.0).tobytes(), np.uint8)[1:].view(np.float64).reshape(3, 3),
    "reversed": np.arange(9.0).reshape(3, 3)[::-1, ::-1],
    "empty": np.zeros((0, 3)),
    "tensor": torch.arange(6.0).reshape(2, 3),
}


@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("case", INPUTS)
def test_scipy_drop_in(case, maximize):
    cost = INPUTS[case]
    rows, columns = linear_sum_assignment(cost, maximize=maximize)
    expected_rows, expected_columns = scipy_assignment(np.asarray(cost), maximize)
    matrix = np.asarray(cost, dtype=float)
    assert isinstance(rows, np.ndarray) and rows.dtype == columns.dtype == np.int64
    assert rows.tolist() == expected_rows.tolist() and len(columns) == len(expected_columns)
    assert matrix[rows, columns].sum() == matrix[expected_rows, expected_columns].sum()


def test_scipy_drop_in_refuses_as_scipy_does():
    for cost in ([1.0, 2.0], [[1.0, np.nan], [1.0, 2.0]], [[np.inf]]):
        with pytest.raises(ValueError, match=r"."):
            scipy_assignment(cost)
        with pytest.raises(ValueError, match="Given: "):
            linear_sum_assignment(cost)


def test_scipy_drop_in_leaves_its_input_alone():
    cost = np.arange(9.0).reshape(3, 3)
    cost.setflags(write=False)
    linear_sum_assignment(cost)
    assert cost.tolist() == np.arange(9.0).reshape(3, 3).tolist()


@settings(max_examples=150, deadline=None)
@given(
    shape=st.tuples(st.integers(0, 9), st.integers(0, 9)),
    family=st.sampled_from(sorted(FAMILIES)),
    seed=st.integers(0, 10_000),
    maximize=st.booleans(),
    narrow=st.booleans(),
)
def test_any_matrix(shape, family, seed, maximize, narrow):
    rng = np.random.default_rng(seed)
    cost = torch.from_numpy(FAMILIES[family](rng, *shape) if 0 not in shape else np.zeros(shape))
    cost = cost.float() if narrow else cost
    check_assignment(cost, linear_assignment(cost, maximize, backend="cpu"), maximize)
