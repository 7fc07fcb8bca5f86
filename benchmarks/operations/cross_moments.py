"""cross_moments against transposing, reshaping and multiplying; its limit is the product of packed operands."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.competitors import naive_moments, packed
from benchmarks.record import Case, Contest, Contestant, Gate
from pyalign import engine

__all__ = ["cases"]

OURS, NARROW, NAIVE, PACKED = "pyalign float32", "pyalign bfloat16", "torch", "packed product"
GATES = (Gate(OURS, PACKED, 1.25), Gate(NARROW, OURS, 1.0))
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 1e-6}
"""Of co-moments, relative to the units' spread, against float64 sums of the same (rounded) activations."""

# layout: shapes of the two streams, unit axis
SHAPES: dict[str, Sequence[tuple[tuple[int, ...], tuple[int, ...], int]]] = {
    "NCHW": [
        ((256, 16, 32, 32), (256, 16, 32, 32), 1),
        ((128, 64, 32, 32), (128, 64, 32, 32), 1),
        ((64, 512, 16, 16), (64, 512, 16, 16), 1),
    ],
    "2-D": [((512, 2048), (512, 2048), 1)],
    "NHWC": [((128, 32, 32, 64), (128, 32, 32, 64), 3), ((64, 16, 16, 512), (64, 16, 16, 512), 3)],
    "batch, time, units": [((64, 256, 128), (64, 256, 128), 2), ((16, 256, 768), (16, 256, 768), 2)],
    "unequal widths": [((128, 48, 32, 32), (128, 96, 32, 32), 1), ((512, 1024), (512, 1536), 1)],
    "few channels": [((256, c, 32, 32), (256, c, 32, 32), 1) for c in (3, 8)],
}
QUICK: dict[str, Sequence[tuple[tuple[int, ...], tuple[int, ...], int]]] = {
    "NCHW": [((8, 16, 8, 8), (8, 16, 8, 8), 1)],
    "batch, time, units": [((4, 16, 32), (4, 16, 32), 2)],
    "unequal widths": [((64, 24), (64, 40), 1)],
}


def cases(quick: bool, threads: int) -> list[Case]:
    """One case per pair of shapes."""
    shapes = QUICK if quick else SHAPES
    return [_case(layout, *of) for layout, several in shapes.items() for of in several]


def _case(layout: str, x: tuple[int, ...], y: tuple[int, ...], axis: int) -> Case:
    shape = str(x) if x == y else f"{x} and {y}"
    names = (OURS, NARROW, NAIVE, PACKED)
    name = f"{layout} {shape}" if layout in ("NHWC", "batch, time, units") else shape
    return Case("cross_moments", layout, name, x[axis], names, GATES, lambda: _contest(x, y, axis))


def _contest(shape_x: tuple[int, ...], shape_y: tuple[int, ...], axis: int) -> Contest:
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(shape, generator=generator).relu_() for shape in (shape_x, shape_y))
    narrow_x, narrow_y = x.bfloat16(), y.bfloat16()
    one, two = packed(x, axis), packed(y, axis)
    wide = {OURS: _centred(one, two), NARROW: _centred(packed(narrow_x, axis), packed(narrow_y, axis))}

    def check(name: str, answer: Any) -> str:
        if name in wide:
            expected, spread = wide[name]
            worst = float(((answer.comoment - expected).abs() / spread).max())
            return "" if worst <= TOLERANCE[torch.float32] else f"off by {worst:.3g} of the units' spread"
        product = answer[0] if name == NAIVE else answer
        expected = one.double() @ two.double().T
        worst = float((product - expected).abs().max() / expected.abs().max())
        return "" if worst <= 1e-4 else f"off by {worst:.3g} of the greatest entry"

    contestants = [
        Contestant(OURS, "ours", lambda: engine.cross_moments(x, y, axis=axis)),
        Contestant(NARROW, "ours", lambda: engine.cross_moments(narrow_x, narrow_y, axis=axis)),
        Contestant(NAIVE, "competitor", lambda: naive_moments(x, y, axis)),
        Contestant(PACKED, "limit", lambda: one @ two.T),
    ]
    return Contest(contestants, check)


def _centred(one: Tensor, two: Tensor) -> tuple[Tensor, Tensor]:
    """Co-moments in float64, and the product of the units' spreads that errors are measured by."""
    a, b = (z.double() - z.double().mean(1, keepdim=True) for z in (one, two))
    return a @ b.T, torch.outer(a.square().sum(1).sqrt(), b.square().sum(1).sqrt())
