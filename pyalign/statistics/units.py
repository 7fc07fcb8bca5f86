"""Mean and variance of every unit of one stream, pooled over batches."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["UnitMoments"]


class UnitMoments:
    """Count, mean and sum of squared deviations of each unit, in float64, merged by Chan's formula.

    Source:
        Chan, Golub and LeVeque 1979, equations 2.1.

    Example:
        >>> moments = UnitMoments()
        >>> for batch in (torch.tensor([[1.0], [3.0]]), torch.tensor([[8.0]])):
        ...     _ = moments.update(batch)
        >>> moments.mean, moments.variance()
        (tensor([4.], dtype=torch.float64), tensor([8.6667], dtype=torch.float64))
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean = torch.zeros((), dtype=torch.float64)
        self.squares = torch.zeros((), dtype=torch.float64)

    def update(self, x: Tensor, axis: int = -1) -> tuple[Tensor, Tensor]:
        """Add the samples of `x`; all axes but `axis` are samples.

        Returns:
            Mean and biased variance of each unit in `x` alone, float64.
        """
        rows = x.detach().movedim(axis, -1).reshape(-1, x.shape[axis])
        variance, mean = torch.var_mean(rows if rows.dtype == torch.float64 else rows.float(), 0, correction=0)
        variance, mean = variance.double(), mean.double()
        number = len(rows)
        if number:
            total = self.count + number
            delta = mean - self.mean.to(mean.device)
            self.squares = self.squares.to(mean.device) + variance * number + delta**2 * (self.count * number / total)
            self.mean = self.mean.to(mean.device) + delta * (number / total)
            self.count = total
        return mean, variance

    def variance(self) -> Tensor:
        """Biased variance of each unit over all samples."""
        return self.squares / max(1, self.count)
