"""What the study on mixtures of experts measures of one pair: alignments, orders of the experts, and what is left."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize
from tqdm.auto import tqdm

import pyalign
from benchmarks.studies.moe_networks import Averaged, Drawn, Mixture
from benchmarks.studies.moe_tables import Ranking, Remainder, Row
from pyalign.matching import LearnedMatching, Problem, WeightMatching, expert_orders
from pyalign.matching.experts import EXPERTS, expert_groups, units_by_weights
from pyalign.paths import expert_overlap
from pyalign.symmetry import Alignment, Kind, ScaledPermutation, SymmetrySpec, Transform, fold, state_of
from pyalign.symmetry.elements import following

__all__ = ["from_scratch", "frozen", "ranked", "remainder"]

LEAD = 0.1
"""How far ahead the exact matching is where learning begins: experts' units are to change places within few steps."""

RANKED = (0.0, 0.5, 1.0)
"""Positions at which each of all orders of the experts is measured."""

Pair = tuple[nn.Module, nn.Module]
Data = list[tuple[Tensor, Tensor]]


def frozen(
    name: str,
    seeds: tuple[int, int],
    ends: Pair,
    inputs: list[Tensor],
    data: Data,
    points: int,
    experts: Sequence[str] = EXPERTS,
    learning: Drawn | None = None,
) -> list[Row]:
    """A pair whose networks differ in their mixtures only: nothing else is moved.

    Without inputs by weights alone; with text to learn from, the exact matching is gone on from by learned matching.
    """
    a, b = ends
    spec = mixtures_only(a, data[0][0][:8])
    rows = [measured(name, seeds, "none", spec.identity(), ends, data, points)]
    for how in experts:
        found = pyalign.align(a, b, method=WeightMatching(experts=how), spec=spec, verify=False)
        known = next((r for r in rows[1:] if r.orders == expert_orders(found)), None)
        if known is None:
            rows.append(measured(name, seeds, how, found, ends, data, points))
        else:
            rows.append(replace(known, method=how))
    if learning is not None:
        start = pyalign.align(a, b, method=WeightMatching(), spec=spec, verify=False)
        learned = LearnedMatching(start=start, steps=len(learning), lead=LEAD).match(Problem(a, b, spec, learning))
        rows.append(measured(name, seeds, "learned", learned, ends, data, points))
    if not inputs:
        return rows
    seen = pyalign.align(a, b, inputs, method="activation", spec=spec, verify=False)
    rows.append(measured(name, seeds, "activations", seen, ends, data, points))
    kept = units_inside(spec, {g: tuple(range(spec.groups[g].size)) for g in expert_groups(spec)}, ends)
    return [*rows, measured(name, seeds, "units only", kept, ends, data, points)]


def from_scratch(
    name: str, seeds: tuple[int, int], ends: Pair, data: Data, points: int, learning: Drawn | None = None
) -> list[Row]:
    """A pair whose networks share nothing: permutations, then all classes (scales of norms folded into readers)."""
    example = data[0][0][:8]
    spec = pyalign.derive(ends[0], example, within=Kind.PERMUTATION)
    rows = [measured(name, seeds, "none", spec.identity(), ends, data, points)]
    found = WeightMatching().match(Problem(*ends, spec))
    rows.append(measured(name, seeds, "permutations", found, ends, data, points))
    one, two = (fold(model, example) for model in ends)
    folded = one.model, two.model
    spec = pyalign.derive(one.model, example, within=Kind.INVERTIBLE, constants=one.constants)
    found = WeightMatching().match(Problem(*folded, spec))
    rows.append(measured(name, seeds, "all classes", found, folded, data, points))
    if learning is not None:
        learned = LearnedMatching(start=found, steps=len(learning)).match(Problem(*folded, spec, learning))
        rows.append(measured(name, seeds, "all classes, learned", learned, folded, data, points))
    return rows


def mixtures_only(model: nn.Module, inputs: Tensor) -> SymmetrySpec:
    """The symmetry of the mixtures in a transformer; everything else is held in place."""
    spec = pyalign.derive(model, inputs).within(Kind.PERMUTATION)
    others = [name for name in spec.groups if ".mlp" not in name]
    return pyalign.declare(model, {}, base=spec, fixed=others)


