"""What a symmetry is made of: groups, the tensor axes they act on, and the sites where their units are seen."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property

import torch
from torch import Tensor

from pyalign.symmetry.kinds import Kind

__all__ = ["AxisBinding", "FixedAxis", "Flat", "Group", "Role", "Side", "Site", "Wreath"]


class Side(str, Enum):
    """How a factor `s` of a unit acts on the axis: the produced side is multiplied by s, the consumed one by 1/s."""

    COVARIANT = "covariant"
    CONTRAVARIANT = "contravariant"
    DIAGONAL = "diagonal"

    @property
    def power(self) -> int:
        """The exponent of the factor: +1, -1, or 0 for an axis that is only reordered."""
        return {"covariant": 1, "contravariant": -1, "diagonal": 0}[self.value]


class Role(str, Enum):
    """Whether a tensor counts when weights are matched, or is only moved along (statistics, masks)."""

    MATCHED = "matched"
    TRANSFORMED = "transformed"


@dataclass(frozen=True)
class Flat:
    """Any two units may change places."""


@dataclass(frozen=True)
class Wreath:
    """Units sit in equal blocks: the blocks are moved by the group `outer`, units only within their block.

    Args:
        outer: Name of the group of the blocks; it has `blocks` units.
        blocks: Number of blocks; unit i is in block i // (size // blocks).
    """

    outer: str
    blocks: int


@dataclass(frozen=True)
class Group:
    """A set of interchangeable units.

    Args:
        name: Unique name, after the tensor that produces the units.
        size: Number of units.
        kind: Largest class of transforms that keeps the function.
        structure: `Flat`, or `Wreath` where units only move within blocks.
        reason: What stands in the way of a larger class.
    """

    name: str
    size: int
    kind: Kind = Kind.PERMUTATION
    structure: Flat | Wreath = field(default_factory=Flat)
    reason: str = ""


@dataclass(frozen=True, eq=False)
class AxisBinding:
    """One group on one axis of one tensor.

    Args:
        tensor: Name in the state dict.
        axis: The axis, counted from 0.
        group: Name of the group.
        side: Whether the axis produces the units, consumes them, or is multiplied elementwise.
        role: Whether the tensor counts in weight matching.
        positions: Shape (units, r), int64: unit s sits at `positions[s, :]`. r > 1 where a unit owns several
            entries (flatten after a convolution, fused gates); further groups may own the rest of the axis.
        blocks: 1, or the number K of groups of a grouped convolution whose axis is only a fibre: entry c of
            the k-th block of rows (axis 0) is position k * shape[axis] + c.
        placed: The number of blocks, where other groups on the same positions move these (or runs of all units alike)
            and this one then acts on the units within each; 0 where it moves its units itself.
    """

    tensor: str
    axis: int
    group: str
    side: Side
    role: Role
    positions: Tensor
    blocks: int = 1
    placed: int = 0

    def unfold(self, tensor: Tensor) -> Tensor:
        """The slices of `tensor` that belong to each unit, shape (units, features), features in a fixed order.

        `A.unfold(w_a) @ A.unfold(w_b).T` is this binding's similarity between the units of two models.
        """
        units, runs = self.positions.shape
        rows = self.rows(tensor)
        return rows.reshape(units, runs * rows.shape[1])

    def totals(self, tensor: Tensor) -> Tensor:
        """The sum of all entries of `tensor` that belong to each unit, shape (units,)."""
        if self.blocks > 1:
            return self.unfold(tensor).sum(1)
        others = [d for d in range(tensor.dim()) if d != self.axis]
        along = tensor.sum(others) if others else tensor
        return along[self.positions.to(tensor.device)].sum(1)

    @cached_property
    def _first(self) -> int:
        """How many entries it has, if they are the first of an axis and in order, else -1."""
        here = self.positions.reshape(-1)
        return len(here) if self.blocks == 1 and torch.equal(here, torch.arange(len(here))) else -1

    def rows(self, tensor: Tensor) -> Tensor:
        """The entries of the axis that belong to the group, unit after unit, shape (units * runs, features)."""
        if self._first == tensor.shape[self.axis]:
            return fibre(tensor, self.axis, self.blocks)
        here = self.positions.to(tensor.device).reshape(-1)
        if self.blocks > 1:
            return fibre(tensor, self.axis, self.blocks)[here]
        # Selected before anything is laid out anew: many groups may share a large tensor.
        return fibre(tensor.index_select(self.axis, here), self.axis, 1)


def fibre(tensor: Tensor, axis: int, blocks: int) -> Tensor:
    """The axis first and everything else flattened, shape (positions, features); see `AxisBinding.blocks`."""
    if blocks == 1:
        return tensor.movedim(axis, 0).reshape(tensor.shape[axis], -1)
    split = tensor.movedim(axis, 1).reshape(blocks, tensor.shape[0] // blocks, tensor.shape[axis], -1)
    return split.transpose(1, 2).reshape(blocks * tensor.shape[axis], -1)


@dataclass(frozen=True, eq=False)
class Site:
    """A place in the computation where the activations of a group can be seen.

    It is the output of the `index`-th operator `op` inside the `call`-th call of `module`; the first input of that
    operator has the same layout and shows the units before the nonlinearity.

    Args:
        group: Name of the group.
        module: Qualified name of the innermost running module ("" is the model itself).
        call: How many calls of that module came before, in this forward pass.
        op: Name of the operator, such as `aten.relu.default`.
        index: How many calls of that operator came before, within that call of the module.
        axis: The axis that carries the group.
        width: Length of that axis.
        positions: Shape (units, r), int64: where on the axis each unit sits.
        nonlinear: Whether the operator is a nonlinearity; before and after differ only there.
        crossed: Whether another axis carries units of other groups (channels beside the hidden units of an MLP over
            tokens): the samples of two models correspond only once these are in one order.
        acts: Whether the group's signs and scales, where it has any, act on what is seen (not behind a norm or gate).
    """

    group: str
    module: str
    call: int
    op: str
    index: int
    axis: int
    width: int
    positions: Tensor
    nonlinear: bool = True
    crossed: bool = False
    acts: bool = True

    @property
    def key(self) -> tuple[str, int, str, int]:
        """What identifies the operator in a forward pass."""
        return (self.module, self.call, self.op, self.index)

    @property
    def whole(self) -> bool:
        """Whether the group's units are the axis, in order."""
        return torch.equal(self.positions, torch.arange(self.width).unsqueeze(1))


@dataclass(frozen=True)
class FixedAxis:
    """A tensor axis that was left alone, and why."""

    tensor: str
    axis: int
    reason: str
