"""What is learnt of each group: a latent, and the group element it stands for (Theus et al. 2025, algorithm 1).

Every latent begins where it stands for the identity; what it comes to stand for acts after the alignment that the
search began with.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pyalign.matching.projectors import best_order, placed, polar, sinkhorn
from pyalign.symmetry import BlockLinear, Group, Kind, ScaledPermutation, SymmetrySpec, Transform, Wreath
from pyalign.symmetry.elements import following
from pyalign.symmetry.linear import from_pairs

__all__ = ["Latent", "Projection", "latents_of"]


@dataclass(frozen=True)
class Projection:
    """How latents of reorderings become elements.

    Args:
        soft: Doubly stochastic matrices while learning, and the nearest permutation at the end; else permutations all
            the time, with the gradient straight through.
        temperature: Of the doubly stochastic matrices.
        lead: What entries of the latent that stand for the start are ahead of all others.
    """

    soft: bool = False
    temperature: float = 1.0
    lead: float = 1.0


class Latent:
    """One group that stays where it is, and the part that all groups share.

    Args:
        group: The group.
        outer: What is learnt of the group that moves its blocks, None for a flat group.
    """

    def __init__(self, group: Group, outer: Latent | None) -> None:
        self.group, self.outer = group, outer
        self.blocks = group.structure.blocks if isinstance(group.structure, Wreath) else 1
        self.inner = group.size // self.blocks
        self.parameters: dict[str, Tensor] = {}

    def refresh(self, hard: bool) -> None:
        """Project the latent anew, once before the tensors of a step; `hard`: onto an element of the group."""

    def act(self, rows: Tensor, power: int, arrived: bool = False) -> Tensor:
        """Act on units laid out along axis 0, shape (size, f), as the group's element does.

        Args:
            rows: One row a unit.
            power: +1 on an axis that produces the units, -1 on one that consumes them, 0 where it only reorders.
            arrived: The blocks are where they belong already.
        """
        split = self.within(rows.reshape(self.blocks, self.inner, -1), power, arrived)
        if self.outer is not None and not arrived:
            split = self.outer.act(split.reshape(self.blocks, -1), 0)
        return split.reshape(rows.shape)

    def within(self, split: Tensor, power: int, arrived: bool) -> Tensor:
        """Act on the units of every block, shape (blocks, inner, f)."""
        return split

    def element(self, elements: Mapping[str, Transform]) -> Transform:
        """The element that the latent stands for, given those of the outer groups."""
        return following(self.group, elements)

    def order(self) -> Tensor:
        """Which block comes to each place, shape (blocks,), as of the latest projection."""
        if self.outer is None:
            return torch.zeros(1, dtype=torch.int64)
        return self.outer.element_order()

    def mixture(self) -> Tensor | None:
        """The doubly stochastic matrix by which units change places while a flat group is learnt, (size, size)."""
        return None

    def arrived(self, parts: Tensor) -> Tensor:
        """What belongs to the blocks that came to each place, of `parts` with one entry for each block."""
        blended = None if self.outer is None else self.outer.mixture()
        if blended is None:
            return parts[self.order().to(parts.device)]
        return torch.as_tensor(torch.tensordot(blended, parts, 1))

    def element_order(self) -> Tensor:
        """Which unit comes to each place, shape (size,), as of the latest projection."""
        inner = torch.arange(self.inner)
        return (self.order().unsqueeze(1) * self.inner + inner).reshape(-1)


class Order(Latent):
    """Permutations within the blocks, by linear assignment with the gradient straight through or by Sinkhorn.

    Signs come with the entries of the latent where they are free; positive factors are the exponentials of a latent
    of their own, one for each unit before it is moved.
    """

    def __init__(self, group: Group, outer: Latent | None, like: Tensor, projection: Projection) -> None:
        super().__init__(group, outer)
        k, d = self.blocks, self.inner
        self.projection = projection
        self.signs = group.kind.signs and not projection.soft
        # At this start the soft matrices keep 99 % on the diagonal.
        lead = projection.temperature * math.log(99.0 * max(d, 1)) if projection.soft else projection.lead
        self.latent = (lead * torch.eye(d).to(like)).repeat(k, 1, 1).requires_grad_()
        self.parameters["order"] = self.latent
        if group.kind.scales:
            self.parameters["factor"] = torch.zeros(k, d, 1).to(like).requires_grad_()
        self.perm = torch.arange(d).repeat(k, 1).to(like.device)
        self.sign: Tensor | None = None
        self.matrix: Tensor | None = None

    def refresh(self, hard: bool) -> None:
        self.matrix = None
        if self.projection.soft and not hard:
            self.matrix = sinkhorn(self.latent, self.projection.temperature)
        else:
            self.perm, self.sign = best_order(self.latent, self.perm, self.signs)

    def within(self, split: Tensor, power: int, arrived: bool) -> Tensor:
        factor = self.parameters.get("factor")
        if factor is not None and power:
            split = split * torch.exp(power * (self.arrived(factor) if arrived else factor))
        if self.matrix is not None:
            return (self.arrived(self.matrix) if arrived else self.matrix) @ split
        here = self.order().to(self.latent.device) if arrived else slice(None)
        sign = None if self.sign is None else self.sign[here]
        return placed(split, self.latent[here], self.perm[here], sign, odd=power != 0)

    def mixture(self) -> Tensor | None:
        return self.matrix[0] if self.matrix is not None and self.blocks == 1 else None

    def element(self, elements: Mapping[str, Transform]) -> ScaledPermutation:
        with torch.no_grad():
            self.refresh(hard=True)
        scale = None if self.sign is None else self.sign.double().cpu()
        if "factor" in self.parameters:
            factor = self.parameters["factor"].detach().double().exp().cpu().squeeze(-1)
            moved = factor.take_along_dim(self.perm.cpu(), 1)
            scale = moved if scale is None else scale * moved
        order = self.order()
        flat = None if scale is None else scale[order].reshape(-1)
        return ScaledPermutation(self.element_order(), None if flat is None or bool((flat == 1).all()) else flat)

    def element_order(self) -> Tensor:
        order = self.order()
        return (order.unsqueeze(1) * self.inner + self.perm.cpu()[order]).reshape(-1)


class Matrices(Latent):
    """A matrix for each block of units: it goes with the block, wherever the outer group moves it."""

    def __init__(self, group: Group, outer: Latent | None, like: Tensor) -> None:
        super().__init__(group, outer)
        k, d = self.blocks, self.inner
        if group.kind.paired:
            first = torch.zeros(k, d // 2, 2)
        elif group.kind.isometric:
            first = torch.eye(d).repeat(k, 1, 1)
        else:
            first = torch.zeros(k, d, d)
        self.latent = first.to(like).requires_grad_()
        self.parameters["matrix"] = self.latent
        self.produced = self.consumed = torch.eye(d).to(like)

    def refresh(self, hard: bool) -> None:
        self.produced, self.consumed = self.matrices(self.latent)

    def matrices(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """The matrices of axes that produce the units, and their inverse transposes, shape (k, d, d)."""
        if self.group.kind.paired:
            size, angle = latent.unbind(-1)
            size = size if self.group.kind is Kind.ROTATION else torch.zeros_like(size)
            # The inverse transpose turns by the same angle and divides by the size.
            one, two = (torch.polar(torch.exp(s), angle) for s in (size, -size))
            return from_pairs(one).to(latent.dtype), from_pairs(two).to(latent.dtype)
        if self.group.kind.isometric:
            turned = polar(_centred(latent) if self.group.kind is Kind.CENTRED else latent)
            return turned, turned
        # exp(X) is invertible for every X, and its inverse transpose is exp(-X^T).
        return torch.matrix_exp(latent), torch.matrix_exp(-latent.mT)

    def within(self, split: Tensor, power: int, arrived: bool) -> Tensor:
        matrices = self.consumed if power < 0 else self.produced
        return (self.arrived(matrices) if arrived else matrices) @ split

    def element(self, elements: Mapping[str, Transform]) -> BlockLinear:
        with torch.no_grad():
            exact = self.matrices(self.latent.detach().double())[0].cpu()
        order = self.order()
        return BlockLinear(exact[order], self.group.kind, order)


def _centred(latent: Tensor) -> Tensor:
    """The latent on the vectors without mean, and the identity on the vector of ones: so is its polar factor then."""
    d = latent.shape[-1]
    ones = torch.full((d, d), 1.0 / d).to(latent)
    without = torch.eye(d).to(latent) - ones
    return without @ latent @ without + ones


def latents_of(
    spec: SymmetrySpec, like: Tensor, *, permutations: bool, projection: Projection
) -> tuple[dict[str, Latent], dict[str, str]]:
    """What is learnt of every group, outer ones first, and why some stay where they began.

    Args:
        spec: The symmetry.
        like: A tensor of the dtype and device that latents are to have.
        permutations: Whether reorderings are learnt, or only what mixes units.
        projection: How latents of reorderings become elements.
    """
    held = _held(spec, permutations)
    latents: dict[str, Latent] = {}
    for group in spec.outer_first():
        outer = latents[group.structure.outer] if isinstance(group.structure, Wreath) else None
        if group.name in held:
            latents[group.name] = Latent(group, outer)
        elif group.kind.mixes:
            latents[group.name] = Matrices(group, outer, like)
        else:
            latents[group.name] = Order(group, outer, like, projection)
    return latents, held


def _held(spec: SymmetrySpec, permutations: bool) -> dict[str, str]:
    held: dict[str, str] = {}
    for group in spec.groups.values():
        if group.kind is Kind.IDENTITY:
            held[group.name] = "nothing of it may move"
        elif not group.kind.mixes and not permutations:
            held[group.name] = "permutations are not learnt"
    return held
