"""Where weight matching begins: one group after the other, each by all that the groups matched before it let it see."""

from __future__ import annotations

import torch

from pyalign.matching.assign import assign_groups
from pyalign.matching.objective import Objective
from pyalign.matching.signature import signature_similarity
from pyalign.symmetry import ScaledPermutation

__all__ = ["SORTED", "anchored_start"]

SORTED = 2.0
"""What sorted weights count for beside tensors whose other axes are in place. From 1 to 4, on the trained MLP and
ResNet-20 and an untrained VGG (`benchmarks.studies.data`), 2 led to the highest objectives."""


def anchored_start(
    objective: Objective, signs: bool = True, backend: str = "auto", generator: torch.Generator | None = None
) -> dict[str, ScaledPermutation]:
    """Match every group once: the next is always the one of which most is known, or (`generator`) any.

    A tensor is known to a group when all other groups on it are matched: its products with A then count as they do in
    the objective. Of the other tensors sorted weights are compared. For a permuted copy units have equal sorted
    weights, so nothing need be known at first; where sorted weights tell little, as between networks from different
    seeds, the order leads from the inputs and outputs, which no group moves, inwards.

    Args:
        objective: The tensors of both models and the symmetry.
        signs: Whether signs are used where a group allows them.
        backend: Implementation of `pyalign.engine.linear_assignment`.
        generator: Of a random order of the groups, those within others still after them.

    Returns:
        An element for every group.
    """
    order = objective.anchoring
    if generator is not None:
        order = [order[i] for i in torch.randperm(len(order), generator=generator).tolist()]
    elements = dict(objective.spec.identity().reorderings)
    settled: set[str] = set()
    for family in order:
        evidence = {}
        for group in family:
            unknown = [term for term in objective.terms[group.name] if not term.known(settled)]
            extra = signature_similarity(objective, group, unknown)
            found = objective.known(group.name, elements, settled, None if extra is None else SORTED * extra)
            if found is not None:
                evidence[group.name] = found
        elements |= assign_groups(family, evidence, signs, backend).elements
        settled |= {group.name for group in family}
    return elements
