"""Assignments that hypothesis chooses: layouts, magnitudes, forbidden pairs, batches, warm starts; against scipy."""

from __future__ import annotations

import dataclasses
import math

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
import torch
from engine.helpers_engine import check_assignment
from engine.helpers_layouts import MAGNITUDES, laid_out, repeated, values
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment as scipy_assignment

from pyalign import errors
from pyalign.engine import Assignment, linear_assignment

INTEGERS = (torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64)
SIDES = st.one_of(st.integers(0, 9), st.integers(10, 70))  # within a vector, and several with a rest
SEEDS = st.integers(0, 10_000)
# Zeros of both signs, the least denormals, near ties, and both ends of the range that is promised.
ODD = [0.0, -0.0, 5e-324, -2.2e-308, 1e-30, -1e-30, 1.0, 1.0 + 2.0**-52, -1.0, 3.0, 1e30, -1e30]


def solve(cost, maximize=False, start=None):
    return linear_assignment(cost, maximize, start, backend="cpu")


def problem(answer, index):
    """One problem of a batch or a list."""
    fields = {f.name: getattr(answer, f.name) for f in dataclasses.fields(Assignment)}
    return Assignment(**{k: f[index] if isinstance(f, (tuple, torch.Tensor)) else f for k, f in fields.items()})


def same(mine, theirs):
    names = ("perm", "row_duals", "col_duals", "gap", "objective")
    return all(torch.equal(getattr(mine, name), getattr(theirs, name)) for name in names)


@st.composite
def costs(draw, shape=None):
    """A matrix of any kind, dtype and layout."""
    shape = draw(st.tuples(SIDES, SIDES)) if shape is None else shape
    dtype = draw(st.sampled_from([torch.float64, torch.float32]))
    cost = values(shape, draw(st.sampled_from(MAGNITUDES)), draw(SEEDS)).to(dtype)
    return draw(laid_out(draw(repeated(cost))) if draw(st.booleans()) else repeated(cost))


@given(costs(), st.booleans())
def test_any_costs(cost, maximize):
    check_assignment(cost, solve(cost, maximize), maximize)


@given(arrays.arrays(np.float64, st.tuples(st.integers(1, 6), st.integers(1, 6)), elements=st.sampled_from(ODD)))
def test_odd_numbers(cost):
    cost = torch.from_numpy(cost)
    check_assignment(cost, solve(cost))
    check_assignment(cost, solve(cost, True), True)


@given(st.data(), st.sampled_from(INTEGERS), st.tuples(SIDES, SIDES), st.booleans())
def test_integers_are_exact(data, dtype, shape, maximize):
    """Also at the ends of the type's range; of int64, at those of the integers that float64 holds."""
    limits = torch.iinfo(dtype)
    low, high = max(limits.min, -(2**45)), min(limits.max, 2**45)
    extremes = [low, high, low + 1, high - 1, 0, 1]
    elements = data.draw(st.sampled_from([st.integers(low, high), st.sampled_from(extremes), st.integers(0, 3)]))
    cost = data.draw(arrays.arrays(np.int64, shape, elements=elements))
    answer = solve(data.draw(laid_out(torch.from_numpy(cost).to(dtype))), maximize)
    check_assignment(torch.from_numpy(cost), answer, maximize)
    rows = np.flatnonzero(answer.perm.numpy() >= 0)
    total = int(cost[rows, answer.perm.numpy()[rows]].sum())
    assert total == int(cost[scipy_assignment(cost, maximize)].sum()) == answer.objective.item()
    assert answer.gap.item() == 0.0


@given(st.tuples(SIDES, SIDES), SEEDS, st.floats(0, 1), st.booleans())
def test_forbidden_pairs(shape, seed, share, maximize):
    rng = np.random.default_rng(seed)
    cost = np.where(rng.random(shape) < share, -np.inf if maximize else np.inf, rng.integers(0, 5, shape))
    try:
        scipy_assignment(cost, maximize)
    except ValueError:
        with pytest.raises(errors.InfeasibleError):
            solve(torch.from_numpy(cost), maximize)
    else:
        check_assignment(torch.from_numpy(cost), solve(torch.from_numpy(cost), maximize), maximize)


@given(st.data(), costs(), st.booleans())
def test_what_is_no_cost_is_named(data, cost, maximize):
    assume(cost.numel() > 0)
    cost = cost.clone()
    bad = data.draw(st.sampled_from([math.nan, math.inf if maximize else -math.inf]))
    row, column = (data.draw(st.integers(0, size - 1)) for size in cost.shape)
    cost[row, column] = bad
    with pytest.raises(errors.NonFiniteError, match=rf"cost\[{row}, {column}\] = {bad}"):
        solve(cost, maximize)


@given(st.data(), st.integers(0, 5), st.tuples(SIDES, SIDES), st.booleans())
def test_a_batch_is_its_problems(data, count, shape, maximize):
    cost = data.draw(costs((count, *shape)))
    answer = solve(cost, maximize)
    assert answer.perm.shape == (count, shape[0])
    assert all(same(problem(answer, k), solve(cost[k], maximize)) for k in range(count))


@given(st.data(), st.lists(costs(), max_size=5), st.integers(1, 4), st.booleans())
def test_a_list_is_its_problems(data, several, threads, maximize):
    torch.set_num_threads(threads)
    answer = solve(several, maximize)
    assert len(answer.perm) == len(several)
    for k, cost in enumerate(several):
        check_assignment(cost, problem(answer, k), maximize)
        assert same(problem(answer, k), solve(cost, maximize))


@given(st.data(), costs(), st.booleans())
def test_any_start_leaves_the_answer_optimal(data, cost, maximize):
    """Columns and duals of other problems, of none, not finite, or at random."""
    n, m = cost.shape
    shuffled = cost[data.draw(st.permutations(range(n)))][:, data.draw(st.permutations(range(m)))]
    earlier = solve(shuffled, data.draw(st.booleans()))
    junk = st.sampled_from([math.nan, math.inf, -math.inf, 1e-320, -0.5, 0.5])
    drawn = {
        "row_duals": arrays.arrays(np.float64, n, elements=junk),
        "col_duals": arrays.arrays(np.float64, m, elements=junk),
        "perm": arrays.arrays(np.int64, n, elements=st.sampled_from([-(2**63), -1, 0, 1, m - 1, m, 2**63 - 1])),
    }
    replaced = data.draw(
        st.sets(st.sampled_from(sorted(drawn))) if cost.numel() and cost.abs().max() >= 0.5 else st.just(set())
    )
    changes = {name: torch.from_numpy(data.draw(drawn[name])) for name in replaced}
    start = dataclasses.replace(earlier, maximize=maximize, **changes)
    check_assignment(cost, solve(cost, maximize, start), maximize)
    check_assignment(cost, solve(cost, maximize, solve(cost, maximize)), maximize)


@given(st.tuples(SIDES, SIDES), SEEDS, st.integers(-30, 300), st.booleans())
def test_a_start_of_another_size_leaves_the_answer_optimal(shape, seed, exponent, maximize):
    cost = values(shape, "plain", seed)
    earlier = solve(values(shape, "plain", seed + 1), maximize)
    scaled = {name: getattr(earlier, name) * 10.0**exponent for name in ("row_duals", "col_duals")}
    check_assignment(cost, solve(cost, maximize, dataclasses.replace(earlier, **scaled)), maximize)
