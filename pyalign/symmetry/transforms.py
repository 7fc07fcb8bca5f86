"""Group elements: what is done to the units of one group (permutations with optional signs or scales)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pyalign.errors import InputError
from pyalign.symmetry.kinds import Kind
from pyalign.symmetry.linear import BlockLinear

__all__ = ["ScaledPermutation", "Transform"]


@dataclass(frozen=True, eq=False)
class ScaledPermutation:
    """Reorders units and multiplies each by a non-zero factor: new unit i = `scale[i]` * old unit `perm[i]`.

    With `scale=None` it is a permutation; with +-1 a signed one; with positive factors a positive-scaled one.
    The laws: `g @ g.inverse()` is the identity, `(g @ h)` acts as h first and g second, and both
    are checked by the law tests of the transforms.

    Args:
        perm: Index vector, shape (n,), int64: slot i takes unit `perm[i]`.
        scale: Factors by slot, shape (n,), float64, or None for all ones.

    Raises:
        InputError: `perm` is no permutation, or a factor is zero or not finite.

    Example:
        >>> g = ScaledPermutation(torch.tensor([1, 2, 0]), torch.tensor([1.0, -1.0, 1.0]))
        >>> (g @ g.inverse()).is_identity
        True
    """

    perm: Tensor
    scale: Tensor | None = None

    def __post_init__(self) -> None:
        perm = torch.as_tensor(self.perm, dtype=torch.int64, device="cpu").clone()
        if perm.dim() != 1 or not torch.equal(perm.sort().values, torch.arange(len(perm))):
            raise InputError(
                "not a permutation",
                given=f"{perm.tolist()[:8]}... of shape {tuple(perm.shape)}",
                expected="each of 0..n-1 exactly once, shape (n,)",
            )
        object.__setattr__(self, "perm", perm)
        if self.scale is not None:
            object.__setattr__(self, "scale", _checked_scale(self.scale, len(perm)))

    @property
    def size(self) -> int:
        """Number of units."""
        return len(self.perm)

    @property
    def kind(self) -> Kind:
        """The smallest class this element belongs to."""
        if self.scale is None or bool((self.scale == 1).all()):
            return Kind.IDENTITY if torch.equal(self.perm, torch.arange(self.size)) else Kind.PERMUTATION
        if bool((self.scale.abs() == 1).all()):
            return Kind.SIGNED
        return Kind.POSITIVE if bool((self.scale > 0).all()) else Kind.SCALED

    @property
    def is_identity(self) -> bool:
        """Whether nothing moves."""
        return self.kind is Kind.IDENTITY

    @classmethod
    def identity(cls, size: int) -> ScaledPermutation:
        """The element that moves nothing, for `size` units."""
        return cls(torch.arange(size))

    @classmethod
    def random(cls, size: int, kind: Kind = Kind.PERMUTATION, *, generator: torch.Generator) -> ScaledPermutation:
        """A random element of `kind`: a uniform permutation, fair signs, factors in [1/2, 2] (log-uniform)."""
        if kind is Kind.IDENTITY:
            return cls.identity(size)
        perm = torch.randperm(size, generator=generator)
        return cls(perm, random_scale(size, kind, generator))

    def inverse(self) -> ScaledPermutation:
        """The element that undoes this one."""
        back = torch.argsort(self.perm)
        return ScaledPermutation(back, None if self.scale is None else 1.0 / self.scale[back])

    def __matmul__(self, first: ScaledPermutation) -> ScaledPermutation:
        """Composition: `first` acts first, then this element.

        Raises:
            InputError: The elements act on different numbers of units.
        """
        if first.size != self.size:
            raise InputError(
                "elements of different groups",
                given=f"{self.size} and {first.size} units",
                expected="equal numbers of units",
            )
        if self.scale is None and first.scale is None:
            return ScaledPermutation(first.perm[self.perm])
        scale = torch.ones(self.size, dtype=torch.float64) if self.scale is None else self.scale
        inner = torch.ones(self.size, dtype=torch.float64) if first.scale is None else first.scale
        return ScaledPermutation(first.perm[self.perm], scale * inner[self.perm])

    def apply(self, x: Tensor, axis: int = 0, power: int = 1) -> Tensor:
        """Act on an axis of `x`: `index_select` by `perm`, then multiply by `scale ** power`.

        Args:
            x: Any tensor with `x.shape[axis] == size`.
            axis: The axis of the units.
            power: +1 for an axis that produces the units, -1 for one that consumes them, 0 to reorder only.

        Returns:
            A new tensor of the shape and dtype of `x`.
        """
        moved = x.index_select(axis, self.perm.to(x.device))
        if self.scale is None or power == 0:
            return moved
        shape = [1] * x.dim()
        shape[axis] = self.size
        return moved * (self.scale**power).to(moved.device, moved.dtype).reshape(shape)


Transform = ScaledPermutation | BlockLinear
"""What a group element may be: a reordering with signs or scales, or matrices that mix the units of each block."""


def random_scale(size: int, kind: Kind, generator: torch.Generator) -> Tensor | None:
    """Random factors of a class, shape (size,), float64, or None where the class has none."""
    if not (kind.signs or kind.scales):
        return None
    scale = torch.ones(size, dtype=torch.float64)
    if kind.scales:
        scale = torch.exp2(2 * torch.rand(size, generator=generator, dtype=torch.float64) - 1)
    if kind.signs:
        scale = scale * (2.0 * torch.randint(0, 2, (size,), generator=generator) - 1)
    return scale


def _checked_scale(scale: Tensor, size: int) -> Tensor:
    scale = torch.as_tensor(scale, dtype=torch.float64, device="cpu").clone()
    if scale.shape != (size,) or not bool(torch.isfinite(scale).all()) or bool((scale == 0).any()):
        raise InputError(
            "not a scale vector",
            given=f"{scale.tolist()[:8]} of shape {tuple(scale.shape)}",
            expected=f"{size} finite factors other than zero",
        )
    return scale
