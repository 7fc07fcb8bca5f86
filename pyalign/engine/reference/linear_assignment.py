"""Linear assignment by scipy, with duals from shortest paths (Bellman-Ford) in the residual graph of its optimum."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from pyalign.engine import outcomes

__all__ = ["certify", "linear_assignment"]

Floats = NDArray[np.float64]


def linear_assignment(
    costs: Sequence[Tensor], maximize: bool, start: Sequence[tuple[Tensor, Tensor, Tensor]]
) -> list[tuple[Tensor, ...]]:
    """Solve every matrix or (b, n, m) batch, one problem after another; `start` cannot help scipy and is not read."""
    del start
    answers = []
    for index, cost in enumerate(costs):
        batch = cost if cost.dim() == 3 else cost.unsqueeze(0)
        solved = [_solve(batch, problem, maximize, index, len(costs) > 1) for problem in range(batch.shape[0])]
        b, n, m = batch.shape
        shapes = (((b, n), torch.int64), ((b, n), torch.float64), ((b, m), torch.float64), ((b,), torch.float64))
        answer = [torch.empty(shape, dtype=dtype) for shape, dtype in (*shapes, ((b,), torch.float64))]
        for problem, values in enumerate(solved):
            for tensor, value in zip(answer, values, strict=True):
                tensor[problem] = torch.as_tensor(value, dtype=tensor.dtype)
        answers.append(tuple(tensor.to(cost.device).reshape(cost.shape[:-2] + tensor.shape[1:]) for tensor in answer))
    return answers


def _solve(cost: Tensor, problem: int, maximize: bool, index: int, many: bool) -> tuple[object, ...]:
    matrix = cost[problem].detach().to("cpu", torch.float64).numpy()
    matrix = -matrix if maximize else matrix

    def fail(code: int, row: int = -1, column: int = -1) -> Exception:
        return outcomes.assignment_error(code, index, problem, row, column, cost=cost, maximize=maximize, many=many)

    bad = np.argwhere(np.isnan(matrix) | np.isneginf(matrix))
    if len(bad):
        raise fail(outcomes.NOT_FINITE, int(bad[0, 0]), int(bad[0, 1]))
    try:
        rows, columns = linear_sum_assignment(matrix)
    except ValueError as error:
        raise fail(outcomes.INFEASIBLE) from error
    perm = np.full(matrix.shape[0], -1, dtype=np.int64)
    perm[rows] = columns
    sign = -1.0 if maximize else 1.0
    row_duals, column_duals, gap = certify(matrix, perm)
    return perm, sign * row_duals, sign * column_duals, gap, sign * float(matrix[rows, columns].sum())


def certify(matrix: Floats, perm: NDArray[np.int64]) -> tuple[Floats, Floats, float]:
    """Give feasible duals for the assignment `perm` of a minimisation, and the gap that they leave.

    Args:
        matrix: (n, m) costs, +inf where forbidden.
        perm: (n,) column of each row, -1 where a row has none.

    Returns:
        Row duals u (n,), column duals v (m,) with u_i + v_j <= cost_ij, and
        `sum of matched costs - sum u - sum v`, which is 0 up to rounding exactly when `perm` is optimal.
    """
    if matrix.shape[0] > matrix.shape[1]:
        inverse = np.full(matrix.shape[1], -1, dtype=np.int64)
        inverse[perm[perm >= 0]] = np.nonzero(perm >= 0)[0]
        columns, rows, gap = certify(matrix.T, inverse)
        return rows, columns, gap
    n, m = matrix.shape
    matched = matrix[np.arange(n), perm]
    step = matrix - matched[:, None]
    distance = np.zeros(m)
    for _ in range(n):
        shorter = np.minimum(distance, (distance[perm][:, None] + step).min(axis=0, initial=np.inf))
        if np.array_equal(shorter, distance):
            break
        distance = shorter
    free = np.setdiff1d(np.arange(m), perm)
    distance[free] = 0.0
    rows = _feasible(matrix, distance)
    return rows, distance, float(np.sum((matched - distance[perm]) - rows))


def _feasible(matrix: Floats, columns: Floats) -> Floats:
    if matrix.size == 0:
        return np.zeros(matrix.shape[0])
    rows: Floats = (matrix - columns).min(axis=1)
    for _ in range(64):
        violated = (rows[:, None] + columns > matrix).any(axis=1)
        if not violated.any():
            break
        rows[violated] = np.nextafter(rows[violated], -np.inf)
    return rows
