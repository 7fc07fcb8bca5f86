"""Which expert of one model is which of another, by the tokens that go to them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch

from pyalign.matching.assign import Evidence
from pyalign.matching.experts import expert_groups
from pyalign.matching.problem import Problem
from pyalign.statistics.choices import common_choices, expert_counts, selected_experts
from pyalign.statistics.moments import Moments
from pyalign.statistics.padding import Mask
from pyalign.symmetry import Site

__all__ = ["evidence_by_choices"]


def evidence_by_choices(
    problem: Problem,
    evidence: Mapping[str, Evidence],
    sites: Mapping[str, Mapping[Site, Moments]],
    mask: Mask = "attention_mask",
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
    models = (problem.model_a, problem.model_b)
    sides = [selected_experts(model, problem.spec, problem.data, mask) for model in models]
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
        scores = torch.stack([m.correlation().double().cpu() for m in sites[name].values()]).mean(0)
        common = common_choices(sides[0][name], sides[1][name], size) / total
        found[name] = Evidence(common + torch.outer(p, q).sqrt() * scores, dead_a=dead[0], dead_b=dead[1])
    return found, notes
