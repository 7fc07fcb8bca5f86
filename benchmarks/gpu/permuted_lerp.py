"""permuted_lerp on a device against indexing and torch.lerp; its limit is a device copy of as many bytes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.device import contestant
from benchmarks.record import BEST, Case, Contest, Gate
from pyalign import engine

__all__ = ["cases"]

OURS, NAIVE, COPY = "pyalign", "torch", "copy of as many bytes"
GATES = (Gate(OURS, COPY, 1 / 0.85), Gate(OURS, BEST, 1.0))
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
T = 0.3


def cases(quick: bool, device: str) -> list[Case]:
    """Square matrices of 64 to 4096 MB, rows and columns permuted."""
    made = []
    for megabytes in (1,) if quick else (64, 256, 1024, 4096):
        for dtype in DTYPES:
            side = int((megabytes * 2**20 // DTYPES[dtype].itemsize) ** 0.5) // 16 * 16
            name = f"{side} x {side} {dtype}, {megabytes} MB"
            build = lambda side=side, dtype=dtype: _contest(side, DTYPES[dtype], device)  # noqa: E731
            made.append(Case("permuted_lerp", dtype, name, megabytes, (OURS, NAIVE, COPY), GATES, build))
    return made


def _contest(side: int, dtype: torch.dtype, device: str) -> Contest:
    generator = torch.Generator(device).manual_seed(0)
    a, b = (torch.rand(side, side, generator=generator, device=device).to(dtype) for _ in range(2))
    perms = [torch.randperm(side, generator=generator, device=device) for _ in range(2)]
    half = torch.empty(a.numel() * 3 // 2, dtype=dtype, device=device)  # reads and writes: two reads and one write
    target = torch.empty_like(half)
    rows = torch.linspace(0, side - 1, 64, device=device).long()
    wanted = torch.lerp(a[rows].double(), b[perms[0][rows]][:, perms[1]].double(), T)

    def check(name: str, answer: Any) -> str:
        if name == COPY:
            return ""
        worst = float((answer[rows].double() - wanted).abs().max())
        most = 4 * torch.finfo(dtype).eps
        return "" if worst <= most else f"off by {worst:.3g}, allowed {most:.3g}"

    def in_torch() -> Tensor:
        return torch.lerp(a, b[perms[0]][:, perms[1]], T)

    out = torch.empty_like(a)
    contestants = [
        contestant(OURS, "ours", lambda: engine.permuted_lerp(a, b, T, perms, out=out), device),
        contestant(NAIVE, "competitor", in_torch, device),
        contestant(COPY, "limit", lambda: target.copy_(half), device),
    ]
    return Contest(contestants, check)
