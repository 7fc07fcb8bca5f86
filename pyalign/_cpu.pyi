"""The compiled CPU implementations of the engine. A tensor is anything with __dlpack__, or an unused DLPack capsule."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

def build() -> dict[str, str]:
    """What the module was compiled with and the SIMD path in use."""

def simd_paths() -> list[str]:
    """The SIMD paths that this machine and this build have, narrowest first."""

def use_simd(path: str) -> None:
    """Choose the SIMD path of every operation, for tests."""

def cross_moments(
    x: Any,
    y: Any,
    mask: Any,
    axis_x: int,
    axis_y: int,
    full: bool,
    count: Any,
    mean_a: Any,
    mean_b: Any,
    comoment: Any,
    square_a: Any,
    square_b: Any,
    threads: int,
) -> bool:
    """Add samples to the record in place; False, and nothing changed, when a sum is not finite."""

def linear_assignment(
    costs: list[Any], maximize: bool, start: list[Any], answers: list[Any], threads: int
) -> tuple[int, int, int, int, int] | None:
    """Fill the answers to lists of costs, (n, m) or (b, n, m); None, or the first failure as five numbers."""

def assign_matrix(
    cost: Any, maximize: bool, start: NDArray[np.float64] | None, threads: int
) -> NDArray[np.float64] | tuple[int, int, int, int, int]:
    """Solve one matrix: perm, row duals, column duals, gap, objective and n in one array; or the failure."""

def assign_small(
    cost: object, maximize: bool, start: NDArray[np.float64] | None, /
) -> NDArray[np.float64] | tuple[int, int, int, int, int] | None:
    """Do the same for a small torch matrix, without an export; None for what it does not take."""

def assign_array(cost: object, maximize: bool, threads: int, /) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
    """Rows and columns of one numpy matrix; None for arrays it does not take and problems without an answer."""

def emulate_linear_assignment(
    costs: list[Any],
    maximize: bool,
    exchanged: Sequence[bool],
    start: list[Any],
    answers: list[Any],
    status: Any,
    seed: int = 0,
) -> None:
    """Play the GPU's algorithm on one thread, for its tests; slow."""

def permuted_sum(out: Any, tensors: list[Any], weights: Sequence[float], perms: list[Any], threads: int) -> None:
    """Write the weighted sum of the permuted tensors to out; terms of weight zero are not read."""

def permuted_dots(with_tensor: Any, tensors: list[Any], perms: list[Any], threads: int) -> list[float]:
    """The sum over all entries of a tensor times each permuted tensor."""
