"""Specs in which experts change places, each with units of its own: lists as stacks, and wreaths over the experts."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import torch
from torch import Tensor

from pyalign.symmetry.expert_layers import ExpertLayer
from pyalign.symmetry.groups import AxisBinding, FixedAxis, Flat, Group, Role, Side, Wreath
from pyalign.symmetry.kinds import Kind
from pyalign.symmetry.spec import SymmetrySpec

__all__ = ["with_experts"]

_REASON = "experts change places as wholes"


def with_experts(
    spec: SymmetrySpec, layer: ExpertLayer, buffers: Collection[str], parts: int = 1
) -> tuple[SymmetrySpec, tuple[str, ...]] | None:
    """The spec in which the experts of a layer change places and the units of each move by themselves.

    Args:
        spec: What was derived.
        layer: The layer; that the experts may change places is not checked here.
        buffers: Names of buffers, which are moved and do not count when weights are matched.
        parts: In how many equal parts the experts sit that move as wholes (group-limited routing), 1 for none.

    Returns:
        The spec and the names of the groups that are new; None where what is in the experts differs.
    """
    listed = _listed(spec, layer)
    if listed is None:
        return None
    name = layer.shared or _name(listed, layer)
    made: list[Group] = []
    bindings: list[AxisBinding] = []
    if not layer.shared:
        structure = Flat() if parts == 1 else Wreath(f"{name}.blocks", parts)
        made += [] if parts == 1 else [Group(f"{name}.blocks", parts, reason="moves the blocks of experts")]
        made.append(Group(name, layer.count, Kind.PERMUTATION, structure, _REASON))
        here = torch.arange(layer.count).unsqueeze(1)
        for tensor, axis in (*((stack, 0) for stack in layer.stacks), *layer.axes):
            buffer = tensor in buffers or any(part in buffers for part in layer.stacks.get(tensor, ()))
            role = Role.TRANSFORMED if buffer else Role.MATCHED
            bindings.append(AxisBinding(tensor, axis, name, Side.COVARIANT, role, here))
    inner = _inner(listed, layer)
    groups = {g.name: g for g in made}
    for group in listed.groups.values():
        groups[group.name] = _in_experts(group, name, layer.count) if group.name in inner else group
    old = [_fibred(b, listed, layer.count) if b.group in inner else b for b in listed.bindings]
    bound = {(b.tensor, b.axis) for b in bindings}
    order = {tensor: i for i, tensor in enumerate(listed.shapes)}
    together = sorted((*old, *bindings), key=lambda b: (order[b.tensor], b.axis))
    new = replace(
        listed,
        groups=groups,
        bindings=tuple(together),
        sites=tuple(s for s in listed.sites if s.group not in inner),
        fixed=tuple(f for f in listed.fixed if (f.tensor, f.axis) not in bound),
    )
    return new, (*(g.name for g in made), *sorted(inner))


def _name(spec: SymmetrySpec, layer: ExpertLayer) -> str:
    """After the module of the router."""
    flat = [name for name, axis in layer.axes if len(spec.shapes[name]) < 3]
    base = (flat or [name for name, _ in layer.axes])[0].rpartition(".")[0] or "router"
    taken = sum(n == base or n.startswith(f"{base}:") for n in spec.groups)
    return f"{base}:{taken + 1}" if taken else base


def _listed(spec: SymmetrySpec, layer: ExpertLayer) -> SymmetrySpec | None:
    """The spec with the experts' tensors as stacks, all experts alike: as in the one that has most bindings."""
    if not layer.stacks:
        return spec
    place = {part: (stack, i) for stack, parts in layer.stacks.items() for i, part in enumerate(parts)}
    where = {g: {place.get(b.tensor, ("", -1))[1] for b in spec.of(g)} for g in spec.groups}
    own = {g: members.pop() for g, members in where.items() if len(members) == 1 and members != {-1}}
    own |= _holders(spec, own)
    count = [sum(place.get(b.tensor, ("", -1))[1] == i for b in spec.bindings) for i in range(layer.count)]
    model = count.index(max(count))
    seen: dict[tuple[str, int], set[tuple[object, ...]]] = {}
    bindings = []
    for b in spec.bindings:
        if b.tensor not in place:
            bindings.append(b)
            continue
        stack, i = place[b.tensor]
        if b.group not in own:
            key = (b.group, b.side, b.role, b.blocks, b.placed, tuple(b.positions.reshape(-1).tolist()))
            seen.setdefault((f"{stack}|{b.axis}", i), set()).add(key)
        if b.blocks > 1 or (b.group in own and spec.groups[b.group].kind.mixes):
            return None
        if i == model:
            bindings.append(replace(b, tensor=stack, axis=b.axis + 1))
    for (axis, i), keys in seen.items():
        if keys != seen.get((axis, model)) and i != model:
            return None
    groups = {n: g for n, g in spec.groups.items() if own.get(n, model) == model}
    fixed = [f for f in spec.fixed if f.tensor not in place]
    fixed += [
        FixedAxis(place[f.tensor][0], f.axis + 1, f.reason)
        for f in spec.fixed
        if place.get(f.tensor, ("", -1))[1] == model
    ]
    shapes = {stack: (layer.count, *spec.shapes[parts[model]]) for stack, parts in layer.stacks.items()}
    renamed = {n: _starred(n, layer, model) if n in own else n for n in groups}
    return replace(
        spec,
        groups={renamed[n]: _renamed(g, renamed) for n, g in groups.items()},
        bindings=tuple(replace(b, group=renamed[b.group]) for b in bindings),
        sites=tuple(s for s in spec.sites if s.group in groups),
        fixed=tuple(fixed),
        shapes={**spec.shapes, **shapes},
        stacks={**spec.stacks, **layer.stacks},
    )


