"""Weighted sums of permuted tensors, and their inner products, in one read of each tensor and one write.

A program takes a tile of rows. The rows of a tensor are looked up, which costs one index a row; their entries are read
as they lie in memory, 16 bytes a thread. Where a row's entries are permuted, the row goes through shared memory
(`tl.gather`): it is read from device memory once and in order, and shuffled among 32 banks, where single entries are
cheap; from the first-level cache a warp would fetch 32 lines for 32 entries. Rows that are too long for that are
gathered from the caches.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl
from pyalign.kernels.walk import Layout, Walk, walk
from torch import Tensor

__all__ = ["MOST", "permuted_dots", "permuted_sum"]

MOST = 16
"""Tensors that one kernel adds: its code is written out for each of them."""

PLAIN, SPREAD, STAGED = 0, 1, 2
_PLAIN, _STAGED = tl.constexpr(PLAIN), tl.constexpr(STAGED)
_LOW = tl.constexpr(0xFFFFFFFF)

# The shapes of the tiles are a table and not searched for at run time: a search takes seconds for every new shape and
# may choose otherwise in the next run. A tile of 8 KB in four warps is four 16-byte loads a thread and tensor, enough
# in flight to hide the latency of device memory and few enough registers for many programs on a multiprocessor.
TILE_BYTES = 8192
STAGED_BYTES = 65536
"""Of the longest row that goes through shared memory; every device since Ampere has that much, and threads enough."""
FEWEST_PROGRAMS = 1024
"""A program takes several tiles of staged rows, to read their indices once, while this many programs remain."""
MOST_STEPS = 8


@triton.jit
def _row_offsets(
    rows, kept, tables, places, extents, OPERAND: tl.constexpr, LISTINGS: tl.constexpr, DEPTH: tl.constexpr
):
    """Where an operand's rows begin."""
    offsets = tl.zeros_like(rows).to(tl.int64)
    rest = rows
    # From the innermost axis on, DEPTH - 1 - inner: written out, since a name may not stand for several constants.
    for inner in tl.static_range(DEPTH):
        if inner < DEPTH - 1:
            i = rest % extents[DEPTH - 1 - inner]
            rest = rest // extents[DEPTH - 1 - inner]
        else:
            i = rest
        if LISTINGS[OPERAND * (DEPTH + 1) + DEPTH - 1 - inner] >= 0:
            i = tl.load(tables[LISTINGS[OPERAND * (DEPTH + 1) + DEPTH - 1 - inner]] + i, mask=kept, other=0)
        offsets += i.to(tl.int64) * places[OPERAND * (DEPTH + 2) + DEPTH - 1 - inner]
    return offsets


@triton.jit
def _column_offsets(
    q,
    inside,
    tables,
    places,
    OPERAND: tl.constexpr,
    LISTINGS: tl.constexpr,
    DEPTH: tl.constexpr,
    MODE: tl.constexpr,
    RUN: tl.constexpr,
):
    """Where the entries q of an operand's row lie: from its beginning, or among its entries in order if staged."""
    if MODE == _PLAIN:
        offsets = q.to(tl.int64)
    else:
        column = q // RUN
        within = (q % RUN).to(tl.int64)
        if LISTINGS[OPERAND * (DEPTH + 1) + DEPTH] >= 0:
            column = tl.load(tables[LISTINGS[OPERAND * (DEPTH + 1) + DEPTH]] + column, mask=inside, other=0)
        if MODE == _STAGED:
            offsets = (column * RUN + within).to(tl.int32)
        else:
            apart = column.to(tl.int64) * places[OPERAND * (DEPTH + 2) + DEPTH]
            offsets = apart + within * places[OPERAND * (DEPTH + 2) + DEPTH + 1]
    return offsets


