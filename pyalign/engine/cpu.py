"""The compiled CPU implementations: tensors in, tensors filled by pyalign._cpu, outcome codes turned into errors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

import numpy as np
import torch
import torch.utils.dlpack
from numpy.typing import NDArray
from torch import Tensor

from pyalign.engine import outcomes
from pyalign.engine.reference import cross_moments as reference_moments

_ROOT = Path(__file__).resolve().parents[2]

try:
    _cpu = import_module("pyalign._cpu")  # by name: the rooms above must not be imported with the package
except ImportError as failure:  # a build without the module, or one for another Python
    MISSING = f"the compiled module pyalign._cpu cannot be imported ({failure}); " + (
        f"{_ROOT} is a source folder that hides the installed package: run elsewhere, or install with pip install -e"
        if (_ROOT / "CMakeLists.txt").exists()
        else "reinstall pyalign-nn with a C++ compiler"
    )
else:
    MISSING = ""

# A capsule made this way costs a tenth of the call to Tensor.__dlpack__.
export: Callable[[Tensor], object] = torch.utils.dlpack.to_dlpack  # type: ignore[attr-defined]

__all__ = [
    "MISSING",
    "assign_array",
    "assign_matrix",
    "assign_small",
    "build",
    "cross_moments",
    "linear_assignment",
    "permuted_dots",
    "permuted_sum",
]


def _input(tensor: Tensor) -> object:
    """Export a tensor that is only read: with torch's pending negation done, at an address that its dtype may have."""
    if tensor.is_neg():
        tensor = tensor.resolve_neg()
    return export(tensor.clone() if tensor.data_ptr() % tensor.element_size() else tensor)


def build() -> dict[str, str]:
    """Describe the compiled module, or say why it is missing."""
    if MISSING:
        return {"compiler": "none", "simd": "none", "threads": str(torch.get_num_threads()), "why": MISSING}
    return {**_cpu.build(), "threads": str(torch.get_num_threads())}


def cross_moments(
    record: Sequence[Tensor], x: Tensor, y: Tensor, axis_x: int, axis_y: int, mask: Tensor | None, full: bool
) -> None:
    """Add the samples of x and y to the record in place; the record is untouched when it raises."""
    kept = None if mask is None else _input(mask)
    count, mean_a, mean_b, comoment, square_a, square_b = (export(tensor) for tensor in record)
    outputs = (count, mean_a, mean_b, comoment, square_a, square_b)
    if _cpu.cross_moments(_input(x), _input(y), kept, axis_x, axis_y, full, *outputs, torch.get_num_threads()):
        return
    if record[0].item() == 0:
        record[3].zero_()  # without samples it may hold anything
    # Not finite, or finite but beyond what float32 squares can hold: the reference tells which, and sums in float64.
    reference_moments.cross_moments(record, x, y, axis_x, axis_y, mask, full)


def linear_assignment(
    costs: Sequence[Tensor], maximize: bool, start: Sequence[tuple[Tensor, Tensor, Tensor]]
) -> list[tuple[Tensor, ...]]:
    """Solve every matrix or (b, n, m) batch; all problems of the list share the threads.

    Costs on another device are solved on a copy of theirs, and the answers go back there.
    """
    if costs and costs[0].device.type != "cpu":
        device = costs[0].device
        costs, start = [cost.cpu() for cost in costs], [(u.cpu(), v.cpu(), perm.cpu()) for u, v, perm in start]
        solved = linear_assignment(costs, maximize, start)
        return [tuple(field.to(device) for field in answer) for answer in solved]
    answers: list[tuple[Tensor, ...]] = []
    for cost in costs:
        *b, n, m = cost.shape
        answers.append(
            (
                torch.empty((*b, n), dtype=torch.int64),
                torch.empty((*b, n), dtype=torch.float64),
                torch.empty((*b, m), dtype=torch.float64),
                torch.empty(b, dtype=torch.float64),
                torch.empty(b, dtype=torch.float64),
            )
        )
    inputs, *starts = [[_input(tensor) for tensor in tensors] for tensors in (costs, *start)]
    outputs = [[export(tensor) for tensor in answer] for answer in answers]
    outcome = _cpu.linear_assignment(inputs, maximize, starts, outputs, torch.get_num_threads())
    if outcome is not None:
        raise outcomes.assignment_error(*outcome, cost=costs[outcome[1]], maximize=maximize, many=len(costs) > 1)
    return answers


def assign_small(cost: Tensor, maximize: bool, start: NDArray[np.float64] | None) -> NDArray[np.float64] | None:
    """Solve one small matrix as `assign_matrix` does, or None: another kind of tensor, too large."""
    answer = _cpu.assign_small(cost, maximize, start)
    if type(answer) is tuple:
        raise outcomes.assignment_error(*answer, cost=cost, maximize=maximize, many=False)
    return answer  # type: ignore[no-any-return]


def assign_matrix(cost: Tensor, maximize: bool, start: NDArray[np.float64] | None) -> NDArray[np.float64]:
    """Solve one matrix: in one array the permutation (as integers), row and column duals, gap, objective, and n."""
    answer = _cpu.assign_matrix(_input(cost), maximize, start, torch.get_num_threads())
    if type(answer) is tuple:
        raise outcomes.assignment_error(*answer, cost=cost, maximize=maximize, many=False)
    return answer  # type: ignore[no-any-return]


def assign_array(cost: object, maximize: bool) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
    """Give the pairs of one numpy matrix, or None: another kind of array, no answer, no compiled module."""
    if MISSING:
        return None
    pairs: tuple[NDArray[np.int64], NDArray[np.int64]] | None
    pairs = _cpu.assign_array(cost, maximize, torch.get_num_threads())
    return pairs


def permuted_sum(
    out: Tensor, tensors: Sequence[Tensor], weights: Sequence[float], perms: Sequence[Sequence[Tensor | None]]
) -> None:
    """Write the weighted sum of the permuted tensors to out."""
    inputs = [_input(tensor.detach()) for tensor in tensors]
    with _permutations(perms) as indices:
        _cpu.permuted_sum(export(out.detach()), inputs, list(weights), indices, torch.get_num_threads())


def permuted_dots(factor: Tensor, tensors: Sequence[Tensor], perms: Sequence[Sequence[Tensor | None]]) -> Tensor:
    """Give the (k,) float64 sums over all entries of factor times each permuted tensor."""
    inputs = [_input(tensor.detach()) for tensor in tensors]
    with _permutations(perms) as indices:
        sums = _cpu.permuted_dots(_input(factor.detach()), inputs, indices, torch.get_num_threads())
    return torch.tensor(sums, dtype=torch.float64)


@contextmanager
def _permutations(perms: Sequence[Sequence[Tensor | None]]) -> Iterator[list[list[object]]]:
    """Export the indices; where the module refuses them, say what is wrong with their values."""
    try:
        yield [[None if perm is None else _input(perm) for perm in axes] for axes in perms]
    except ValueError:
        for axes in perms:
            outcomes.check_permutations(axes)
        raise
