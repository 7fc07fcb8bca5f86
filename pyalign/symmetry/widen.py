"""A narrow model in a wide one's architecture: its units take some of the wide slots and the others are silent.

This is the semi-permutation of Theus et al. 2025 (section 2) whose columns have one entry each. Followed by a
permutation or a rotation of the wide model's symmetry, which `pyalign.align` finds, it is every injective map of units
and every matrix with orthonormal columns.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pyalign.errors import MismatchError, SymmetryError
from pyalign.symmetry.calls import call, map_tensors, state_of, tensors_of
from pyalign.symmetry.derive import derive, untouched
from pyalign.symmetry.groups import Group, Wreath
from pyalign.symmetry.kinds import Kind
from pyalign.symmetry.spec import SymmetrySpec

__all__ = ["Widening", "difference", "widen"]

_EXACT = 1e-4
"""Largest relative change of the outputs: the small constant inside a norm weighs a little more in a wider one."""
_SAME = 1e-9
"""What rounding may change them by, in float64."""


@dataclass(frozen=True, eq=False)
class Widening:
    """A narrow model that has become wide.

    Args:
        model: A copy of the wide model with the function of the narrow one.
        slots: For every group the slot of the wide model that each unit of the narrow one has taken, int64.
        rescaled: Norms whose scale makes up for the silent units, with the factor.
        error: Largest difference of the outputs over the largest output, in float64.
    """

    model: nn.Module
    slots: dict[str, Tensor]
    rescaled: dict[str, float]
    error: float


@torch.no_grad()
def widen(narrow: nn.Module, wide: nn.Module, example_inputs: Any, *, constants: Sequence[str] = ()) -> Widening:
    """Bring a narrow model into the architecture of a wide one, without changing its function.

    Both symmetries are derived and their groups compared by the tensors they act on. A unit of the narrow model takes
    the slot of the same number, a head or another block likewise; the silent slots get weights of zero. A norm over a
    widened stream sees the same squares and more units, so its scale is multiplied by the square root of the ratio of
    the widths. A LayerNorm would see the mean of more units: fold both models first; the mean, which no reader sees, is
    then taken out of everything that writes to the stream. Align the result to the wide model, and interpolate.

    Args:
        narrow: The model to widen: the architecture of `wide`, with fewer units in some groups.
        wide: A model of the wanted architecture; only its shapes count.
        example_inputs: One batch for both, as for `derive`.
        constants: Scales that were folded in both models, `Folding.constants`.

    Returns:
        The widened model and where its units are.

    Raises:
        MismatchError: The models differ in more than the number of units; the tensor is named.
        SymmetryError: The function would change, as with a LayerNorm that is not folded, or a GroupNorm.

    Source:
        Theus et al. 2025 (arXiv 2506.22712), sections 2 and 4 and appendix E.

    Example:
        >>> small, large = (nn.Sequential(nn.Linear(2, n), nn.ReLU(), nn.Linear(n, 1)) for n in (3, 5))
        >>> found, x = widen(small, large, torch.randn(4, 2)), torch.randn(6, 2)
        >>> found.model[0].weight.shape, torch.allclose(found.model(x), small(x), atol=1e-6)
        (torch.Size([5, 2]), True)
    """
    given, narrow = narrow, _centred(narrow, example_inputs, constants)
    specs = derive(narrow, example_inputs), derive(wide, example_inputs)
    slots = _slots(*specs)
    model = copy.deepcopy(wide)
    target = state_of(model)
    for name, tensor in state_of(narrow).items():
        if specs[0].aliases.get(name, name) == name:
            _embed(name, tensor, target, specs, slots)
    rescaled = _rescale(narrow, model, example_inputs, specs, slots)
    error = difference(given, model, example_inputs)
    if not error <= _EXACT:
        groups = [f"{n} ({g.size} of {specs[1].groups[n].size})" for n, g in specs[0].groups.items() if _grew(specs, n)]
        raise SymmetryError(
            f"widening changes the function; widened were {', '.join(groups)}",
            given=f"outputs that differ by {error:.1e} of their size",
            expected=f"at most {_EXACT:.0e}",
            do="fold norms that subtract a mean (pyalign.symmetry.fold) and name the constants of the folding",
        )
    return Widening(model, slots, rescaled, error)


def _centred(model: nn.Module, inputs: Any, constants: Sequence[str]) -> nn.Module:
    """A copy whose streams have mean zero, where they are read by folded LayerNorms only; else the model itself."""
    spec = derive(model, inputs, within=Kind.INVERTIBLE, constants=constants) if constants else None
    streams = [] if spec is None else [g.name for g in spec.groups.values() if g.kind is Kind.CENTRED]
    if spec is None or not streams:
        return model
    precise, centred = copy.deepcopy(model).double(), copy.deepcopy(model)
    state, own = state_of(precise), state_of(centred)
    before = _answers(precise, inputs)
    for binding in (b for name in streams for b in spec.of(name)):
        tensor = state[binding.tensor]
        kept = tensor.clone()
        for run in binding.positions.to(tensor.device).T:
            part = tensor.index_select(binding.axis, run)
            tensor.index_copy_(binding.axis, run, part - part.mean(binding.axis, keepdim=True))
        # What writes to the stream may lose its mean; a norm's shift and those that read it may not.
        if _apart(before, _answers(precise, inputs)) > _SAME:
            tensor.copy_(kept)
        own[binding.tensor].copy_(tensor)
    return centred


def _grew(specs: tuple[SymmetrySpec, SymmetrySpec], name: str) -> bool:
    return specs[0].groups[name].size != specs[1].groups[name].size


def _slots(narrow: SymmetrySpec, wide: SymmetrySpec) -> dict[str, Tensor]:
    """For every group the wide slots of the narrow units: unit i of a block is unit i of that block's slot."""
    found: dict[str, Tensor] = {}
    for group in narrow.outer_first():
        name, other = group.name, wide.groups.get(group.name)
        places = [{(b.tensor, b.axis) for b in spec.of(name)} for spec in (narrow, wide)]
        if other is None or places[0] != places[1]:
            raise MismatchError(
                f"the group {name!r} of the narrow model is not one of the wide model",
                given=f"acting on {sorted(places[0])[:3]}, in the wide model on {sorted(places[1])[:3]}",
                expected="models that differ only in the number of units",
            )
        counts, inner = zip(_blocks(group), _blocks(other), strict=True)
        if counts[0] > counts[1] or inner[0] > inner[1]:
            raise MismatchError(
                f"the group {name!r} is larger in the narrow model",
                given=f"{group.size} units, {other.size} in the wide model",
                expected="at most as many units in every group and block",
                do="give the narrow model first; where each is wider somewhere, widen both into a third",
            )
        block, unit = torch.arange(group.size) // inner[0], torch.arange(group.size) % inner[0]
        moved = found[group.structure.outer][block] if isinstance(group.structure, Wreath) else block
        found[name] = moved * inner[1] + unit
    return {name: found[name] for name in narrow.groups}


