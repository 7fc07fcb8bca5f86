"""Each comparison of the engine's tests rejects a wrong answer."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from engine.helpers_engine import check_assignment, check_blend, check_moments, permute, true_moments

from pyalign.engine import cross_moments, linear_assignment, permuted_lerp

X, Y = torch.rand(50, 7, generator=torch.Generator().manual_seed(0)).split([4, 3], 1)


@pytest.mark.parametrize("name", ["count", "mean_a", "mean_b", "comoment", "square_a", "square_b"])
@pytest.mark.parametrize("full", [False, True])
def test_check_moments_rejects(name, full):
    record, truth = cross_moments(X, Y, full=full), true_moments(X, Y, 1, 1)
    check_moments(record, truth)
    for change in (1.0, float("nan")) if name == "count" else (1e-4, float("nan")):
        wrong = getattr(record, name).clone()
        wrong.view(-1)[-1] += change
        with pytest.raises(AssertionError):
            check_moments(dataclasses.replace(record, **{name: wrong}), truth)


def test_check_moments_rejects_a_sum_that_was_not_centred():
    x = X + 1e4
    truth = true_moments(x, x, 1, 1)
    naive = x.T @ x - 50 * torch.outer(x.mean(0), x.mean(0))
    with pytest.raises(AssertionError, match="comoment"):
        check_moments(dataclasses.replace(cross_moments(x, x), comoment=naive.double()), truth)


@pytest.mark.parametrize("shape", [(6, 6), (4, 6), (6, 4)])
def test_check_assignment_rejects(shape):
    cost = torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    answer = linear_assignment(cost)
    check_assignment(cost, answer)
    rows = (answer.perm >= 0).nonzero().flatten()
    swapped, twice = answer.perm.clone(), answer.perm.clone()
    swapped[rows[:2]] = answer.perm[rows[:2].flip(0)]
    twice[rows[0]] = answer.perm[rows[1]]
    wrong = [{"perm": swapped}, {"perm": twice}, {"gap": answer.gap - 1e-3}, {"gap": answer.gap + 1e-3}]
    wrong += [{"row_duals": answer.row_duals + d} for d in (1e-3, -1e-3, float("nan"))]
    wrong += [{"col_duals": answer.col_duals + d} for d in (1e-3, -1e-3)] + [{"objective": answer.objective + 1e-3}]
    for change in wrong:
        with pytest.raises(AssertionError):
            check_assignment(cost, dataclasses.replace(answer, **change))
    with pytest.raises(AssertionError):
        check_assignment(cost, answer, maximize=True)


def test_check_blend_rejects():
    a, b, perms = torch.rand(5, 8), torch.rand(5, 8), [torch.tensor([3, 1, 4, 0, 2]), torch.tensor([1, 3, 0, 2])]
    got = permuted_lerp(a, b, 0.3, perms)
    check_blend(got, [a, b], [0.7, 0.3], [None, perms])
    late = got.clone()
    late[4, 7] = float("nan")
    for wrong in (
        late,
        got + 1e-5,
        got.T,
        permuted_lerp(a, b, 0.3, [None, perms[1]]),
        permuted_lerp(a, b, 0.3001, perms),
    ):
        with pytest.raises(AssertionError):
            check_blend(wrong, [a, b], [0.7, 0.3], [None, perms])


def test_permute_moves_runs():
    assert permute(torch.arange(6), [torch.tensor([2, 0, 1])]).tolist() == [4, 5, 0, 1, 2, 3]


def test_poison_reaches_what_the_engine_allocates():
    assert torch.empty(3).isnan().all() and torch.empty_like(X).isnan().all()
    assert (torch.empty(2, dtype=torch.int64) < 0).all()
