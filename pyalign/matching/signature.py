"""A starting point for weight matching: units compared by what no other group can change, the sorted weights."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool1d

from pyalign.matching.assign import Evidence, assign_groups
from pyalign.matching.objective import Objective
from pyalign.symmetry import AxisBinding, ScaledPermutation, SymmetrySpec

__all__ = ["signature_start"]

BINS = 16  # values that a longer run of sorted weights is summarised by


def signature_start(objective: Objective, backend: str = "auto") -> dict[str, ScaledPermutation]:
    """Match units by signatures that do not depend on the order of any other group's units.

    The signature of a unit is its slice of every tensor, sorted along the axes that other groups permute. For a
    permuted copy equal units have equal signatures, so this alone finds the permutation, where coordinate descent from
    the identity can end in a local optimum; for independently trained networks it is a start like another.

    Args:
        objective: The tensors of both models and the symmetry.
        backend: Implementation of `pyalign.engine.linear_assignment`.

    Returns:
        An element for every group.
    """
    evidence: dict[str, Evidence] = {}
    for group, terms in objective.terms.items():
        fixed = objective.constant(group)
        if fixed is not None:
            terms = [term for term in terms if term.depends or not term.kept]
        if terms:
            names = [term.binding.tensor for term in terms]
            both = [torch.stack((objective.a[name], objective.b[name])) for name in names]
            signatures = [_signature(objective.spec, t.binding, x) for t, x in zip(terms, both, strict=True)]
            joined = torch.cat(signatures, 2)
            # What all units have in common decides nothing, but would make the assignment a long one.
            one, two = joined - joined.mean(1, keepdim=True)
            fixed = one @ two.T if fixed is None else torch.addmm(fixed, one, two.T)
        if fixed is not None:
            evidence[group] = Evidence(fixed.cpu())
    # signs do not show in sorted absolute weights; the descent that follows finds them
    return assign_groups(objective.spec.outer_first(), evidence, signs=False, backend=backend).elements


def _signature(spec: SymmetrySpec, binding: AxisBinding, tensor: Tensor) -> Tensor:
    """Slices of the units of several models, sorted along all axes that any group moves.

    Args:
        spec: The symmetry.
        binding: The binding whose units are told apart.
        tensor: Its tensor in all models, the models first.

    Returns:
        Shape (models, units, features), float32 or float64.
    """
    bindings = spec.on(binding.tensor)
    moved = {b.axis for b in bindings}
    here = binding.positions.reshape(-1).to(tensor.device)
    others = [axis for axis in range(tensor.dim() - 1) if axis != binding.axis]
    if binding.blocks > 1:
        # the units of row block k are apart from those of block l: axis 0 becomes (block, row within it)
        tensor = tensor.unflatten(1, (binding.blocks, -1)).movedim(binding.axis + 2, 2).flatten(1, 2)
        tensor = tensor.index_select(1, here)
    else:
        whole = torch.equal(here, torch.arange(tensor.shape[binding.axis + 1], device=here.device))
        tensor = (tensor if whole else tensor.index_select(binding.axis + 1, here)).movedim(binding.axis + 1, 1)
    if tensor.dtype not in (torch.float32, torch.float64):
        tensor = tensor.float()
    if any(spec.groups[b.group].kind.signs for b in bindings):
        tensor = tensor.abs()
    sort = [at + 2 for at, axis in enumerate(others) if axis in moved]
    keep = [at + 2 for at, axis in enumerate(others) if axis not in moved]
    tensor = tensor.permute(0, 1, *keep, *sort)
    if sort:
        tensor = _binned(_sorted(tensor.flatten(2 + len(keep))))
    return tensor.reshape(len(tensor), len(binding.positions), -1)


def _binned(tensor: Tensor) -> Tensor:
    """Sorted values, neighbours of which differ little, in so many means that weigh as much as they did."""
    length = tensor.shape[-1]
    if length < 2 * BINS:
        return tensor
    means = adaptive_avg_pool1d(tensor.reshape(-1, 1, length), BINS)
    return means.mul_((length / BINS) ** 0.5).reshape(*tensor.shape[:-1], BINS)


def _sorted(tensor: Tensor) -> Tensor:
    """Sort along the last axis; NumPy, which gives no indices, takes a tenth of the time of torch."""
    if tensor.device.type != "cpu":
        return tensor.sort(-1).values
    array = np.array(tensor.numpy(), order="C")
    array.sort(axis=-1)
    return torch.from_numpy(array)
