"""Weight matching of models whose groups mix units: from A, B and the symmetry to an alignment with its record."""

from __future__ import annotations

import time
from dataclasses import replace

import torch
from torch import Tensor
from tqdm.auto import tqdm

from pyalign.errors import MismatchError
from pyalign.matching.experts import expert_notes
from pyalign.matching.mixed import MixedDescent
from pyalign.matching.problem import Problem
from pyalign.symmetry import Alignment, state_of

__all__ = ["match_classes"]

_AT_ONCE = 5


def match_classes(
    problem: Problem,
    *,
    restarts: int,
    sweeps: int,
    signs: bool,
    start: Alignment | None,
    backend: str,
    experts: str = "exact",
) -> Alignment:
    """Weight matching over all classes of transforms; arguments are those of `WeightMatching`.

    It begins at the better of the identity and a pass that matches the groups in the order in which they are anchored
    (first those whose tensors nothing else moves), unless `start` is given.
    """
    began = time.perf_counter()
    spec = problem.spec
    if start is not None and start.spec.fingerprint != spec.fingerprint:
        raise MismatchError(
            "the start is an alignment of another architecture",
            given=f"fingerprint {start.spec.fingerprint}",
            expected=spec.fingerprint,
        )
    descent = MixedDescent(spec, state_of(problem.model_a), state_of(problem.model_b), signs, backend, experts)
    before = _cosines(descent)
    first = descent.objective
    if start is not None:
        descent.restart(start.transforms)
    else:
        descent.anchor()
        if descent.objective < first:
            descent.restart(spec.identity().transforms)
    origin = dict(descent.elements)
    generator = torch.Generator().manual_seed(problem.seed)
    best, trace, converged = origin, [descent.objective], True
    hidden = None if problem.progress is None else not problem.progress
    with tqdm(total=None, desc="weight matching", unit=" sweeps", disable=hidden, leave=False) as bar:
        for number in range(restarts):
            descent.restart(origin)
            done, swept = False, 0
            while not done and swept < sweeps:
                done = descent.run(min(_AT_ONCE, sweeps - swept), generator)
                swept += _AT_ONCE
                bar.update(_AT_ONCE)
            if number == 0 or descent.objective > trace[-1]:
                best, trace, converged = dict(descent.elements), list(descent.trace), done
    descent.restart(best)
    notes = ["the objective is minus half the squared distance of the matched weights"]
    notes += [] if converged else [f"still improving after {sweeps} sweeps; allow more"]
    answer = Alignment(
        spec,
        {name: best[name] for name in spec.groups},
        method="weight matching" + (f" (best of {restarts})" if restarts > 1 else ""),
        objective=trace[-1],
        trace=tuple(trace),
        worst_gap=descent.worst_gap,
        correlation_before=before,
        correlation_after=_cosines(descent),
        seconds={"matching": time.perf_counter() - began},
        notes=tuple(notes),
    )
    return replace(answer, notes=(*answer.notes, *expert_notes(answer)))


def _cosines(descent: MixedDescent) -> dict[str, float]:
    """Mean cosine between the matched weights of the units, per group, at the present elements."""
    found: dict[str, float] = {}
    for name in descent.spec.groups:
        rows: list[tuple[Tensor, Tensor]] = [
            (b.unfold(descent.a[b.tensor]), b.unfold(descent.b[b.tensor]))
            for b in descent.spec.of(name)
            if b.tensor in descent.a
        ]
        if rows:
            one, two = (torch.cat([pair[k] for pair in rows], 1) for k in (0, 1))
            found[name] = float(torch.nn.functional.cosine_similarity(one, two, dim=1).mean()) if len(one) else 0.0
    return found
