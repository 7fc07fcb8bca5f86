"""How permuted tensors of one shape are walked together on a GPU: outer axes in any order, and rows handled as tiles.

Axes are merged where nothing moves. What is left becomes an outer loop, whose indices are looked up once a row, and a
row of columns, each a short run of entries. A row without a permutation is as long as it can be: its loads are wide.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

__all__ = ["Layout", "Table", "Walk", "walk"]

SHORT_RUN = 64
"""Bytes up to which a run is part of a row of columns; longer ones are rows, whose sectors are read whole anyway."""

Layout = tuple[tuple[int, ...], tuple[tuple[int, int] | None, ...]]
"""Of one operand: the stride of each axis, and (which permutation, how many indices it has) or None."""


@dataclass(frozen=True)
class Table:
    """Where the entries of an axis lie: those of a permutation, each standing for `pieces` entries of the axis."""

    perm: int
    pieces: int = 1


@dataclass(frozen=True)
class Walk:
    """A plan: `count` rows of `columns * run` entries.

    Args:
        extents: Outer axes, outermost first.
        columns: Entries along a row, each a run.
        run: Entries that follow each other in every permutation; 1 where a row is one run.
        places: Of each operand the strides of the outer axes, of the columns and of the run.
        tables: What the listings refer to.
        listings: Of each operand, for each outer axis and the columns: which table, or -1.
    """

    extents: tuple[int, ...]
    columns: int
    run: int
    places: tuple[tuple[int, ...], ...]
    tables: tuple[Table, ...]
    listings: tuple[tuple[int, ...], ...]

    @property
    def count(self) -> int:
        """Number of rows."""
        return math.prod(self.extents)

    @property
    def length(self) -> int:
        """Entries of a row."""
        return self.columns * self.run

    def consecutive(self, operand: int) -> bool:
        """Whether the entries of an operand's row follow each other in memory, before they are permuted."""
        *_, column, run = self.places[operand]
        return (self.columns == 1 or column == self.run) and (self.run == 1 or run == 1)

    def shuffled(self, operand: int) -> bool:
        """Whether an operand's columns are permuted."""
        return self.listings[operand][-1] >= 0


@dataclass
class _Axis:
    extent: int
    strides: tuple[int, ...]
    tables: tuple[Table | None, ...] = field(default=())

    @property
    def moves(self) -> bool:
        return any(table is not None for table in self.tables)


@lru_cache(maxsize=4096)
def walk(shape: tuple[int, ...], layouts: tuple[Layout, ...], item: int) -> Walk:
    """Plan the walk.

    Args:
        shape: Of all operands.
        layouts: Of the operands; the first is the one that decides the order, the one that is written.
        item: Bytes of an entry.
    """
    split = [part for d, extent in enumerate(shape) if extent > 1 for part in _split(extent, d, layouts)]
    axes = _merged(sorted(split, key=lambda axis: -axis.strides[0]))
    still = (None,) * len(layouts)
    run = _Axis(1, (1,) * len(layouts), still)
    columns = _Axis(1, run.strides, still)
    if axes and not axes[-1].moves and len(axes) > 1 and axes[-1].extent * item < SHORT_RUN:
        run = axes.pop()
    if axes:
        columns = axes.pop()
    return _listed(axes, columns, run)


def _split(extent: int, d: int, layouts: Sequence[Layout]) -> list[_Axis]:
    """An axis whose indices move runs is two axes: one that moves and one that does not."""
    strides = tuple(layout[0][d] for layout in layouts)
    moved = [layout[1][d] for layout in layouts]
    moved = [None if perm is None or perm[1] < 2 else perm for perm in moved]
    shared = math.gcd(extent, *(extent // perm[1] for perm in moved if perm is not None))
    tables = tuple(None if perm is None else Table(perm[0], extent // perm[1] // shared) for perm in moved)
    across = _Axis(extent // shared, tuple(s * shared for s in strides), tables)
    within = _Axis(shared, strides, (None,) * len(layouts))
    return [axis for axis in (across, within) if axis.extent > 1]


def _merged(axes: Sequence[_Axis]) -> list[_Axis]:
    merged: list[_Axis] = []
    for axis in axes:
        outside = merged[-1] if merged else None
        spanned = tuple(stride * axis.extent for stride in axis.strides)
        if outside is not None and not outside.moves and not axis.moves and outside.strides == spanned:
            merged[-1] = _Axis(outside.extent * axis.extent, axis.strides, axis.tables)
        else:
            merged.append(axis)
    return merged


def _listed(outer: Sequence[_Axis], columns: _Axis, run: _Axis) -> Walk:
    every = [*outer, columns]
    tables = tuple(dict.fromkeys(table for axis in every for table in axis.tables if table is not None))
    operands = range(len(columns.strides))
    return Walk(
        extents=tuple(axis.extent for axis in outer),
        columns=columns.extent,
        run=run.extent,
        places=tuple((*(axis.strides[k] for axis in every), run.strides[k]) for k in operands),
        tables=tables,
        listings=tuple(tuple(_place(axis.tables[k], tables) for axis in every) for k in operands),
    )


def _place(table: Table | None, tables: Sequence[Table]) -> int:
    return -1 if table is None else tables.index(table)
