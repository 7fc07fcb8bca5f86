r"""Experts matched by the gate, by Gram matrices or exactly, then within experts (Tran et al. 2025, algorithm 1).

Exactly means: the cost of taking expert j for expert i is that of their best inner matching, a table of inner linear
assignments under the outer one. A Gram matrix is the same for any order of an expert's units; the gate knows no units.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from pyalign.engine.linear_assignment import linear_assignment
from pyalign.errors import InputError
from pyalign.matching.blocks import Blocks
from pyalign.symmetry import Alignment, Group, Role, ScaledPermutation, Side, SymmetrySpec, Transform, Wreath
from pyalign.symmetry.actions import act

__all__ = [
    "EXPERTS",
    "check_experts",
    "expert_blocks",
    "expert_costs",
    "expert_groups",
    "expert_notes",
    "expert_orders",
    "units_by_weights",
]

EXPERTS = ("exact", "gram", "gate", "both")
"""Ways to match the order of experts."""

_SHOWN = 16


def check_experts(experts: str) -> None:
    """Raise unless it is one of `EXPERTS`.

    Raises:
        InputError: It is none of them.
    """
    if experts not in EXPERTS:
        raise InputError("unknown way to match experts", given=repr(experts), expected=", ".join(map(repr, EXPERTS)))


def lies_in_experts(spec: SymmetrySpec, group: Group) -> bool:
    """Whether a group's units are those of experts: every tensor has a part of its own for each block."""
    blocks = group.structure.blocks if isinstance(group.structure, Wreath) else 1
    bound = spec.of(group.name)
    return blocks > 1 and not group.kind.mixes and bool(bound) and all(b.blocks == blocks for b in bound)


def expert_groups(spec: SymmetrySpec) -> dict[str, list[Group]]:
    """The groups that reorder experts, each with the groups of the experts' units."""
    found: dict[str, list[Group]] = {}
    for group in spec.groups.values():
        if isinstance(group.structure, Wreath) and lies_in_experts(spec, group):
            found.setdefault(group.structure.outer, []).append(group)
    return found


def expert_orders(alignment: Alignment) -> dict[str, tuple[int, ...]]:
    """Which expert of B each slot takes, for every layer of experts.

    Args:
        alignment: Of two models with mixtures of experts.

    Returns:
        The order by the name of the group that reorders the experts; empty where there are none.
    """
    found = {}
    for name in expert_groups(alignment.spec):
        element = alignment.transforms[name]
        assert isinstance(element, ScaledPermutation)
        found[name] = tuple(element.perm.tolist())
    return found


def expert_notes(alignment: Alignment) -> list[str]:
    """The orders of experts as sentences, long ones as how many moved."""
    notes = []
    for name, order in expert_orders(alignment).items():
        moved = sum(i != j for i, j in enumerate(order))
        text = f"take {list(order)}" if len(order) <= _SHOWN else f"{moved} of {len(order)} take another expert"
        notes.append(f"experts of {name!r}: {text}")
    return notes


