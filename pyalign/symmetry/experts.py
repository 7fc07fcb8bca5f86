"""The order of experts (Tran et al. 2025, theorems 4.1 and 4.2): where it is free, and each expert's units with it.

Which expert a token is sent to depends on its values: loops over experts, sorted tokens, masks and lists of modules
leave no operator in which expert e could be seen to belong to row e of the router. So names and shapes propose what
would have to move, and the computation decides: a random element of the proposed groups must leave the outputs as they
are, in float64, on several drawings of the weights near the model's own, until every expert has had a part in them.
Where the weights are absent a small model of the same architecture is judged (`pyalign.symmetry.miniature`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pyalign.errors import PyalignError
from pyalign.symmetry.calls import answers_of, call, state_of
from pyalign.symmetry.derive import traced_spec, untouched
from pyalign.symmetry.elements import following, random_element
from pyalign.symmetry.expert_groups import with_experts
from pyalign.symmetry.expert_layers import ExpertLayer, expert_layers
from pyalign.symmetry.groups import FixedAxis, Site
from pyalign.symmetry.kinds import Kind
from pyalign.symmetry.miniature import miniature
from pyalign.symmetry.spec import SymmetrySpec
from pyalign.symmetry.tracing.absent import is_absent
from pyalign.symmetry.tracing.ties import Ties
from pyalign.symmetry.tracing.tracer import Sight
from pyalign.symmetry.transforms import Transform
from pyalign.symmetry.verify import _Probe, largest
from pyalign.symmetry.wide import WideForms

__all__ = ["ordered_experts"]

_LEAST, _MOST = 3, 12
"""Drawings of the weights on which a proposal must hold, and after which experts that had no part are given up."""
_BLUNT = 1e-4
"""A drawing whose tolerance is larger (rounding moves a token to another expert) decides nothing."""

_UNSEEN = "expert"

Proposal = tuple[SymmetrySpec, tuple[str, ...]]
Judgement = tuple[list[tuple[list[int], int]], dict[int, str]]


def ordered_experts(
    spec: SymmetrySpec, model: nn.Module, inputs: Any, ties: Ties, sights: Sequence[Sight]
) -> SymmetrySpec:
    """The spec with the order of experts where it is free, and with units that move in each expert by themselves.

    Layers are tried together, then those that failed one by one: with experts in any order, then in an order within
    equal parts that change places (group-limited routing). Layers that do not pass stay as they are, with a reason.

    Args:
        spec: What was derived from the trace.
        model: The model; it is copied, not changed.
        inputs: One batch.
        ties: What the trace collected.
        sights: Values that may serve as observation sites.
    """
    layers, buffers = expert_layers(spec), {name for name, _ in model.named_buffers()}
    if not any(_proposed(spec, [layer], buffers, parts)[1] for layer in layers for parts in _divisors([layer])):
        return spec
    judged = _judge(spec, model, inputs, layers, ties)
    if judged is None:
        return _held(spec, layers, "experts stay: without weights their order cannot be checked")
    accepted, why = judged
    claimed = set[tuple[str, int]]()
    for numbers, parts in accepted:
        spec = _proposed(spec, [layers[n] for n in numbers], buffers, parts)[0]
        claimed |= {axis for n in numbers for axis in layers[n].axes}
    for number, layer in enumerate(layers):
        if claimed.isdisjoint(layer.axes) and not layer.shared:
            spec = _held(spec, [layer], f"experts stay: {why.get(number, 'they differ')}")
    return _seen(spec, ties, sights)


def _judge(
    spec: SymmetrySpec, model: nn.Module, inputs: Any, layers: Sequence[ExpertLayer], ties: Ties
) -> Judgement | None:
    """Which layers' experts may move; for a model without weights on a small one in its place."""
    if not any(is_absent(t) for t in state_of(model).values()):
        return _judged(spec, layers, _Court(model, inputs), ties)
    names, keys = list(state_of(model)), [_key(layer) for layer in layers]
    found = miniature(model, inputs, lambda small: list(state_of(small)) == names)
    if found is None:
        return None
    small, batch = found
    with torch.no_grad():
        for name in spec.constants:
            small.get_parameter(name).fill_(1.0)
    try:
        plain, known, _ = traced_spec(small, batch, Kind.SCALED, spec.constants)
        place = {_key(layer): layer for layer in expert_layers(plain)}
        if any(key not in place for key in keys):
            return None
        return _judged(plain, [place[key] for key in keys], _Court(small, batch), known)
    except PyalignError:
        return None


