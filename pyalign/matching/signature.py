"""A starting point for weight matching: units compared by what no other group can change, the sorted weights."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pyalign.matching.assign import Evidence, assign_groups
from pyalign.matching.objective import Objective
from pyalign.symmetry import AxisBinding, ScaledPermutation, SymmetrySpec

__all__ = ["signature_start"]


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
        pairs = [
            [_signature(objective.spec, term.binding, state[term.binding.tensor]) for state in (objective.a, objective.b)]
            for term in terms
        ]
        one, two = (torch.cat(side, 1) for side in zip(*pairs, strict=True)) if pairs else (None, None)
        if one is not None and two is not None:
            fixed = one @ two.T if fixed is None else torch.addmm(fixed, one, two.T)
        if fixed is not None:
            evidence[group] = Evidence(fixed.cpu())
    # signs do not show in sorted absolute weights; the descent that follows finds them
    return assign_groups(objective.spec.outer_first(), evidence, signs=False, backend=backend).elements


def _signature(spec: SymmetrySpec, binding: AxisBinding, tensor: Tensor) -> Tensor:
    """Slices of the units, sorted along all axes that any group moves, shape (units, features), float32 or float64."""
    bindings = spec.on(binding.tensor)
    moved = {b.axis for b in bindings}
    tensor = tensor.detach()
    here = binding.positions.reshape(-1).to(tensor.device)
    others = [axis for axis in range(tensor.dim()) if axis != binding.axis]
    if binding.blocks > 1:
        # the units of row block k are apart from those of block l: axis 0 becomes (block, row within it)
        tensor = tensor.reshape(binding.blocks, -1, *tensor.shape[1:]).movedim(binding.axis + 1, 1).flatten(0, 1)
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
    tensor = tensor.permute(0, *keep, *sort)
    if sort:
        tensor = _sorted(tensor.flatten(1 + len(keep)))
    return tensor.reshape(len(binding.positions), -1)


def _sorted(tensor: Tensor) -> Tensor:
    """Sort along the last axis; NumPy, which gives no indices, takes a tenth of the time of torch."""
    return torch.from_numpy(np.sort(tensor.numpy(), axis=-1)) if tensor.device.type == "cpu" else tensor.sort(-1).values
