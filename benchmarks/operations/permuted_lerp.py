"""permuted_lerp against indexing, then torch.lerp; its limit is torch.lerp of tensors that are in order already."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.competitors import naive_lerp
from benchmarks.record import Case, Contest, Contestant, Gate
from pyalign import engine

__all__ = ["cases"]

OURS, NAIVE, LIMIT, READING = "pyalign", "torch", "unpermuted lerp", "one read"
SHAPES = ((512, 512, 3, 3), (4096, 4096), (14336, 4096))
QUICK = ((32, 32, 3, 3), (256, 256))
PLACES = ("rows", "columns", "both", "product axis")
DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
WITHIN_CACHE = 32 * 2**20
"""Bytes of the three tensors together up to which they are taken to stay in the last-level cache."""
T = 0.3
RUNS = 16
MODELS = 4

Perms = list[Tensor | None]


def cases(quick: bool, threads: int) -> list[Case]:
    """Forward and backward for every shape, dtype and place of the permutation, and sums of several tensors."""
    shapes = QUICK if quick else SHAPES
    made = []
    for shape in shapes:
        for dtype in DTYPES:
            places = [p for p in PLACES if p != "product axis" or len(shape) == 2]
            made += [_forward(shape, dtype, place) for place in places]
            made += [_backward(shape, dtype, "both")]
    return made + [_several(shape, dtype) for shape in shapes[1:2] for dtype in DTYPES]


def _perms(shape: tuple[int, ...], place: str, generator: torch.Generator) -> Perms:
    perms: Perms = [None] * len(shape)
    if place in ("rows", "both"):
        perms[0] = torch.randperm(shape[0], generator=generator)
    if place in ("columns", "both"):
        perms[1] = torch.randperm(shape[1], generator=generator)
    if place == "product axis":
        perms[1] = torch.randperm(shape[1] // RUNS, generator=generator)
    return perms


def _gates(shape: tuple[int, ...], dtype: torch.dtype, limit: str = LIMIT, tensors: int = 3) -> tuple[Gate, ...]:
    inside = tensors * torch.Size(shape).numel() * dtype.itemsize <= WITHIN_CACHE
    return (Gate(OURS, limit, 3.0 if inside else 1.5),)


def _name(shape: tuple[int, ...], dtype: torch.dtype, what: str) -> str:
    return f"{' x '.join(map(str, shape))} {DTYPES[dtype]}, {what}"


def _wrong(answer: Tensor, parts: Sequence[tuple[float, Tensor, Perms]]) -> str:
    """Compare with the weighted sum of permuted tensors in float64, a few rows at a time."""
    worst = largest = 0.0
    for rows in torch.arange(len(answer)).split(256):
        wanted = torch.zeros(len(rows), *answer.shape[1:], dtype=torch.float64)
        for weight, tensor, perms in parts:
            chosen = tensor[rows if perms[0] is None else perms[0][rows]].double()
            wanted += naive_lerp(torch.zeros_like(wanted), chosen, weight, [None, *perms[1:]])
        worst = max(worst, float((answer[rows].double() - wanted).abs().max()))
        largest = max(largest, float(wanted.abs().max()))
    allowed = 4 * torch.finfo(answer.dtype).eps * largest
    return "" if worst <= allowed else f"off by {worst:.3g}, allowed {allowed:.3g}"


def _pair(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor, torch.Generator]:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.rand(shape, generator=generator).to(dtype) for _ in range(2))
    return a, b, generator


def _forward(shape: tuple[int, ...], dtype: torch.dtype, place: str) -> Case:
    def build() -> Contest:
        a, b, generator = _pair(shape, dtype)
        perms = _perms(shape, place, generator)
        ours, theirs = torch.empty_like(a), torch.empty_like(a)
        still: Perms = [None] * a.dim()

        def check(name: str, answer: Tensor) -> str:
            return _wrong(answer, [(1 - T, a, still), (T, b, still if name == LIMIT else perms)])

        contestants = [
            Contestant(OURS, "ours", lambda: engine.permuted_lerp(a, b, T, perms, out=ours)),
            Contestant(NAIVE, "competitor", lambda: naive_lerp(a, b, T, perms)),
            Contestant(LIMIT, "limit", lambda: torch.lerp(a, b, T, out=theirs)),
        ]
        return Contest(contestants, check)

    names, size = (OURS, NAIVE, LIMIT), torch.Size(shape).numel()
    return Case("permuted_lerp", "forward", _name(shape, dtype, place), size, names, _gates(shape, dtype), build)


def _backward(shape: tuple[int, ...], dtype: torch.dtype, place: str) -> Case:
    def build() -> Contest:
        a, b, generator = _pair(shape, dtype)
        a.requires_grad_(), b.requires_grad_()
        perms = _perms(shape, place, generator)
        slope = torch.rand(shape, generator=generator).to(dtype)
        outputs = {
            OURS: engine.permuted_lerp(a, b, T, perms),
            NAIVE: naive_lerp(a, b, T, perms),
            LIMIT: torch.lerp(a, b, T),
        }
        inverse = [None if p is None else p.argsort() for p in perms]
        still: Perms = [None] * a.dim()

        def check(name: str, answer: tuple[Tensor, ...]) -> str:
            for_a, for_b = [(1 - T, slope, still)], [(T, slope, still if name == LIMIT else inverse)]
            return _wrong(answer[0], for_a) or _wrong(answer[1], for_b)

        def gradients(name: str) -> Callable[[], tuple[Tensor, ...]]:
            return lambda: torch.autograd.grad(outputs[name], (a, b), slope, retain_graph=True)

        roles = {OURS: "ours", NAIVE: "competitor", LIMIT: "limit"}
        contestants = [Contestant(name, role, gradients(name)) for name, role in roles.items()]
        return Contest(contestants, check)

    names, size = (OURS, NAIVE, LIMIT), torch.Size(shape).numel()
    what = f"{place}, backward"
    return Case("permuted_lerp", "backward", _name(shape, dtype, what), size, names, _gates(shape, dtype), build)


def _several(shape: tuple[int, ...], dtype: torch.dtype) -> Case:
    def build() -> Contest:
        generator = torch.Generator().manual_seed(0)
        tensors = [torch.rand(shape, generator=generator).to(dtype) for _ in range(MODELS)]
        perms = [_perms(shape, "both", generator) for _ in range(MODELS)]
        out, weight = torch.empty_like(tensors[0]), 1 / MODELS

        def check(name: str, answer: Any) -> str:
            parts = [(weight, x, p) for x, p in zip(tensors, perms, strict=True)]
            return "" if name == READING else _wrong(answer, parts)

        def naive() -> Tensor:
            moved = (naive_lerp(x, x, 1.0, p) for x, p in zip(tensors, perms, strict=True))
            return torch.stack([weight * x for x in moved]).sum(0)

        words = [x.view(torch.int64) for x in tensors]  # so that every dtype is read at the same speed
        weights = [weight] * MODELS
        contestants = [
            Contestant(OURS, "ours", lambda: engine.permuted_sum(tensors, weights, perms, out=out)),
            Contestant(NAIVE, "competitor", naive),
            Contestant(READING, "limit", lambda: [x.sum() for x in words]),
        ]
        return Contest(contestants, check)

    names, size = (OURS, NAIVE, READING), torch.Size(shape).numel()
    gates = _gates(shape, dtype, READING, MODELS + 1)
    name = _name(shape, dtype, f"sum of {MODELS}")
    return Case("permuted_lerp", "several tensors", name, size, names, gates, build)
