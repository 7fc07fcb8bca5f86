"""The Birkhoff polytope of doubly stochastic matrices: projection onto it, its points as mixtures of permutations."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pyalign.engine.linear_assignment import linear_assignment

__all__ = ["Mixture", "decompose", "nearest", "project"]


class Mixture(NamedTuple):
    """Permutations (k, n) with weights (k,) that sum to 1."""

    perms: Tensor
    weights: Tensor

    def sample(self, generator: torch.Generator) -> Tensor:
        """One of the permutations, drawn by the weights."""
        return self.perms[int(torch.multinomial(self.weights, 1, generator=generator))]


def project(matrix: Tensor, alternations: int = 200, tolerance: float = 1e-7) -> Tensor:
    r"""The doubly stochastic matrix nearest to `matrix` in Frobenius norm.

    Alternates the projection onto the matrices whose rows and columns sum to 1,
    \(X - \tfrac{1}{n}(r 1^T + 1 c^T) + \tfrac{1^T r}{n^2} 1 1^T\) with the excesses r and c, with that onto the
    matrices without negative entries. Dykstra's correction of the second makes the limit the nearest point; plain
    alternation ends at some point of the polytope.

    Args:
        matrix: Shape (n, n), floating.
        alternations: Most of them.
        tolerance: Largest change of an entry at which they end.

    Returns:
        A new matrix of the same dtype without negative entries; row and column sums are 1 to about `tolerance`.

    Source:
        Boyle and Dykstra 1986, in place of the plain alternation of Tatro et al. 2020 (arXiv 2009.02439), appendix.

    Example:
        >>> project(torch.tensor([[2.0, 0.0], [0.0, 2.0]]))
        tensor([[1., 0.],
                [0., 1.]])
    """
    x, correction = matrix.double(), torch.zeros_like(matrix, dtype=torch.float64)
    for _ in range(alternations):
        y = (x + correction).clamp(min=0.0)
        correction = x + correction - y
        after = _to_sums_of_one(y)
        if float((after - x).abs().max()) <= tolerance and float(after.min()) >= -tolerance:
            x = after
            break
        x = after
    return x.clamp(min=0.0).to(matrix.dtype)


def _to_sums_of_one(x: Tensor) -> Tensor:
    n = x.shape[0]
    rows, columns = x.sum(1, keepdim=True) - 1.0, x.sum(0, keepdim=True) - 1.0
    return x - rows / n - columns / n + rows.sum() / n**2


def nearest(matrix: Tensor) -> Tensor:
    """The permutation matrix nearest to `matrix`, the assignment of largest sum: an index vector (n,) on the host."""
    return _largest(matrix.double()).cpu()


def _largest(matrix: Tensor) -> Tensor:
    perm = linear_assignment(matrix, maximize=True).perm
    assert isinstance(perm, Tensor)
    return perm


def decompose(matrix: Tensor, most: int = 11, threshold: float = 5e-4) -> Mixture:
    r"""Write a doubly stochastic matrix as a mixture of permutations, \(P \approx \sum_k w_k P_k\).

    Each step takes the permutation of largest sum among the entries that are left, with its smallest entry as weight.

    Args:
        matrix: Shape (n, n), doubly stochastic.
        most: Most permutations to take.
        threshold: Smallest weight that is still taken.

    Returns:
        The mixture, on the host, its weights scaled to sum to 1; at least the nearest permutation.

    Source:
        Birkhoff 1946; Tatro et al. 2020 (arXiv 2009.02439), appendix: 11 permutations, threshold 5e-4.

    Example:
        >>> decompose(torch.tensor([[0.75, 0.25], [0.25, 0.75]])).weights
        tensor([0.7500, 0.2500], dtype=torch.float64)
    """
    left = matrix.double().clone()
    perms, weights = [], []
    for _ in range(most):
        # An entry that is used up must not be taken while a permutation without it is left.
        perm = _largest(torch.where(left > threshold, left, -float(len(left))))
        entries = left.gather(1, perm.unsqueeze(1)).squeeze(1)
        weight = float(entries.min()) if len(entries) else 1.0
        if weight <= threshold:
            break
        perms.append(perm)
        weights.append(weight)
        left.scatter_add_(1, perm.unsqueeze(1), torch.full_like(left[:, :1], -weight))
    if not perms:
        perms, weights = [nearest(matrix)], [1.0]
    shares = torch.tensor(weights, dtype=torch.float64)
    return Mixture(torch.stack(perms).cpu(), shares / shares.sum())
