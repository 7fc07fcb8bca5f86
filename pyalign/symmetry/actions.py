"""What group elements do to tensors: reorder and scale every bound axis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pyalign.symmetry.groups import AxisBinding
from pyalign.symmetry.transforms import ScaledPermutation

__all__ = ["act"]


def act(
    tensor: Tensor, bindings: Sequence[AxisBinding], elements: Mapping[str, ScaledPermutation], power: int = 1
) -> Tensor:
    """Apply group elements to one tensor through all its bindings.

    Axis by axis: `new[p'] = s ** (side * power) * old[p]` where p is the position of the unit that moves to p'.

    Args:
        tensor: The tensor, any dtype and device.
        bindings: The bindings of this tensor (several groups may share an axis).
        elements: Group elements by group name; groups that are missing stay as they are.
        power: What factors are raised to: 1 for weights, -1 for gradients, -2 for squared gradients, 2 for variances.

    Returns:
        A new tensor, or `tensor` itself when nothing moves.
    """
    axes = sorted({(b.blocks > 1, b.axis, b.blocks) for b in bindings if b.group in elements})
    for _, axis, blocks in axes:
        here = [b for b in bindings if b.axis == axis and b.blocks == blocks and b.group in elements]
        index, scale = axis_map(here, elements, blocks * tensor.shape[axis], power)
        if blocks > 1:
            tensor = _act_on_fibre(tensor, axis, blocks, index, scale)
            continue
        if index is not None:
            tensor = tensor.index_select(axis, index.to(tensor.device))
        if scale is not None:
            shape = [1] * tensor.dim()
            shape[axis] = -1
            tensor = tensor * scale.to(tensor.device, tensor.dtype).reshape(shape)
    return tensor


def axis_map(
    bindings: Sequence[AxisBinding], elements: Mapping[str, ScaledPermutation], length: int, power: int = 1
) -> tuple[Tensor | None, Tensor | None]:
    """Index map and factors of a whole axis, shapes (length,), None where trivial."""
    index, scale = torch.arange(length), None
    for b in bindings:
        element = elements[b.group]
        index[b.positions] = b.positions[element.perm]
        if element.scale is not None and b.side.power != 0:
            factors = element.scale ** (b.side.power * power)
            scale = torch.ones(length, dtype=torch.float64) if scale is None else scale
            scale[b.positions] = factors.unsqueeze(1).expand_as(b.positions)
    moved = not torch.equal(index, torch.arange(length))
    return (index if moved else None), (None if scale is None or bool((scale == 1).all()) else scale)


def _act_on_fibre(tensor: Tensor, axis: int, blocks: int, index: Tensor | None, scale: Tensor | None) -> Tensor:
    # Axis 0 has moved already, in whole blocks: each row now takes its entries from the block it came from.
    width, per_block = tensor.shape[axis], tensor.shape[0] // blocks
    block = torch.arange(tensor.shape[0]) // per_block
    whole = torch.arange(blocks * width) if index is None else index
    # Blocks move alike on both axes, so the entry lies in the row's own block (a wrong spec is caught by verify).
    local = whole.reshape(blocks, width)[block] % width
    shape = [1] * tensor.dim()
    shape[0], shape[axis] = tensor.shape[0], width
    tensor = tensor.take_along_dim(local.reshape(shape).to(tensor.device), axis)
    if scale is not None:
        tensor = tensor * scale.reshape(blocks, width)[block].reshape(shape).to(tensor.device, tensor.dtype)
    return tensor
