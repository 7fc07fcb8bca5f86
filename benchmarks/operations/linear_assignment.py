"""linear_assignment against every public solver; its limit is one read of the cost matrix."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import pyalign
from benchmarks.competitors import SOLVERS, solvers
from benchmarks.costs import DRAWN, LAYERS, REAL, layer, perturbed
from benchmarks.record import BEST, Case, Contest, Contestant, Gate, MeanGate
from pyalign import engine

__all__ = ["MEAN_GATES", "cases"]

Costs = NDArray[np.float64]
SIZES = (64, 128, 256, 512, 1024, 2048, 4096, 8192)
ENGINE, DROP_IN, READ = "pyalign engine", "pyalign drop-in", "one read"
NAMES = (ENGINE, DROP_IN, *(solver.name for solver in SOLVERS), READ)
EACH = (Gate(ENGINE, BEST, 0.9), Gate(DROP_IN, BEST, 0.9))
MEAN_GATES = tuple(MeanGate("linear_assignment", name, BEST, 0.5) for name in (ENGINE, DROP_IN))
EXACT = 1e-9
"""Objectives may differ by this part of the sum of the sizes of the assigned costs: the rounding of float64 sums."""


def cases(quick: bool, threads: int) -> list[Case]:
    """One problem per family and size, real layers, one problem and a batch on several threads, warm starts."""
    sizes = (32, 64) if quick else SIZES
    made = [_one(family, n, _drawn(family, n)) for family in DRAWN for n in sizes]
    if not quick:
        made += [_one(family, n, lambda make=make, n=n: make(n)) for family, make in REAL.items() for n in sizes]
        made += [
            _one(name, 64 if "resnet" in name else 512, lambda name=name: layer(name), own_size=True) for name in LAYERS
        ]
    families = ("uniform", "planted correlation")
    if threads > 1:
        made += [_threads(family, 256 if quick else 2048, threads) for family in families]
        made += [_batch(family, 4 if quick else 64, 64 if quick else 256, threads) for family in families]
    for n in (64,) if quick else (512, 2048):
        made += [_warm(family, n, _drawn(family, n)) for family in ("uniform", "gaussian", "planted correlation")]
    if not quick:
        made += [_warm("real correlation", 512, lambda: REAL["real correlation"](512))]
        made += [_warm("real weights", 512, lambda: REAL["real weights"](512))]
    return made


def _drawn(family: str, n: int, seed: int = 0) -> Callable[[], Costs]:
    return lambda: DRAWN[family](n, np.random.default_rng(seed))


def certified(cost: Costs, answer: engine.Assignment) -> float:
    """The optimal objective, proved in numpy from the answer's own duals.

    Raises:
        AssertionError: The duals prove nothing: the answer is not shown to be optimal.
    """
    u, v, perm = (np.asarray(part) for part in (answer.row_duals, answer.col_duals, answer.perm))
    rows = np.flatnonzero(perm >= 0)
    assert len(rows) == min(cost.shape) == len(set(perm[rows].tolist())), "not a complete assignment"
    primal = float(cost[rows, perm[rows]].sum())
    scale = EXACT * float(np.abs(cost[rows, perm[rows]]).sum())
    slack = min(float((part - u[at : at + 256, None] - v).min()) for at, part in _strips(cost))
    assert slack >= -EXACT * max(1e-300, float(np.abs(cost).max())), f"duals infeasible by {-slack:.3g}"
    shared = v if len(cost) <= cost.shape[1] else u
    assert shared.max(initial=0.0) <= EXACT or cost.shape[0] == cost.shape[1], (
        "a dual of an unassigned line is positive"
    )
    assert abs(primal - float(u.sum() + v.sum())) <= scale, f"gap {primal - float(u.sum() + v.sum()):.3g}"
    return primal


def _strips(cost: Costs) -> list[tuple[int, Costs]]:
    return [(at, cost[at : at + 256]) for at in range(0, len(cost), 256)]


def _check(cost: Costs, columns: dict[str, Callable[[Any], NDArray[Any]]]) -> Callable[[str, Any], str]:
    """Ours by its certificate, every other one by the objective that was proved optimal."""
    proved: list[float] = []

    def check(name: str, answer: Any) -> str:
        if name == READ:
            return ""
        try:
            if isinstance(answer, engine.Assignment):
                proved.append(certified(cost, answer))
                return ""
            if not proved:
                proved.append(certified(cost, engine.linear_assignment(torch.from_numpy(cost))))
        except AssertionError as reason:
            return str(reason)
        found = columns[name](answer)
        rows = np.flatnonzero(found >= 0)
        if len(rows) != min(cost.shape) or len(np.unique(found[rows])) != len(rows):
            return "not an assignment"
        chosen = cost[rows, found[rows]]
        above = float(chosen.sum()) - proved[0]
        return f"not optimal by {above:.3g}" if above > EXACT * float(np.abs(chosen).sum()) else ""

    return check


def _contest(cost: Costs) -> Contest:
    tensor = torch.from_numpy(cost)
    found, missing = solvers()
    if cost.shape[0] != cost.shape[1]:
        square = [name for name, (solver, _) in found.items() if solver.square]
        missing = {**missing, **dict.fromkeys(square, "takes square matrices only")}
        found = {name: solver for name, solver in found.items() if name not in square}
    shape = (cost.shape[0], cost.shape[1])
    columns: dict[str, Any] = {
        name: lambda answer, s=solver: s.columns(shape, answer) for name, (solver, _) in found.items()
    }
    columns[DROP_IN] = lambda answer: SOLVERS[0].columns(shape, answer)
    contestants = [
        Contestant(ENGINE, "ours", lambda: engine.linear_assignment(tensor)),
        Contestant(DROP_IN, "ours", lambda: pyalign.linear_sum_assignment(cost)),
        *(Contestant(name, "competitor", lambda solve=solve: solve(cost)) for name, (_, solve) in found.items()),
        Contestant(READ, "limit", lambda: tensor.sum()),
    ]
    return Contest(contestants, _check(cost, columns), missing)


def _one(family: str, n: int, make: Callable[[], Costs], own_size: bool = False) -> Case:
    name = f"real layer, {family}" if own_size else f"{family}, n = {n}"
    kind = "real layers" if own_size else family
    return Case("linear_assignment", kind, name, n, NAMES, EACH, lambda: _contest(make()), growth=0 if own_size else 3)


def _threads(family: str, n: int, threads: int) -> Case:
    one, several = "1 thread", f"{threads} threads"

    def build() -> Contest:
        cost = _drawn(family, n)()
        tensor = torch.from_numpy(cost)
        both = [
            Contestant(k, "ours", lambda: engine.linear_assignment(tensor), t)
            for k, t in ((one, 1), (several, threads))
        ]
        return Contest(both, _check(cost, {}))

    name = f"{family}, n = {n}, {threads} threads"
    return Case("linear_assignment", "threads", name, n, (one, several), (Gate(several, one, 1.0),), build)


def _batch(family: str, b: int, n: int, threads: int) -> Case:
    one, several = "1 thread", f"{threads} threads"

    def build() -> Contest:
        costs = [_drawn(family, n, seed)() for seed in range(b)]
        tensor = torch.from_numpy(np.stack(costs))

        def check(name: str, answer: engine.Assignment) -> str:
            fields = (answer.perm, answer.row_duals, answer.col_duals, answer.gap, answer.objective)
            try:
                for k, cost in enumerate(costs):
                    certified(cost, engine.Assignment(*(f[k] for f in fields), False, answer.backend))
            except AssertionError as reason:
                return str(reason)
            return ""

        both = [
            Contestant(k, "ours", lambda: engine.linear_assignment(tensor), t)
            for k, t in ((one, 1), (several, threads))
        ]
        return Contest(both, check)

    name = f"{family}, {b} problems of n = {n}, {threads} threads"
    return Case("linear_assignment", "threads", name, n, (one, several), (Gate(several, one, 1 / 1.8),), build)


def _warm(family: str, n: int, make: Callable[[], Costs]) -> Case:
    def build() -> Contest:
        before = make()
        cost = perturbed(before, seed=1)
        tensor, start = torch.from_numpy(cost), engine.linear_assignment(torch.from_numpy(before))
        both = [
            Contestant("cold", "ours", lambda: engine.linear_assignment(tensor)),
            Contestant("warm", "ours", lambda: engine.linear_assignment(tensor, start=start)),
        ]
        return Contest(both, _check(cost, {}))

    gates = (Gate("warm", "cold", 0.2),)
    return Case("linear_assignment", "warm start", f"{family}, n = {n}, warm start", n, ("cold", "warm"), gates, build)
