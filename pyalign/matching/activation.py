"""Activation matching: correlate units over data, one assignment per group (Tatro et al. 2020, section 3, eq. 3)."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pyalign.errors import InputError
from pyalign.matching.assign import Evidence, Solution, assign_groups
from pyalign.matching.experts import expert_groups, expert_notes, units_by_weights
from pyalign.matching.problem import Problem
from pyalign.statistics.choices import common_choices, expert_counts, selected_experts
from pyalign.statistics.collect import collect
from pyalign.statistics.moments import Moments
from pyalign.statistics.padding import Mask
from pyalign.statistics.sites import SITES
from pyalign.symmetry import Alignment, ScaledPermutation, SymmetrySpec, state_of
from pyalign.symmetry.elements import completed, reordered

__all__ = ["SIMILARITIES", "ActivationMatching"]

SIMILARITIES = ("correlation", "covariance", "second moment")


@dataclass(frozen=True)
class ActivationMatching:
    r"""Match units that fire alike on the same data.

    Per group \(\max_P \sum_{\text{sites}} \langle P, C \rangle\), C the correlation of the units of A with those of
    B. Groups are independent of each other, so one pass over the data and one linear assignment per group are the
    exact optimum; groups in blocks are matched by a table of assignments. Units that are dead (constant) in A or B are
    matched among themselves, after all others. Scales are left at 1.

    Args:
        similarity: "correlation" (scale-free), "covariance", or "second moment" (uncentred).
        observe: "after" or "before" the nonlinearity.
        sites: How many sites of each group are summed: a number, "last" or "all"
            (see `pyalign.statistics.choose_sites`).
        signs: Use signs where a group allows them (odd nonlinearities such as tanh): matched by absolute similarity.
        mask: Where a batch carries its padding mask: the name of an entry of a dict, the number of an input in a tuple,
            or a function of the inputs that returns it (see `pyalign.statistics.padding_of`). Padding counts nowhere.
        backend: Implementation of the engine's operations.

    Source:
        Tatro et al. 2020 (arXiv 2009.02439), section 3; Li et al. 2016 (arXiv 1511.07543).

    Example:
        >>> ActivationMatching(similarity="covariance").observe
        'after'
    """

    similarity: str = "correlation"
    observe: str = "after"
    sites: str | int = SITES
    signs: bool = True
    mask: Mask = "attention_mask"
    backend: str = "auto"

    def __post_init__(self) -> None:
        if self.similarity not in SIMILARITIES:
            raise InputError("unknown similarity", given=repr(self.similarity), expected=", ".join(SIMILARITIES))
        if self.observe not in ("after", "before"):
            raise InputError("unknown place of observation", given=repr(self.observe), expected="'after' or 'before'")

    def match(self, problem: Problem) -> Alignment:
        """Collect the moments of both models over the data and match every group.

        Raises:
            InputError: There is no data.
            DataError: The models cannot take a batch, or compute differently on different batches.
            NonFiniteError: An activation is NaN or infinite.
        """
        if problem.data is None:
            raise InputError(
                "activation matching needs data",
                expected="an iterable of batches",
                do="pass data=, or align by weights: method='weight'",
            )
        began = time.perf_counter()
        seen = collect(
            problem.model_a,
            problem.model_b,
            problem.spec,
            problem.data,
            observe=self.observe,
            sites=self.sites,
            mask=self.mask,
            progress=problem.progress,
            backend=self.backend,
        )
        collected = time.perf_counter()
        by_group: dict[str, list[Moments]] = {}
        for site, moments in seen.items():
            by_group.setdefault(site.group, []).append(moments)
        spec = problem.spec
        evidence = {name: self._evidence(moments) for name, moments in by_group.items()}
        chosen, idle = _by_choices(problem, evidence, by_group)
        solution = assign_groups(reordered(spec), {**evidence, **chosen}, self.signs, self.backend)
        matched = time.perf_counter()
        engine = {m.backend for m in seen.values()}
        backends = {"cross_moments": "+".join(sorted(engine)), "linear_assignment": solution.backend}
        elements = completed(spec, solution.elements)
        states = [spec.stacked(state_of(model)) for model in (problem.model_a, problem.model_b)]
        hidden = [g.name for gs in expert_groups(spec).values() for g in gs if g.name not in by_group]
        elements |= units_by_weights(spec, elements, hidden, states[0], states[1], self.backend)
        before, after = {}, {}
        for name, sites in by_group.items():
            correlation = self._mean_correlation(sites, evidence[name])
            before[name] = _along(correlation, ScaledPermutation.identity(len(correlation)))
            after[name] = _along(correlation, solution.elements[name])
        answer = Alignment(
            spec,
            elements,
            method=f"activation matching ({self.similarity}, {self.observe} the nonlinearity)",
            objective=solution.objective,
            trace=(solution.objective,),
            worst_gap=solution.worst_gap,
            correlation_before=before,
            correlation_after=after,
            backends={k: v for k, v in backends.items() if v},
            seconds={"activations": collected - began, "matching": matched - collected},
            notes=(*_notes(spec, evidence, solution, hidden), *idle),
        )
        return replace(answer, notes=(*answer.notes, *expert_notes(answer)))

    def _evidence(self, moments: list[Moments]) -> Evidence:
        """What all sites say together, where their moments are; on the host if some are there."""
        device = _common([m.mean_a.device for m in moments])
        dead_a = torch.stack([m.constant_a.to(device) for m in moments]).all(0)
        dead_b = torch.stack([m.constant_b.to(device) for m in moments]).all(0)
        return Evidence(_added(self._similarity(m).to(device) for m in moments), dead_a=dead_a, dead_b=dead_b)

    def _mean_correlation(self, moments: list[Moments], evidence: Evidence) -> Tensor:
        if self.similarity == "correlation":
            total = evidence.similarity
        else:
            total = _added(m.correlation().to(evidence.similarity.device) for m in moments)
        return total if len(moments) == 1 else total / len(moments)

    def _similarity(self, moments: Moments) -> Tensor:
        if self.similarity == "correlation":
            return moments.correlation()
        return moments.covariance() if self.similarity == "covariance" else moments.second_moment()


def _by_choices(
    problem: Problem, evidence: Mapping[str, Evidence], sites: Mapping[str, Sequence[Moments]]
) -> tuple[dict[str, Evidence], list[str]]:
    r"""Experts compared by who goes to them: the share of choices in common, and how alike their scores vary.

    \(O_{ij} + \sqrt{p_i q_j} C_{ij}\): O the share of A's choices that are of i for tokens that go to j in B, C the
    correlation of scores, p and q the shares of choices that fall to experts of A and of B. Over matched experts either
    sum is at most 1. Scores alone would match busy experts with idle ones, which have scores too. Experts to which no
    token goes are marked as dead, in the evidence as well, and notes say which. Data that can be read only once is not
    read again.
    """
    if not expert_groups(problem.spec) or problem.data is None or isinstance(problem.data, Iterator):
        return {}, []
    found, notes = {}, []
    sides = [selected_experts(model, problem.spec, problem.data) for model in (problem.model_a, problem.model_b)]
    for name, own in evidence.items():
        if name not in sides[0] or name not in sides[1]:
            continue
        size = len(own.similarity)
        dead = [expert_counts(side[name], size) == 0 for side in sides]
        own.dead_a, own.dead_b = dead
        for which, mark in zip("AB", dead, strict=True):
            if bool(mark.any()):
                notes.append(f"experts of {name!r} that {which} never chooses: {torch.where(mark)[0].tolist()}")
        total = sides[0][name].numel()
        p, q = (expert_counts(side[name], size).double() / total for side in sides)
        scores = _added(m.correlation().double().cpu() for m in sites[name]) / len(sites[name])
        common = common_choices(sides[0][name], sides[1][name], size) / total
        found[name] = Evidence(common + torch.outer(p, q).sqrt() * scores, dead_a=dead[0], dead_b=dead[1])
    return found, notes


def _common(devices: list[torch.device]) -> torch.device:
    return devices[0] if len(set(devices)) == 1 else torch.device("cpu")


def _added(matrices: Iterable[Tensor]) -> Tensor:
    """Their sum, one at a time: beside it there is never more than one of them."""
    matrices = iter(matrices)
    total = next(matrices)
    for matrix in matrices:
        total += matrix
    return total


def _along(correlation: Tensor, element: ScaledPermutation) -> float:
    matched = correlation.gather(1, element.perm.to(correlation.device).unsqueeze(1)).squeeze(1).cpu()
    if element.scale is not None:
        matched = matched * element.scale.sign()
    return float(matched.mean()) if matched.numel() else 0.0


def _notes(
    spec: SymmetrySpec, evidence: Mapping[str, Evidence], solution: Solution, by_weights: Sequence[str]
) -> list[str]:
    notes = [f"units within experts are matched by weights: {', '.join(by_weights)}"] if by_weights else []
    for name, found in evidence.items():
        assert found.dead_a is not None and found.dead_b is not None
        dead = int(found.dead_a.sum()), int(found.dead_b.sum())
        if any(dead):
            notes.append(f"group {name!r}: {dead[0]} dead units in A, {dead[1]} in B, matched among themselves last")
    still = [name for name, element in solution.elements.items() if element.is_identity]
    unseen = [
        g.name for g in spec.groups.values() if g.name not in evidence and g.name in still and g.name not in by_weights
    ]
    if unseen:
        shown = ", ".join(repr(n) for n in unseen[:5]) + (", ..." if len(unseen) > 5 else "")
        notes.append(f"left in place, since no activations of theirs were seen: {shown}")
    return notes