def _blocks(group: Group) -> tuple[int, int]:
    """The number of blocks of a group and of units in each."""
    count = group.structure.blocks if isinstance(group.structure, Wreath) else 1
    return count, group.size // count


def _embed(
    name: str, tensor: Tensor, target: Mapping[str, Tensor], specs: tuple[SymmetrySpec, SymmetrySpec],
    slots: Mapping[str, Tensor],
) -> None:  # fmt: skip
    """Write a tensor of the narrow model to its places in the wide one, and what is silent elsewhere."""
    if name not in target or target[name].dim() != tensor.dim():
        raise MismatchError(
            f"the wide model has no tensor {name!r} of {tensor.dim()} axes",
            given=f"shape {tuple(tensor.shape)} in the narrow model",
            expected="models that differ only in the number of units",
        )
    out = target[name]
    # The variance of a silent unit is one: it is divided by, and zero times anything stays zero.
    out.fill_(1 if name.rsplit(".", 1)[-1] == "running_var" else 0)
    at = [_places(name, axis, tensor.shape[axis], out.shape[axis], specs, slots) for axis in range(tensor.dim())]
    if at:
        out[torch.meshgrid(*(p.to(out.device) for p in at), indexing="ij")] = tensor.to(out.device, out.dtype)
    else:
        out.copy_(tensor)


