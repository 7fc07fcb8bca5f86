"""Solve many random assignment problems and check each answer against scipy and against its own certificate.

    python tests/engine/fuzz_linear_assignment.py --count 100000 --seed 0

Problem k of a seed is always the same, so a run can be cut into pieces (--first), and a wrong answer solved again
(--first K --count 1). Not collected by pytest, which runs a short piece of it in test_fuzz.py.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment as scipy_assignment

from pyalign.engine import Assignment, linear_assignment

EPSILON = 2.0**-52


def normal(rng, n, m):
    return rng.normal(size=(n, m))


def correlation(rng, n, m):
    """Two noisy views of the same units in another order, as in activation matching."""
    x = rng.normal(size=(64, max(n, m)))
    y = x[:, rng.permutation(max(n, m))] + rng.uniform(0.1, 2) * rng.normal(size=x.shape)
    return (x / np.linalg.norm(x, axis=0)).T[:n] @ (y / np.linalg.norm(y, axis=0))[:, :m]


def forbidden(rng, n, m):
    """Some pairs are forbidden; one assignment is always left."""
    cost = np.where(rng.random((n, m)) < rng.random(), np.inf, normal(rng, n, m))
    size = min(n, m)
    cost[rng.permutation(n)[:size], rng.permutation(m)[:size]] = rng.integers(0, 3, size)
    return cost


def dead_units(rng, n, m):
    """Correlations or costs at random, where some rows and columns cost the same everywhere."""
    cost = correlation(rng, n, m) if rng.random() < 0.5 else normal(rng, n, m)
    cost[rng.random(n) < rng.choice([0.02, 0.2, 0.6])] = rng.integers(0, 2)
    cost[:, rng.random(m) < rng.choice([0.02, 0.2, 0.6])] = 0.0
    return cost


FLOATS = {
    "uniform": lambda rng, n, m: rng.random((n, m)),
    "normal": normal,
    "correlation": correlation,
    "dead units": dead_units,
    "low rank": lambda rng, n, m: normal(rng, n, 2) @ normal(rng, 2, m),
    "distances": lambda rng, n, m: np.abs(normal(rng, n, 1) - normal(rng, 1, m)),
    "i * j": lambda rng, n, m: np.outer(np.arange(n), np.arange(m)).astype(float),
    "ties": lambda rng, n, m: rng.integers(0, rng.integers(1, 6), (n, m)) / 3,
    "near ties": lambda rng, n, m: 1.0 + rng.integers(0, 3, (n, m)) * 2.0**-50,
    "rows far apart": lambda rng, n, m: normal(rng, n, m) + 1e6 * normal(rng, n, 1),
    "columns far apart": lambda rng, n, m: normal(rng, n, m) + 1e6 * normal(rng, 1, m),
    "huge range": lambda rng, n, m: normal(rng, n, m) * 10.0 ** rng.integers(-30, 31, (n, m)),
    "huge": lambda rng, n, m: normal(rng, n, m) * 1e30,
    "tiny": lambda rng, n, m: normal(rng, n, m) * 1e-30,
    "denormal": lambda rng, n, m: normal(rng, n, m) * 1e-43,
    "mostly zero": lambda rng, n, m: normal(rng, n, m) * (rng.random((n, m)) < 0.1),
    "forbidden": forbidden,
}
INTEGERS = {
    "few": lambda rng, n, m, low, high: rng.integers(0, rng.integers(1, 9), (n, m)),
    "all": lambda rng, n, m, low, high: rng.integers(low, high, (n, m), endpoint=True),
    "ends": lambda rng, n, m, low, high: rng.choice([low, low + 1, 0, high - 1, high], (n, m)),
    "i * j": lambda rng, n, m, low, high: np.outer(np.arange(n), np.arange(m)) % (high + 1),
}
INTEGER_TYPES = (torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64)


@dataclass(frozen=True)
class Problem:
    """One matrix, what it is called, and the sense of the question."""

    name: str
    cost: torch.Tensor
    maximize: bool


def draw(seed: int, index: int) -> Problem:
    """Problem `index` of a seed: a family, a dtype, a shape (mostly to 40, one in thirty to 200) and a layout."""
    rng = np.random.default_rng([seed, index])
    limit = 200 if rng.random() < 1 / 30 else 40
    n = int(rng.integers(1, limit + 1))
    m = n if rng.random() < 0.6 else int(rng.integers(1, limit + 1))
    maximize = bool(rng.random() < 0.3)
    if rng.random() < 0.3:
        dtype = INTEGER_TYPES[rng.integers(len(INTEGER_TYPES))]
        ends = torch.iinfo(dtype)
        # The sums of 200 of them and of their duals are integers that float64 holds.
        low, high = max(ends.min, -(2**43)), min(ends.max, 2**43)
        family = str(rng.choice(sorted(INTEGERS)))
        cost = torch.from_numpy(np.asarray(INTEGERS[family](rng, n, m, low, high))).to(dtype)
    else:
        dtype = (torch.float32, torch.float64)[rng.integers(2)]
        family = str(rng.choice(sorted(FLOATS)))
        cost = torch.from_numpy(FLOATS[family](rng, n, m)).to(dtype)
        cost = -cost if maximize else cost
    layout = rng.integers(3)
    if layout == 1:
        cost = cost.T.contiguous().T
    elif layout == 2:
        cost = torch.stack([cost, cost], 2).flatten(1)[:, ::2]
    return Problem(f"{family}, {str(dtype)[6:]}, {n} x {m}, maximize={maximize}", cost, maximize)


def wrong_with(problem: Problem, answer: Assignment) -> str:
    """What is wrong with an answer, or "": its matching, its certificate, its objective against scipy's."""
    sign = -1.0 if problem.maximize else 1.0
    cost = problem.cost.numpy()
    c = sign * cost.astype(np.float64)
    n, m = c.shape
    perm = answer.perm.numpy()
    u, v = sign * answer.row_duals.numpy(), sign * answer.col_duals.numpy()
    rows = np.flatnonzero(perm >= 0)
    if len(rows) != min(n, m) or len(set(perm[rows].tolist())) != len(rows) or perm.max() >= m or perm.min() < -1:
        return "no complete matching"
    if not (np.isfinite(u).all() and np.isfinite(v).all()):
        return "duals that are not finite"
    if not (u[:, None] + v <= c).all():
        return f"a dual bound above its cost by {(u[:, None] + v - c).max()}"
    rest = np.setdiff1d(np.arange(m), perm[rows])
    if v[rest].any() or u[perm < 0].any() or (n < m and v.max() > 0) or (n > m and u.max() > 0):
        return "duals of the wrong sign, or of what is unassigned"
    return wrong_sums(problem, answer, c, rows, u, v)


