"""Activation matching: correlate units over data, one assignment per group (Tatro et al. 2020, section 3, eq. 3)."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from pyalign.errors import InputError
from pyalign.matching.assign import Evidence, Solution, assign_groups
from pyalign.matching.choices import evidence_by_choices
from pyalign.matching.crossed import crossed_groups
from pyalign.matching.entries import evidence_by_entries
from pyalign.matching.experts import expert_groups, expert_notes, units_by_weights
from pyalign.matching.problem import Problem
from pyalign.statistics.collect import collect
from pyalign.statistics.moments import Moments
from pyalign.statistics.padding import Mask
from pyalign.statistics.sites import SITES, shared_sites
from pyalign.symmetry import Alignment, Group, Kind, ScaledPermutation, Site, SymmetrySpec, Wreath, state_of
from pyalign.symmetry.elements import completed, reordered

__all__ = ["SIMILARITIES", "ActivationMatching"]

Shared = Mapping[str, tuple[Site, Site]]

SIMILARITIES = ("correlation", "covariance", "second moment")


@dataclass(frozen=True)
class ActivationMatching:
    r"""Match units that fire alike on the same data.

    Per group \(\max_P \sum_{\text{sites}} \langle P, C \rangle\), C the correlation of the units of A with those of
    B. Groups are independent of each other, so one pass over the data and one linear assignment per group are the
    exact optimum; groups in blocks are matched by a table of assignments. Only groups that are nowhere seen but beside
    units of others (the hidden units of an MLP over tokens, one for every channel) take a second pass over the data, in
    which B is moved by the answer for all others. Units that are dead (constant) in A or B are
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
        began, spec = time.perf_counter(), problem.spec
        crossed, shared = crossed_groups(spec), shared_sites(spec)
        late = frozenset() if isinstance(problem.data, Iterator) else crossed
        seen = self._collected(problem, problem.model_b, lambda group: group not in late, shared)
        if late:
            moved = self._moved(problem, seen, late, shared)
            seen |= self._collected(problem, moved, lambda group: group in late, shared)
        collected = time.perf_counter()
        by_group = _by_group(seen, shared)
        evidence = {name: self._evidence(sites) for name, sites in by_group.items()}
        chosen, idle = evidence_by_choices(problem, evidence, by_group, self.mask)
        solution = self._solution(reordered(spec), {**evidence, **chosen}, seen, shared)
        matched = time.perf_counter()
        engine = {m.backend for m in seen.values()}
        backends = {"cross_moments": "+".join(sorted(engine)), "linear_assignment": solution.backend}
        elements = completed(spec, solution.elements)
        states = [spec.stacked(state_of(model)) for model in (problem.model_a, problem.model_b)]
        hidden = [g.name for gs in expert_groups(spec).values() for g in gs if g.name not in by_group]
        elements |= units_by_weights(spec, elements, hidden, states[0], states[1], self.backend)
        before, after = {}, {}
        for name, sites in by_group.items():
            correlation = self._correlation(sites, evidence[name])
            before[name] = _along(correlation, ScaledPermutation.identity(spec.groups[name].size)) / len(sites)
            after[name] = _along(correlation, solution.elements[name]) / len(sites)
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
            notes=(*_notes(spec, evidence, shared, solution, hidden), *idle, *_early(crossed - late)),
        )
        return replace(answer, notes=(*answer.notes, *expert_notes(answer)))

    def _collected(
        self, problem: Problem, model_b: nn.Module, of: Callable[[str], bool], shared: Shared
    ) -> dict[Site, Moments]:
        """The moments at the sites of some groups, with B as it is given."""
        assert problem.data is not None
        return collect(
            problem.model_a,
            model_b,
            replace(problem.spec, sites=tuple(site for site in problem.spec.sites if of(site.group))),
            problem.data,
            observe=self.observe,
            sites=self.sites,
            mask=self.mask,
            also=[entries for entries, _ in shared.values() if of(entries.group)],
            progress=problem.progress,
            backend=self.backend,
        )

    def _moved(
        self, problem: Problem, seen: Mapping[Site, Moments], late: Collection[str], shared: Shared
    ) -> nn.Module:
        """Model B moved by the best elements of all groups but the late ones."""
        spec = problem.spec
        evidence = {name: self._evidence(moments) for name, moments in _by_group(seen, shared).items()}
        groups = [group for group in reordered(spec) if group.name not in late]
        solution = self._solution(groups, evidence, seen, shared)
        moved: nn.Module = Alignment(spec, completed(spec, solution.elements)).apply(problem.model_b)
        return moved

    def _solution(
        self,
        groups: Sequence[Group],
        evidence: Mapping[str, Evidence],
        seen: Mapping[Site, Moments],
        shared: Shared,
    ) -> Solution:
        """The best elements; groups that share their entries with others are told apart once those are in order."""
        groups = [g if _signs_seen(g, seen) else replace(g, kind=g.kind & Kind.POSITIVE) for g in groups]
        solution = assign_groups(groups, evidence, self.signs, self.backend)
        sizes = {group.name: group.size for group in groups}
        told = {
            name: evidence_by_entries(
                entries, other, self._similarity(seen[entries]), solution.elements[other.group], sizes[name]
            )
            for name, (entries, other) in shared.items()
            if name in sizes and entries in seen
        }
        return assign_groups(groups, {**evidence, **told}, self.signs, self.backend) if told else solution

    def _evidence(self, sites: Mapping[Site, Moments]) -> Evidence:
        """What all sites say together, where their moments are; on the host if some are there."""
        device = _common([m.mean_a.device for m in sites.values()])
        dead_a = torch.stack([m.constant_a.to(device) for m in sites.values()]).all(0)
        dead_b = torch.stack([m.constant_b.to(device) for m in sites.values()]).all(0)
        found = _summed(sites, device, self._similarity)
        return replace(found, dead_a=dead_a, dead_b=dead_b)

    def _correlation(self, sites: Mapping[Site, Moments], evidence: Evidence) -> Evidence:
        """The summed correlation, which the evidence may be."""
        if self.similarity == "correlation":
            return evidence
        return _summed(sites, evidence.similarity.device, Moments.correlation)

    def _similarity(self, moments: Moments) -> Tensor:
        if self.similarity == "correlation":
            return moments.correlation()
        return moments.covariance() if self.similarity == "covariance" else moments.second_moment()


