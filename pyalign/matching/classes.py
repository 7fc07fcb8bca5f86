"""Weight matching of models whose groups mix units: from A, B and the symmetry to an alignment with its record."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor
from tqdm.auto import tqdm

from pyalign.matching.experts import expert_notes
from pyalign.matching.mixed import MixedDescent
from pyalign.matching.problem import Problem, check_start
from pyalign.symmetry import Alignment, SymmetrySpec, state_of

__all__ = ["match_classes", "match_states"]

_AT_ONCE = 5


def match_classes(
    problem: Problem, *, restarts: int, sweeps: int, signs: bool, start: Alignment | None, backend: str, experts: str
) -> Alignment:
    """Weight matching over all classes of transforms; arguments are those of `WeightMatching`."""
    return match_states(
        problem.spec,
        state_of(problem.model_a),
        state_of(problem.model_b),
        restarts=restarts,
        sweeps=sweeps,
        signs=signs,
        start=start,
        backend=backend,
        experts=experts,
        seed=problem.seed,
        progress=problem.progress,
    )


def match_states(
    spec: SymmetrySpec,
    state_a: Mapping[str, Tensor],
    state_b: Mapping[str, Tensor],
    *,
    restarts: int = 1,
    sweeps: int = 100,
    signs: bool = True,
    start: Alignment | None = None,
    backend: str = "auto",
    experts: str = "exact",
    seed: int = 0,
    progress: bool | None = None,
) -> Alignment:
    """Weight matching over all classes of transforms, of two states that may be larger than memory.

    It begins at the better of the identity and a pass that matches the groups in the order in which they are anchored
    (first those whose tensors nothing else moves), unless `start` is given. Tensors are read one at a time.

    Args:
        spec: The symmetry of both states.
        state_a: Weights of model A by name, such as a `pyalign.io.StateReader`.
        state_b: Weights of model B.
        restarts: As in `WeightMatching`, like all that follow.
        sweeps: Most sweeps of each search.
        signs: Whether signs are used.
        start: Where to begin.
        backend: Of the linear assignments.
        experts: How the order of experts is found.
        seed: Of the order of the groups.
        progress: Whether to show a bar, None for only on a terminal.

    Example:
        >>> import pyalign
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 1))
        >>> spec = pyalign.derive(model, torch.randn(4, 2))
        >>> moved = spec.random(0).apply(model.state_dict())
        >>> round(match_states(spec, model.state_dict(), moved).objective, 6)
        -0.0
    """
    began = time.perf_counter()
    if start is not None:
        check_start(start, spec)
    hidden = None if progress is None else not progress
    with tqdm(total=None, desc="weight matching", unit=" groups", disable=hidden, leave=False) as bar:
        descent = MixedDescent(spec, state_a, state_b, signs, backend, experts, bar.update)
        before, first = _cosines(descent), descent.objective
        if start is not None:
            descent.restart(start.transforms)
        else:
            descent.anchor()
            if descent.objective < first:
                descent.restart(spec.identity().transforms)
        origin = descent.state
        generator = torch.Generator().manual_seed(seed)
        best, trace, converged = origin, [descent.objective], True
        for number in range(restarts):
            descent.resume(origin)
            done, swept = False, 0
            while not done and swept < sweeps:
                done = descent.run(min(_AT_ONCE, sweeps - swept), generator)
                swept += _AT_ONCE
            if number == 0 or descent.objective > trace[-1]:
                best, trace, converged = descent.state, list(descent.trace), done
        descent.resume(best)
        after = _cosines(descent)
    notes = ["the objective is minus half the squared distance of the matched weights"]
    notes += [f"at the identity the objective is {first:.6g}"]
    notes += [] if converged else [f"still improving after {sweeps} sweeps; allow more"]
    answer = Alignment(
        spec,
        {name: descent.elements[name] for name in spec.groups},
        method="weight matching" + (f" (best of {restarts})" if restarts > 1 else ""),
        objective=trace[-1],
        trace=tuple(trace),
        worst_gap=descent.worst_gap,
        correlation_before=before,
        correlation_after=after,
        seconds={"matching": time.perf_counter() - began},
        notes=tuple(notes),
    )
    return replace(answer, notes=(*answer.notes, *expert_notes(answer)))


def _cosines(descent: MixedDescent) -> dict[str, float]:
    """Mean cosine between the matched weights of the units, per group, at the present elements."""
    sums = {n: torch.zeros(3, g.size, dtype=torch.float64) for n, g in descent.spec.groups.items()}
    for name in descent.pair.names:
        one, two = descent.pair.both(name, descent.elements)
        for row, products in enumerate((one * two, one.square(), two.square())):
            for b in descent.spec.on(name):
                sums[b.group][row] += b.totals(products).double().cpu()
    found: dict[str, float] = {}
    for group, (both, squares_a, squares_b) in sums.items():
        if descent.pair.of(group):
            norms = (squares_a * squares_b).sqrt()
            cosines = torch.where(norms > 0, both / norms.clamp_min(1e-300), 0.0)
            found[group] = float(cosines.mean()) if len(cosines) else 0.0
    return found
