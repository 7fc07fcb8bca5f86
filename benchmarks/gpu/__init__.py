"""The operations on a CUDA device, one file each: `python -m benchmarks.run --device cuda`."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.gpu import cross_moments, linear_assignment, permuted_lerp, weight_matching
from benchmarks.record import Case

__all__ = ["OPERATIONS", "cases"]

OPERATIONS = {
    "cross_moments": cross_moments.cases,
    "linear_assignment": linear_assignment.cases,
    "permuted_lerp": permuted_lerp.cases,
    "weight_matching": weight_matching.cases,
}


def cases(operations: Sequence[str] = (), quick: bool = False, device: str = "cuda") -> list[Case]:
    """All cases of the named operations (default: of every one); inputs are made on the device when a case is built."""
    return [case for name in operations or OPERATIONS for case in OPERATIONS[name](quick, device)]
