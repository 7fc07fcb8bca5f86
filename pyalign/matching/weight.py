"""Weight matching: coordinate descent, each step a linear assignment (Ainsworth et al. 2022, algorithm 1)."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from pyalign.engine import Assignment, linear_assignment
from pyalign.errors import InputError
from pyalign.matching.anchor import anchored_start
from pyalign.matching.assign import children_of, signs_of
from pyalign.matching.classes import match_classes
from pyalign.matching.experts import check_experts, expert_groups
from pyalign.matching.families import Families, by_blocks
from pyalign.matching.objective import Elements, Objective
from pyalign.matching.problem import Problem, check_start
from pyalign.matching.rescaled import rematched
from pyalign.symmetry import Alignment, Group, Kind, ScaledPermutation, SymmetrySpec, Wreath, state_of

__all__ = ["WeightMatching"]


@dataclass(frozen=True, eq=False)
class WeightMatching:
    r"""Match units so that the weights of the two networks are as alike as possible, without data.

    Maximises \(\sum_w \langle A_w, (g B)_w \rangle\) over the matched tensors (equal to minimising their distance;
    running statistics are moved along but do not count): group after group in a random order, the others held still,
    until a sweep changes nothing; groups whose neighbours stayed are passed over. Products are float32 (float64 for
    float64 weights), and a step is accepted only if the objective rises by more than their rounding, or, where that
    leaves it open, if it rises in float64. A group that occurs twice in one tensor is linearised at its present
    element. The search begins at the identity or where every group has been matched once, from the inputs and outputs
    inwards (`anchored_start`), whichever has the higher objective.

    Args:
        restarts: Searches from which the best is kept: those after the first begin with the groups in random orders, or
            at random elements where such an order leads to where a search began already.
        sweeps: Most sweeps over all groups of each.
        signs: Use signs where a group allows them.
        scales: Use factors where groups allow them and where that brings the networks much nearer, as between a network
            and one that was rescaled (`pyalign.matching.scaling`), then match units again beside these factors
            (`pyalign.matching.rescaled`); networks from different seeds rarely need them.
        start: Begin here instead: an alignment of the same spec, such as that of activation matching.
        within: The largest class `pyalign.align` derives for it: `Kind.INVERTIBLE` for all, `Kind.PERMUTATION` for
            permutations only. Where groups mix units (attention heads, residual streams without scales), the distance
            itself is minimised over all classes, see `pyalign.matching.mixed.MixedDescent`.
        backend: Implementation of `pyalign.engine.linear_assignment`.
        experts: How the order of experts is found: "exact" (a table of the best inner matchings of all pairs of
            experts), or by "gate", "gram" or "both" (`pyalign.matching.experts`), with units matched afterwards.

    Source:
        Ainsworth, Hayase and Srinivasa 2022 (arXiv 2209.04836), section 3.2, algorithm 1.

    Example:
        >>> WeightMatching(restarts=3).sweeps
        100
    """

    restarts: int = 1
    sweeps: int = 100
    signs: bool = True
    scales: bool = True
    start: Alignment | None = None
    backend: str = "auto"
    within: Kind = Kind.INVERTIBLE
    experts: str = "exact"

    def __post_init__(self) -> None:
        if self.restarts < 1 or self.sweeps < 1:
            raise InputError(
                "nothing to search",
                given=f"restarts={self.restarts}, sweeps={self.sweeps}",
                expected="1 or more of each",
            )
        check_experts(self.experts)

    def match(self, problem: Problem) -> Alignment:
        """Search for the elements that bring the weights of model B closest to those of model A."""
        spec = problem.spec
        if any(g.kind.mixes for g in spec.groups.values()) or spec.placed or expert_groups(spec):
            return self._match_classes(problem)
        began = time.perf_counter()
        state_a, state_b = state_of(problem.model_a), state_of(problem.model_b)
        identity = spec.identity().reorderings
        objective = Objective(spec, state_a, state_b, identity)
        before = {name: objective.cosine(name) for name in spec.groups}
        first = self._first(objective)
        generator = torch.Generator().manual_seed(problem.seed)
        best: _Descent | None = None
        hidden = None if problem.progress is None else not problem.progress
        with tqdm(total=None, desc="weight matching", unit=" sweeps", disable=hidden, leave=False) as bar:
            begun: set[bytes] = set()
            for number in range(self.restarts):
                objective.restart(first if number == 0 else self._again(objective, generator, begun))
                begun.add(_written(objective.elements))
                descent = _Descent(objective, Families(spec, self.signs, self.backend), self.backend)
                descent.run(self.sweeps, generator, bar)
                best = descent if best is None or descent.trace[-1] > best.trace[-1] else best
        assert best is not None
        elements: Elements = {name: best.elements[name] for name in spec.groups}
        if self.scales:
            elements = self._with_factors(problem, objective, elements, best.trace[-1])
        objective.restart(elements)
        after = {name: objective.cosine(name) for name in spec.groups}
        return Alignment(
            spec,
            dict(elements),
            method="weight matching" + (f" (best of {self.restarts})" if self.restarts > 1 else ""),
            objective=best.trace[-1],
            trace=tuple(best.trace),
            worst_gap=max(best.gaps.values(), default=None),
            correlation_before={name: value for name, value in before.items() if value is not None},
            correlation_after={name: value for name, value in after.items() if value is not None},
            backends={"linear_assignment": best.solver} if best.solver else {},
            seconds={"matching": time.perf_counter() - began},
            notes=tuple(_notes(spec, objective, best, self.sweeps)),
        )

    def _with_factors(self, problem: Problem, objective: Objective, elements: Elements, products: float) -> Elements:
        """Factors where they bring the networks nearer, and units matched again beside them."""
        spec, generator = problem.spec, torch.Generator().manual_seed(problem.seed)

        def search(state_b: Mapping[str, Tensor]) -> Elements:
            rescaled = Objective(spec, objective.a, state_b, elements)
            descent = _Descent(rescaled, Families(spec, self.signs, self.backend), self.backend)
            with tqdm(disable=True) as bar:
                descent.run(self.sweeps, generator, bar)
            return descent.elements

        return dict(rematched(spec, objective.a, objective.b, elements, products, search, self.signs))

    def _match_classes(self, problem: Problem) -> Alignment:
        return match_classes(
            problem,
            restarts=self.restarts,
            sweeps=self.sweeps,
            signs=self.signs,
            start=self.start,
            backend=self.backend,
            experts=self.experts,
        )

    def _again(self, objective: Objective, generator: torch.Generator, begun: Collection[bytes]) -> Elements:
        """Where a further search begins: from the best place to begin, other orders end near to the first search.

        Few groups have few orders: from a place where a search has begun already it begins at random elements.
        """
        if self.start is not None:
            return self.start.reorderings
        anchored = anchored_start(objective, self.signs, self.backend, generator)
        if _written(anchored) not in begun:
            return anchored
        return objective.spec.random(int(torch.randint(1 << 31, (), generator=generator)), Kind.PERMUTATION).reorderings

    def _first(self, objective: Objective) -> Elements:
        spec, identity = objective.spec, dict(objective.elements)
        if self.start is not None:
            check_start(self.start, spec)
            return self.start.reorderings
        anchored = anchored_start(objective, self.signs, self.backend)
        at_identity = objective.total
        objective.restart(anchored)
        return anchored if objective.total > at_identity else identity


class _Descent:
    """One search: sweeps over the groups in random orders until none changes."""

    def __init__(self, objective: Objective, families: Families, backend: str) -> None:
        self.objective, self.families, self.backend = objective, families, backend
        self.trace = [objective.total]
        self.gaps: dict[str, float] = {}
        self.solver = ""
        self.converged = False
        self.elements: Elements = dict(objective.elements)
        self._answers: dict[str, Assignment] = {}
        self._tried: dict[str, tuple[ScaledPermutation, ...]] = {}
        groups = objective.spec.groups
        self._within = {name: frozenset((name, *(g.name for g in families.within(name)))) for name in groups}
        self._depends = {name: self._neighbours(name) for name in groups}

    def run(self, sweeps: int, generator: torch.Generator, bar: tqdm[Any]) -> None:
        """Sweep until a whole sweep changes nothing, or `sweeps` times."""
        groups = list(self.objective.spec.groups.values())
        for _ in range(sweeps):
            steps = len(self.trace)
            for i in torch.randperm(len(groups), generator=generator).tolist():
                self._step(groups[i])
            bar.update()
            if len(self.trace) == steps:
                self.converged = True
                break
        self.elements = dict(self.objective.elements)
        self.trace = _ending(self.trace, self.objective.exact())

    def _step(self, group: Group) -> None:
        """Improve one group, with everything within its units, unless nothing that matters to it has moved."""
        stamp = tuple(self.objective.elements[name] for name in self._depends[group.name])
        if self._tried.get(group.name) == stamp:
            return
        self._tried[group.name] = stamp
        if len(self._within[group.name]) > 1:
            self._family(group)
        elif group.kind is not Kind.IDENTITY:
            self._single(group)

    def _family(self, group: Group) -> None:
        proposal, self.gaps[group.name] = self.families.joint(self.objective, group)
        self._note(self.objective.accept(proposal))

    def _single(self, group: Group) -> None:
        evidence = self.objective.evidence(group.name)
        if evidence is None:
            return
        free = self.families.free(group)
        perm = self._assign(group, evidence.gain(free))
        element = ScaledPermutation(perm, signs_of(evidence.similarity, perm, free))
        self._note(self.objective.accept_one(group.name, element, evidence))

    def _assign(self, group: Group, gain: Tensor) -> Tensor:
        """The best permutation of a group."""
        if isinstance(group.structure, Wreath):
            perm, self.gaps[group.name] = by_blocks(gain, self.objective.elements, group, self.backend)
            return perm
        # Not from the earlier answer: only groups with moved neighbours come here, and for them that takes longer.
        answer = linear_assignment(gain, maximize=True, start=self._answers.get(group.name), backend=self.backend)
        self._answers[group.name] = answer
        assert isinstance(answer.perm, Tensor) and isinstance(answer.gap, Tensor)
        self.solver, self.gaps[group.name] = answer.backend, float(answer.gap)
        return answer.perm.cpu()

    def _neighbours(self, group: str) -> list[str]:
        """The groups on whose elements the best element of this one, with all within its units, depends."""
        structure, within = self.objective.spec.groups[group].structure, self._within[group]
        found = {structure.outer} if isinstance(structure, Wreath) else set()
        for name in within:
            found |= self.objective.depends(name)
        return sorted(found)

    def _note(self, accepted: bool) -> None:
        if accepted:
            self.trace.append(self.objective.total)


def _written(elements: Elements) -> bytes:
    """The permutations of all groups, to be compared."""
    return b"".join(elements[name].perm.numpy().tobytes() for name in sorted(elements))


def _ending(trace: list[float], exact: float) -> list[float]:
    """The trace with its rises, known up to the rounding of the similarities, scaled to end at the exact objective."""
    rise = trace[-1] - trace[0]
    factor = (exact - trace[0]) / rise if rise > 0 else 1.0
    return [*(trace[0] + factor * (value - trace[0]) for value in trace[:-1]), exact] if len(trace) > 1 else trace


def _notes(spec: SymmetrySpec, objective: Objective, best: _Descent, sweeps: int) -> list[str]:
    notes = ["correlations are mean cosines between the weights of matched units"]
    if any(objective.elements[name] is not element for name, element in best.elements.items()):
        notes.append("units are scaled as well; the objective is that of the permutations and signs")
    if not best.converged:
        notes.append(f"still improving after {sweeps} sweeps; allow more")
    outer = children_of(spec.groups)
    idle = [name for name in spec.groups if not objective.terms[name] and name not in outer]
    if idle:
        notes.append("left in place, since no matched weights are theirs: " + ", ".join(repr(n) for n in idle[:5]))
    return notes
