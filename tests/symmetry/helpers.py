"""Laws every derived specification must obey, and a readable difference between expected and derived groups."""

from __future__ import annotations

import copy
import dataclasses
import random
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pyalign.symmetry import Group, SymmetrySpec, Wreath

from .architectures import Architecture, Expected

Axes = frozenset[tuple[str, int]]


# --- expected and derived groups ------------------------------------------------------------------------------------


def axes_of(spec: SymmetrySpec, group: str) -> Axes:
    """Every (tensor, axis) that a group moves, tied names replaced by the canonical one."""
    return frozenset((spec.aliases.get(b.tensor, b.tensor), b.axis) for b in spec.of(group))


def outer_names(spec: SymmetrySpec) -> set[str]:
    """Names of the pure block groups: they permute the blocks of others and have no axis of their own."""
    outer = {g.structure.outer for g in spec.groups.values() if isinstance(g.structure, Wreath)}
    return {name for name in outer if not spec.of(name)}


def inner_groups(spec: SymmetrySpec) -> dict[str, Group]:
    """The groups that move, without the pure block groups of wreaths (their axes are their inner groups' axes)."""
    outer = outer_names(spec)
    return {name: g for name, g in spec.groups.items() if name not in outer and g.kind.value != "identity"}


def same_wreaths(spec: SymmetrySpec, pairs: list[tuple[Expected, str]]) -> list[str]:
    """Complaints where block structures differ, or where shared outer groups are not shared as expected."""
    complaints, found = [], {}
    for expected, name in pairs:
        structure = spec.groups[name].structure
        if expected.outer is None:
            if isinstance(structure, Wreath):
                complaints.append(f"{name} should be flat but is {structure}")
            continue
        if not isinstance(structure, Wreath) or structure.blocks != expected.blocks:
            complaints.append(f"{name} should have {expected.blocks} blocks but is {structure}")
            continue
        if spec.groups[structure.outer].size != expected.blocks:
            complaints.append(f"outer group {structure.outer} of {name} should have {expected.blocks} units")
        if found.setdefault(expected.outer, structure.outer) != structure.outer:
            complaints.append(f"{name} should share its outer group {found[expected.outer]}, has {structure.outer}")
    if len(set(found.values())) != len(found):
        complaints.append(f"wreaths that should be independent share an outer group: {found}")
    return complaints


def difference(spec: SymmetrySpec, expected: tuple[Expected, ...], open: bool) -> str:
    """Empty if the spec has the expected groups; else what is missing and what is surplus, closest pairs together."""
    left = {name: (g.size, axes_of(spec, name)) for name, g in inner_groups(spec).items()}
    pairs, missing = [], []
    for e in expected:
        axes = frozenset((spec.aliases.get(t, t), a) for t, a in e.axes)
        fits = [n for n, (size, has) in left.items() if size == e.size and (axes <= has if e.at_least else axes == has)]
        if fits:
            pairs.append((e, fits[0]))
            left.pop(fits[0])
        else:
            missing.append((e, axes))
    lines = []
    for e, axes in missing:
        lines.append(f"MISSING group of {e.size} units")
        near = max(left, key=lambda n: len(left[n][1] & axes) - len(left[n][1] ^ axes) / 1e3, default=None)
        if near is None or not left[near][1] & axes:
            lines += [f"    no derived group has any of {_text(axes)}"]
            continue
        size, has = left[near]
        lines.append(f"    nearest is {near} of {size} units")
        lines += [f"    lacks {_text(axes - has)}"] if axes - has else []
        lines += [f"    has besides {_text(has - axes)}"] if has - axes and not e.at_least else []
    if not open:
        lines += [f"SURPLUS group {name} of {size} units: {_text(axes)}" for name, (size, axes) in left.items()]
    for e, name in pairs:
        kind = spec.groups[name].kind.value
        if e.kind is not None and kind != e.kind:
            lines.append(f"KIND of {name} is {kind}, should be {e.kind}; reason given: {spec.groups[name].reason}")
    lines += [f"WREATH {complaint}" for complaint in same_wreaths(spec, pairs)]
    if lines and missing:
        lines += [f"FIXED {f.tensor}:{f.axis} because {f.reason}" for f in spec.fixed]
    return "\n".join(lines)


