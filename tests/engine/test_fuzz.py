"""A short piece of the fuzz run, and its checks rejecting wrong answers of every kind."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from engine import fuzz_linear_assignment as fuzz

from pyalign.engine import linear_assignment


def test_a_thousand_problems():
    assert fuzz.run(0, 1000, seed=7) == []


def test_problems_are_the_same_in_every_run_and_of_every_kind():
    drawn = [fuzz.draw(3, k) for k in range(600)]
    assert all(torch.equal(p.cost, fuzz.draw(3, k).cost) for k, p in enumerate(drawn[:50]))
    families = {p.name.split(", ")[0] for p in drawn}
    assert families == fuzz.FLOATS.keys() | fuzz.INTEGERS.keys()
    assert {p.cost.dtype for p in drawn} == {torch.float32, torch.float64, *fuzz.INTEGER_TYPES}
    assert max(max(p.cost.shape) for p in drawn) > 100 and {p.maximize for p in drawn} == {True, False}


@pytest.mark.parametrize("integers", [True, False])
@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("shape", [(6, 6), (4, 6), (6, 4)])
def test_wrong_answers_are_found(shape, maximize, integers):
    cost = torch.randint(0, 50, shape, generator=torch.Generator().manual_seed(1))
    problem = fuzz.Problem("", cost if integers else cost / 7, maximize)
    answer = linear_assignment(problem.cost, maximize)
    assert fuzz.wrong_with(problem, answer) == ""
    rows = (answer.perm >= 0).nonzero().flatten()
    swapped, twice, short, beyond = (answer.perm.clone() for _ in range(4))
    swapped[rows[:2]] = answer.perm[rows[:2].flip(0)]
    twice[rows[0]] = answer.perm[rows[1]]
    short[rows[0]] = -1
    beyond[rows[0]] = shape[1]
    little = 1e-11
    assigned = torch.zeros_like(answer.row_duals)
    assigned[rows] = 1.0
    wrong = {
        "no complete matching": [{"perm": perm} for perm in (twice, short, beyond)],
        "objective": [{"perm": swapped}, {"objective": answer.objective + little}],
        "gap": [{"gap": answer.gap + d} for d in (little, -little, float("nan"))],
        "dual bound": [{"row_duals": answer.row_duals + (little if not maximize else -little) * assigned}],
        "not finite": [{"row_duals": answer.row_duals * float("nan")}, {"col_duals": answer.col_duals * float("inf")}],
    }
    worse = -1.0 if not maximize else 1.0
    if shape[0] <= shape[1]:  # lower duals of assigned rows: still feasible, but they prove less
        wrong["gap"].append({"row_duals": answer.row_duals + worse * assigned})
    for text, changes in wrong.items():
        for change in changes:
            assert text in fuzz.wrong_with(problem, dataclasses.replace(answer, **change)), change


def test_a_dual_of_an_unassigned_column_is_found():
    problem = fuzz.Problem("", torch.tensor([[1.0, 5.0]]), False)
    answer = linear_assignment(problem.cost)
    lowered = dataclasses.replace(answer, col_duals=answer.col_duals - torch.tensor([0.0, 1.0], dtype=torch.float64))
    assert "unassigned" in fuzz.wrong_with(problem, lowered)
