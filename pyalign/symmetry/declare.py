"""Specs written by hand, whole or as corrections of a derived one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from pyalign.errors import InputError, MismatchError
from pyalign.symmetry.calls import state_of
from pyalign.symmetry.groups import AxisBinding, FixedAxis, Flat, Group, Role, Side, Wreath
from pyalign.symmetry.kinds import Kind
from pyalign.symmetry.spec import SymmetrySpec

__all__ = ["declare"]

Axes = Sequence[tuple[str, int]]


def declare(
    model: nn.Module,
    groups: Mapping[str, Axes],
    *,
    base: SymmetrySpec | None = None,
    fixed: Sequence[str] = (),
    kinds: Mapping[str, Kind] | None = None,
) -> SymmetrySpec:
    """A spec from hand-written groups, or a derived spec with some groups replaced.

    Each group is a list of (tensor name, axis). An axis that is r times as long as the group (a flattened convolution
    output) is taken as units x r. `spec.verify(model, inputs)` proves the result.

    Args:
        model: Gives names and shapes.
        groups: Axes by group name; axis 0 of weights produces units, other axes consume them.
        base: A spec to correct: groups of the same name, and all groups that share an axis with a declared one,
            are replaced; the rest stays.
        fixed: Names of groups of `base` to hold in place.
        kinds: Class by group name, default permutation.

    Returns:
        The spec. It has no observation sites for the declared groups other than those `base` knew by the same name.

    Raises:
        MismatchError: A tensor does not exist, or axes of one group do not fit each other.
        InputError: Two groups claim one axis, or a name in `fixed` is unknown.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> spec = declare(model, {"hidden": [("0.weight", 0), ("0.bias", 0), ("2.weight", 1)]})
        >>> spec.verify(model, torch.randn(3, 4)).passed
        True
    """
    state = state_of(model)
    shapes = base.shapes if base is not None else {name: tuple(t.shape) for name, t in state.items()}
    aliases = base.aliases if base is not None else {}
    buffers = {name for name, _ in model.named_buffers()}
    made, bindings = {}, []
    for name, axes in groups.items():
        size = _size(name, axes, shapes)
        made[name] = Group(name, size, (kinds or {}).get(name, Kind.PERMUTATION), reason="declared")
        bindings += [_binding(name, tensor, axis, size, shapes, tensor in buffers) for tensor, axis in axes]
    _check_apart(bindings)
    if base is None:
        return SymmetrySpec(made, tuple(bindings), shapes=dict(shapes), aliases=aliases)
    return _merged(base, made, bindings, fixed)


def _merged(
    base: SymmetrySpec, made: Mapping[str, Group], bindings: list[AxisBinding], fixed: Sequence[str]
) -> SymmetrySpec:
    unknown = [name for name in fixed if name not in base.groups]
    if unknown:
        raise InputError(f"cannot fix group {unknown[0]!r}", given=unknown[0], expected=f"one of {list(base.groups)}")
    claimed = {(b.tensor, b.axis) for b in bindings}
    gone = {*made, *fixed, *(b.group for b in base.bindings if (b.tensor, b.axis) in claimed)}
    gone |= {outer for name in gone for outer in _carried(base, name)}
    gone |= {g.name for g in base.groups.values() if getattr(g.structure, "outer", None) in gone}
    kept = {name: g for name, g in base.groups.items() if name not in gone}
    used = {getattr(g.structure, "outer", None) for g in kept.values()}
    kept = {name: g for name, g in kept.items() if name in used or base.of(name)}
    left = [b for b in base.bindings if b.group in kept]
    covered = {(b.tensor, b.axis) for b in (*left, *bindings)}
    held = [FixedAxis(b.tensor, b.axis, "declared fixed") for b in base.bindings if (b.tensor, b.axis) not in covered]
    sites = tuple(
        s for s in base.sites if s.group in kept or (s.group in made and made[s.group].size == len(s.positions))
    )
    return replace(
        base,
        groups={**kept, **made},
        bindings=(*left, *bindings),
        sites=sites,
        fixed=(*(f for f in base.fixed if (f.tensor, f.axis) not in covered), *held),
    )


def _carried(base: SymmetrySpec, name: str) -> list[str]:
    """The group whose blocks go to their places by this group's own bindings: it cannot move without."""
    structure = base.groups[name].structure if name in base.groups else Flat()
    alone = isinstance(structure, Wreath) and any(b.blocks == 1 and not b.placed for b in base.of(name))
    return [structure.outer] if isinstance(structure, Wreath) and alone else []


def _size(group: str, axes: Axes, shapes: Mapping[str, tuple[int, ...]]) -> int:
    lengths = []
    for tensor, axis in axes:
        shape = shapes.get(tensor)
        if shape is None or not 0 <= axis < len(shape):
            raise MismatchError(
                f"group {group!r} names an axis that does not exist",
                given=f"axis {axis} of {tensor!r}",
                expected="a tensor of the model and one of its axes",
                do=f"use names of model.state_dict(); {tensor!r} has shape {shape}",
            )
        lengths.append(shape[axis])
    if not lengths:
        raise InputError(f"group {group!r} has no axes", expected="at least one (tensor, axis)")
    if any(length % min(lengths) for length in lengths):
        raise MismatchError(
            f"the axes of group {group!r} do not fit each other",
            given=f"lengths {lengths}",
            expected="equal lengths, or multiples of the smallest",
        )
    return min(lengths)


def _binding(
    group: str, tensor: str, axis: int, size: int, shapes: Mapping[str, tuple[int, ...]], buffer: bool
) -> AxisBinding:
    positions = torch.arange(shapes[tensor][axis]).reshape(size, -1)
    side: Any = Side.COVARIANT if axis == 0 else Side.CONTRAVARIANT
    return AxisBinding(tensor, axis, group, side, Role.TRANSFORMED if buffer else Role.MATCHED, positions)


def _check_apart(bindings: Sequence[AxisBinding]) -> None:
    seen: dict[tuple[str, int], str] = {}
    for b in bindings:
        other = seen.setdefault((b.tensor, b.axis), b.group)
        if other != b.group:
            raise InputError(
                f"axis {b.axis} of {b.tensor!r} belongs to two groups",
                given=f"{other!r} and {b.group!r}",
                expected="one group for each axis",
            )