def _text(axes: Axes) -> str:
    return ", ".join(f"{tensor}:{at}" for tensor, at in sorted(axes))


def check_groups(spec: SymmetrySpec, architecture: Architecture) -> None:
    """One of the architecture's complete answers is met."""
    found = [difference(spec, expected, architecture.open) for expected in architecture.alternatives]
    assert "" in found, f"{architecture.name}\n" + "\n--- or ---\n".join(found)
    moved = frozenset().union(*(axes_of(spec, name) for name, g in spec.groups.items() if g.kind.value != "identity"))
    assert architecture.moves <= moved, f"{architecture.name}: nothing moves {_text(architecture.moves - moved)}"


def check_positions(spec: SymmetrySpec, state: Mapping[str, Tensor]) -> None:
    """Bindings stay inside their axes, every slot has one unit, and no two claim one slot, but within blocks."""
    taken: Counter[tuple[str, int, int]] = Counter()
    state = spec.stacked(state)
    for b in spec.bindings:
        assert b.group in spec.groups, b
        tensor = state[b.tensor]
        assert -tensor.ndim <= b.axis < tensor.ndim, b
        assert b.positions.dtype == torch.int64 and b.positions.shape[0] == spec.groups[b.group].size, b
        limit = tensor.shape[b.axis] * b.blocks
        slots = b.positions.flatten().tolist()
        assert len(set(slots)) == len(slots) and all(0 <= s < limit for s in slots), b
        if b.group not in outer_names(spec) and not b.placed:
            taken.update((b.tensor, b.axis, s) for s in slots)
    twice = {key: n for key, n in taken.items() if n > 1}
    assert not twice, f"slots that two bindings move: {sorted(twice)[:5]}"


def moved_units(spec: SymmetrySpec) -> int:
    """How many units of the spec can move in all."""
    return sum(g.size for g in inner_groups(spec).values())


def group_with(spec: SymmetrySpec, tensor: str, at: int) -> list[str]:
    """The groups (no pure block groups) that move slots of one axis."""
    tensor = spec.aliases.get(tensor, tensor)
    return [name for name in inner_groups(spec) if (tensor, at) in axes_of(spec, name)]


# --- invariance -----------------------------------------------------------------------------------------------------


def call(model: nn.Module, inputs: Any) -> Any:
    """The model's outputs, RNG seeded, no gradients."""
    torch.manual_seed(11)
    with torch.no_grad():
        if isinstance(inputs, Mapping):
            return model(**inputs)
        return model(*inputs) if isinstance(inputs, tuple | list) else model(inputs)


def tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in a nested output, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for key in value:
            yield from tensors(value[key])
    elif isinstance(value, tuple | list):
        for item in value:
            yield from tensors(item)
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from tensors(getattr(value, field.name))


def assert_same(found: Tensor, expected: Tensor, tolerance: float = 1e-9, what: str = "") -> None:
    """Equal within `tolerance` of the largest expected entry; NaN is never equal."""
    assert found.shape == expected.shape and found.dtype == expected.dtype, what
    if not expected.is_floating_point():
        assert torch.equal(found, expected), what
        return
    assert torch.isfinite(expected).all() and torch.isfinite(found).all(), f"{what}: not finite"
    error = (found - expected).abs().max().item() if expected.numel() else 0.0
    limit = tolerance * max(1e-3, expected.abs().max().item() if expected.numel() else 0.0)
    assert error <= limit, f"{what}: off by {error:.3g}, allowed {limit:.3g}"


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, tied names included, cloned."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict(keep_vars=True).items()}


