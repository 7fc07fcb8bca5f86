"""Lengths and planes of curves, from the inner products of their control points alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from pyalign.paths.family import coefficients

__all__ = ["FINE", "arc", "gram", "planarity"]

FINE = tuple(i / 1000 for i in range(1001))
"""Positions between which a curve is taken to be straight when its length is asked for."""
CHUNK = 1 << 22


def gram(points: Sequence[Sequence[Tensor]], straight: Sequence[Sequence[Tensor]]) -> Tensor:
    """Inner products of control points as seen from the first, shape (n, n), float64.

    Args:
        points: For each of n control points its tensors.
        straight: The tensors of the two ends that move on the line between them while the others follow the curve.
    """
    count = len(points)
    total = torch.zeros(count, count, dtype=torch.float64)
    for tensors in zip(*points, strict=True):
        for parts in _chunks(tensors):
            rows = torch.stack([part - parts[0] for part in parts])
            total += (rows @ rows.T).cpu()
    places = torch.arange(count, dtype=torch.float64) / (count - 1)
    for first, last in zip(*straight, strict=True):
        square = sum(float((y - x).square().sum()) for x, y in _chunks((first, last)))
        total += square * torch.outer(places, places)
    return total


def _chunks(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    flat = [(torch.view_as_real(t) if t.is_complex() else t).reshape(-1) for t in tensors]
    for start in range(0, len(flat[0]), CHUNK):
        yield [part[start : start + CHUNK].double() for part in flat]


def arc(products: Tensor, kind: str, t: Sequence[float]) -> tuple[float, ...]:
    """Length of the chords from the first position to each, given the inner products of the control points."""
    spots = _spots(products, kind, t)
    steps = spots[1:] - spots[:-1]
    squares = ((steps @ products) * steps).sum(1).clamp(min=0.0)
    return (0.0, *squares.sqrt().cumsum(0).tolist())


def planarity(products: Tensor, kind: str) -> float:
    """Share of the spread of the curve's points that lies in their best plane; 1 where all points coincide."""
    spots = _spots(products, kind, [i / 60 for i in range(61)])
    spots = spots - spots.mean(0)
    spread = torch.linalg.eigvalsh(spots @ products @ spots.T).clamp(min=0.0)
    total = float(spread.sum())
    return min(1.0, float(spread[-2:].sum()) / total) if total > 0.0 else 1.0


def _spots(products: Tensor, kind: str, t: Sequence[float]) -> Tensor:
    return torch.tensor([coefficients(kind, len(products), x) for x in t], dtype=torch.float64)
