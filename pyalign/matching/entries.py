"""Groups that are told apart by activations only once another's order is known: query heads that share a key."""

from __future__ import annotations

import torch
from torch import Tensor

from pyalign.matching.assign import Evidence
from pyalign.symmetry import ScaledPermutation, Site

__all__ = ["evidence_by_entries"]


def evidence_by_entries(
    entries: Site, other: Site, similarity: Tensor, element: ScaledPermutation, size: int
) -> Evidence:
    r"""How alike units are, entry by entry, when the units that their entries belong to besides are in an order.

    \(C_{hl} = \sum_{u \in h} s_u S_{(h, u), (l, g(u))}\) for query heads h of A and l of B, u a unit of the key.

    Args:
        entries: A site of the group with every entry as a unit, unit after unit.
        other: The site that tells which unit of the other group each entry is.
        similarity: Of the entries, shape (size r, size r).
        element: What the other group does: slot u takes unit g(u).
        size: Number of units.

    Returns:
        Evidence; units that have no entries in common under the element are not alike at all.
    """
    unit = torch.full((entries.width,), -1)
    unit[other.positions] = torch.arange(len(other.positions)).unsqueeze(1)
    belongs = unit[entries.positions.reshape(size, -1)]  # (units of the group, entries)
    runs = belongs.shape[1]
    at = torch.full((size, len(other.positions)), -1)
    at.scatter_(1, belongs, torch.arange(size * runs).reshape(size, runs))
    matched = at[:, element.perm[belongs]].transpose(0, 1)  # (units of A, units of B, entries of the unit of A)
    rows = torch.arange(size * runs).reshape(size, 1, runs).expand_as(matched)
    values = similarity.cpu()[rows, matched.clamp_min(0)]
    if element.scale is not None:
        values = values * element.scale.sign()[belongs].unsqueeze(1)
    return Evidence(torch.where(matched >= 0, values, 0.0).sum(-1))
