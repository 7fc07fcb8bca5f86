"""A narrow model in a wide one's architecture: its units take some of the wide slots and the others are silent.

This is the semi-permutation of Theus et al. 2025 (section 2) whose columns have one entry each. Followed by a
permutation or a rotation of the wide model's symmetry, which `pyalign.align` finds, it is every injective map of units
and every matrix with orthonormal columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pyalign.errors import MismatchError, SymmetryError
from pyalign.symmetry.calls import answers_of, call, map_tensors, state_of
from pyalign.symmetry.copies import copy_of
from pyalign.symmetry.derive import derive, untouched
from pyalign.symmetry.groups import Group, Wreath
from pyalign.symmetry.spec import SymmetrySpec
from pyalign.symmetry.streams import Stream, offset_of, streams

__all__ = ["Widening", "difference", "widen"]

_EXACT = 1e-4
"""Largest relative change of the outputs, for weights that are rounded to float32."""


@dataclass(frozen=True, eq=False)
class Widening:
    """A narrow model that has become wide.

    Args:
        model: A copy of the wide model with the function of the narrow one.
        slots: For every group the slot of the wide model that each unit of the narrow one has taken, int64.
        rescaled: Scales of norms that make up for the silent units, with their factor.
        error: Largest difference of the outputs over the largest output, in float64.
    """

    model: nn.Module
    slots: dict[str, Tensor]
    rescaled: dict[str, float]
    error: float


@torch.no_grad()
def widen(narrow: nn.Module, wide: nn.Module, example_inputs: Any) -> Widening:
    """Bring a narrow model into the architecture of a wide one, without changing its function.

    Both symmetries are derived and their groups compared by the tensors they act on. A unit of the narrow model takes
    the slot of the same number, a head or another block likewise; the silent slots get weights of zero. A norm over a
    widened stream sees the same squares among more units: what writes to the stream is multiplied by the square root of
    the ratio of the widths, and the norm's scale divided by it. Where a norm subtracts the mean, that is taken out of
    what writes to the stream. Align the result to the wide model, and interpolate.

    Args:
        narrow: The model to widen: the architecture of `wide`, with fewer units in some groups.
        wide: A model of the wanted architecture; only its shapes count.
        example_inputs: One batch for both, as for `derive`.

    Returns:
        The widened model and where its units are.

    Raises:
        MismatchError: The models differ in more than the number of units; the tensor is named.
        SymmetryError: The function would change, as with a GroupNorm, a LayerNorm behind the residual sum, or an
            output matrix tied to the embedding (which `pyalign.symmetry.fold` unties).

    Source:
        Theus et al. 2025 (arXiv 2506.22712), sections 2 and 4 and appendix E.

    Example:
        >>> small, large = (nn.Sequential(nn.Linear(2, n), nn.ReLU(), nn.Linear(n, 1)) for n in (3, 5))
        >>> found, x = widen(small, large, torch.randn(4, 2)), torch.randn(6, 2)
        >>> found.model[0].weight.shape, torch.allclose(found.model(x), small(x), atol=1e-6)
        (torch.Size([5, 2]), True)
    """
    specs = derive(narrow, example_inputs), derive(wide, example_inputs)
    slots = _slots(*specs)
    inputs = map_tensors(example_inputs, lambda x: x.double() if x.is_floating_point() else x)
    precise = copy_of(narrow).double()
    found = [stream for stream in streams(precise, inputs, specs[0]) if _grew(specs, stream.group)]
    if any(stream.centred for stream in found):
        for stream in found:
            stream.centre(state_of(precise))
        found = [stream for stream in streams(precise, inputs, specs[0]) if _grew(specs, stream.group)]
    # Where something else than norms reads a stream, it cannot be scaled; the norms then are not quite the same.
    for scaled in (True, False) if found else (False,):
        model, rescaled = _widened(precise, wide, specs, slots, found, scaled)
        error = difference(narrow, model, example_inputs)
        if error <= _EXACT:
            return Widening(model, slots, rescaled, error)
    groups = [f"{n} ({g.size} of {specs[1].groups[n].size})" for n, g in specs[0].groups.items() if _grew(specs, n)]
    raise SymmetryError(
        f"widening changes the function; widened were {', '.join(groups)}",
        given=f"outputs that differ by {error:.1e} of their size",
        expected=f"at most {_EXACT:.0e}",
        do="untie tied embeddings (pyalign.symmetry.fold does); norms over groups of channels, and norms behind the "
        "residual sum, cannot be widened",
    )


def _widened(
    precise: nn.Module, wide: nn.Module, specs: tuple[SymmetrySpec, SymmetrySpec], slots: Mapping[str, Tensor],
    found: Sequence[Stream], scaled: bool,
) -> tuple[nn.Module, dict[str, float]]:  # fmt: skip
    """The wide model with the units of the narrow one, and the norms whose scale was changed."""
    source, model, rescaled = copy_of(precise), copy_of(wide), {}
    factors = {s.group: (specs[1].groups[s.group].size / specs[0].groups[s.group].size) ** 0.5 for s in found}
    for stream in found if scaled else ():
        stream.scale(state_of(source), factors[stream.group])
    own = state_of(model)
    target = specs[1].stacked(own)
    for name, tensor in specs[0].stacked(state_of(source)).items():
        if specs[0].aliases.get(name, name) == name:
            _embed(name, tensor, target, specs, slots)
    for name, parts in specs[1].stacks.items():
        for part, tensor in zip(parts, target[name], strict=True):
            own[part].copy_(tensor)
    for stream in found:
        for path, x in stream.norms.items():
            name, module = f"{path}.weight" if path else "weight", precise.get_submodule(path)
            offset, constant = offset_of(module, x), bool((state_of(precise)[name] == state_of(precise)[name][0]).all())
            # Its units come out larger by the factor, whether they were written so or only fill a wider stream.
            target[name].add_(offset).div_(factors[stream.group]).sub_(offset)
            if constant:  # a folded scale stays a constant; it multiplies silence
                target[name].fill_(target[name][slots[stream.group][0]])
            rescaled[name] = 1 / factors[stream.group]
    return model, rescaled


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
        if one.group == two.group and one.positions.shape[1] == two.positions.shape[1] and one.blocks == two.blocks:
            # An axis that each block has for itself is laid out alike in all of them.
            units = len(one.positions) // one.blocks
            place[one.positions[:units]] = two.positions[slots[one.group][:units]]
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


def difference(one: nn.Module, two: nn.Module, inputs: Any) -> float:
    """Largest difference of the outputs of two models over the largest output of the first, in float64."""
    return _apart(*(_answers(copy_of(model).double(), inputs) for model in (one, two)))


def _answers(precise: nn.Module, inputs: Any) -> list[Tensor]:
    def double(x: Tensor) -> Tensor:
        return x.double() if x.is_floating_point() else x

    with untouched(precise), torch.no_grad():
        return [t.double() for t in answers_of(precise, call(precise, map_tensors(inputs, double)))]


def _apart(one: list[Tensor], two: list[Tensor]) -> float:
    shapes = [[tuple(t.shape) for t in answer] for answer in (one, two)]
    if shapes[0] != shapes[1]:
        raise MismatchError("the models answer in different shapes", given=str(shapes[0]), expected=str(shapes[1]))
    largest = max((float(t.abs().max()) for t in one if t.numel()), default=0.0)
    apart = max((float((x - y).abs().max()) for x, y in zip(one, two, strict=True) if x.numel()), default=0.0)
    return apart / max(largest, 1e-300)
