"""The element of a class that brings one block of weights nearest to another (Zhang et al. 2025, section 4).

Everything is computed from Gram matrices. With rows of A and B that produce the units (a, b) and rows that consume
them (a', b'), a matrix T moves b to T b and b' to T^-T b', and the squared distance is
|a - T b|^2 + |a' - T^-T b'|^2.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pyalign.engine.linear_assignment import linear_assignment
from pyalign.symmetry import BlockLinear, Kind
from pyalign.symmetry.linear import from_pairs, pairs_of

__all__ = ["Grams", "circuit_table", "gain_table", "nearest"]

_STEPS, _HALVINGS, _LARGEST = 12, 4, 1e6


@dataclass
class Grams:
    """Products of the rows of blocks, shapes (k, d, d): of A with B and of B with itself, produced and consumed."""

    produced: Tensor
    consumed: Tensor
    own_produced: Tensor
    own_consumed: Tensor

    def moved(self, t: Tensor) -> Grams:
        """The same after B has moved by the matrices t."""
        u = torch.linalg.inv(t).mT
        own = t @ self.own_produced @ t.mT, u @ self.own_consumed @ u.mT
        return Grams(self.produced @ t.mT, self.consumed @ u.mT, *own)

    def cost(self, t: Tensor) -> Tensor:
        """The squared distance after t, up to a constant, shape (k,); infinite where t is not usable."""
        usable = torch.isfinite(t).flatten(1).all(1)
        t = torch.where(usable[:, None, None], t, torch.eye(t.shape[-1], dtype=t.dtype))
        usable &= torch.linalg.cond(t) < _LARGEST
        t = torch.where(usable[:, None, None], t, torch.eye(t.shape[-1], dtype=t.dtype))
        u = torch.linalg.inv(t).mT
        produced = ((t @ self.own_produced - 2 * self.produced) * t).flatten(1).sum(1)
        consumed = ((u @ self.own_consumed - 2 * self.consumed) * u).flatten(1).sum(1)
        return torch.where(usable, produced + consumed, torch.inf)


def nearest(grams: Grams, kind: Kind, backend: str = "auto") -> Tensor:
    """Matrices of a class that minimise the distance, shape (k, d, d), never worse than the identity.

    Orthogonal, centred, turns: the polar factor, exact. Invertible and scaled rotations: the best of the identity, the
    polar factor and the two least-squares answers, improved by Gauss-Newton steps (a Sylvester equation each) that are
    taken only where they help. Permutations with signs or factors: a linear assignment. Factors of single units are
    invertible matrices of size one.

    Args:
        grams: What is compared.
        kind: The class.
        backend: Implementation of `pyalign.engine.linear_assignment`.
    """
    k, d = grams.produced.shape[:2]
    if not kind.mixes and d > 1:
        return _ordered(grams, kind, backend)
    if kind is Kind.ROTATION:
        grams = Grams(*(_pair_blocks(m) for m in vars(grams).values()))
    eye = torch.eye(grams.produced.shape[-1], dtype=torch.float64).expand_as(grams.produced)
    class_of = kind if kind.paired or kind is Kind.CENTRED else Kind.ORTHOGONAL
    isometry = BlockLinear.best(grams.produced + grams.consumed, class_of)
    options = [eye, isometry.matrices]
    if not kind.isometric:
        solved = _solved(grams.produced, grams.own_produced, kind), _solved(grams.consumed, grams.own_consumed, kind)
        options += [solved[0], _inverse(solved[1]).mT]
    if kind is Kind.POSITIVE:
        options = [torch.where(o > 0, o, 1.0) for o in options]
    costs = torch.stack([grams.cost(option) for option in options])
    t = torch.stack(options)[costs.argmin(0), torch.arange(len(eye))]
    if not kind.isometric:
        t = _improved(grams, t, kind)
    return t if kind is not Kind.ROTATION else from_pairs(pairs_of(t).reshape(k, d // 2))


def _ordered(grams: Grams, kind: Kind, backend: str) -> Tensor:
    """The nearest permutations with the signs or factors of their class, as matrices, never worse than the identity."""
    if kind is Kind.IDENTITY:
        return torch.eye(grams.produced.shape[-1], dtype=torch.float64).expand_as(grams.produced)
    gains, factors = pair_gains(grams, kind)
    perm = linear_assignment(gains, maximize=True, backend=backend).perm
    assert isinstance(perm, Tensor)
    here = perm.unsqueeze(-1)
    found = torch.zeros_like(grams.produced).scatter(-1, here, factors.gather(-1, here))
    eye = torch.eye(found.shape[-1], dtype=found.dtype).expand_as(found)
    return torch.where((grams.cost(found) <= grams.cost(eye))[:, None, None], found, eye)


def pair_gains(grams: Grams, kind: Kind) -> tuple[Tensor, Tensor]:
    r"""What each pair of units adds under its best factor s, and that factor, each (k, d, d).

    A pair of units whose rows have the products p (produced) and c (consumed) is nearer by
    \(s p + c / s - \tfrac12 (s^2 |b|^2 + |b'|^2 / s^2)\) than two units that share nothing; without factors the last
    two terms are the same for all pairs of a unit of B.
    """
    produced, consumed = grams.produced, grams.consumed
    both = produced + consumed
    if not kind.scales:
        sign = torch.where(both < 0, -1.0, 1.0).double() if kind.signs else torch.ones_like(both)
        return both * sign, sign
    own, other = (m.diagonal(dim1=-2, dim2=-1).unsqueeze(-2) for m in (grams.own_produced, grams.own_consumed))

    def gain(s: Tensor) -> Tensor:
        usable = torch.isfinite(s) & (s.abs() > 1 / _LARGEST) & (s.abs() < _LARGEST)
        usable &= torch.ones_like(usable) if kind.signs else s > 0
        s = torch.where(usable, s, 1.0)
        value = s * produced + consumed / s - 0.5 * (s.square() * own + other / s.square())
        return torch.where(usable, value, -torch.inf)

    middle, one = (other / own).sqrt().sqrt().expand_as(both), torch.ones_like(both)
    options = torch.stack([one, -one, produced / own, other / consumed, middle, -middle])
    gains = torch.stack([gain(s) for s in options])
    gains[:2] += 1e-13 * (own + other)  # no factor unless it helps by more than rounding
    best, at = gains.max(0)
    return best, options.gather(0, at.unsqueeze(0)).squeeze(0)


def _improved(grams: Grams, t: Tensor, kind: Kind) -> Tensor:
    cost = grams.cost(t)
    least = 1e-13 * (grams.own_produced + grams.own_consumed).diagonal(dim1=-2, dim2=-1).sum(-1).clamp_min(1e-300)
    for _ in range(_STEPS):
        step = _newton(grams.moved(t), kind)
        if not bool((step.abs().flatten(1).amax(1) > 1e-9).any()):
            break
        size, better = 1.0, torch.zeros(len(t), dtype=torch.bool)
        for _ in range(_HALVINGS):
            trial = t + size * step @ t
            new = grams.cost(trial)
            taken = (new < cost - least) & ~better & ((trial > 0).flatten(1).all(1) if kind is Kind.POSITIVE else True)
            t, cost = torch.where(taken[:, None, None], trial, t), torch.where(taken, new, cost)
            better |= taken
            size /= 4
        if not bool(better.any()):
            break
    return t


def _newton(g: Grams, kind: Kind) -> Tensor:
    """X of T = (I + X): `X own_produced + own_consumed X = residual`, a Sylvester equation with symmetric sides."""
    residual = (g.produced - g.own_produced) - (g.consumed - g.own_consumed).mT
    if kind is Kind.ROTATION:
        size = (g.own_produced + g.own_consumed).diagonal(dim1=-2, dim2=-1).sum(-1, keepdim=True)
        return from_pairs(2 * pairs_of(residual) / size.clamp_min(1e-300))
    right, v = torch.linalg.eigh(g.own_produced)
    left, u = torch.linalg.eigh(g.own_consumed)
    sum_of = (left.unsqueeze(-1) + right.unsqueeze(-2)).clamp_min(0)
    floor = 1e-12 * sum_of.flatten(1).amax(1).clamp_min(1e-300)
    return torch.as_tensor(u @ ((u.mT @ residual @ v) / (sum_of + floor[:, None, None])) @ v.mT)


def _solved(product: Tensor, own: Tensor, kind: Kind) -> Tensor:
    """Least squares for one side alone."""
    if kind is Kind.ROTATION:
        size = own.diagonal(dim1=-2, dim2=-1).sum(-1, keepdim=True)
        return from_pairs(torch.where(size > 0, 2 * pairs_of(product) / size.clamp_min(1e-300), 1.0 + 0j))
    return torch.as_tensor(product @ torch.linalg.pinv(own, hermitian=True))


def _inverse(t: Tensor) -> Tensor:
    answer, info = torch.linalg.inv_ex(t)
    return torch.where((info == 0)[:, None, None], answer, torch.nan)


def _pair_blocks(m: Tensor) -> Tensor:
    """The 2 x 2 diagonal blocks, shape (k, d, d) -> (k d / 2, 2, 2)."""
    k, d = m.shape[:2]
    return m.reshape(k, d // 2, 2, d // 2, 2).diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2).reshape(-1, 2, 2)


def gain_table(produced: Tensor, consumed: Tensor, kind: Kind, backend: str = "auto") -> Tensor:
    """What the best isometry (or order) of each pair of blocks contributes, (K, K, d, d) twice -> (K, K)."""
    both = produced + consumed
    if kind.paired:
        return 2 * pairs_of(both.flatten(0, 1)).abs().sum(-1).reshape(both.shape[:2])
    if not kind.mixes:
        gains = (both.abs() if kind.signs else both).flatten(0, 1)
        perm = linear_assignment(gains, maximize=True, backend=backend).perm
        assert isinstance(perm, Tensor)
        return gains.gather(-1, perm.unsqueeze(-1)).sum((-2, -1)).reshape(both.shape[:2])
    return torch.as_tensor(torch.linalg.svdvals(both).sum(-1))


def circuit_table(produced: Tensor, consumed: Tensor, kind: Kind) -> Tensor:
    r"""How alike the circuits of two blocks are, in any bases: \(\langle Q_A^T K_A, Q_B^T K_B \rangle\).

    It is the sum of the products of the entries of Q_A Q_B^T and K_A K_B^T (Theus et al. 2025, section 4).
    """
    if kind.paired:
        shape = produced.shape[:2]
        one, two = (pairs_of(m.flatten(0, 1)) for m in (produced, consumed))
        return 2 * (one * two.conj()).real.sum(-1).reshape(shape)
    return (produced * consumed).sum((-2, -1))