def check_invariance(model: nn.Module, spec: SymmetrySpec, inputs: Any, *, train: bool, seeds: int = 2) -> None:
    """Random elements leave outputs unchanged; in train mode the updated statistics move as the old ones do."""
    elements = [spec.random(seed) for seed in range(16)]
    moved = {name for element in elements for name, t in element.transforms.items() if not t.is_identity}
    for seed, alignment in enumerate(elements[:seeds]):
        reference, aligned = copy.deepcopy(model).train(train), alignment.apply(copy.deepcopy(model).train(train))
        before = state_of(aligned)
        changed = any(not torch.equal(before[n], t) for n, t in state_of(model).items())
        assert changed == any(not t.is_identity for t in alignment.transforms.values())
        expected, found = list(tensors(call(reference, inputs))), list(tensors(call(aligned, inputs)))
        assert len(expected) == len(found) > 0
        assert any(e.is_floating_point() and e.abs().max() > 1e-3 for e in expected), "outputs are all zero"
        for i, (a, b) in enumerate(zip(expected, found, strict=True)):
            assert_same(b, a, what=f"output {i}, seed {seed}, train={train}")
        again = state_of(alignment.apply(reference))
        for name, tensor in state_of(aligned).items():
            assert_same(tensor, again[name], what=f"{name} after one call, seed {seed}, train={train}")
    still = {n for n, g in inner_groups(spec).items() if g.size > 1} - moved
    assert not still, f"groups that no random element moves: {sorted(still)}"


# --- derive leaves no trace -----------------------------------------------------------------------------------------


def fingerprint(model: nn.Module) -> dict[str, Any]:
    """Everything about a model and the process that derive must leave as it was."""
    python, numpy = random.getstate(), np.random.get_state()
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks")
    everywhere = ("_global_forward_hooks", "_global_forward_pre_hooks", "_global_backward_hooks")
    tensors_now = model.state_dict(keep_vars=True)
    return {
        "training": {name: m.training for name, m in model.named_modules(remove_duplicate=False)},
        "classes": {name: type(m) for name, m in model.named_modules(remove_duplicate=False)},
        "attributes": {name: sorted(vars(m)) for name, m in model.named_modules(remove_duplicate=False)},
        "hooks": {(n, h): list(getattr(m, h)) for n, m in model.named_modules() for h in hooks},
        "global hooks": {h: list(getattr(torch.nn.modules.module, h)) for h in everywhere},
        "identity": {n: (id(t), t.data_ptr(), t.stride(), t.requires_grad) for n, t in tensors_now.items()},
        "parameters": [(n, id(p), p.grad is None) for n, p in model.named_parameters(remove_duplicate=False)],
        "python": python,
        "numpy": (numpy[0], numpy[1].tolist(), *numpy[2:]),
        "torch": torch.get_rng_state().tolist(),
        "settings": (torch.is_grad_enabled(), torch.get_default_dtype(), torch.backends.mha.get_fastpath_enabled()),
        "threads": torch.get_num_threads(),
    }


def assert_untouched(before: dict[str, Any], state: dict[str, Tensor], model: nn.Module) -> None:
    """The model and the process are as `before`, the weights bit by bit as `state`."""
    after = fingerprint(model)
    for key, value in before.items():
        assert after[key] == value, f"derive changed {key}"
    for name, tensor in state_of(model).items():
        assert torch.equal(tensor, state[name]), f"derive changed the values of {name}"


def listed(spec: SymmetrySpec) -> Counter[str]:
    """Groups as text, such as "invertible 4x8" (four blocks of eight) or "permutation 4", with how many there are."""
    found: Counter[str] = Counter()
    for g in spec.groups.values():
        blocks = g.structure.blocks if isinstance(g.structure, Wreath) else 0
        found[f"{g.kind} {blocks}x{g.size // blocks}" if blocks else f"{g.kind} {g.size}"] += 1
    return found
