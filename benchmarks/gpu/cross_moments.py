"""cross_moments on a device against transpose, product and sums in torch; its limit is the packed product."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.competitors import packed
from benchmarks.gpu.device import contestant
from benchmarks.record import BEST, Case, Contest, Gate
from pyalign import engine

__all__ = ["cases"]

OURS, NAIVE, PACKED = "pyalign", "torch", "packed product"
GATES = (Gate(OURS, PACKED, 1 / 0.7), Gate(OURS, BEST, 1.0))
DTYPES = {"float32": torch.float32, "tf32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16,
          "float64": torch.float64}  # fmt: skip
ENTRIES = 2**26
"""Of each stream: 256 MB of float32, beyond every cache, and at the greatest width as many samples as units."""
TOLERANCE = {"tf32": 1e-3, "float64": 1e-12}
"""Of co-moments, relative to the units' spread; 1e-6 for the others."""


def cases(quick: bool, device: str) -> list[Case]:
    """Maps of every width from 256 to 8192, channels first and (batch, time, units), in every dtype."""
    made = []
    for d in (16,) if quick else (256, 512, 1024, 2048, 4096, 8192):
        batch = 2 if quick else ENTRIES // d // 256
        shapes = {"NCHW": ((batch, d, 4, 4) if quick else (batch, d, 16, 16), 1),
                  "batch, time, units": ((batch, 8, d) if quick else (batch, 256, d), 2)}  # fmt: skip
        if not quick and d in (512, 2048):
            shapes["NCHW, 7 x 7"] = ((5 * batch, d, 7, 7), 1)
        for layout, (shape, axis) in shapes.items():
            made += [_case(layout, shape, axis, dtype, device) for dtype in DTYPES if dtype != "float64" or d <= 2048]
    return made


def _case(layout: str, shape: tuple[int, ...], axis: int, dtype: str, device: str) -> Case:
    name = f"{layout} {shape} {dtype}"
    build = lambda: _contest(shape, axis, dtype, device)  # noqa: E731
    return Case("cross_moments", f"{layout}, {dtype}", name, shape[axis], (OURS, NAIVE, PACKED), GATES, build, 2.0)


def _contest(shape: tuple[int, ...], axis: int, dtype: str, device: str) -> Contest:
    generator = torch.Generator(device).manual_seed(0)
    x, y = (torch.randn(shape, generator=generator, device=device).relu_().to(DTYPES[dtype]) for _ in range(2))
    one, two = packed(x, axis), packed(y, axis)
    rows = torch.randperm(len(one), generator=generator, device=device)[:64]  # float64 products of all would take long
    wanted, spread = _centred(one[rows], two)
    torch.backends.cuda.matmul.allow_tf32 = dtype == "tf32"

    def check(name: str, answer: Any) -> str:
        if name == OURS:
            worst = float(((answer.comoment[rows] - wanted).abs() / spread).max())
            most = TOLERANCE.get(dtype, 1e-6)
            return "" if worst <= most else f"off by {worst:.3g} of the units' spread, at most {most:g}"
        product = (answer[0] if name == NAIVE else answer)[rows].double()
        exact = one[rows].double() @ two.double().T
        worst = float((product - exact).abs().max() / exact.abs().max())
        most = 1e-4 if one.dtype in (torch.float32, torch.float64) and dtype != "tf32" else 1e-2
        return "" if worst <= most else f"off by {worst:.3g} of the greatest entry"

    def in_torch() -> tuple[Tensor, ...]:
        a, b = packed(x, axis), packed(y, axis)
        return a @ b.T, a.sum(1), b.sum(1), a.square().sum(1), b.square().sum(1)

    contestants = [
        contestant(OURS, "ours", lambda: engine.cross_moments(x, y, axis=axis), device),
        contestant(NAIVE, "competitor", in_torch, device),
        contestant(PACKED, "limit", lambda: one @ two.T, device),
    ]
    return Contest(contestants, check)


def _centred(one: Tensor, two: Tensor) -> tuple[Tensor, Tensor]:
    a, b = (z.double() - z.double().mean(1, keepdim=True) for z in (one, two))
    return a @ b.T, torch.outer(a.square().sum(1).sqrt(), b.square().sum(1).sqrt())