def _by_group(seen: Mapping[Site, Moments], shared: Shared) -> dict[str, dict[Site, Moments]]:
    """What is seen of each group as a whole, at all of its sites."""
    found: dict[str, dict[Site, Moments]] = {}
    for site, moments in seen.items():
        if site.group not in shared:
            found.setdefault(site.group, {})[site] = moments
    return found


def _summed(sites: Mapping[Site, Moments], device: torch.device, similarity: Callable[[Moments], Tensor]) -> Evidence:
    """The sum over all sites; where signs act on some of them only, the others speak for no sign."""
    parts = [[m for site, m in sites.items() if site.acts is acts] for acts in (True, False)]
    sums = [_added(similarity(m).to(device) for m in part) for part in parts if part]
    return Evidence(sums[0], sums[1] if len(sums) > 1 else None)


def _early(groups: Collection[str]) -> list[str]:
    """What to know of groups that were matched before the units beside which they are seen."""
    shown = ", ".join(repr(name) for name in sorted(groups)[:5]) + (", ..." if len(groups) > 5 else "")
    return [f"matched beside units in another order, since the data can be read only once: {shown}"] if groups else []


def _common(devices: list[torch.device]) -> torch.device:
    return devices[0] if len(set(devices)) == 1 else torch.device("cpu")


def _added(matrices: Iterable[Tensor]) -> Tensor:
    """Their sum, one at a time: beside it there is never more than one of them."""
    matrices = iter(matrices)
    total = next(matrices)
    for matrix in matrices:
        total += matrix
    return total


def _signs_seen(group: Group, seen: Mapping[Site, Moments]) -> bool:
    """Whether a group has signs and is seen where they act."""
    return group.kind.signs and any(site.acts for site in seen if site.group == group.name)


def _along(evidence: Evidence, element: ScaledPermutation) -> float:
    """The mean similarity of matched units, under the signs of an element."""
    perm = element.perm.to(evidence.similarity.device).unsqueeze(1)
    matched, even = (
        None if m is None else m.gather(1, perm).squeeze(1).cpu() for m in (evidence.similarity, evidence.even)
    )
    assert matched is not None
    if element.scale is not None:
        matched = matched * element.scale.sign()
    matched = matched if even is None else matched + even
    return float(matched.mean()) if matched.numel() else 0.0


def _notes(
    spec: SymmetrySpec, evidence: Mapping[str, Evidence], shared: Shared, solution: Solution, by_weights: Sequence[str]
) -> list[str]:
    notes = [f"units within experts are matched by weights: {', '.join(by_weights)}"] if by_weights else []
    for name, found in evidence.items():
        if found.dead_a is None or found.dead_b is None:
            continue
        dead = int(found.dead_a.sum()), int(found.dead_b.sum())
        if any(dead):
            notes.append(f"group {name!r}: {dead[0]} dead units in A, {dead[1]} in B, matched among themselves last")
    still = [name for name, element in solution.elements.items() if element.is_identity]
    known = {*evidence, *shared, *by_weights}  # blocks are known by the units that they hold
    known |= {g.structure.outer for g in spec.groups.values() if g.name in known and isinstance(g.structure, Wreath)}
    unseen = [name for name in spec.groups if name in still and name not in known]
    if unseen:
        shown = ", ".join(repr(n) for n in unseen[:5]) + (", ..." if len(unseen) > 5 else "")
        notes.append(f"left in place, since no activations of theirs were seen: {shown}")
    return notes
