"""One file per operation: its cases, from inputs and contestants to gates."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.operations import cross_moments, linear_assignment, permuted_lerp, weight_matching
from benchmarks.record import Case, MeanGate

__all__ = ["MEAN_GATES", "OPERATIONS", "cases"]

OPERATIONS = {
    "linear_assignment": linear_assignment.cases,
    "cross_moments": cross_moments.cases,
    "permuted_lerp": permuted_lerp.cases,
    "weight_matching": weight_matching.cases,
}
MEAN_GATES: tuple[MeanGate, ...] = linear_assignment.MEAN_GATES


def cases(
    operations: Sequence[str] = (), quick: bool = False, max_n: int | None = None, threads: int = 2
) -> list[Case]:
    """All cases of the named operations (default: of every one).

    Args:
        operations: Keys of `OPERATIONS`.
        quick: Small inputs only, made in seconds.
        max_n: Leave out cases of linear assignment beyond this size.
        threads: The larger number of threads of the cases that compare with one.
    """
    chosen = [c for name in operations or OPERATIONS for c in OPERATIONS[name](quick, threads)]
    return [c for c in chosen if max_n is None or c.operation != "linear_assignment" or c.size <= max_n]
