"""Linear assignment on a GPU: costs as the kernels take them, one launch for a whole list, outcomes as errors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module

import torch
from torch import Tensor

from pyalign import errors
from pyalign.engine import cuda, outcomes
from pyalign.engine.cpu import export

__all__ = ["linear_assignment", "solve"]

Answer = tuple[Tensor, ...]
Start = Sequence[tuple[Tensor, Tensor, Tensor]]
Queue = Callable[[list[Tensor], bool, list[bool], list[object], list[list[object]], Tensor], None]
"""Given costs, sense, which ones are transposed, starts, answers and status, writes answers and status."""

FEWER = "solve fewer or smaller problems in one call, or move the costs to the CPU"


def linear_assignment(costs: Sequence[Tensor], maximize: bool, start: Start) -> list[Answer]:
    """Solve every matrix or (b, n, m) batch on the device of the costs, on its current stream."""
    return solve(costs, maximize, start, _on_gpu)


def solve(costs: Sequence[Tensor], maximize: bool, start: Start, queue: Queue) -> list[Answer]:
    """Solve with `queue`: the kernels, or the same algorithm played on the CPU.

    Args:
        costs: (n, m) or (b, n, m) each, on one device.
        maximize: Find the greatest totals instead.
        start: Earlier row duals, column duals and permutations, or none.
        queue: What solves.

    Raises:
        NonFiniteError: A cost is NaN, or an infinity that is not a forbidden pair.
        InfeasibleError: No complete assignment avoids the forbidden pairs.
        WorkspaceError: The answers, a copy of the costs or the workspace do not fit into the device's memory.
    """
    device = costs[0].device
    try:
        exchanged = [cost.shape[-2] > cost.shape[-1] for cost in costs]
        taken = [_as_taken(cost, turn) for cost, turn in zip(costs, exchanged, strict=True)]
        answers = [_empty_answer(cost) for cost in costs]
        problems = [cost.shape[0] if cost.dim() == 3 else 1 for cost in costs]
        status = torch.empty((sum(problems), 3), dtype=torch.int32, device=device)
    except torch.OutOfMemoryError as failure:
        raise _no_room(costs, device) from failure
    # With columns or rows to spare, a cold start is hardly more than the one read of the costs.
    earlier: list[object] = [None] * len(costs)
    for k, (_, columns, perm) in enumerate(start):
        if costs[k].shape[-2] == costs[k].shape[-1]:
            earlier[k] = [export(columns), export(perm)]
    if sum(problems):
        queue(taken, maximize, exchanged, earlier, [[export(field) for field in answer] for answer in answers], status)
        _raise_first(status, problems, costs, maximize)
    return answers


def _on_gpu(
    costs: list[Tensor],
    maximize: bool,
    exchanged: list[bool],
    start: list[object],
    answers: list[list[object]],
    status: Tensor,
) -> None:
    module = import_module("pyalign._cuda")
    device = status.device
    index = device.index or 0
    shapes = [(cost.shape[0] if cost.dim() == 3 else 1, cost.shape[-2], cost.shape[-1]) for cost in costs]
    size = module.linear_assignment_bytes(shapes, "any", index)
    workspace = cuda.workspace("linear_assignment", size, device, FEWER)
    module.linear_assignment(
        [export(cost) for cost in costs],
        maximize,
        exchanged,
        start,
        answers,
        export(status),
        "any",
        export(workspace),
        index,
        cuda.stream(device),
    )


def _as_taken(cost: Tensor, turn: bool) -> Tensor:
    """Float32 or float64, no more rows than columns, contiguous rows, at an address that the dtype may have."""
    if cost.dtype in (torch.int8, torch.uint8, torch.int16):
        cost = cost.to(torch.float32)
    elif not cost.dtype.is_floating_point:
        cost = cost.to(torch.float64)
    if turn:
        cost = cost.mT
    if cost.is_neg():
        cost = cost.resolve_neg()
    if cost.stride(-1) != 1 and cost.shape[-1] > 1:
        cost = cost.contiguous()
    return cost.clone() if cost.data_ptr() % cost.element_size() else cost


def _empty_answer(cost: Tensor) -> Answer:
    *b, n, m = cost.shape
    shapes = ((*b, n), (*b, n), (*b, m), b, b)
    dtypes = (torch.int64, *(torch.float64,) * 4)
    return tuple(torch.empty(s, dtype=d, device=cost.device) for s, d in zip(shapes, dtypes, strict=True))


def _no_room(costs: Sequence[Tensor], device: torch.device) -> errors.WorkspaceError:
    copied = sum(cost.numel() * cost.element_size() for cost in costs) / 2**20
    return errors.WorkspaceError(
        f"linear_assignment does not fit into the memory of {device}",
        given=f"costs of {copied:.1f} MiB, of which those with more rows than columns, without contiguous rows or of "
        "integers are copied",
        expected="room for those copies and for the answers",
        do=FEWER,
    )


def _raise_first(status: Tensor, problems: Sequence[int], costs: Sequence[Tensor], maximize: bool) -> None:
    """Wait for the device, and raise for the first problem of the list that has no answer, if any."""
    found = status.cpu()
    failed = found[:, 0].nonzero()
    if not len(failed):
        return
    at = int(failed[0])
    code, row, column = found[at].tolist()
    index = 0
    while at >= problems[index]:
        at, index = at - problems[index], index + 1
    raise outcomes.assignment_error(
        code, index, at, row, column, cost=costs[index], maximize=maximize, many=len(costs) > 1
    )
