"""Similarity of units that lie in blocks, one block of A at a time: what a table of inner assignments is made from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Blocks"]

Pairs = Sequence[tuple[Tensor, Tensor]]


@dataclass
class Blocks:
    """How alike the units of two models are, where only units of one block are ever exchanged.

    Args:
        odd: Weights of A and of B that change sign with their unit, each (blocks, units, features).
        even: Weights that do not.
    """

    odd: Pairs
    even: Pairs

    @property
    def count(self) -> int:
        """Number of blocks."""
        return len((*self.odd, *self.even)[0][0])

    def gains(self, block: int, others: Tensor, signs: bool) -> Tensor:
        """What matching units of one block of A with those of blocks of B adds, shape (len(others), units, units)."""
        odd = _products(self.odd, block, others)
        even = _products(self.even, block, others)
        if odd is not None and signs:
            odd = odd.abs()
        if odd is None or even is None:
            found = even if odd is None else odd
            assert found is not None
            return found
        return odd + even

    def along(self, perm: Tensor) -> tuple[Tensor, Tensor]:
        """Odd and even similarity of matched units, shape (n,), float64, on the host: slot i takes unit `perm[i]`."""
        return _matched(self.odd, perm), _matched(self.even, perm)


def _products(pairs: Pairs, block: int, others: Tensor) -> Tensor | None:
    products = [a[block] @ b[others.to(b.device)].mT for a, b in pairs]
    return torch.stack(products).sum(0) if products else None


def _matched(pairs: Pairs, perm: Tensor) -> Tensor:
    found = torch.zeros(len(perm), dtype=torch.float64)
    for a, b in pairs:
        found += (a.flatten(0, 1) * b.flatten(0, 1)[perm.to(b.device)]).sum(1).double().cpu()
    return found
