"""Linear assignment: the cheapest bijection of rows and columns, with the duals that prove it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyalign import errors
from pyalign.engine import cpu, dispatch

__all__ = ["Assignment", "linear_assignment", "linear_sum_assignment"]

Several = tuple[Tensor, ...]
_new = object.__new__  # what is looked up costs more than a small problem's share of it


@dataclass(frozen=True)
class Assignment:
    """The answer to one problem, a batch, or (tuples in every field) a list of problems.

    Attributes:
        perm: (..., n) int64, column of each row; -1 for rows without one, when n > m.
        row_duals: (..., n) float64, u with `u_i + v_j <= cost_ij` (`>=` when maximising).
        col_duals: (..., m) float64, v; zero for columns (rows, when n > m) that stay unassigned.
        gap: (...) float64, `objective - sum u - sum v` (its negation when maximising): at least 0, and 0 up to
            rounding, which proves that no assignment is better.
        objective: (...) float64, the sum of the assigned costs.
        maximize: Which of the two problems it answers.
        backend: The implementation that ran.
    """

    perm: Tensor | Several
    row_duals: Tensor | Several
    col_duals: Tensor | Several
    gap: Tensor | Several
    objective: Tensor | Several
    maximize: bool
    backend: str

    def __getattr__(self, name: str) -> Any:
        """Make the tensor of a field of `_one_matrix` when it is asked for."""
        answer = self.__dict__.get("_answer")
        if answer is None or name not in ("perm", "row_duals", "col_duals", "gap", "objective"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        n, numbers = int(answer[-1:].view(np.int64)[0]), torch.from_numpy(answer)
        if name == "perm":
            field = numbers[:n].view(torch.int64)
        elif name.endswith("duals"):
            field = numbers[n : 2 * n] if name == "row_duals" else numbers[2 * n : -3]
        else:
            field = numbers[-3 if name == "gap" else -2]
        self.__dict__[name] = field
        return field


def linear_assignment(
    cost: Tensor | Sequence[Tensor], maximize: bool = False, start: Assignment | None = None, backend: str = "auto"
) -> Assignment:
    r"""Find the assignment of rows to columns with the least (greatest) total cost, exactly, with its certificate.

    :math:`\min_\pi \sum_i c_{i,\pi(i)} = \max \sum_i u_i + \sum_j v_j` subject to :math:`u_i + v_j \le c_{ij}`.
    All arithmetic is float64, whatever the dtype of the costs; integers are exact up to 2^53. Ties are broken the
    same way in every run and for every number of threads.

    Args:
        cost: (n, m), a batch (b, n, m), or a list of matrices of any sizes. float32, float64 or integers (float16 and
            bfloat16 are widened). +inf (-inf when maximising) forbids a pair.
        maximize: Find the greatest total instead.
        start: An earlier answer for costs of the same shape, near to these: its duals and tight pairs are reused. It
            changes the time, never the optimality, of the answer.
        backend: "auto", or the implementation to use.

    Returns:
        The record with perm, duals, gap, objective and backend.

    Raises:
        InputError: Shapes or dtypes do not fit, a list is on several devices, or `start` is for another problem.
        NonFiniteError: NaN, or an infinity that is not a forbidden pair; names the matrix and the entry.
        InfeasibleError: No complete assignment avoids the forbidden pairs.
        BackendError: The named backend cannot run these inputs.
        WorkspaceError: The work does not fit into the memory of the GPU.

    Source:
        Jonker and Volgenant (1987); Crouse (2016), On implementing 2D rectangular assignment algorithms.

    Example:
        >>> answer = linear_assignment(torch.tensor([[4.0, 1.0, 3.0], [2.0, 0.0, 5.0], [3.0, 2.0, 2.0]]))
        >>> answer.perm.tolist(), answer.objective.item(), answer.gap.item()
        ([1, 0, 2], 5.0, 0.0)
    """
    if dispatch.plain_cost(cost, backend):
        quick = _one_matrix(cost, bool(maximize), start)  # type: ignore[arg-type]
        if quick is not None:
            return quick
    many = not isinstance(cost, Tensor)
    matrices = [_checked(c, index, many) for index, c in enumerate(cost if many else (cost,))]
    if not matrices:
        return Assignment((), (), (), (), (), maximize, "none")
    _expect_one_device(matrices)
    name = dispatch.choose("linear_assignment", backend, matrices)
    earlier = _start(start, matrices, maximize, many)
    if dispatch.direct(matrices):
        flat = _run(dispatch.function("linear_assignment", name), matrices, maximize, earlier)
    else:
        flat = torch.ops.pyalign.linear_assignment(matrices, maximize, earlier, name)
    if not many:
        perm, u, v, gap, objective = flat
        return Assignment(perm, u, v, gap, objective, maximize, name)
    perms, us, vs, gaps, objectives = (tuple(flat[field::5]) for field in range(5))
    return Assignment(perms, us, vs, gaps, objectives, maximize, name)


def linear_sum_assignment(cost: Any, maximize: bool = False) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Solve one problem as scipy.optimize.linear_sum_assignment does: a drop-in replacement.

    Args:
        cost: (n, m) array or tensor.
        maximize: Find the greatest total instead.

    Returns:
        Row indices in ascending order and the column of each, min(n, m) of them.

    Raises:
        InputError: (a ValueError) Not a matrix, or not numbers; NonFiniteError and InfeasibleError are InputErrors too.

    Source:
        The interface of scipy.optimize.linear_sum_assignment.

    Example:
        >>> rows, columns = linear_sum_assignment([[4, 1, 3], [2, 0, 5], [3, 2, 2]])
        >>> columns.tolist()
        [1, 0, 2]
    """
    if type(cost) is np.ndarray:
        pairs = cpu.assign_array(cost, bool(maximize))
        if pairs is not None:
            return pairs
    answer = linear_assignment(_matrix(cost), maximize)
    assert isinstance(answer.perm, Tensor)
    perm = answer.perm.cpu().numpy()
    rows = np.flatnonzero(perm >= 0).astype(np.int64)
    return rows, perm[rows]