def _key(layer: ExpertLayer) -> tuple[Any, ...]:
    return (layer.scope, layer.count, tuple(layer.stacks.items()), layer.axes, layer.shared)


def _judged(spec: SymmetrySpec, layers: Sequence[ExpertLayer], court: _Court, ties: Ties) -> Judgement:
    """Lots of layers (by number) whose experts may move together, in how many parts; and why others may not."""
    pending, claimed = list(range(len(layers))), set[tuple[str, int]]()
    accepted: list[tuple[list[int], int]] = []
    why: dict[int, str] = {}
    split = [_parts(x, ties) for x in layers]
    for parts in _divisors(layers):
        for together in (True, False):
            for lot in [pending] if together else [[n] for n in pending]:
                free = [n for n in lot if _fits(layers[n], parts, split[n]) and claimed.isdisjoint(layers[n].axes)]
                free = [n for n in free if not why.get(n, "").startswith(_UNSEEN)]
                chosen = [layers[n] for n in free]
                proposal = _proposed(spec, chosen, court.buffers, parts)
                reason = court.verdict(proposal[0], proposal[1], chosen) if proposal[1] else "nothing to move"
                why.update(dict.fromkeys(free, reason))
                if not reason:
                    spec = proposal[0]
                    accepted.append((free, parts))
                    claimed |= {axis for x in chosen for axis in x.axes}
                    pending = [n for n in pending if n not in free]
            if len(pending) < 2:
                break
        if not pending:
            break
    return accepted, why


def _fits(layer: ExpertLayer, parts: int, split: int) -> bool:
    return layer.count % parts == 0 and layer.count > parts and split in (0, parts)


def _divisors(layers: Sequence[ExpertLayer]) -> list[int]:
    """Numbers of equal parts to try, none first."""
    return [n for n in range(1, max(x.count for x in layers)) if any(x.count % n == 0 for x in layers)]


def _parts(layer: ExpertLayer, ties: Ties) -> int:
    """In how many equal parts the trace saw the router's axis cut (group-limited routing), 0 where it saw none.

    A limit that hardly ever matters might not show in the outputs, so where the axis was cut, no more may move.
    """
    routers = {(name, axis) for name, axis in layer.axes}
    for axis in ties.axes:
        if (axis.tensor, axis.axis) not in routers or axis.size != layer.count or axis.blocks > 1:
            continue
        copies = np.flatnonzero((ties.origin >= axis.start) & (ties.origin < axis.start + axis.size))
        copies = copies[ties.leader[copies] != 0]
        leaders = np.unique(ties.origin[ties.leader[copies]])
        cut = len(leaders) if len(np.unique(ties.origin[copies])) == axis.size else 0
        if 1 < cut < axis.size:
            return cut
    return 0


def _proposed(spec: SymmetrySpec, layers: Sequence[ExpertLayer], buffers: set[str], parts: int) -> Proposal:
    new: list[str] = []
    for layer in layers:
        found = None if layer.shared and parts > 1 else with_experts(spec, layer, buffers, parts)
        if found is not None:
            spec, names = found
            new += names
    return spec, tuple(new)


class _Court:
    """Judges proposals on drawings of a model's weights; each is a float64 copy with noise."""

    def __init__(self, model: nn.Module, inputs: Any) -> None:
        self.model, self.inputs = model, inputs
        self.buffers = {name for name, _ in model.named_buffers()}

    def verdict(self, spec: SymmetrySpec, new: Sequence[str], layers: Sequence[ExpertLayer]) -> str:
        """Empty if the new groups leave the outputs as they are; else what stands in the way."""
        idle = [set(range(x.count)) for x in layers]
        held = 0
        for seed in range(_MOST):
            probe = self._drawn(spec, layers, seed)
            reached = _reached(probe, layers) if any(idle) else [set[int]() for _ in layers]
            error = probe.error(spec, _elements(spec, new, seed))
            if error > probe.least:
                tolerance = probe.tolerance()
                if tolerance > _BLUNT:
                    continue
                if error > tolerance:
                    return "moving them changes the outputs"
            held += 1
            idle = [left - now for left, now in zip(idle, reached, strict=True)]
            if held >= _LEAST and not any(idle):
                return ""
        if held < _LEAST:
            return "rounding alone sends tokens to other experts"
        worst = next(min(left) for left in idle if left)
        return f"{_UNSEEN} {worst} had no part in the outputs on these inputs; derive with more of them"

    def _drawn(self, spec: SymmetrySpec, layers: Sequence[ExpertLayer], seed: int) -> _Probe:
        """A copy with noise, on routers more with every drawing: an expert that is never chosen proves nothing."""
        probe = _Probe(self.model, self.inputs, seed, spec.constants)
        state = state_of(probe.model)
        for name in {name for layer in layers for name, _ in layer.axes if state[name].dim() < 3}:
            if state[name].is_floating_point():
                size = float(state[name].double().square().mean().sqrt())
                probe.noise.onto(state[name], 0.5 * seed * size)
        probe.base = probe._outputs()
        probe.scale = largest(probe.base)
        return probe


