"""Group elements that mix units: a matrix for each block of units (orthogonal, invertible, scaled rotations)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pyalign.errors import InputError
from pyalign.symmetry.kinds import Kind

__all__ = ["BlockLinear"]


@dataclass(frozen=True, eq=False)
class BlockLinear:
    """Moves blocks of units and mixes the units within each: new block i = `matrices[i]` @ old block `perm[i]`.

    A flat group has one block. In a scaled rotation of pairs, units 2f and 2f + 1 of a block are the real and
    the imaginary part of a number that is multiplied by a number of its own; where the pairs sit on an axis (halves
    or neighbours, as in the two layouts of rotary embeddings) is a matter of the binding's positions. An
    axis that consumes the units is multiplied by the inverse transpose.

    Args:
        matrices: Shape (k, d, d), float64: one matrix for each of k blocks of d units.
        kind: ORTHOGONAL, CENTRED, INVERTIBLE, ROTATION or TURN.
        perm: Which block comes to each place, shape (k,), int64, or None where each stays.

    Raises:
        InputError: The matrices are not of the class, or `perm` is no permutation.

    Source:
        Theus et al. 2025 (arXiv 2506.22712), table 1; Zhang et al. 2025, section 4; rotary pairs: algorithms' reference
        on grouped-query attention with rotary embeddings (the commutant of rotations of distinct frequencies).

    Example:
        >>> g = BlockLinear.random(2, 4, Kind.ORTHOGONAL, generator=torch.Generator().manual_seed(0))
        >>> bool((((g @ g.inverse()).matrices - torch.eye(4)).abs() < 1e-12).all())
        True
    """

    matrices: Tensor
    kind: Kind = Kind.INVERTIBLE
    perm: Tensor | None = None

    def __post_init__(self) -> None:
        m = torch.as_tensor(self.matrices, dtype=torch.float64, device="cpu").clone()
        if m.dim() != 3 or m.shape[1] != m.shape[2] or not bool(torch.isfinite(m).all()):
            raise InputError("not one matrix for each block", given=f"{tuple(m.shape)}", expected="finite, (k, d, d)")
        if not self.kind.mixes:
            raise InputError("not a class of matrices", given=str(self.kind), expected="orthogonal, invertible, ...")
        blocks = torch.arange(len(m))
        perm = blocks if self.perm is None else torch.as_tensor(self.perm, dtype=torch.int64, device="cpu").clone()
        if perm.shape != blocks.shape or not torch.equal(perm.sort().values, blocks):
            raise InputError("not a permutation of the blocks", given=f"{perm.tolist()[:8]}", expected=f"0..{len(m)}-1")
        object.__setattr__(self, "matrices", m)
        object.__setattr__(self, "perm", perm)
        if self._strays() > 1e-6:
            raise InputError(f"not {self.kind}", given=f"a matrix off by {self._strays():.1e}", expected=str(self.kind))

    def _strays(self) -> float:
        """How far the matrices are from their class."""
        m = self.matrices
        if not m.numel():
            return 0.0
        if self.kind is Kind.TURN and m.shape[1] % 2 == 0:
            numbers = pairs_of(m)
            return max(float((m - from_pairs(numbers)).abs().max()), float((numbers.abs() - 1).abs().max()))
        if self.kind.isometric and not self.kind.paired:
            mean = (m.sum(2) - 1).abs().max() if self.kind is Kind.CENTRED else torch.zeros(())
            return max(float((m @ m.mT - torch.eye(m.shape[1], dtype=m.dtype)).abs().max()), float(mean))
        if self.kind.paired:
            return float("inf") if m.shape[1] % 2 else float((m - from_pairs(pairs_of(m))).abs().max())
        return 0.0 if bool((torch.linalg.slogdet(m).logabsdet > -1e30).all()) else float("inf")

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return len(self.matrices)

    @property
    def size(self) -> int:
        """Number of units in all blocks."""
        return self.matrices.shape[0] * self.matrices.shape[1]

    @property
    def order(self) -> Tensor:
        """Which block comes to each place, shape (k,), int64."""
        assert self.perm is not None
        return self.perm

    @property
    def is_identity(self) -> bool:
        """Whether nothing moves."""
        eye = torch.eye(self.matrices.shape[1], dtype=torch.float64)
        return torch.equal(self.order, torch.arange(self.blocks)) and bool((self.matrices == eye).all())

    @classmethod
    def identity(cls, blocks: int, width: int, kind: Kind = Kind.INVERTIBLE, perm: Tensor | None = None) -> BlockLinear:
        """The element that mixes nothing: `blocks` blocks of `width` units, moved by `perm` if one is given."""
        return cls(torch.eye(width, dtype=torch.float64).expand(blocks, width, width), kind, perm)

    @classmethod
    def random(
        cls, blocks: int, width: int, kind: Kind, *, generator: torch.Generator, perm: Tensor | None = None
    ) -> BlockLinear:
        """A random element: uniform orthogonal matrices; invertible ones with factors in [1/2, 2]; random numbers."""
        if kind.paired:
            angle, size = torch.rand(2, blocks, width // 2, generator=generator, dtype=torch.float64)
            size = size if kind is Kind.ROTATION else torch.full_like(size, 0.5)
            return cls(from_pairs(torch.polar(torch.exp2(2 * size - 1), 2 * torch.pi * angle)), kind, perm)
        if kind is Kind.CENTRED and width:
            return cls(_off_ones(_random_orthogonal(blocks, width - 1, generator)), kind, perm)
        matrices = _random_orthogonal(blocks, width, generator)
        if kind is Kind.INVERTIBLE:
            size = torch.rand(blocks, width, 1, generator=generator, dtype=torch.float64)
            matrices = _random_orthogonal(blocks, width, generator) @ (torch.exp2(2 * size - 1) * matrices)
        return cls(matrices, kind, perm)

    @classmethod
    def best(cls, similarity: Tensor, kind: Kind, perm: Tensor | None = None) -> BlockLinear:
        r"""The isometry of a class that maximises \(\sum_i \langle T_i, C_i \rangle\).

        Orthogonal (and the isometries of the invertible class): the polar factor \(U V^\top\) of \(C = U S V^\top\).
        Centred: that of \(C\) on the vectors without mean, and the identity on the vector of ones.
        Pairs: the closed-form angle \(\varphi = \mathrm{atan2}(C_{21} - C_{12}, C_{11} + C_{22})\).

        Args:
            similarity: Shape (k, d, d): rows are A's units, columns are B's.
            kind: The class.
            perm: Which block of B each block of A is compared with, None for its own.
        """
        c = similarity.double().cpu()
        if kind.paired:
            numbers = pairs_of(c)
            size = numbers.abs()
            return cls(from_pairs(torch.where(size > 0, numbers / size.clamp_min(1e-300), 1.0 + 0j)), kind, perm)
        if kind is Kind.CENTRED and c.shape[-1]:
            basis = _centred_basis(c.shape[-1])
            u, _, vt = torch.linalg.svd(basis.mT @ c @ basis)
            return cls(_off_ones(u @ vt), kind, perm)
        u, _, vt = torch.linalg.svd(c)
        return cls(u @ vt, kind, perm)

    def inverse(self) -> BlockLinear:
        """The element that undoes this one."""
        back = self.order.argsort()
        m = self.matrices.mT if self.kind.isometric else torch.linalg.inv(self.matrices)
        return BlockLinear(m[back], self.kind, back)

    def __matmul__(self, first: BlockLinear) -> BlockLinear:
        """The element that acts as `first` and then as this one."""
        if not isinstance(first, BlockLinear) or first.matrices.shape != self.matrices.shape:
            raise InputError("elements of different groups do not compose", expected="equal blocks and widths")
        kind = self.kind if self.kind is first.kind else Kind.INVERTIBLE
        return BlockLinear(self.matrices @ first.matrices[self.order], kind, first.order[self.order])

    def act(self, rows: Tensor, power: int = 1, placed: bool = False) -> Tensor:
        """Act on units laid out along axis 0, shape (size, ...): blocks move, then matrices multiply.

        Args:
            rows: Any floating tensor with `size` rows.
            power: +1 to multiply by the matrices, -1 by their inverse transposes.
            placed: The blocks are where they belong already: only multiply.
        """
        m = self.matrices
        if power == -1 and not self.kind.isometric:
            m = torch.linalg.inv(m).mT
        split = rows.to(torch.float64).reshape(self.blocks, m.shape[1], -1)
        if not placed:
            split = split[self.order.to(rows.device)]
        return (m.to(rows.device) @ split).reshape(rows.shape).to(rows.dtype)

    def apply(self, x: Tensor, axis: int = 0, power: int = 1) -> Tensor:
        """Act on an axis of `x`, as `ScaledPermutation.apply` does.

        Args:
            x: A floating tensor with `x.shape[axis] == size`.
            axis: The axis of the units.
            power: +1 for an axis that produces the units, -1 for one that consumes them.
        """
        return self.act(x.movedim(axis, 0), power).movedim(0, axis)


def pairs_of(matrices: Tensor) -> Tensor:
    """The nearest complex numbers of the 2 x 2 diagonal blocks, shape (..., d) x d -> (..., d / 2), complex."""
    d = matrices.shape[-1]
    c = torch.stack([matrices[..., i::2, j::2].diagonal(dim1=-2, dim2=-1) for i in (0, 1) for j in (0, 1)])
    assert c.shape[-1] == d // 2
    return torch.complex(c[0] + c[3], c[2] - c[1]) / 2


def from_pairs(numbers: Tensor) -> Tensor:
    """Block-diagonal matrices that multiply pairs by complex numbers, shape (k, p) -> (k, 2p, 2p), float64."""
    k, p = numbers.shape
    numbers = numbers.to(torch.complex128)
    m = torch.zeros(k, 2 * p, 2 * p, dtype=torch.float64, device=numbers.device)
    f = torch.arange(p)
    m[:, 2 * f, 2 * f] = m[:, 2 * f + 1, 2 * f + 1] = numbers.real
    m[:, 2 * f + 1, 2 * f] = numbers.imag
    m[:, 2 * f, 2 * f + 1] = -numbers.imag
    return m


def _centred_basis(width: int) -> Tensor:
    """An orthonormal basis of the vectors without mean, shape (width, width - 1), float64 (Helmert's)."""
    n = torch.arange(1, width, dtype=torch.float64)
    basis = torch.triu(torch.ones(width, width - 1, dtype=torch.float64))
    basis[torch.arange(1, width), torch.arange(width - 1)] = -n
    return basis / (n * (n + 1)).sqrt()


def _off_ones(inner: Tensor) -> Tensor:
    """Matrices on the vectors without mean as matrices that fix the ones, shape (k, d - 1, d - 1) -> (k, d, d)."""
    width = inner.shape[-1] + 1
    basis = _centred_basis(width)
    return torch.as_tensor(basis @ inner @ basis.mT + torch.full((width, width), 1 / width, dtype=torch.float64))


def _random_orthogonal(blocks: int, width: int, generator: torch.Generator) -> Tensor:
    q, r = torch.linalg.qr(torch.randn(blocks, width, width, generator=generator, dtype=torch.float64))
    return torch.as_tensor(q * r.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2))
