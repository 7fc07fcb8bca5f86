"""Where a model may hold mixtures of experts: lists of like modules, stacked tensors, and what chooses among them."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from pyalign.symmetry.spec import SymmetrySpec
from pyalign.symmetry.tracing.rules.contraction import KERNEL

__all__ = ["ExpertLayer", "expert_layers"]

_ELSEWHERE = ("output of the model", "never used in the computation", "rows of a lookup table")
"""Reasons for which an axis stays whatever experts do."""


@dataclass(frozen=True)
class ExpertLayer:
    """What would have to move if the experts of one layer changed places.

    Args:
        scope: The module that holds experts and router.
        count: Number of experts.
        stacks: Tensors of experts in lists: the name of the stack -> the tensor of each expert.
        axes: Axes of tensors that count experts: of routers, of stacked weights.
        shared: A group that moves the experts' axes already (dense routing), or "".
    """

    scope: str
    count: int
    stacks: dict[str, tuple[str, ...]]
    axes: tuple[tuple[str, int], ...]
    shared: str = ""

    @property
    def holds(self) -> tuple[str, ...]:
        """Tensors of which each expert has a part: stacks, and tensors of three or more axes."""
        return (*self.stacks, *(name for name, _ in self.axes))


def expert_layers(spec: SymmetrySpec) -> list[ExpertLayer]:
    """Layers whose names and shapes are those of experts with a router; whether they are is proven elsewhere."""
    fixed = {(f.tensor, f.axis): f.reason for f in spec.fixed if not f.reason.startswith(_ELSEWHERE)}
    lists, solids = _lists(spec), _solids(spec)
    found: dict[tuple[str, int], dict[str, tuple[str, ...]]] = defaultdict(dict)
    anchors = [(stem, len(next(iter(stacks.values()))), stacks) for stem, stacks in lists.items()]
    anchors += [(name, spec.shapes[name][0], {}) for name, axis in fixed if axis == 0 and name in solids]
    for place, count, stacks in anchors:
        parts = {part for names in stacks.values() for part in names}
        counting = [n for n, d in fixed if spec.shapes[n][d] == count and n not in parts and n not in solids]
        home = place.rpartition(".")[0]
        scope = _around(place, [n for n in counting if n.rpartition(".")[0] != home]) or _around(place, counting)
        if scope is not None:
            found[scope, count].update(stacks)
    layers = []
    for (scope, count), stacks in sorted(found.items(), key=lambda entry: -entry[0][0].count(".")):
        parts = {part for names in stacks.values() for part in names}
        axes = [(n, d) for n, d in fixed if _under(n, scope) and spec.shapes[n][d] == count and n not in parts]
        first = {name: min(d for n, d in axes if n == name) for name, _ in axes}
        layers.append(ExpertLayer(scope, count, stacks, tuple(first.items())))
    return layers + list(_moving(spec))


def _moving(spec: SymmetrySpec) -> Iterator[ExpertLayer]:
    """Experts whose order was found in the computation, while what is inside them moves alike in all."""
    solids = _solids(spec)
    for group in spec.groups.values():
        bound = spec.of(group.name)
        if any(b.axis != 0 or b.blocks > 1 or b.positions.shape[1] > 1 for b in bound if b.tensor in solids):
            continue
        axes = tuple((b.tensor, 0) for b in bound if b.axis == 0 and spec.shapes[b.tensor][0] == group.size)
        if any(name in solids for name, _ in axes) and not group.kind.mixes:
            yield ExpertLayer("", group.size, {}, axes, group.name)


def _solids(spec: SymmetrySpec) -> frozenset[str]:
    """Tensors in which each expert may have a matrix; kernels of convolutions have none."""
    kernels = {f.tensor for f in spec.fixed if f.reason == KERNEL}
    return frozenset(n for n, shape in spec.shapes.items() if sum(s > 1 for s in shape) >= 3 and n not in kernels)


def _around(place: str, names: list[str]) -> str | None:
    """The innermost module around a place that holds one of the tensors, within the same member of a list."""
    return next((scope for scope in _ancestors(place) if any(_under(name, scope) for name in names)), None)


def _lists(spec: SymmetrySpec) -> dict[str, dict[str, tuple[str, ...]]]:
    """Lists of modules (or tensors) of one make: the path of the list -> its stacks."""
    numbered: dict[tuple[str, str], dict[int, dict[str, str]]] = defaultdict(lambda: defaultdict(dict))
    for name in spec.shapes:
        path = name.split(".")
        for at, piece in enumerate(path):
            match = re.fullmatch(r"(\D*)(\d+)", piece)
            if match and match[2] == str(int(match[2])):
                key = (".".join(path[:at]), match[1])
                numbered[key][int(match[2])][".".join(path[at + 1 :])] = name
    tied = {*spec.aliases, *spec.aliases.values()}
    found = {}
    for (place, stem), members in numbered.items():
        first = members.get(0, {})
        shapes = [{suffix: spec.shapes[name] for suffix, name in member.items()} for member in members.values()]
        alike = sorted(members) == list(range(len(members))) and all(shape == shapes[0] for shape in shapes)
        own = {name for member in members.values() for name in member.values()}
        if len(members) > 1 and alike and not own & tied:
            head = f"{place}." if place else ""
            found[f"{head}{stem}*"] = {
                f"{head}{stem}*.{suffix}".rstrip("."): tuple(members[i][suffix] for i in range(len(members)))
                for suffix in first
            }
    return found


def _ancestors(path: str) -> Iterator[str]:
    """The modules around a place, innermost first, up to the first that is itself a member of a list."""
    while path:
        path = path.rpartition(".")[0]
        yield path
        if not path or path.rpartition(".")[2].isdigit():
            return


def _under(name: str, scope: str) -> bool:
    return not scope or name.startswith(f"{scope}.")
