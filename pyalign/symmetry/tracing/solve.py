"""From ties to a spec: connected atoms are units, units with equal signatures form a group, blocks make wreaths."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from pyalign.symmetry.tracing.hashing import HashArray, IntArray, mix
from pyalign.symmetry.tracing.labels import FIXED
from pyalign.symmetry.tracing.ties import Ties

__all__ = ["Class", "Units", "solve_units"]

_ROUNDS = 4


@dataclass
class Class:
    """Interchangeable units: `units` in slot order; `blocks` is the class of the blocks they sit in, or None."""

    units: IntArray
    outer: Class | None = None
    blocks: int = 1
    name: str = ""


@dataclass
class Units:
    """The solution: unit of every atom, atom signatures, and the classes.

    Args:
        unit: Unit of each atom, shape (atoms,); the unit of atom 0 is the fixed one.
        signature: Signature of each atom.
        classes: Classes of two or more interchangeable units, those of blocks included.
        members: Atoms of each unit, in increasing order.
    """

    unit: IntArray
    signature: HashArray
    classes: list[Class]
    members: dict[int, IntArray] = field(default_factory=dict)

    @property
    def fixed(self) -> int:
        """The unit that cannot move."""
        return int(self.unit[FIXED])


def components(count: int, edges: list[tuple[IntArray, IntArray]]) -> IntArray:
    """Connected component of each of `count` nodes."""
    if not edges:
        return np.arange(count)
    rows, columns = (np.concatenate([pair[k] for pair in edges]) for k in (0, 1))
    graph = coo_matrix((np.ones(len(rows), np.int8), (rows, columns)), shape=(count, count))
    labels: IntArray = connected_components(graph, directed=False)[1].astype(np.int64)
    return labels


def solve_units(ties: Ties, tied: list[tuple[IntArray, IntArray]] | None = None) -> Units:
    """Units and their classes.

    Args:
        ties: What the trace collected.
        tied: Further ties: repetitions that nothing else could change places with are one with what they repeat.
    """
    edges, still = _blocks_settled(ties, tied or [])
    unit = components(ties.atoms, edges)
    count = int(unit.max()) + 1
    known = [*ties.edges, *((own, blocks) for own, blocks, _ in ties.repeats), *((b, a) for _, b, a in ties.repeats)]
    signature = _roles(ties.signature, known)
    content = np.zeros(count, np.uint64)
    np.add.at(content, unit, mix(signature))
    order = np.full(count, ties.atoms)
    np.minimum.at(order, unit, np.arange(ties.atoms))
    parents = _parents(ties, unit)
    mixed = _mixed(unit, signature)
    held = set(unit[still].tolist()) | set(mixed.tolist())
    key = _refined(content, parents, _cells(ties, unit), int(unit[FIXED]), held)
    key[mixed] = mix(mixed.astype(np.uint64) + np.uint64(1 << 42))
    alone = _alone(ties, unit, key)
    if alone:
        return solve_units(ties, [*(tied or []), *alone])
    classes = _classes(key, parents, order, int(unit[FIXED]))
    members = np.argsort(unit, kind="stable")
    starts = np.searchsorted(unit[members], np.arange(count + 1))
    moving = {int(u) for c in classes for u in c.units}
    return Units(unit, signature, classes, {u: members[starts[u] : starts[u + 1]] for u in moving})


def _alone(ties: Ties, unit: IntArray, key: HashArray) -> list[tuple[IntArray, IntArray]]:
    """Edges between blocks and the repetitions in them, where no two of those in a block are alike."""
    edges = []
    for own, blocks, _ in ties.repeats:
        members = np.unique(np.stack([unit[blocks], unit[own]]), axis=1)
        kinds = np.stack([members[0].astype(np.uint64), key[members[1]]])
        _, place, count = np.unique(kinds, axis=1, return_inverse=True, return_counts=True)
        several = count[place.reshape(-1)] > 1
        kept = np.union1d(members[0][several], members[0][members[1] == unit[FIXED]])
        loose = (unit[own] != unit[blocks]) & ~np.isin(unit[blocks], kept)
        if loose.any():
            edges.append((own[loose], blocks[loose]))
    return edges


def _blocks_settled(
    ties: Ties, tied: list[tuple[IntArray, IntArray]]
) -> tuple[list[tuple[IntArray, IntArray]], IntArray]:
    """All edges, those that follow from blocks included, and the blocks whose repeated value cannot move."""
    extra = list(tied)
    while True:
        loose = components(ties.atoms, ties.edges + extra)
        still = [loose[values] == loose[FIXED] for _, _, values in ties.repeats]
        anchors = [(b[~s], v[~s]) for (_, b, v), s in zip(ties.repeats, still, strict=True)]
        unit = components(ties.atoms, ties.edges + extra + anchors)
        new = _implied(ties, unit) + _equal_blocks(ties, unit)
        new = [(x, y) for x, y in new if (unit[x] != unit[y]).any()]
        if not new:
            held = [b[s] for (_, b, _), s in zip(ties.repeats, still, strict=True)]
            return ties.edges + extra + anchors, np.concatenate([*held, np.zeros(0, np.int64)])
        extra += new


def _implied(ties: Ties, unit: IntArray) -> list[tuple[IntArray, IntArray]]:
    """Edges between what the parts of one unit repeat, and between a repetition and a block that holds no other."""
    edges = []
    for own, blocks, _ in ties.repeats:
        free = unit[own] != unit[FIXED]
        pairs = np.unique(np.stack([unit[own], unit[blocks]]), axis=1)
        _, one, place = np.unique(unit[own], return_index=True, return_inverse=True)
        edges.append((blocks[one][place.reshape(-1)][free], blocks[free]))
        if len(np.unique(pairs[1])) == len(pairs[1]) and free.all():
            edges.append((own, blocks))
    return edges


@np.errstate(over="ignore")
def _roles(signature: HashArray, edges: list[tuple[IntArray, IntArray]]) -> HashArray:
    """Signatures that also know those of the atoms they are tied to: colour refinement along the ties."""
    if not edges:
        return signature
    x, y = (np.concatenate([pair[k] for pair in edges]) for k in (0, 1))
    event = np.repeat(np.arange(len(edges), dtype=np.uint64), [len(pair[0]) for pair in edges]) << np.uint64(1)
    for _ in range(_ROUNDS):
        refined = signature.copy()
        np.add.at(refined, x, mix(mix(signature[y]) + event))
        np.add.at(refined, y, mix(mix(signature[x]) + event + np.uint64(1)))
        signature = mix(refined)
    return signature


def _equal_blocks(ties: Ties, unit: IntArray) -> list[tuple[IntArray, IntArray]]:
    """Edges between blocks of different systems that hold exactly the same units: they are one block seen twice."""
    seen: dict[frozenset[int], int] = {}
    first: dict[int, int] = {}
    edges = []
    for members, blocks in ties.parents:
        content: dict[int, set[int]] = defaultdict(set)
        for u, b, name in set(zip(unit[members].tolist(), unit[blocks].tolist(), blocks.tolist(), strict=True)):
            content[b].add(u)
            first.setdefault(b, name)
        if sum(map(len, content.values())) == len(set().union(*content.values())):
            edges += [(seen.setdefault(frozenset(units), first[b]), first[b]) for b, units in content.items()]
    return [(np.array([a]), np.array([b])) for a, b in edges]


def _parents(ties: Ties, unit: IntArray) -> dict[int, tuple[int, ...]]:
    """Blocks of each unit, each once."""
    found: dict[int, set[int]] = defaultdict(set)
    for members, blocks in ties.parents:
        for u, b in set(zip(unit[members].tolist(), unit[blocks].tolist(), strict=True)):
            if u != b:
                found[u].add(b)
    return {u: tuple(sorted(bs)) for u, bs in found.items()}


def _mixed(unit: IntArray, signature: HashArray) -> IntArray:
    """Units that hold two atoms of one role (added to a reordered copy of themselves): which goes where is unknown."""
    order = np.lexsort((signature, unit))
    same = (unit[order][1:] == unit[order][:-1]) & (signature[order][1:] == signature[order][:-1])
    return np.unique(unit[order][1:][same])


def _cells(ties: Ties, unit: IntArray) -> dict[int, int]:
    """A number for what blocks a unit is in, and in which block system each."""
    found: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for system, (members, blocks) in enumerate(ties.parents):
        for u, b in sorted(set(zip(unit[members].tolist(), unit[blocks].tolist(), strict=True))):
            if u != b:
                found[u].append((system, b))
    numbers: dict[tuple[tuple[int, int], ...], int] = {}
    return {u: numbers.setdefault(tuple(where), len(numbers)) for u, where in found.items()}


@np.errstate(over="ignore")
def _refined(
    content: HashArray, parents: dict[int, tuple[int, ...]], cells: dict[int, int], fixed: int, held: set[int]
) -> HashArray:
    """Keys that also know the blocks: what a block holds, and which kind of block holds a unit."""
    key: HashArray = content.copy()
    pinned = set(parents.get(fixed, ())) | held
    several = {b for bs in parents.values() if len(bs) > 1 for b in bs}
    for _ in range(3):
        inside = np.zeros_like(key)
        for u, bs in parents.items():
            if u != fixed:
                for b in bs:
                    inside[b] += mix(key[u : u + 1])[0]
        above = np.zeros_like(key)
        for u, bs in parents.items():
            for b in bs:
                above[u] += mix(key[b : b + 1] + np.uint64(7))[0]
        key = np.asarray(mix(key + mix(inside + np.uint64(1)) + above), np.uint64)
    for b in pinned | several:
        key[b] = mix(np.array([b], np.uint64) + np.uint64(1 << 40))[0]
    for u, bs in parents.items():
        if any(b in pinned or b in several for b in bs):
            key[u] = mix(key[u : u + 1] + mix(np.array([cells[u] + (1 << 41)], np.uint64)))[0]
    return key


def _classes(key: HashArray, parents: dict[int, tuple[int, ...]], order: IntArray, fixed: int) -> list[Class]:
    by_key: dict[int, list[int]] = defaultdict(list)
    for u in np.argsort(order, kind="stable").tolist():
        if u != fixed:
            by_key[int(key[u])].append(u)
    made: dict[int, Class] = {}

    def build(k: int) -> Class:
        if k not in made:
            units, holder = by_key[k], parents.get(by_key[k][0], ())
            outer = int(key[holder[0]]) if len(holder) == 1 else None
            made[k] = Class(np.array(units))
            if outer is not None and len(by_key.get(outer, ())) > 1:
                above = build(outer)
                rank = {int(b): i for i, b in enumerate(above.units)}
                arranged = sorted(units, key=lambda u: (rank[parents[u][0]], order[u]))
                made[k] = Class(np.array(arranged), above, len(above.units))
        return made[k]

    return [build(k) for k in [k for k, units in by_key.items() if len(units) > 1]]
