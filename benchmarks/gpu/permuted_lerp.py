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
SIZES = (64, 256, 1024, 4096)
PLACES = ("rows", "columns", "both")
T = 0.3


def cases(quick: bool, device: str) -> list[Case]:
    """Tensors of 64 to 4096 MB with rows of 4096, permuted by rows, columns and both; and longer rows."""
    sizes = [(1, 512, place) for place in PLACES] if quick else [(s, 4096, p) for s in SIZES for p in PLACES]
    sizes += [] if quick else [(1024, columns, "both") for columns in (14336, 32768)]
    made = []
    for megabytes, columns, place in sizes:
        for dtype in DTYPES:
            shape = megabytes * 2**20 // DTYPES[dtype].itemsize // columns, columns
            name = f"{shape[0]} x {shape[1]} {dtype}, {megabytes} MB, {place}"
            build = lambda shape=shape, dtype=dtype, place=place: _contest(shape, DTYPES[dtype], place, device)  # noqa: E731
            family = f"{dtype}, {place}, rows of {columns}"
            made.append(Case("permuted_lerp", family, name, megabytes, (OURS, NAIVE, COPY), GATES, build))
    return made


def _contest(shape: tuple[int, int], dtype: torch.dtype, place: str, device: str) -> Contest:
    generator = torch.Generator(device).manual_seed(0)
    a, b = (torch.rand(shape, generator=generator, device=device).to(dtype) for _ in range(2))
    perms: list[Tensor | None] = [None, None]
    for axis in {"rows": (0,), "columns": (1,), "both": (0, 1)}[place]:
        perms[axis] = torch.randperm(shape[axis], generator=generator, device=device)
    half = torch.empty(a.numel() * 3 // 2, dtype=dtype, device=device)  # reads and writes: two reads and one write
    target = torch.empty_like(half)
    rows = torch.linspace(0, shape[0] - 1, 64, device=device).long()
    moved = _columns(b[rows if perms[0] is None else perms[0][rows]], perms[1])
    wanted = torch.lerp(a[rows].double(), moved.double(), T)

    def check(name: str, answer: Any) -> str:
        if name == COPY:
            return ""
        worst = float((answer[rows].double() - wanted).abs().max())
        most = 4 * torch.finfo(dtype).eps
        return "" if worst <= most else f"off by {worst:.3g}, allowed {most:.3g}"

    def in_torch() -> Tensor:
        return torch.lerp(a, _columns(b if perms[0] is None else b[perms[0]], perms[1]), T)

    out = torch.empty_like(a)
    contestants = [
        contestant(OURS, "ours", lambda: engine.permuted_lerp(a, b, T, perms, out=out), device),
        contestant(NAIVE, "competitor", in_torch, device),
        contestant(COPY, "limit", lambda: target.copy_(half), device),
    ]
    return Contest(contestants, check)


def _columns(tensor: Tensor, perm: Tensor | None) -> Tensor:
    return tensor if perm is None else tensor[:, perm]