def _elements(spec: SymmetrySpec, new: Sequence[str], seed: int) -> dict[str, Transform]:
    """Random elements of the new groups; all others stay, or follow."""
    generator = torch.Generator().manual_seed(seed)
    elements: dict[str, Transform] = {}
    for group in spec.outer_first():
        fresh = group.name in new
        elements[group.name] = (
            random_element(group, elements, group.kind, generator) if fresh else following(group, elements)
        )
    return elements


def _reached(probe: _Probe, layers: Sequence[ExpertLayer]) -> list[set[int]]:
    """Experts of each layer whose weights the outputs depend on: those with a gradient that is not zero."""
    model, state = probe.model, dict(probe.model.named_parameters())
    places: list[tuple[int, int, int]] = []  # layer, expert (-1: of all of them), axis
    weights = []
    for number, layer in enumerate(layers):
        listed = [(e, part) for parts in layer.stacks.values() for e, part in enumerate(parts) if part in state]
        solid = [(name, d) for name, d in layer.axes if name in state and state[name].dim() >= 3]
        places += [*((number, e, 0) for e, _ in listed), *((number, -1, d) for _, d in solid)]
        weights += [state[name] for name in (*(part for _, part in listed), *(name for name, _ in solid))]
    found: list[set[int]] = [set() for _ in layers]
    for (number, e, axis), gradient in zip(places, _gradients(probe, model, weights), strict=True):
        if gradient is not None and e >= 0:
            found[number] |= {e} if bool(gradient.any()) else set()
        elif gradient is not None:
            found[number] |= set(torch.where(gradient.movedim(axis, 0).flatten(1).any(1))[0].tolist())
    return found


def _gradients(probe: _Probe, model: nn.Module, weights: Sequence[Tensor]) -> Sequence[Tensor | None]:
    """Gradients of a sum of all outputs, each with a factor of its own."""
    for weight in weights:
        weight.requires_grad_(weight.is_floating_point())
    with untouched(model), torch.enable_grad(), WideForms():
        outputs = [t.flatten() for t in answers_of(model, call(model, probe.inputs)) if t.requires_grad]
        if not outputs:
            return [None] * len(weights)
        total = torch.cat([t * torch.linspace(1, 2, len(t)).to(t) for t in outputs]).sum()
        return torch.autograd.grad(total, weights, allow_unused=True)


def _held(spec: SymmetrySpec, layers: Sequence[ExpertLayer], reason: str) -> SymmetrySpec:
    """The same spec, which says why the experts' axes stay."""
    axes = {axis for layer in layers for axis in layer.axes if not layer.shared}
    fixed = tuple(FixedAxis(f.tensor, f.axis, reason) if (f.tensor, f.axis) in axes else f for f in spec.fixed)
    return replace(spec, fixed=fixed)


def _seen(spec: SymmetrySpec, ties: Ties, sights: Sequence[Sight]) -> SymmetrySpec:
    """The spec with sites where the experts' scores can be seen: the best that shows all of them in order."""
    known = {s.group for s in spec.sites}
    sites = []
    for group in spec.groups.values():
        if group.name in known or group.kind is not Kind.PERMUTATION:
            continue
        whole = {(b.tensor, b.axis) for b in spec.of(group.name) if len(b.positions) == spec.shapes[b.tensor][b.axis]}
        starts = {a.start for a in ties.axes if (a.tensor, a.axis) in whole and a.size == group.size}
        shown = [s for s in sights if _shows(s, starts, group.size)]
        for sight in [s for s in shown if s.rank == min(x.rank for x in shown)]:
            here = torch.arange(group.size).unsqueeze(1)
            sites.append(Site(group.name, *sight.key, sight.axis, group.size, here, nonlinear=sight.rank <= 1))
    place = {sight.key: i for i, sight in reversed(list(enumerate(sights)))}
    return replace(spec, sites=tuple(sorted((*spec.sites, *sites), key=lambda s: place[s.key])))


def _shows(sight: Sight, starts: set[int], size: int) -> bool:
    atoms = sight.plane.atoms.reshape(-1).numpy()
    return len(atoms) == size and int(atoms[0]) in starts and bool((atoms == atoms[0] + np.arange(size)).all())
