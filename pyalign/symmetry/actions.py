"""What group elements do to tensors: move whole units on every bound axis, then what is within them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pyalign.errors import InputError
from pyalign.symmetry.groups import AxisBinding, Side
from pyalign.symmetry.linear import BlockLinear
from pyalign.symmetry.transforms import ScaledPermutation, Transform

__all__ = ["act"]


def act(tensor: Tensor, bindings: Sequence[AxisBinding], elements: Mapping[str, Transform], power: int = 1) -> Tensor:
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
    mixing = [b for b in bindings if isinstance(elements.get(b.group), BlockLinear)]
    moving = [b for b in bindings if isinstance(elements.get(b.group), ScaledPermutation)]
    given = tensor
    for placed in (False, True):
        tensor = _reordered(tensor, [b for b in moving if bool(b.placed) is placed], elements, power, given)
    for b in mixing:
        tensor = _mixed(tensor, b, elements[b.group], power)
    return tensor


def _reordered(
    tensor: Tensor, bindings: Sequence[AxisBinding], elements: Mapping[str, Transform], power: int, given: Tensor
) -> Tensor:
    """The tensor after the reorderings of all its axes; `given` is not written to."""
    axes = sorted({(b.blocks > 1, b.axis, b.blocks) for b in bindings})
    for _, axis, blocks in axes:
        here = [b for b in bindings if b.axis == axis and b.blocks == blocks]
        index, scale = axis_map(here, elements, blocks * tensor.shape[axis], power)
        if blocks > 1:
            tensor = _act_on_fibre(tensor, axis, blocks, index, scale)
            continue
        if index is not None:
            tensor = tensor.index_select(axis, index.to(tensor.device))
        if scale is not None:
            shape = [1] * tensor.dim()
            shape[axis] = -1
            factors = scale.to(tensor.device, tensor.dtype).reshape(shape)
            tensor = tensor * factors if tensor is given else tensor.mul_(factors)
    return tensor


def axis_map(
    bindings: Sequence[AxisBinding], elements: Mapping[str, Transform], length: int, power: int = 1
) -> tuple[Tensor | None, Tensor | None]:
    """Index map and factors of a whole axis, shapes (length,), None where trivial."""
    index, scale = torch.arange(length), None
    for b in bindings:
        element = elements[b.group]
        assert isinstance(element, ScaledPermutation)
        index[b.positions] = b.positions[_inside(element.perm, b.placed) if b.placed else element.perm]
        if element.scale is not None and b.side.power != 0:
            factors = element.scale ** (b.side.power * power)
            scale = torch.ones(length, dtype=torch.float64) if scale is None else scale
            scale[b.positions] = factors.unsqueeze(1).expand_as(b.positions)
    moved = not torch.equal(index, torch.arange(length))
    return (index if moved else None), (None if scale is None or bool((scale == 1).all()) else scale)


def _inside(perm: Tensor, blocks: int) -> Tensor:
    """The part of a permutation of units in blocks that is left when the blocks are in their places already."""
    split = perm.reshape(blocks, -1)
    inner = split.shape[1]
    return (split % inner + inner * torch.arange(blocks).unsqueeze(1)).reshape(-1)


def _mixed(tensor: Tensor, binding: AxisBinding, element: Transform, power: int) -> Tensor:
    """The units of one binding multiplied by the matrices of their blocks, other entries as they are."""
    assert isinstance(element, BlockLinear)
    if abs(power) != 1:
        raise InputError(
            f"squares of {binding.tensor!r} do not move with an element that mixes units",
            given=f"{element.kind}",
            expected="permutations, signs or scales",
            do="restrict the spec: spec.within(Kind.SIGNED), and align again; or begin with a fresh optimiser",
        )
    units, runs = binding.positions.shape
    here = binding.positions.reshape(-1).to(tensor.device)
    moved = tensor.movedim(binding.axis, 0)
    rows = moved[here].reshape(units, runs * moved[:1].numel())
    sign = -power if binding.side is Side.CONTRAVARIANT else power
    acted = element.act(rows, sign, bool(binding.placed)).reshape(len(here), *moved.shape[1:])
    return moved.index_copy(0, here, acted).movedim(0, binding.axis)


def _act_on_fibre(tensor: Tensor, axis: int, blocks: int, index: Tensor | None, scale: Tensor | None) -> Tensor:
    # Axis 0 has moved already, in whole blocks: each row now takes its entries from the block it came from.
    length, width = tensor.shape[0], tensor.shape[axis]
    block = torch.arange(length) // (length // blocks)
    whole = torch.arange(blocks * width) if index is None else index
    # Blocks move alike on both axes, so the entry lies in the row's own block (a wrong spec is caught by verify).
    local = whole.reshape(blocks, width)[block] % width
    entries = (torch.arange(length).unsqueeze(1) * width + local).reshape(-1)
    rows = tensor.movedim(axis, 1)
    taken = rows.reshape(length * width, -1).index_select(0, entries.to(tensor.device)).reshape(rows.shape)
    if scale is not None:
        factors = scale.reshape(blocks, width)[block].reshape(length, width, *[1] * (tensor.dim() - 2))
        taken.mul_(factors.to(tensor.device, tensor.dtype))
    return taken.movedim(1, axis)