def expert_blocks(
    spec: SymmetrySpec, group: Group, a: Mapping[str, Tensor], b: Mapping[str, Tensor], only: Collection[str] | None
) -> Blocks | None:
    """The weights of the units of experts, expert by expert; None where no tensor counts."""
    assert isinstance(group.structure, Wreath)
    odd: list[tuple[Tensor, Tensor]] = []
    even: list[tuple[Tensor, Tensor]] = []
    for binding in spec.of(group.name):
        if binding.tensor in a and (only is None or binding.tensor in only):
            shape = (group.structure.blocks, group.size // group.structure.blocks, -1)
            pair = tuple(binding.unfold(state[binding.tensor]).reshape(shape) for state in (a, b))
            (odd if binding.side.power else even).append((pair[0], pair[1]))
    return Blocks(odd, even) if odd or even else None


def units_by_weights(
    spec: SymmetrySpec,
    elements: Mapping[str, Transform],
    names: Collection[str],
    a: Mapping[str, Tensor],
    b: Mapping[str, Tensor],
    backend: str = "auto",
) -> dict[str, ScaledPermutation]:
    """Elements for the units of experts whose order is known: each expert's units by their weights.

    Args:
        spec: The symmetry.
        elements: Elements of all groups, those named leaving the units in place within their experts.
        names: Groups of units of experts.
        a: Weights of model A by name, stacked.
        b: Weights of model B by name, stacked, not moved.
        backend: Implementation of `pyalign.engine.linear_assignment`.
    """
    found = {}
    for name in names:
        tensors = [x.tensor for x in spec.of(name) if x.role is Role.MATCHED]
        moved = {n: act(b[n], spec.on(n), elements).double() for n in tensors}
        blocks = expert_blocks(spec, spec.groups[name], {n: a[n].double() for n in tensors}, moved, None)
        if blocks is None:
            continue
        inner, orders = spec.groups[name].size // blocks.count, []
        for k in range(blocks.count):
            answer = linear_assignment(blocks.gains(k, torch.tensor([k]), False)[0], maximize=True, backend=backend)
            assert isinstance(answer.perm, Tensor)
            orders.append(k * inner + answer.perm.cpu())
        first = elements[name]
        assert isinstance(first, ScaledPermutation)
        found[name] = ScaledPermutation(torch.cat(orders)) @ first
    return found


def expert_costs(
    spec: SymmetrySpec,
    experts: str,
    a: Mapping[str, Tensor],
    b: Mapping[str, Tensor],
    how: str,
    only: Collection[str] | None = None,
) -> Tensor | None:
    r"""Costs of taking expert j of B for expert i of A, from the gate or from Gram matrices, or from both.

    Gate: \(\|\bar W_i - \bar W'_j\|\), rows of the router (with biases) less their mean over the experts, which a
    softmax does not see. Gram: \(\|\tilde A_i^T \tilde A_i - \tilde A_j'^T \tilde A'_j\|\) and the like for what reads
    the units, together. Both: the sum, each divided by its mean.

    Args:
        spec: The symmetry.
        experts: Name of the group that reorders the experts.
        a: Weights of model A by name.
        b: Weights of model B, in A's coordinates as far as they are known.
        how: "gate", "gram" or "both".
        only: Tensors that count; all where None.

    Returns:
        Shape (experts, experts), float64; None where none of the tensors count.
    """
    inner = expert_groups(spec).get(experts, [])
    inside = {x.tensor for g in inner for x in spec.of(g.name)}
    homes = {name.rpartition(".")[0] for name in inside}
    bound = [x for x in spec.of(experts) if x.tensor in a and (only is None or x.tensor in only)]
    alone = [x for x in bound if x.tensor not in inside]
    gate = [x for x in alone if x.tensor not in spec.stacks and x.tensor.rpartition(".")[0] not in homes] or alone
    parts = []
    if how in ("gate", "both") and gate:
        one, two = (torch.cat([x.unfold(state[x.tensor]) for x in gate], 1).double() for state in (a, b))
        parts.append(torch.cdist(one - one.mean(0), two - two.mean(0), compute_mode="donot_use_mm_for_euclid_dist"))
    if how in ("gram", "both"):
        grams = [_gram_distances(spec, group, a, b, only) for group in inner]
        vectors = [_distances(x.unfold(a[x.tensor]), x.unfold(b[x.tensor])) for x in alone if x not in gate]
        squares = [d for d in (*grams, *vectors) if d is not None]
        parts += [torch.stack(squares).sum(0).clamp_min(0).sqrt()] if squares else []
    if not parts:
        return None
    return torch.stack([p / p.mean().clamp_min(1e-300) for p in parts]).sum(0)


def _distances(one: Tensor, two: Tensor) -> Tensor:
    return (one.double()[:, None] - two.double()[None]).square().sum(-1)


def _gram_distances(
    spec: SymmetrySpec, group: Group, a: Mapping[str, Tensor], b: Mapping[str, Tensor], only: Collection[str] | None
) -> Tensor | None:
    r"""Squared distances of the Gram matrices of what produces and of what reads the units, (experts, experts).

    With the units' weights as rows, the product of two Gram matrices is \(\|A_i B_j^T\|^2\): none is ever formed.
    """
    assert isinstance(group.structure, Wreath)
    shape = (group.structure.blocks, group.size // group.structure.blocks, -1)
    sides: dict[bool, list[tuple[Tensor, Tensor]]] = {}
    for x in spec.of(group.name):
        if x.tensor in a and (only is None or x.tensor in only):
            pair = [x.unfold(state[x.tensor]).double().reshape(shape) for state in (a, b)]
            sides.setdefault(_reads(spec, group, x.tensor, x.axis, x.side), []).append((pair[0], pair[1]))
    total = None
    for pairs in sides.values():
        one, two = (torch.cat([p[k] for p in pairs], 2) for k in (0, 1))
        own = [torch.stack([(m @ m.T).square().sum() for m in rows]) for rows in (one, two)]
        cross = torch.stack([(m @ two.mT).square().sum((1, 2)) for m in one])
        distance = own[0][:, None] + own[1][None] - 2 * cross
        total = distance if total is None else total + distance
    return total


def _reads(spec: SymmetrySpec, group: Group, tensor: str, axis: int, side: Side) -> bool:
    """Whether an axis reads the units; where a group has no scales, the last axis of a matrix does."""
    if group.kind.scales or group.kind.signs:
        return side is Side.CONTRAVARIANT
    return axis == len(spec.shapes[tensor]) - 1 and len(spec.shapes[tensor]) > 2
