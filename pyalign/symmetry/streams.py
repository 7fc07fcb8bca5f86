"""Streams of units that norms read as a whole: which norms, and which weights write to the stream.

A norm over more units, the additional ones silent, takes its mean of squares over a larger number. All that writes to
the stream times the square root of the ratio makes up for that exactly, also for the small constant inside the norm
(Theus et al. 2025, appendix E, which changes the constant instead). A LayerNorm subtracts a mean besides; where the
writers have none, it is zero at any width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pyalign.symmetry.calls import call, state_of
from pyalign.symmetry.derive import untouched
from pyalign.symmetry.groups import AxisBinding
from pyalign.symmetry.spec import SymmetrySpec

__all__ = ["Stream", "offset_of", "streams"]

Calls = list[tuple[str, Tensor]]


@dataclass(frozen=True, eq=False)
class Writer:
    """Where units lie on one axis of a weight, or of a weight that every expert of a list has.

    Args:
        names: The tensors.
        axis: The axis.
        positions: Shape (units, runs): the entries of each unit.
    """

    names: tuple[str, ...]
    axis: int
    positions: Tensor


@dataclass(frozen=True, eq=False)
class Stream:
    """A group of units that norms read.

    Args:
        group: Name of the group.
        norms: Paths of the modules that normalise it, each with its input.
        writers: The weights that write to it.
        centred: Whether some norm subtracts the mean.
    """

    group: str
    norms: Mapping[str, Tensor]
    writers: tuple[Writer, ...]
    centred: bool

    @torch.no_grad()
    def centre(self, state: Mapping[str, Tensor]) -> None:
        """Take the mean over the units out of everything that writes to the stream, in place."""
        for w in self.writers:
            for tensor in (state[name] for name in w.names):
                for run in w.positions.to(tensor.device).T:
                    part = tensor.index_select(w.axis, run)
                    tensor.index_copy_(w.axis, run, part - part.mean(w.axis, keepdim=True))

    @torch.no_grad()
    def scale(self, state: Mapping[str, Tensor], factor: float) -> None:
        """Multiply everything that writes to the stream, in place."""
        for w in self.writers:
            for tensor in (state[name] for name in w.names):
                here = w.positions.to(tensor.device).reshape(-1)
                tensor.index_copy_(w.axis, here, tensor.index_select(w.axis, here) * factor)


@torch.no_grad()
def streams(model: nn.Module, inputs: Any, spec: SymmetrySpec) -> list[Stream]:
    """The groups of a model whose units are read by modules that look at all of them together, with a scale for each.

    Which weights write to a stream is tried: when the entries of one unit are changed, the first norm that notices
    sees another value of that unit, if it is written to, and of all units, if it was read.

    Args:
        model: A model in float64; changed while it is tried, and put back.
        inputs: One batch in float64, as for `derive`.
        spec: Its symmetry.
    """
    before = _calls(model, inputs)
    found = []
    for group in spec.groups:
        norms: dict[str, Tensor] = {}
        for path, x in before:
            if _scale_of(path, spec, group) is not None and _together(model.get_submodule(path), x):
                norms.setdefault(path, x)
        if norms:
            own = {path.rpartition(".")[0] for path in map(_weight, norms)}
            bound = [b for b in spec.of(group) if b.tensor.rpartition(".")[0] not in own and b.blocks == 1]
            seen = [(path, x) for path, x in before if path in norms]
            known = [_weight_of(b, spec) for b in bound]
            writers = tuple(w for w in known if _writes(w, group, model, inputs, spec, seen))
            found.append(Stream(group, norms, writers, any(_subtracts(model, *n) for n in norms.items())))
    return found


@torch.no_grad()
def offset_of(norm: nn.Module, x: Tensor) -> float:
    """What a norm adds to its stored scale: 0, or 1 as in Gemma."""
    weight = norm.weight
    assert isinstance(weight, Tensor)
    kept = weight.clone()
    weight.zero_()
    answer = norm(x) - norm(torch.zeros_like(x))
    weight.copy_(kept)
    return float(bool((answer != 0).any()))


def _weight(path: str) -> str:
    return f"{path}.weight" if path else "weight"


def _weight_of(binding: AxisBinding, spec: SymmetrySpec) -> Writer:
    parts = spec.stacks.get(binding.tensor)
    if parts is None:
        return Writer((binding.tensor,), binding.axis, binding.positions)
    return Writer(parts, binding.axis - 1, binding.positions)


def _scale_of(path: str, spec: SymmetrySpec, group: str) -> AxisBinding | None:
    """The binding of a group to the scale of a norm, the units in any order and each once."""
    if _weight(path) in spec.stack_of:
        return None
    return next((b for b in spec.on(_weight(path)) if b.group == group and b.positions.shape[1] == 1), None)


def _calls(model: nn.Module, inputs: Any) -> Calls:
    """The first inputs of all modules without children that hold a vector `weight`, in the order of the calls."""
    seen: Calls = []
    handles = []
    for path, module in model.named_modules():
        held = {n: p.dim() for n, p in module.named_parameters(recurse=False)}
        if held.get("weight") == 1 and set(held) <= {"weight", "bias"} and not list(module.children()):

            def note(_module: nn.Module, given: tuple[Any, ...], path: str = path) -> None:
                if given and isinstance(given[0], Tensor):
                    seen.append((path, given[0].detach().clone()))

            handles.append(module.register_forward_pre_hook(note))
    try:
        with untouched(model):
            call(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _together(module: nn.Module, x: Tensor) -> bool:
    """Whether each entry of the last axis of the answer depends on the other entries of that axis."""
    weight = module.weight
    if not isinstance(weight, Tensor) or x.shape[-1] != len(weight) or len(weight) < 2:
        return False
    changed = x.clone()
    changed[..., 0] += x.abs().mean() + 1
    return bool(((module(changed) - module(x))[..., 1:] != 0).any())


def _subtracts(model: nn.Module, path: str, x: Tensor) -> bool:
    """Whether a norm does not see what is added to all units alike."""
    module = model.get_submodule(path)
    one, two = module(x), module(x + x.abs().mean())
    return bool((one - two).abs().max() <= 1e-6 * one.abs().max())


def _writes(weight: Writer, group: str, model: nn.Module, inputs: Any, spec: SymmetrySpec, before: Calls) -> bool:
    """Whether the first norm that notices a change of one unit's entries sees that unit change and no other."""
    tensors = [state_of(model)[name] for name in weight.names]
    kept, unit = [tensor.clone() for tensor in tensors], len(weight.positions) // 2
    generator = torch.Generator().manual_seed(0)
    for tensor in tensors:
        here = weight.positions[unit].to(tensor.device)
        part = tensor.index_select(weight.axis, here)
        noise = torch.randn(part.shape, generator=generator, dtype=torch.float64)
        noise *= tensor.std(unbiased=False).cpu() + 1e-3
        tensor.index_copy_(weight.axis, here, part + noise.to(part))
    try:
        after = [(path, x) for path, x in _calls(model, inputs) if path in dict(before)]
    finally:
        for tensor, value in zip(tensors, kept, strict=True):
            tensor.copy_(value)
    for (path, x), (_, y) in zip(before, after, strict=True):
        differs = (x - y).abs().reshape(-1, x.shape[-1]).amax(0) > 1e-9 * x.abs().max()
        if bool(differs.any()):
            scale = _scale_of(path, spec, group)
            assert scale is not None
            place = torch.zeros_like(differs)
            place[scale.positions[unit]] = True
            return bool(torch.equal(differs, place))
    return False
