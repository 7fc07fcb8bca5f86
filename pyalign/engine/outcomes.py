"""What an implementation finds wrong in the values of its inputs, as errors that name the matrix, entry or indices."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pyalign import errors

__all__ = ["INFEASIBLE", "NOT_FINITE", "assignment_error", "check_permutations"]

NOT_FINITE = 1
INFEASIBLE = 2


def assignment_error(
    code: int, index: int, problem: int, row: int, column: int, *, cost: Tensor, maximize: bool, many: bool
) -> errors.PyalignError:
    """Name the matrix by its place in the list and in the batch, and the entry where there is one."""
    batched = cost.dim() == 3
    place = f"matrix {index} of the list" if many else "the cost matrix"
    if batched and cost.shape[0] > 1:
        place += f", problem {problem} of the batch"
    forbidden = "-inf" if maximize else "+inf"
    if code == NOT_FINITE:
        return errors.NonFiniteError(
            f"{place} has an entry that is no cost",
            given=f"cost[{row}, {column}] = {(cost[problem] if batched else cost)[row, column].item()}",
            expected=f"numbers, or {forbidden} for a forbidden pair",
            do="look for NaN in the activations or weights that the costs were made of",
        )
    return errors.InfeasibleError(
        f"{place} has no finite solution",
        given=f"a {tuple(cost.shape[-2:])} matrix whose {forbidden} entries leave no complete assignment",
        expected="at least one assignment that avoids every forbidden pair",
        do=f"replace some {forbidden} by large finite costs",
    )


def check_permutations(perms: Sequence[Tensor | None]) -> None:
    """Raise an InputError unless each index tensor holds 0 to n - 1 once; their values are known only at run time."""
    for perm in perms:
        if perm is None:
            continue
        n = perm.numel()
        # Sorted, a permutation is 0 to n - 1; nothing else is.
        if bool((perm.sort().values == torch.arange(n, device=perm.device)).all()):
            continue
        low, high = int(perm.min()), int(perm.max())
        raise errors.InputError(
            "permuted blend: an index tensor is not a permutation",
            given=f"{n} indices from {low} to {high}" + (", some twice" if low >= 0 and high < n else ""),
            expected=f"each of 0 to {n - 1} once",
            do="an Assignment with n > m has -1 for unassigned rows: leave those out",
        )