def _one_matrix(cost: Tensor, maximize: bool, start: Assignment | None) -> Assignment | None:
    """Solve one matrix with the compiled module, or None. Tensors, dearer than a small problem, are made on demand."""
    earlier = None
    if start is not None:
        if not _fits(start, cost, maximize):
            return None
        earlier = start._answer
    numbers = cpu.assign_small(cost, maximize, earlier)
    if numbers is None:
        if not dispatch.matrix_of_costs(cost):
            return None
        numbers = cpu.assign_matrix(cost, maximize, earlier)
    answer = _new(Assignment)
    fields = answer.__dict__
    fields["_answer"], fields["maximize"], fields["backend"] = numbers, maximize, "cpu"
    return answer


def _fits(start: Assignment, cost: Tensor, maximize: bool) -> bool:
    """Whether an earlier answer is one of `_one_matrix` to a problem of this shape and sense."""
    if "_answer" not in start.__dict__ or start.maximize != maximize or cost.ndim != 2:
        return False
    n, m = cost.shape
    return len(start._answer) == 2 * n + m + 3 and int(start._answer[-1:].view(np.int64)[0]) == n


def _matrix(cost: Any) -> Tensor:
    if isinstance(cost, Tensor):
        tensor = cost
    else:
        array = np.asarray(cost)
        if array.dtype.kind not in "fiu" or array.dtype.itemsize > 8 or array.dtype == np.uint64:
            array = array.astype(np.float64)
        wider = {"u2": np.int32, "u4": np.int64}.get(array.dtype.str[1:], array.dtype.newbyteorder("="))
        array = array.astype(wider, copy=False)
        readable = array.flags.writeable and min(array.strides, default=1) >= 0  # what torch can take without a copy
        tensor = torch.from_numpy(array if readable else array.copy())
    if tensor.dim() != 2:
        raise errors.InputError(
            "linear_sum_assignment takes one matrix",
            given=f"{tensor.dim()} dimensions",
            expected="a matrix (2-D array)",
            do="use linear_assignment for batches",
        )
    return tensor


