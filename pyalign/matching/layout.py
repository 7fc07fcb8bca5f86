"""What weight matching keeps of a group's tensors, and where: all that depends on the symmetry and the shapes only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray

from pyalign.symmetry import AxisBinding, Group, Role, SymmetrySpec, Wreath

__all__ = ["KEPT", "TOTAL", "Layout", "Part", "Rows", "Term", "layout_of"]

KEPT = 1 << 22  # tensors of up to so many entries are laid out for every axis that moves
TOTAL = 1 << 26  # and so many entries in all, of tensors and of similarities; where there are more, only smaller ones

Array = NDArray[Any]
Shapes = Mapping[str, torch.Size]


@dataclass(frozen=True, eq=False)
class Term:
    """What one binding contributes to the similarity of its group's units.

    Args:
        binding: The binding.
        depends: Groups whose elements the contribution depends on.
        relative: Whether the group's own element is applied too and its labels undone afterwards: needed where blocks
            of a tensor move together, and where the group occurs twice (the linearisation at the present element).
        joint: Groups bound to other axes of the same tensor.
        kept: Whether the slices are laid out together with those of the group's other tensors.
        features: How many entries of the tensor belong to one unit.
    """

    binding: AxisBinding
    depends: tuple[str, ...]
    relative: bool
    joint: frozenset[str]
    kept: bool
    features: int

    def known(self, settled: AbstractSet[str]) -> bool:
        """Whether the contribution is known when all these groups are in place, but not the term's own."""
        return not self.relative and all(group in settled for group in self.depends)


@dataclass(frozen=True, eq=False)
class Part:
    """One kept binding, and what else moves on its tensor.

    Args:
        binding: The binding; its group occurs on no other axis of the tensor.
        others: Bindings on one other axis of the tensor, or none.
        shape: Of the tensor.
        features: How many entries of the tensor belong to one unit.
        counted: Whether the tensor's part of the objective is summed here.
    """

    binding: AxisBinding
    others: tuple[AxisBinding, ...]
    shape: torch.Size
    features: int
    counted: bool

    @cached_property
    def plain(self) -> bool:
        """Whether the units are the entries of the axis, in their order."""
        here = self.binding.positions
        return here.shape[1] == 1 and torch.equal(here[:, 0], torch.arange(self.shape[self.binding.axis]))


class Rows:
    """The features of one group's units, side by side: vectors, then other tensors of the group alone, then the rest.

    Args:
        size: Units of the group.
        parts: What is laid out.
        held: Whether similarities are held from one use to the next.
    """

    def __init__(self, size: int, parts: Sequence[Part], held: bool = True) -> None:
        def place(part: Part) -> tuple[bool, bool, bool]:
            return bool(part.others), not (part.plain and len(part.shape) == 1), not part.counted

        self.size, self.parts, self.held = size, sorted(parts, key=place), held
        self.vectors = sum(not any(place(part)[:2]) for part in self.parts)
        self.lengths = [part.features for part in self.parts]
        self.fixed = sum(part.features for part in self.parts if not part.others)
        self.counted = self._counted()
        self.links = self._links()

    def _counted(self) -> list[slice]:
        """The rows of counted tensors, neighbouring ones in one piece."""
        ranges: list[slice] = []
        at = 0
        for part in self.parts:
            if part.counted:
                start = ranges.pop().start if ranges and ranges[-1].stop == at else at
                ranges.append(slice(start, at + part.features))
            at += part.features
        return ranges

    def _links(self) -> dict[str, list[tuple[int, Array]]]:
        """For each other group and power of its factors, the rows that each of its units owns, shape (units, rows)."""
        found: dict[str, dict[int, list[Array]]] = {}
        at = 0
        for part in self.parts:
            axis, runs = part.binding.axis, part.binding.positions.shape[1]
            # `unfold` puts the runs of the units first and leaves the other axes in their order
            rows = np.arange(at, at + part.features).reshape(runs, *part.shape[:axis], *part.shape[axis + 1 :])
            rows = np.moveaxis(rows, 0, axis)
            for other in part.others:
                own = np.moveaxis(rows.take(other.positions.numpy().ravel(), other.axis), other.axis, 0)
                powers = found.setdefault(other.group, {})
                powers.setdefault(other.side.power, []).append(own.reshape(len(other.positions), -1))
            at += part.features
        return {
            group: [(power, np.ascontiguousarray(np.concatenate(own, 1))) for power, own in powers.items()]
            for group, powers in found.items()
        }