def _places(
    name: str,
    axis: int,
    length: int,
    wanted: int,
    specs: tuple[SymmetrySpec, SymmetrySpec],
    slots: Mapping[str, Tensor],
) -> Tensor:
    """Where the entries of a narrow axis lie on the wide one, shape (length,)."""
    place = torch.full((length,), -1)
    pairs = [[b for b in spec.on(name) if b.axis == axis] for spec in specs]
    for one, two in zip(*pairs, strict=True):
        if one.group == two.group and one.positions.shape[1] == two.positions.shape[1] and one.blocks == 1:
            place[one.positions] = two.positions[slots[one.group]]
    left = place < 0
    if bool(left.any()) and length == wanted:
        place[left] = torch.arange(length)[left]
    if bool((place < 0).any()):
        reason = next((f.reason for f in specs[0].fixed if (f.tensor, f.axis) == (name, axis)), "no group moves it")
        raise MismatchError(
            f"axis {axis} of {name!r} cannot be widened",
            given=f"length {length}, in the wide model {wanted}; {reason}",
            expected="a symmetry on every axis whose length differs, with as many entries for each unit",
            do="change only widths whose units are interchangeable; keep the size of attention heads",
        )
    return place


def _rescale(
    narrow: nn.Module,
    model: nn.Module,
    inputs: Any,
    specs: tuple[SymmetrySpec, SymmetrySpec],
    slots: Mapping[str, Tensor],
) -> dict[str, float]:
    """Make up for silent units in modules that divide by a mean over all units: their scale, and what it was taken by.

    Each such module is asked itself: it answers a narrow input, and the same input among silent units.
    """
    seen = _inputs_of_norms(narrow, inputs)
    found: dict[str, float] = {}
    own, wide = state_of(narrow), state_of(model)
    for path, x in seen.items():
        name = f"{path}.weight" if path else "weight"
        place = _places(name, 0, own[name].shape[0], wide[name].shape[0], specs, slots).to(x.device)
        if len(place) == wide[name].shape[0] or x.shape[-1] != len(place):
            continue
        padded = x.new_zeros(*x.shape[:-1], wide[name].shape[0])
        padded[..., place] = x
        modules = narrow.get_submodule(path), model.get_submodule(path)
        try:
            one, two = (m(v) - m(torch.zeros_like(v)) for m, v in zip(modules, (x, padded), strict=True))
        except (RuntimeError, ValueError):
            continue  # its units lie on another axis than the last, so it takes no mean over them
        ratio = float((two[..., place].double() * one.double()).sum() / one.double().square().sum())
        if ratio > 0 and abs(ratio - 1) > 1e-6:
            wide[name].div_(ratio)
            if bool((own[name] == own[name][0]).all()):
                wide[name].fill_(wide[name][place[0]])  # a folded scale stays a constant; it multiplies silence
            found[name] = 1 / ratio
    return found


def _inputs_of_norms(model: nn.Module, inputs: Any) -> dict[str, Tensor]:
    """The first input of every module without children that holds a vector `weight`, and at most a bias besides."""
    seen: dict[str, Tensor] = {}
    handles = []
    for path, module in model.named_modules():
        held = {n: p.dim() for n, p in module.named_parameters(recurse=False)}
        if held.get("weight") == 1 and set(held) <= {"weight", "bias"} and not list(module.children()):

            def note(_module: nn.Module, given: tuple[Any, ...], path: str = path) -> None:
                if given and isinstance(given[0], Tensor):
                    seen.setdefault(path, given[0].detach())

            handles.append(module.register_forward_pre_hook(note))
    try:
        with untouched(model):
            call(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def difference(one: nn.Module, two: nn.Module, inputs: Any) -> float:
    """Largest difference of the outputs of two models over the largest output of the first, in float64."""
    return _apart(*(_answers(copy.deepcopy(model).double(), inputs) for model in (one, two)))


def _answers(precise: nn.Module, inputs: Any) -> list[Tensor]:
    def double(x: Tensor) -> Tensor:
        return x.double() if x.is_floating_point() else x

    with untouched(precise), torch.no_grad():
        return [t.double() for t in tensors_of(call(precise, map_tensors(inputs, double)))]


def _apart(one: list[Tensor], two: list[Tensor]) -> float:
    shapes = [[tuple(t.shape) for t in answer] for answer in (one, two)]
    if shapes[0] != shapes[1]:
        raise MismatchError("the models answer in different shapes", given=str(shapes[0]), expected=str(shapes[1]))
    largest = max((float(t.abs().max()) for t in one if t.numel()), default=0.0)
    apart = max((float((x - y).abs().max()) for x, y in zip(one, two, strict=True) if x.numel()), default=0.0)
    return apart / max(largest, 1e-300)
