"""Units compared by what no other group can change: their weights, sorted along the axes that other groups permute."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool1d

from pyalign.matching.layout import Term
from pyalign.matching.objective import Objective
from pyalign.symmetry import AxisBinding, Group, SymmetrySpec

__all__ = ["signature_similarity"]

BINS = 16  # values that a longer run of sorted weights is summarised by


def signature_similarity(objective: Objective, group: Group, terms: Sequence[Term]) -> Tensor | None:
    """How alike the units of a group are by signatures that do not depend on the order of any other group's units.

    The signature of a unit is its slice of a tensor, sorted along the axes that other groups permute.

    Args:
        objective: The tensors of both models and the symmetry.
        group: The group.
        terms: Those of its terms that are compared.

    Returns:
        Shape (n, n), float32 or float64, where the weights are, or None without terms.
    """
    total: Tensor | None = None
    for term in terms:
        name = term.binding.tensor
        rows = [_signature(objective.spec, term.binding, state[name]) for state in (objective.a, objective.b)]
        # What all units have in common decides nothing, but would make the assignment a long one.
        one, two = (side - side.mean(0) for side in rows)
        total = one @ two.T if total is None else total.addmm_(one.to(total), two.to(total).T)
    return total


def _signature(spec: SymmetrySpec, binding: AxisBinding, tensor: Tensor) -> Tensor:
    """Slices of the units, sorted along all axes that any group moves.

    Args:
        spec: The symmetry.
        binding: The binding whose units are told apart.
        tensor: Its tensor.

    Returns:
        Shape (units, features), float32 or float64.
    """
    bindings = spec.on(binding.tensor)
    moved = {b.axis for b in bindings}
    here = binding.positions.reshape(-1).to(tensor.device)
    others = [axis for axis in range(tensor.dim()) if axis != binding.axis]
    if binding.blocks > 1:
        # the units of row block k are apart from those of block l: axis 0 becomes (block, row within it)
        tensor = tensor.unflatten(0, (binding.blocks, -1)).movedim(binding.axis + 1, 1).flatten(0, 1)
        tensor = tensor.index_select(0, here)
    else:
        whole = torch.equal(here, torch.arange(tensor.shape[binding.axis], device=here.device))
        tensor = (tensor if whole else tensor.index_select(binding.axis, here)).movedim(binding.axis, 0)
    if tensor.dtype not in (torch.float32, torch.float64):
        tensor = tensor.float()
    if any(spec.groups[b.group].kind.signs for b in bindings):
        tensor = tensor.abs()
    sort = [at + 1 for at, axis in enumerate(others) if axis in moved]
    keep = [at + 1 for at, axis in enumerate(others) if axis not in moved]
    if sort:
        tensor = _binned(_sorted(tensor.permute(0, *keep, *sort).flatten(1 + len(keep))))
    return tensor.reshape(len(binding.positions), -1)


def _binned(tensor: Tensor) -> Tensor:
    """Sorted values, neighbours of which differ little, in so many means that weigh as much as they did."""
    length = tensor.shape[-1]
    return tensor if length < 2 * BINS else tensor @ _bins(length).to(tensor)


@lru_cache(maxsize=64)
def _bins(length: int) -> Tensor:
    """What sorted values are multiplied by, shape (length, BINS), float64."""
    means: Tensor = adaptive_avg_pool1d(torch.eye(length, dtype=torch.float64).unsqueeze(0), BINS)[0]
    return means.mul_((length / BINS) ** 0.5)


def _sorted(tensor: Tensor) -> Tensor:
    """Sort along the last axis; NumPy, which gives no indices, takes a tenth of the time of torch."""
    if tensor.device.type != "cpu":
        return tensor.sort(-1).values
    array = np.array(tensor.numpy(), order="C")
    array.sort(axis=-1)
    return torch.from_numpy(array)