def measured(
    name: str, seeds: tuple[int, int], method: str, found: Alignment, ends: Pair, data: Data, points: int
) -> Row:
    """The line from A to B, moved."""
    moved = found.apply(ends[1])
    record = pyalign.barrier(ends[0], moved, data, points=points, progress=False)
    overlap = expert_overlap(ends[0], moved, data[:2], t=(0.25, 0.5, 0.75), spec=found.spec)
    least = overlap.least if overlap.layers else None
    return Row(name, seeds, method, record.loss, record.loss_barrier, expert_orders(found), least)


def units_inside(spec: SymmetrySpec, orders: dict[str, tuple[int, ...]], ends: Pair) -> Alignment:
    """The alignment with given orders of the experts, and the best matching of each expert's units."""
    elements: dict[str, Transform] = {}
    for group in spec.outer_first():
        order = orders.get(group.name)
        own = None if order is None else ScaledPermutation(torch.tensor(order))
        elements[group.name] = own or following(group, elements)
    hidden = [g.name for gs in expert_groups(spec).values() for g in gs]
    states = [spec.stacked(state_of(model)) for model in ends]
    elements |= units_by_weights(spec, elements, hidden, *states)
    shared = [n for n, g in spec.groups.items() if n not in hidden and n not in orders]
    own_spec = pyalign.declare(ends[0], {}, base=spec, fixed=[n for n in spec.groups if n not in shared])
    if shared:
        elements |= pyalign.align(*ends, method="weight", spec=own_spec, verify=False).transforms
    return Alignment(spec, elements, method="given orders, units by weights")


def ranked(name: str, seeds: tuple[int, int], ends: Pair, data: Data, rows: Sequence[Row]) -> Ranking:
    """All orders of the experts of the one layer that has them."""
    spec = mixtures_only(ends[0], data[0][0][:8])
    (group,) = expert_groups(spec)
    barriers = {}
    orders = list(itertools.permutations(range(spec.groups[group].size)))
    for order in tqdm(orders, desc=f"{name}: orders", disable=None, leave=False):
        moved = units_inside(spec, {group: order}, ends).apply(ends[1])
        barriers[str(list(order))] = pyalign.barrier(ends[0], moved, data, t=RANKED, progress=False).loss_barrier
    found = {r.method: str(list(r.orders[group])) for r in rows if r.method in EXPERTS}
    return Ranking(name, seeds, barriers, found)


def remainder(name: str, seeds: tuple[int, int], ends: Pair, data: Data, rows: Sequence[Row]) -> Remainder:
    """Where the barrier that is left after the exact matching comes from.

    In the middle, with the mean of the two routers, each pair of matched experts answers with the mean of their
    answers; what then is left of the barrier is the router's, the rest is that of averaging weights of units. And the
    mean cosine of matched units (their weights in and out together), beside that of each unit with the unit of the
    matched expert that is nearest to it, whether that is taken or not: no assignment can do better.
    """
    a, b = ends
    spec = mixtures_only(a, data[0][0][:8])
    moved = pyalign.align(a, b, method=WeightMatching(), spec=spec, verify=False).apply(b)
    apart = copy.deepcopy(a)
    for path, one in [(n, m) for n, m in a.named_modules() if isinstance(m, Mixture)]:
        apart.set_submodule(path, Averaged(one, moved.get_submodule(path)))
    with torch.no_grad():
        losses = [_loss(model, data) for model in (a, b, apart)]
        pairs = zip(*(_experts(model) for model in (a, moved)), strict=True)
        tables = [normalize(one, dim=1) @ normalize(two, dim=1).T for one, two in pairs]
    matched, nearest = (torch.stack([f(t) for t in tables]).mean().item() for f in (_matched, _nearest))
    naive, exact = (next(r.barrier for r in rows if r.method == m) for m in ("none", "exact"))
    return Remainder(name, seeds, naive, exact, losses[2] - (losses[0] + losses[1]) / 2, matched, nearest)


def _matched(table: Tensor) -> Tensor:
    return table.diagonal().mean()


def _nearest(table: Tensor) -> Tensor:
    return table.max(1).values.mean()


def _experts(model: nn.Module) -> list[Tensor]:
    """The weights in and out of each expert's units, (units, numbers) for each expert of each mixture."""
    mixtures = [m for m in model.modules() if isinstance(m, Mixture)]
    experts: list[Any] = [e for m in mixtures for e in m.everyone()]
    return [torch.cat([e[0].weight, e[0].bias[:, None], e[2].weight.T], 1) for e in experts]


def _loss(model: nn.Module, data: Data) -> float:
    return sum(float(cross_entropy(model(x).flatten(0, 1), y.flatten())) for x, y in data) / len(data)