class Layout:
    """The terms of every group's similarity, and the rows of those that are kept.

    Args:
        spec: The symmetry.
        shapes: Of the matched tensors.

    Attributes:
        on: Bindings by matched tensor.
        terms: Terms by group.
        rows: Rows by group and by whether they change sign with a unit.
        elsewhere: The tensors that are counted in no rows.
    """

    def __init__(self, spec: SymmetrySpec, shapes: Shapes) -> None:
        self._signs = {name for name, group in spec.groups.items() if group.kind.signs}
        self._families = _families(spec)
        self._tree = {g.name: {other.name for other in family} for family in self._families for g in family}
        self._shapes = shapes
        self._limit = min(KEPT, _limit(shape.numel() for shape in shapes.values()))
        held = _limit(group.size**2 for group in spec.groups.values())
        self.on = {name: spec.on(name) for name in shapes}
        self.terms = {g: [self._term(b) for b in spec.of(g) if b.tensor in shapes] for g in spec.groups}
        parts: dict[tuple[str, bool], list[Part]] = {}
        counted: set[str] = set()
        # Counting each tensor with the group that has most entries makes few and large pieces.
        sizes = {g: sum(shapes[t.binding.tensor].numel() for t in terms) for g, terms in self.terms.items()}
        for group in sorted(sizes, key=lambda g: -sizes[g]):
            for term in (t for t in self.terms[group] if t.kept):
                part = self._part(term, counted)
                counted |= {term.binding.tensor} if part.counted else set()
                parts.setdefault((group, self.odd(term.binding)), []).append(part)
        self.rows: dict[str, dict[bool, Rows]] = {}
        for (group, odd), own in parts.items():
            self.rows.setdefault(group, {})[odd] = Rows(
                spec.groups[group].size, own, spec.groups[group].size ** 2 <= held
            )
        self.elsewhere = [name for name in shapes if name not in counted]

    @cached_property
    def anchoring(self) -> list[list[Group]]:
        """Groups that lie in no other, with everything within their units, in an order from the known to the unknown.

        Next is always the one whose units have most entries in tensors that only groups before it move besides.
        """
        terms = [[t for group in family for t in self.terms[group.name]] for family in self._families]
        depends = [{name for t in own for name in t.depends} for own in terms]
        order, settled, changed = list[list[Group]](), set[str](), set[str]()
        known = dict.fromkeys(range(len(terms)), 0)
        while known:
            for k in known:
                if not order or depends[k] & changed:
                    known[k] = sum(t.features for t in terms[k] if t.known(settled))
            first = max(known, key=lambda k: known[k])
            order.append(self._families[first])
            del known[first]
            changed = {group.name for group in order[-1]}
            settled |= changed
        return order

    def odd(self, binding: AxisBinding) -> bool:
        """Whether slices change sign with their unit; of no account where units have none."""
        return bool(binding.side.power) or binding.group not in self._signs

    def _term(self, binding: AxisBinding) -> Term:
        here, shape = self.on[binding.tensor], self._shapes[binding.tensor]
        others = [b for b in here if (b.axis, b.blocks) != (binding.axis, binding.blocks)]
        elsewhere = {b.group for b in others}
        relative = binding.group in elsewhere or any(b.blocks > 1 for b in here)
        depends = elsewhere | ({binding.group} if relative else set())
        kept = not relative and len({b.axis for b in others}) < 2 and not elsewhere & self._tree[binding.group]
        kept = kept and shape.numel() <= (self._limit if len(shape) > 1 else KEPT)
        features = shape.numel() // max(1, shape[binding.axis]) * binding.positions.shape[1]
        return Term(binding, tuple(sorted(depends)), relative, frozenset(elsewhere), kept, features)

    def _part(self, term: Term, counted: set[str]) -> Part:
        binding, shape = term.binding, self._shapes[term.binding.tensor]
        others = tuple(b for b in self.on[binding.tensor] if b.axis != binding.axis)
        whole = binding.positions.numel() == shape[binding.axis]
        return Part(binding, others, shape, term.features, whole and binding.tensor not in counted)


def _limit(sizes: Iterable[int]) -> int:
    """The most entries that something may have to be kept, so that all of it together stays below `TOTAL`."""
    total = largest = 0
    for size in sorted(sizes):
        total += size
        if total > TOTAL:
            return min(largest, size - 1)
        largest = size
    return TOTAL


_LAYOUTS: WeakKeyDictionary[SymmetrySpec, Layout] = WeakKeyDictionary()


def layout_of(spec: SymmetrySpec, shapes: Shapes) -> Layout:
    """The layout for a symmetry; made once, since many pairs of models may share it."""
    if spec not in _LAYOUTS:
        names = dict.fromkeys(b.tensor for b in spec.bindings if b.role is Role.MATCHED)
        _LAYOUTS[spec] = Layout(spec, {name: shapes[name] for name in names})
    return _LAYOUTS[spec]


def _families(spec: SymmetrySpec) -> list[list[Group]]:
    """Groups that lie in no other, each followed by everything within its units."""
    found: dict[str, list[Group]] = {}
    for group in spec.outer_first():
        if isinstance(group.structure, Wreath):
            found[group.name] = found[group.structure.outer]
            found[group.name].append(group)
        else:
            found[group.name] = [group]
    return [family for name, family in found.items() if family[0].name == name]
