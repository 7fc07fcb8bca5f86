"""Cross moments in torch, float64, by the pairwise update of Chan, Golub and LeVeque (1983), eq. 2.1."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pyalign import errors

__all__ = ["cross_moments", "merge"]

CHUNK = 1 << 16


def cross_moments(
    record: Sequence[Tensor], x: Tensor, y: Tensor, axis_x: int, axis_y: int, mask: Tensor | None, full: bool
) -> None:
    """Add the samples of x and y to the record in place; the record is untouched when it raises."""
    rows_x, rows_y = _rows(x, axis_x), _rows(y, axis_y)
    if mask is not None:
        keep = mask.reshape(-1)
        rows_x, rows_y = rows_x[keep], rows_y[keep]
    for name, rows in (("x", rows_x), ("y", rows_y)):
        _check_finite(name, rows)
    for start in range(0, rows_x.shape[0], CHUNK):
        merge(record, _moments(rows_x[start : start + CHUNK], rows_y[start : start + CHUNK], full))


def merge(record: Sequence[Tensor], other: Sequence[Tensor]) -> None:
    """Add the samples summed in `other` to `record` in place."""
    count, mean_a, mean_b, comoment, square_a, square_b = record
    more, other_a, other_b, other_comoment, other_square_a, other_square_b = other
    total = (count + more).clamp_min(1.0)
    delta_a, delta_b, weight = other_a - mean_a, other_b - mean_b, count * more / total
    comoment += other_comoment + weight * torch.outer(delta_a, delta_b)
    for square, other_square, delta in ((square_a, other_square_a, delta_a), (square_b, other_square_b, delta_b)):
        square += other_square + weight * (torch.outer(delta, delta) if square.dim() == 2 else delta.square())
    mean_a += delta_a * (more / total)
    mean_b += delta_b * (more / total)
    count += more


def _rows(x: Tensor, axis: int) -> Tensor:
    samples = math.prod(x.shape[:axis]) * math.prod(x.shape[axis + 1 :])
    return x.movedim(axis, -1).reshape(samples, x.shape[axis])


def _moments(rows_x: Tensor, rows_y: Tensor, full: bool) -> tuple[Tensor, ...]:
    rows_x, rows_y = rows_x.to(torch.float64), rows_y.to(torch.float64)
    mean_a, mean_b = rows_x.mean(0), rows_y.mean(0)
    a, b = rows_x - mean_a, rows_y - mean_b
    squares = (a.T @ a, b.T @ b) if full else (a.square().sum(0), b.square().sum(0))
    count = torch.tensor(float(rows_x.shape[0]), dtype=torch.float64, device=rows_x.device)
    return (count, mean_a, mean_b, a.T @ b, *squares)


def _check_finite(name: str, rows: Tensor) -> None:
    bad = ~torch.isfinite(rows)
    if bool(bad.any()):
        units = bad.any(0).nonzero().flatten().tolist()
        shown = ", ".join(map(str, units[:5])) + (", ..." if len(units) > 5 else "")
        raise errors.NonFiniteError(
            f"cross_moments: {name} holds NaN or infinity",
            given=f"{int(bad.sum())} such values, in {len(units)} of {rows.shape[1]} units ({shown})",
            expected="finite activations",
            do="find the layer and the batch that make them, or leave those samples out with mask=",
        )