def _checked(cost: object, index: int, many: bool) -> Tensor:
    name = f"linear_assignment: matrix {index} of the list" if many else "linear_assignment: cost"
    if not isinstance(cost, Tensor):
        raise errors.InputError(
            f"{name} is not a tensor", given=type(cost).__name__, expected="a torch.Tensor", do="use torch.as_tensor"
        )
    if cost.dim() not in (2, 3):
        raise errors.InputError(
            f"{name} has the wrong number of dimensions",
            given=f"shape {tuple(cost.shape)}",
            expected="(n, m) or (b, n, m)",
        )
    if cost.dtype in (torch.float16, torch.bfloat16):
        return cost.detach().to(torch.float32)
    if cost.dtype == torch.bool:
        return cost.to(torch.uint8)
    if cost.dtype not in dispatch.COSTS:
        raise errors.InputError(
            f"{name} has a dtype that is not supported",
            given=str(cost.dtype),
            expected="a float or integer dtype",
            do="convert it with .double()",
        )
    return cost.detach()


def _expect_one_device(costs: Sequence[Tensor]) -> None:
    devices = dict.fromkeys(cost.device for cost in costs)
    if len(devices) > 1:
        raise errors.InputError(
            "linear_assignment: the costs are on more than one device",
            given=", ".join(map(str, devices)),
            expected="one device for all matrices of a list",
            do="move them with .to(), or call once per device",
        )


def _start(start: Assignment | None, matrices: Sequence[Tensor], maximize: bool, many: bool) -> list[Tensor]:
    """Flatten an earlier answer to u, v, perm per matrix, after checking that it is for problems of these shapes."""
    if start is None:
        return []
    fields = [(f,) if isinstance(f, Tensor) else f for f in (start.row_duals, start.col_duals, start.perm)]
    given = [tuple(tuple(part.shape) for part in parts) for parts in zip(*fields, strict=True)]
    rows = [tuple(c.shape[:-1]) for c in matrices]
    expected = [(r, (*r[:-1], c.shape[-1]), r) for r, c in zip(rows, matrices, strict=True)]
    if given != expected or start.maximize != maximize or isinstance(start.perm, Tensor) == many:
        raise errors.InputError(
            "linear_assignment: start is the answer to another problem",
            given=f"maximize={start.maximize}, row_duals, col_duals and perm of shapes {given}",
            expected=f"maximize={maximize}, shapes {expected}",
            do="pass the answer for costs of the same shape, or none",
        )
    return [
        part.detach().to(cost.device, dtype).contiguous()
        for cost, parts in zip(matrices, zip(*fields, strict=True), strict=True)
        for part, dtype in zip(parts, (torch.float64, torch.float64, torch.int64), strict=True)
    ]


def _solve(costs: Sequence[Tensor], maximize: bool, start: Sequence[Tensor], backend: str) -> list[Tensor]:
    return _run(dispatch.implementation("linear_assignment", backend, costs), costs, maximize, start)


def _run(run: Callable[..., Any], costs: Sequence[Tensor], maximize: bool, start: Sequence[Tensor]) -> list[Tensor]:
    answers = run(costs, maximize, list(zip(start[::3], start[1::3], start[2::3], strict=True)))
    return [field for answer in answers for field in answer]


_operator = torch.library.custom_op("pyalign::linear_assignment", _solve, mutates_args=())


@_operator.register_fake
def _fake(costs: Sequence[Tensor], maximize: bool, start: Sequence[Tensor], backend: str) -> list[Tensor]:
    fields = []
    for cost in costs:
        *b, n, m = cost.shape
        fields += [cost.new_empty((*b, n), dtype=torch.int64)]
        fields += [cost.new_empty(shape, dtype=torch.float64) for shape in ((*b, n), (*b, m), b, b)]
    return fields
