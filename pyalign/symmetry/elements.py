"""Elements of one group, whatever its class: the identity, a random one, one that only follows its blocks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from pyalign.symmetry.groups import Group, Wreath
from pyalign.symmetry.kinds import Kind
from pyalign.symmetry.linear import BlockLinear
from pyalign.symmetry.transforms import ScaledPermutation, Transform, random_scale

if TYPE_CHECKING:
    from pyalign.symmetry.spec import SymmetrySpec

__all__ = ["as_matrices", "completed", "composed", "following", "random_element", "reordered"]


def composed(last: Transform, first: Transform) -> Transform:
    """The element of one group that acts as `first` and then as `last`."""
    if isinstance(last, BlockLinear):
        assert isinstance(first, BlockLinear)
        return last @ first
    assert isinstance(first, ScaledPermutation)
    return last @ first


def following(group: Group, elements: Mapping[str, Transform]) -> Transform:
    """The element that leaves units in place, or in their place within the blocks that the outer group moves."""
    blocks, perm = _blocks(group, elements)
    if group.kind.mixes:
        return BlockLinear.identity(blocks, group.size // blocks, group.kind, perm)
    inner = group.size // blocks
    return ScaledPermutation((perm.unsqueeze(1) * inner + torch.arange(inner)).reshape(-1))


def random_element(
    group: Group, elements: Mapping[str, Transform], kind: Kind, generator: torch.Generator
) -> Transform:
    """A random element of `group` that follows the blocks of its outer group, of the class `kind`."""
    blocks, perm = _blocks(group, elements)
    if kind.mixes:
        return BlockLinear.random(blocks, group.size // blocks, kind, generator=generator, perm=perm)
    if not isinstance(group.structure, Wreath):
        element = ScaledPermutation.random(group.size, kind, generator=generator)
    else:
        inner = group.size // blocks
        within = torch.stack([torch.randperm(inner, generator=generator) for _ in range(blocks)])
        if kind is Kind.IDENTITY:
            within = torch.arange(inner).expand(blocks, inner)
        order = (perm.unsqueeze(1) * inner + within).reshape(-1)
        element = ScaledPermutation(order, random_scale(group.size, kind, generator))
    return as_matrices(element, group, perm) if group.kind.mixes else element


def as_matrices(element: ScaledPermutation, group: Group, perm: torch.Tensor) -> BlockLinear:
    """A reordering written as matrices within the blocks that `perm` puts in place."""
    blocks = len(perm)
    inner = group.size // blocks
    matrices = torch.zeros(blocks, inner, inner, dtype=torch.float64)
    scale = torch.ones(group.size, dtype=torch.float64) if element.scale is None else element.scale
    slots = torch.arange(group.size)
    matrices[slots // inner, slots % inner, element.perm % inner] = scale
    return BlockLinear(matrices, group.kind, perm)


def reordered(spec: SymmetrySpec) -> list[Group]:
    """The groups that a method which only reorders units can match, those of blocks first."""
    return [replace(g, kind=g.kind & Kind.SCALED) for g in spec.outer_first()]


def completed(spec: SymmetrySpec, elements: Mapping[str, ScaledPermutation]) -> dict[str, Transform]:
    """An element for every group of `spec` from those of its `reordered` groups: nothing is mixed."""
    found: dict[str, Transform] = {}
    for group in spec.outer_first():
        element = elements.get(group.name)
        if element is None:
            found[group.name] = following(group, found)
        else:
            found[group.name] = as_matrices(element, group, *_blocks(group, found)[1:]) if group.kind.mixes else element
    return {name: found[name] for name in spec.groups}


def _blocks(group: Group, elements: Mapping[str, Transform]) -> tuple[int, torch.Tensor]:
    """How many blocks the group has, and which of them comes to each place."""
    if not isinstance(group.structure, Wreath):
        return 1, torch.zeros(1, dtype=torch.int64)
    outer = elements[group.structure.outer]
    assert isinstance(outer, ScaledPermutation)
    return group.structure.blocks, outer.perm