def _starred(name: str, layer: ExpertLayer, model: int) -> str:
    """The name of a group of one expert, without the number of the expert."""
    heads = {stack.partition("*")[0] for stack in layer.stacks}
    head = next((h for h in heads if f"{name}.".startswith(f"{h}{model}.")), None)
    return name if head is None else f"{head}*{name[len(f'{head}{model}') :]}"


def _renamed(group: Group, names: dict[str, str]) -> Group:
    s = group.structure
    structure = replace(s, outer=names[s.outer]) if isinstance(s, Wreath) else s
    return replace(group, name=names[group.name], structure=structure)


def _holders(spec: SymmetrySpec, own: dict[str, int]) -> dict[str, int]:
    """Groups without bindings that only hold blocks of groups of one expert."""
    found: dict[str, int] = {}
    for group in reversed(spec.outer_first()):
        held = [g.name for g in spec.groups.values() if getattr(g.structure, "outer", None) == group.name]
        members = {(own | found).get(name, -1) for name in held}
        if held and not spec.of(group.name) and len(members) == 1 and members != {-1}:
            found[group.name] = members.pop()
    return found


def _inner(spec: SymmetrySpec, layer: ExpertLayer) -> set[str]:
    """Groups whose units lie within experts: all their tensors have a part for each expert."""
    holds = set(layer.holds)
    found: set[str] = set()
    for group in spec.outer_first():
        bound = spec.of(group.name)
        inside = all(b.tensor in holds and b.axis > 0 and b.blocks == 1 for b in bound)
        outer = getattr(group.structure, "outer", None)
        held = [g for g in spec.groups.values() if getattr(g.structure, "outer", None) == group.name]
        known = bool(bound) or any(_within(spec, g.name, holds) for g in held)
        if inside and known and not group.kind.mixes and (outer is None or outer in found):
            found.add(group.name)
    mixing = {g.name for g in spec.groups.values() if g.kind.mixes}
    return {g for g in found if not any(_root(spec, m) == g for m in mixing)}


def _within(spec: SymmetrySpec, group: str, holds: set[str]) -> bool:
    bound = spec.of(group)
    return bool(bound) and all(b.tensor in holds and b.axis > 0 and b.blocks == 1 for b in bound)


def _root(spec: SymmetrySpec, group: str) -> str:
    structure = spec.groups[group].structure
    return _root(spec, structure.outer) if isinstance(structure, Wreath) else group


def _in_experts(group: Group, experts: str, count: int) -> Group:
    s = group.structure
    structure = Wreath(s.outer, s.blocks * count) if isinstance(s, Wreath) else Wreath(experts, count)
    return replace(group, size=group.size * count, structure=structure)


def _fibred(binding: AxisBinding, spec: SymmetrySpec, count: int) -> AxisBinding:
    """The binding of units that are their own in every expert: entry c of expert e is number e * length + c."""
    length = spec.shapes[binding.tensor][binding.axis]
    return replace(binding, positions=_repeated(binding.positions, length, count), blocks=count)


def _repeated(positions: Tensor, length: int, count: int) -> Tensor:
    return torch.cat([positions + e * length for e in range(count)])