def wrong_sums(problem: Problem, answer: Assignment, c: np.ndarray, rows: np.ndarray, u: np.ndarray, v: np.ndarray):
    """Check gap and objective: without rounding for integers, else to the rounding of what the sums are made of."""
    sign = -1.0 if problem.maximize else 1.0
    columns = answer.perm.numpy()[rows]
    chosen = c[rows, columns]
    best = c[scipy_assignment(c)]
    integers = not problem.cost.dtype.is_floating_point
    # A dual is a sum of at most 2 n costs along a path; each addition rounds.
    size = float(np.abs(c[np.isfinite(c)]).max(initial=0.0))
    allowed = 0.0 if integers else 8 * max(c.shape) * EPSILON * size
    primal, dual, least = math.fsum(chosen), math.fsum(u) + math.fsum(v), math.fsum(best)
    gap, objective = answer.gap.item(), sign * answer.objective.item()
    if not abs(primal - least) <= allowed:
        return f"objective {primal}, scipy {least}: {primal - least} is more than {allowed}"
    if not abs(objective - primal) <= allowed:
        return f"objective {objective} is not the sum of the assigned costs, {primal}"
    if not 0.0 <= gap <= allowed:
        return f"gap {gap} is not within 0 and {allowed}"
    if not abs(primal - dual - gap) <= allowed:
        return f"gap {gap} is not primal - dual, {primal - dual}"
    return ""


def run(first: int, count: int, seed: int, batch: int = 64) -> list[str]:
    """Solve and check problems first .. first + count - 1, in lists of one sense; say which are wrong."""
    wrong = []
    for begin in range(first, first + count, batch):
        problems = {k: draw(seed, k) for k in range(begin, min(begin + batch, first + count))}
        for maximize in (False, True):
            some = {k: problem for k, problem in problems.items() if problem.maximize == maximize}
            solved = linear_assignment([problem.cost for problem in some.values()], maximize, backend="cpu")
            fields = (solved.perm, solved.row_duals, solved.col_duals, solved.gap, solved.objective)
            for (k, problem), parts in zip(some.items(), zip(*fields, strict=True), strict=True):
                text = wrong_with(problem, Assignment(*parts, maximize, solved.backend))
                if text:
                    wrong.append(f"problem {k} of seed {seed} ({problem.name}): {text}")
    return wrong


def main() -> int:
    """Run the pieces named on the command line; 1 when an answer is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100_000, help="number of problems (default 100,000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first problem (default 0)")
    options = parser.parse_args()
    begin, failures = time.perf_counter(), []
    for first in range(options.first, options.first + options.count, 5000):
        failures += run(first, min(5000, options.first + options.count - first), options.seed)
        done = min(first + 5000, options.first + options.count) - options.first
        print(f"{done:,} solved, {len(failures)} wrong, {time.perf_counter() - begin:.0f} s", flush=True)
    for failure in failures[:20]:
        print(failure)
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