@triton.jit
def _read(tensor, base, spots, q, mask, MODE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """A tile of a tensor, permuted."""
    if MODE == _STAGED:
        rows = tl.load(tensor + base[:, None] + q[None, :].to(tl.int64), mask=mask, other=0.0)
        # In one dimension: of more, Triton gathers by shuffles within a warp, as many as the entries of a row squared.
        places = tl.arange(0, ROWS)[:, None] * BLOCK + spots[None, :]
        tile = tl.gather(tl.reshape(rows, [ROWS * BLOCK]), tl.reshape(places, [ROWS * BLOCK]), 0)
        tile = tl.reshape(tile, [ROWS, BLOCK])
    else:
        tile = tl.load(tensor + base[:, None] + spots[None, :], mask=mask, other=0.0)
    return tile


@triton.jit
def _weight(words, k: tl.constexpr, WIDE: tl.constexpr):
    """A weight from its two words, see `_words`."""
    high = (words[2 * k].to(tl.int64) >> 1) & _LOW
    low = (words[2 * k + 1].to(tl.int64) >> 1) & _LOW
    return ((high << 32) | low).to(tl.float64, bitcast=True).to(WIDE)


@triton.jit(do_not_specialize=["count", "chunks"])
def _sum(
    out,
    tensors,
    words,
    tables,
    places,
    extents,
    count,
    length,
    chunks,
    LISTINGS: tl.constexpr,
    MODES: tl.constexpr,
    RUN: tl.constexpr,
    DEPTH: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    WIDE: tl.constexpr,
    COPY: tl.constexpr,
    STEPS: tl.constexpr,
    LONG: tl.constexpr,
):
    program = tl.program_id(0)
    if LONG:
        program = program.to(tl.int64)
    q = (program % chunks) * BLOCK + tl.arange(0, BLOCK)
    inside = q < length
    to = _column_offsets(q, inside, tables, places, 0, LISTINGS, DEPTH, MODES[0], RUN)
    spots = ()
    for k in tl.static_range(len(tensors)):
        spots = spots + (_column_offsets(q, inside, tables, places, k + 1, LISTINGS, DEPTH, MODES[k + 1], RUN),)
    for step in range(STEPS):
        rows = (program // chunks * STEPS + step) * ROWS + tl.arange(0, ROWS)
        kept = rows < count
        mask = kept[:, None] & inside[None, :]
        target = out + _row_offsets(rows, kept, tables, places, extents, 0, LISTINGS, DEPTH)[:, None] + to[None, :]
        if COPY:
            base = _row_offsets(rows, kept, tables, places, extents, 1, LISTINGS, DEPTH)
            tl.store(target, _read(tensors[0], base, spots[0], q, mask, MODES[1], ROWS, BLOCK), mask=mask)
        else:
            total = tl.zeros([ROWS, BLOCK], WIDE)
            for k in tl.static_range(len(tensors)):
                base = _row_offsets(rows, kept, tables, places, extents, k + 1, LISTINGS, DEPTH)
                part = _read(tensors[k], base, spots[k], q, mask, MODES[k + 1], ROWS, BLOCK)
                total += _weight(words, k, WIDE) * part.to(WIDE)
            tl.store(target, total.to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["count", "chunks"])
def _dots(
    partial,
    factor,
    tensors,
    tables,
    places,
    extents,
    count,
    length,
    chunks,
    LISTINGS: tl.constexpr,
    MODES: tl.constexpr,
    RUN: tl.constexpr,
    DEPTH: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    LONG: tl.constexpr,
):
    program = tl.program_id(0)
    number = len(tensors)
    store = partial + program.to(tl.int64) * number
    if LONG:
        program = program.to(tl.int64)
    q = (program % chunks) * BLOCK + tl.arange(0, BLOCK)
    inside = q < length
    rows = program // chunks * ROWS + tl.arange(0, ROWS)
    kept = rows < count
    mask = kept[:, None] & inside[None, :]
    spots = _column_offsets(q, inside, tables, places, 0, LISTINGS, DEPTH, MODES[0], RUN)
    base = _row_offsets(rows, kept, tables, places, extents, 0, LISTINGS, DEPTH)
    wide = _read(factor, base, spots, q, mask, MODES[0], ROWS, BLOCK).to(tl.float64)
    for k in tl.static_range(len(tensors)):
        spots = _column_offsets(q, inside, tables, places, k + 1, LISTINGS, DEPTH, MODES[k + 1], RUN)
        base = _row_offsets(rows, kept, tables, places, extents, k + 1, LISTINGS, DEPTH)
        part = _read(tensors[k], base, spots, q, mask, MODES[k + 1], ROWS, BLOCK).to(tl.float64)
        # What lies outside of the tile is zero in both, also where a row that is shuffled brings an entry there.
        product = tl.where(mask, wide * part, 0.0)
        tl.store(store + k, tl.sum(product))


@dataclass(frozen=True)
class Tiles:
    """How a walk is cut into programs, and the settings of the kernel that follow from it."""

    programs: int
    chunks: int
    steps: int
    settings: dict[str, Any]


@lru_cache(maxsize=4096)
def tiles(plan: Walk, item: int, stepping: bool) -> Tiles:
    """Choose the tiles of a walk of entries of `item` bytes."""
    operands = range(len(plan.places))
    whole = triton.next_power_of_2(plan.length)
    modes = tuple(_mode(plan, k, whole, item) for k in operands)
    staged = STAGED in modes
    most = max(TILE_BYTES // item, 1)
    block = whole if staged or whole <= most else _block(plan.length, most)
    rows = max(1, min(triton.next_power_of_2(plan.count), most // block))
    chunks, groups = triton.cdiv(plan.length, block), triton.cdiv(plan.count, rows)
    shuffled = any(plan.shuffled(k) for k in operands)
    steps = 1
    while stepping and shuffled and steps < MOST_STEPS and groups * chunks >= 2 * steps * FEWEST_PROGRAMS:
        steps *= 2
    reach = max(plan.length + block, plan.count + rows * steps)
    settings = {
        "LISTINGS": tuple(table for listing in plan.listings for table in listing),
        "MODES": modes,
        "RUN": plan.run,
        "DEPTH": len(plan.extents),
        "ROWS": rows,
        "BLOCK": block,
        "LONG": reach >= 2**31,
        "num_warps": max(4, min(16, rows * block // 512)) if shuffled else 4,
        "enable_fp_fusion": True,
    }
    return Tiles(triton.cdiv(groups, steps) * chunks, chunks, steps, settings)


def _mode(plan: Walk, operand: int, whole: int, item: int) -> int:
    if not plan.consecutive(operand):
        return SPREAD
    if not plan.shuffled(operand):
        return PLAIN
    return STAGED if whole * item <= STAGED_BYTES else SPREAD


def _block(length: int, most: int) -> int:
    """The longest piece of a long row, but for a shorter one where that leaves a tenth less of the tiles empty."""
    best = most
    for block in (most // 2, most // 4):
        if triton.cdiv(length, block) * block < 0.9 * triton.cdiv(length, best) * best:
            best = block
    return best


Perms = Sequence[Sequence[Tensor | None]]


def permuted_sum(out: Tensor, tensors: Sequence[Tensor], weights: Sequence[float], perms: Perms) -> None:
    """Write `sum_k weights[k] * tensors[k][perms[k]]` to out.

    Args:
        out: Not empty; no two of its entries share memory, and none is that of an entry of a permuted tensor.
        tensors: At most `MOST`, of out's shape. Their dtype is that of out, or wider for sums that are made in turn.
        weights: One number a tensor. A single 1.0 copies bit for bit.
        perms: For each tensor and axis the int64 indices, each moving a run, or None; valid ones.
    """
    plan, tables = _planned([out, *tensors], [[None] * out.dim(), *perms])
    cut = tiles(plan, out.element_size(), True)
    wide = tl.float64 if torch.float64 in (out.dtype, tensors[0].dtype) else tl.float32
    copy = len(tensors) == 1 and weights[0] == 1.0 and tensors[0].dtype == out.dtype
    _sum[(cut.programs,)](
        out, tuple(tensors), () if copy else _words(weights), tables, _flat(plan), plan.extents, plan.count,
        plan.length, cut.chunks, WIDE=wide, COPY=copy, STEPS=cut.steps, **cut.settings,
    )  # fmt: skip


def permuted_dots(factor: Tensor, tensors: Sequence[Tensor], perms: Perms) -> Tensor:
    """Give the (k,) float64 sums over all entries of factor times each permuted tensor.

    Every program writes its own sums, which are added in a second step: the result is the same in every run.

    Args:
        factor: Not empty.
        tensors: At most `MOST`, of factor's shape and dtype.
        perms: As for `permuted_sum`.
    """
    plan, tables = _planned([factor, *tensors], [[None] * factor.dim(), *perms])
    cut = tiles(plan, factor.element_size(), False)
    partial = torch.empty((cut.programs, len(tensors)), dtype=torch.float64, device=factor.device)
    _dots[(cut.programs,)](
        partial, factor, tuple(tensors), tables, _flat(plan), plan.extents, plan.count, plan.length, cut.chunks,
        **cut.settings,
    )  # fmt: skip
    return partial.sum(0)


def _planned(operands: Sequence[Tensor], perms: Perms) -> tuple[Walk, tuple[Tensor, ...]]:
    """The walk of these operands, and the tables it refers to."""
    known: dict[int, int] = {}
    different: list[Tensor] = []
    layouts: list[Layout] = []
    for operand, axes in zip(operands, perms, strict=True):
        moved: list[tuple[int, int] | None] = []
        for perm in axes:
            if perm is None:
                moved.append(None)
                continue
            if id(perm) not in known:
                known[id(perm)] = len(different)
                different.append(perm)
            moved.append((known[id(perm)], perm.numel()))
        layouts.append((operand.stride(), tuple(moved)))
    plan = walk(tuple(operands[0].shape), tuple(layouts), operands[0].element_size())
    return plan, tuple(_listing(different[table.perm], table.pieces) for table in plan.tables)


def _listing(perm: Tensor, pieces: int) -> Tensor:
    if pieces == 1:
        return perm.contiguous()
    return (perm.unsqueeze(1) * pieces + torch.arange(pieces, device=perm.device)).flatten()


def _flat(plan: Walk) -> tuple[int, ...]:
    return tuple(stride for place in plan.places for stride in place)


def _words(weights: Sequence[float]) -> tuple[int, ...]:
    """The bits of float64 weights in two odd numbers beyond 32 bits each.

    A float would arrive as a float32, and integers that are short, 1 or multiples of 16 would each be compiled for.
    """
    words = []
    for weight in weights:
        words += [(1 << 40) + (word << 1) + 1 for word in struct.unpack(">II", struct.pack(">d", weight))]
    return tuple(words)
