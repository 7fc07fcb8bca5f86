"""linear_assignment on a device against scipy on every core, the fastest CPU solvers and the solvers for devices."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from benchmarks.competitors import solvers
from benchmarks.costs import DRAWN
from benchmarks.gpu.device import contestant
from benchmarks.operations.linear_assignment import EXACT, certified
from benchmarks.record import BEST, Case, Contest, Contestant, Gate
from pyalign import engine

__all__ = ["cases"]

OURS, CPU, CORES = "pyalign", "pyalign cpu", "scipy, every core"
DEVICES = {
    "torch-lap-cuda": ("torch_lap_cuda", lambda module: module.solve_lap),
    "torch-linear-assignment": ("torch_linear_assignment", lambda module: module.batch_linear_assignment),
}
ON_CPU = ("scipy", "lapx lapjv", "lapjv float64")
FAMILIES = ("uniform", "planted correlation")
LOOKED_AT = 16
"""Problems of a batch whose objectives are compared; every one is checked to be an assignment."""
ROUNDED = 1e-6
"""Objectives may differ by this part of the sum of the sizes of the costs: other solvers work in float32."""


def cases(quick: bool, device: str) -> list[Case]:
    """Batches of 64 to 1024 problems of n = 128 to 1024, and single problems up to n = 14336."""
    made = []
    batches = ((2, 16),) if quick else ((64, 128), (256, 128), (1024, 128), (64, 256), (64, 512), (256, 512))
    batches += () if quick else ((64, 1024), (256, 1024), (1024, 1024))
    for family in FAMILIES:
        for b, n in batches:
            names = (OURS, CPU, CORES, *DEVICES)
            gates = (Gate(OURS, CORES, 0.1), *(Gate(OURS, name, 1.0) for name in DEVICES))
            build = lambda family=family, b=b, n=n: _batch(family, b, n, device)  # noqa: E731
            name = f"{b} problems, {family}, n = {n}"
            made.append(Case("linear_assignment", f"batch, {family}", name, b * n, names, gates, build))
        for n in (32,) if quick else (2048, 4096, 8192, 14336):
            names = (OURS, CPU, *ON_CPU, *DEVICES)
            build = lambda family=family, n=n: _single(family, n, device)  # noqa: E731
            gates = (Gate(OURS, BEST, 1.0), Gate(OURS, CPU, 1.0))
            made.append(Case("linear_assignment", family, f"{family}, n = {n}", n, names, gates, build, growth=2.5))
    return made


def _costs(family: str, b: int, n: int) -> Tensor:
    drawn = [DRAWN[family](n, np.random.default_rng(seed)) for seed in range(b)]
    return torch.from_numpy(np.stack(drawn)).float()


def _on_devices(cost: Tensor, device: str) -> tuple[list[Contestant], dict[str, str]]:
    found, missing = [], {}
    for name, (module, load) in DEVICES.items():
        try:
            solve = load(importlib.import_module(module))
        except (ImportError, AttributeError, OSError) as error:
            missing[name] = f"not installed ({error}); pip install {name}"
        else:
            found.append(contestant(name, "competitor", lambda solve=solve: solve(cost), device))
    return found, missing


def _columns(answer: Any) -> Tensor:
    """The (b, n) column of each row, of whatever a contestant answers."""
    if isinstance(answer, engine.Assignment):
        return answer.perm.cpu().reshape(-1, answer.perm.shape[-1])
    if isinstance(answer, torch.Tensor):
        return answer.cpu().long().reshape(-1, answer.shape[-1])
    return torch.from_numpy(np.stack(answer)).long()


def _proved(cost: Tensor, answer: engine.Assignment) -> list[float]:
    """The optimal objectives of the problems looked at, each proved by the answer's own duals.

    Raises:
        AssertionError: The duals prove nothing.
    """
    fields = (answer.perm, answer.row_duals, answer.col_duals, answer.gap, answer.objective)
    parts = [part.cpu().reshape(len(cost), *part.shape[answer.perm.dim() - 1 :]) for part in fields]
    return [
        certified(cost[k].double().numpy(), engine.Assignment(*(part[k] for part in parts), False, answer.backend))
        for k in range(min(len(cost), LOOKED_AT))
    ]


def _checked(cost: Tensor) -> Callable[[str, Any], str]:
    best = _proved(cost[:LOOKED_AT], engine.linear_assignment(cost[:LOOKED_AT], backend="cpu"))

    def check(name: str, answer: Any) -> str:
        columns = _columns(answer)
        n = cost.shape[1]
        if not bool((columns.sort(1).values == torch.arange(n)).all()):
            return "not an assignment"
        try:
            proved = _proved(cost, answer) if isinstance(answer, engine.Assignment) else []
        except AssertionError as reason:
            return str(reason)
        for matrix, perm, objective in zip(cost, columns, best, strict=False):
            chosen = matrix[torch.arange(n), perm].double()
            if float(chosen.sum()) - objective > (EXACT if proved else ROUNDED) * float(chosen.abs().sum()):
                return f"not optimal by {float(chosen.sum()) - objective:.3g}"
        return ""

    return check


@cache
def _pool() -> ProcessPoolExecutor:
    """One process per core, all running."""
    pool = ProcessPoolExecutor(os.cpu_count() or 1, mp_context=multiprocessing.get_context("spawn"))
    list(pool.map(_wait, [0.2] * (os.cpu_count() or 1)))
    return pool


def _wait(seconds: float) -> None:
    """Keep a process busy, so that the next task starts another one."""
    time.sleep(seconds)


def _solve_one(path: Path, problem: int) -> NDArray[np.int64]:
    """Solve one problem of a file of costs, which the processes share without sending them to each other."""
    return linear_sum_assignment(np.load(path, mmap_mode="r")[problem])[1]


def _batch(family: str, b: int, n: int, device: str) -> Contest:
    cost = _costs(family, b, n)
    there, folder, cores = cost.to(device), TemporaryDirectory(), os.cpu_count() or 1
    np.save(Path(folder.name, "costs.npy"), cost.numpy())
    _pool()  # its processes start before anything is timed

    def on_every_core() -> list[Any]:
        solve = partial(_solve_one, Path(folder.name, "costs.npy"))
        return list(_pool().map(solve, range(b), chunksize=max(1, b // (4 * cores))))

    on_devices, missing = _on_devices(there, device)
    contestants = [
        contestant(OURS, "ours", lambda: engine.linear_assignment(there), device),
        Contestant(CPU, "ours", lambda: engine.linear_assignment(cost, backend="cpu"), threads=cores),
        Contestant(CORES, "competitor", on_every_core),
        *on_devices,
    ]
    return Contest(contestants, _checked(cost), missing)


def _single(family: str, n: int, device: str) -> Contest:
    cost = _costs(family, 1, n)
    there, array = cost.to(device), cost[0].double().numpy()
    on_devices, missing = _on_devices(there, device)
    installed, absent = solvers()
    missing |= {name: absent[name] for name in ON_CPU if name in absent}
    on_cpu = []
    for name in ON_CPU:
        if name in installed:
            solver, solve = installed[name]
            run = lambda solver=solver, solve=solve: [solver.columns(array.shape, solve(array))]  # noqa: E731
            on_cpu.append(Contestant(name, "competitor", run))
    contestants = [
        contestant(OURS, "ours", lambda: engine.linear_assignment(there), device),
        Contestant(CPU, "ours", lambda: engine.linear_assignment(cost, backend="cpu"), threads=os.cpu_count()),
        *on_cpu,
        *on_devices,
    ]
    return Contest(contestants, _checked(cost), missing)
