"""Projections of latent matrices onto group elements, with gradients (Theus et al. 2025, section 4, algorithm 1)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pyalign import engine

__all__ = ["best_order", "placed", "polar", "sinkhorn"]

ITERATIONS = 20


class _Polar(torch.autograd.Function):
    """See `polar`."""

    @staticmethod
    def forward(ctx: Any, latent: Tensor) -> Tensor:
        u, s, vh = torch.linalg.svd(latent)
        ctx.save_for_backward(u, s, vh)
        return torch.as_tensor(u @ vh)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        u, s, vh = ctx.saved_tensors
        inner = u.mT @ gradient @ vh.mT
        sums = s.unsqueeze(-1) + s.unsqueeze(-2)
        # Two singular values of zero leave the factor undetermined in their plane: the latent gets nothing there.
        usable = sums > torch.finfo(s.dtype).eps * s[..., :1, None]
        share = torch.where(usable, (inner - inner.mT) / torch.where(usable, sums, 1.0), 0.0)
        return torch.as_tensor(u @ share @ vh)


def polar(latent: Tensor) -> Tensor:
    r"""The orthogonal matrix nearest to each latent, \(U V^\top\) of \(Z = U S V^\top\).

    With \(K = U^\top G V\) for the gradient G of the factor, the gradient of the latent is
    \(U\,[(K - K^\top)_{ij} / (s_i + s_j)]\,V^\top\): finite wherever the latent has full rank, also where singular
    values coincide, as at an orthogonal latent, where differentiating through the decomposition gives NaN.

    Args:
        latent: Shape (..., d, d), floating.

    Returns:
        Orthogonal matrices, shape (..., d, d).

    Example:
        >>> latent = torch.eye(3, requires_grad=True)
        >>> polar(latent)[0, 1].backward()
        >>> latent.grad.tolist()
        [[0.0, 0.5, 0.0], [-0.5, 0.0, 0.0], [0.0, 0.0, 0.0]]
    """
    return torch.as_tensor(_Polar.apply(latent))  # type: ignore[no-untyped-call]


class _Placed(torch.autograd.Function):
    """See `placed`."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, latent: Tensor, perm: Tensor, sign: Tensor | None, odd: bool) -> Tensor:
        ctx.save_for_backward(rows, perm, sign)
        ctx.odd = odd
        moved = rows.take_along_dim(perm.unsqueeze(-1), 1)
        return moved * sign.unsqueeze(-1) if odd and sign is not None else moved

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        rows, perm, sign = ctx.saved_tensors
        signed = gradient if sign is None else gradient * sign.unsqueeze(-1)
        arrived = signed if ctx.odd else gradient
        to_rows = to_latent = None
        if ctx.needs_input_grad[0]:
            to_rows = arrived.take_along_dim(perm.argsort(-1).unsqueeze(-1), 1)
        if ctx.needs_input_grad[1]:
            to_latent = (gradient if ctx.odd else signed) @ rows.mT
        return to_rows, to_latent, None, None, None


def placed(rows: Tensor, latent: Tensor, perm: Tensor, sign: Tensor | None = None, odd: bool = True) -> Tensor:
    """Rows in the order of `perm`, with the gradient of a latent matrix straight through: as if it were the order.

    Args:
        rows: Shape (b, n, f): n rows in each of b problems.
        latent: Shape (b, n, n): receives the gradient that the permutation matrix would have.
        perm: Shape (b, n), int64: which row comes to each place.
        sign: Shape (b, n), factors +-1 by place, or None.
        odd: Whether rows are multiplied by the signs, or only reordered.

    Returns:
        Shape (b, n, f).

    Example:
        >>> placed(torch.tensor([[[1.0], [2.0]]]), torch.eye(2)[None], torch.tensor([[1, 0]])).flatten().tolist()
        [2.0, 1.0]
    """
    return torch.as_tensor(_Placed.apply(rows, latent, perm, sign, odd))  # type: ignore[no-untyped-call]


def best_order(latent: Tensor, perm: Tensor, signs: bool) -> tuple[Tensor, Tensor | None]:
    """The permutations (with signs, where they are free) of largest sum in each latent matrix.

    Args:
        latent: Shape (b, n, n).
        perm: Shape (b, n): kept where no other can be better, because each of its entries is the largest of its row.
        signs: Whether an entry counts by its size, and its sign becomes the unit's.

    Returns:
        The permutations (b, n), int64, and the signs (b, n), or None where they are not free.
    """
    gain = (latent.abs() if signs else latent).detach()
    chosen = gain.take_along_dim(perm.unsqueeze(-1), -1).squeeze(-1)
    if bool((chosen < gain.amax(-1)).any()):
        answer = engine.linear_assignment(gain, maximize=True)
        assert isinstance(answer.perm, Tensor)
        perm = answer.perm
    if not signs:
        return perm, None
    values = latent.detach().take_along_dim(perm.unsqueeze(-1), -1).squeeze(-1)
    return perm, torch.where(values < 0, -1.0, 1.0).to(latent.dtype)


def sinkhorn(latent: Tensor, temperature: float, iterations: int = ITERATIONS) -> Tensor:
    r"""Doubly stochastic matrices \(\mathrm{diag}(u)\, e^{Z / \tau}\, \mathrm{diag}(v)\), scaled in the log domain.

    Args:
        latent: Shape (b, n, n).
        temperature: The smaller, the nearer to permutations.
        iterations: Times that rows and columns are scaled to sum to one.

    Source:
        Guerrero Pena et al. 2023 (arXiv 2212.12042), section 3.

    Example:
        >>> sinkhorn(torch.zeros(1, 2, 2), 1.0).tolist()
        [[[0.5, 0.5], [0.5, 0.5]]]
    """
    log = latent / temperature
    for _ in range(iterations):
        log = log - log.logsumexp(-1, keepdim=True)
        log = log - log.logsumexp(-2, keepdim=True)
    return log.exp()
