"""What went wrong in a linear assignment problem, as an error that names the matrix and the entry."""

from __future__ import annotations

from torch import Tensor

from pyalign import errors

__all__ = ["INFEASIBLE", "NOT_FINITE", "assignment_error"]

NOT_FINITE = 1
INFEASIBLE = 2


def assignment_error(
    code: int, index: int, problem: int, row: int, column: int, *, cost: Tensor, maximize: bool, many: bool
) -> errors.PyalignError:
    """Name the matrix by its place in the list and in the batch, and the entry where there is one."""
    place = f"matrix {index} of the list" if many else "the cost matrix"
    if cost.shape[0] > 1:
        place += f", problem {problem} of the batch"
    forbidden = "-inf" if maximize else "+inf"
    if code == NOT_FINITE:
        return errors.NonFiniteError(
            f"{place} has an entry that is no cost",
            given=f"cost[{row}, {column}] = {cost[problem, row, column].item()}",
            expected=f"numbers, or {forbidden} for a forbidden pair",
            do="look for NaN in the activations or weights that the costs were made of",
        )
    return errors.InfeasibleError(
        f"{place} has no finite solution",
        given=f"a {tuple(cost.shape[1:])} matrix whose {forbidden} entries leave no complete assignment",
        expected="at least one assignment that avoids every forbidden pair",
        do=f"replace some {forbidden} by large finite costs",
    )
