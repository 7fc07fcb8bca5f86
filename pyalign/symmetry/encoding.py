"""Specs as plain data: positions written as arithmetic progressions where they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pyalign.symmetry.groups import AxisBinding, FixedAxis, Flat, Group, Role, Side, Site, Wreath
from pyalign.symmetry.kinds import Kind

if TYPE_CHECKING:
    from pyalign.symmetry.spec import SymmetrySpec

__all__ = ["fields_from", "to_dict"]


def affine(positions: Tensor) -> tuple[int, int, int] | None:
    """(start, step per unit, step per run) when `positions[s, k] = start + s * step + k * run`, else None."""
    units, runs = positions.shape
    start = int(positions[0, 0]) if positions.numel() else 0
    step = int(positions[1, 0]) - start if units > 1 else 0
    run = int(positions[0, 1]) - start if runs > 1 else 0
    fitted = start + step * torch.arange(units).unsqueeze(1) + run * torch.arange(runs)
    return (start, step, run) if torch.equal(fitted, positions) else None


def _positions_to(positions: Tensor) -> Any:
    progression = affine(positions)
    if progression is not None:
        return {"size": list(positions.shape), "affine": list(progression)}
    return positions.tolist()


def _positions_from(content: Any) -> Tensor:
    if isinstance(content, list):
        return torch.tensor(content, dtype=torch.int64)
    (units, runs), (start, step, run) = content["size"], content["affine"]
    return torch.as_tensor(start + step * torch.arange(units).unsqueeze(1) + run * torch.arange(runs))


def to_dict(spec: SymmetrySpec) -> dict[str, Any]:
    """The spec as plain lists, numbers and strings."""
    return {
        "groups": [_group_to(g) for g in spec.groups.values()],
        "bindings": [_binding_to(b) for b in spec.bindings],
        "sites": [
            [s.group, s.module, s.call, s.op, s.index, s.axis, s.width, _positions_to(s.positions), s.nonlinear]
            + ([s.crossed, s.acts] if s.crossed or not s.acts else [])
            for s in spec.sites
        ],
        "fixed": [[f.tensor, f.axis, f.reason] for f in spec.fixed],
        "shapes": {name: list(shape) for name, shape in spec.shapes.items()},
        "aliases": dict(spec.aliases),
        "notes": list(spec.notes),
        "constants": list(spec.constants),
        "stacks": {name: list(parts) for name, parts in spec.stacks.items()},
    }


def fields_from(content: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `SymmetrySpec` from what `to_dict` gave."""
    return {
        "groups": {g["name"]: _group_from(g) for g in content["groups"]},
        "bindings": tuple(
            AxisBinding(t, a, g, Side(s), Role(r), _positions_from(p), k, *rest)
            for t, a, g, s, r, p, k, *rest in content["bindings"]
        ),
        "sites": tuple(
            Site(g, m, c, o, i, a, w, _positions_from(p), *rest) for g, m, c, o, i, a, w, p, *rest in content["sites"]
        ),
        "fixed": tuple(FixedAxis(*entry) for entry in content["fixed"]),
        "shapes": {name: tuple(shape) for name, shape in content["shapes"].items()},
        "aliases": dict(content["aliases"]),
        "notes": tuple(content["notes"]),
        "constants": tuple(content.get("constants", ())),
        "stacks": {name: tuple(parts) for name, parts in content.get("stacks", {}).items()},
    }


def _binding_to(b: AxisBinding) -> list[Any]:
    places = _positions_to(b.positions)
    return [b.tensor, b.axis, b.group, b.side.value, b.role.value, places, b.blocks, b.placed or False]


def _group_to(group: Group) -> dict[str, Any]:
    s = group.structure
    structure = {"outer": s.outer, "blocks": s.blocks} if isinstance(s, Wreath) else None
    return {
        "name": group.name,
        "size": group.size,
        "kind": group.kind.value,
        "structure": structure,
        "reason": group.reason,
    }


def _group_from(content: Mapping[str, Any]) -> Group:
    structure = Flat() if content["structure"] is None else Wreath(**content["structure"])
    return Group(content["name"], content["size"], Kind(content["kind"]), structure, content["reason"])
