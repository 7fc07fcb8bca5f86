"""What a group element does to the state of an optimiser: momenta move like gradients."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pyalign.errors import InputError, MismatchError
from pyalign.symmetry.actions import act
from pyalign.symmetry.transforms import ScaledPermutation, Transform

if TYPE_CHECKING:
    from pyalign.symmetry.spec import SymmetrySpec

__all__ = ["apply", "names_of"]

_SQUARED = frozenset({"exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum"})


def apply(
    spec: SymmetrySpec,
    elements: Mapping[str, Transform],
    state: Mapping[str, Any],
    parameters: nn.Module | Sequence[str] | None,
) -> dict[str, Any]:
    """Group elements applied to an optimiser's `state_dict()`.

    A gradient with respect to `s * w` is 1/s of the one with respect to w: averages of gradients move with the inverse
    factor, averages of squared gradients with its square; under permutations both are only reordered.

    Args:
        spec: The symmetry of the optimised model.
        elements: Group elements by group name.
        state: The optimiser's state dict; not changed.
        parameters: The names of the parameters in the optimiser's order; or the model, if the optimiser has all of its
            parameters, or all that are trained, in one group; or None, if the state names them itself.

    Returns:
        A new state dict.

    Raises:
        InputError: It is not known which parameter is which.
        MismatchError: The number or the shapes of the parameters differ.
    """
    order = [index for group in state["param_groups"] for index in group["params"]]
    names = _names(state["param_groups"], parameters, len(order))
    moved = {key: copy.deepcopy(value) for key, value in state.items() if key != "state"}
    given = {name: state["state"][index] for index, name in zip(order, names, strict=True) if index in state["state"]}
    apart = {name: entries for name, entries in given.items() if name not in spec.stack_of}
    found = {name: _moved(spec, elements, name, entries) for name, entries in apart.items()}
    for stack, parts in spec.stacks.items():
        if any(part in given for part in parts):
            found |= _moved_stack(spec, elements, stack, given)
    moved["state"] = {index: found[name] for index, name in zip(order, names, strict=True) if name in found}
    return moved


def _names(groups: Sequence[Mapping[str, Any]], parameters: nn.Module | Sequence[str] | None, count: int) -> list[str]:
    """The parameters' names in the optimiser's order."""
    if isinstance(parameters, nn.Module) or parameters is None:
        if all("param_names" in group for group in groups):
            names = [name for group in groups for name in group["param_names"]]
        elif parameters is None or len(groups) > 1:
            raise InputError(
                "an optimiser's state does not name its parameters",
                given=f"a state dict of {len(groups)} parameter group{'s'[: len(groups) > 1]} without names",
                expected="the names of the parameters in the optimiser's order",
                do="pass parameters=: these names, or the model if all are in one group; or pass the optimiser itself",
            )
        else:
            trained = [name for name, p in parameters.named_parameters() if p.requires_grad]
            names = trained if len(trained) == count else [name for name, _ in parameters.named_parameters()]
    else:
        names = list(parameters)
    if len(names) != count:
        raise MismatchError(
            "the optimiser does not belong to these parameters",
            given=f"{count} parameters",
            expected=f"{len(names)}",
            do="pass the names in the optimiser's order",
        )
    return names


def names_of(optimizer: torch.optim.Optimizer, model: nn.Module | Sequence[str] | None) -> list[str]:
    """The names of an optimiser's parameters in its order, found in the model.

    Raises:
        InputError: There is no model to find them in.
        MismatchError: One of them is not of the model.
    """
    if not isinstance(model, nn.Module):
        raise InputError("an optimiser's parameters have no names", do="pass the model it optimises: parameters=model")
    known = {id(parameter): name for name, parameter in model.named_parameters()}
    own = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    strange = [tuple(parameter.shape) for parameter in own if id(parameter) not in known]
    if strange:
        raise MismatchError(
            "the optimiser does not belong to this model",
            given=f"{len(strange)} parameters that are not the model's, such as one of shape {strange[0]}",
            expected="an optimiser of the model's own parameters",
            do="pass the model that was trained, not a copy of it",
        )
    return [known[id(parameter)] for parameter in own]


def _moved_stack(
    spec: SymmetrySpec, elements: Mapping[str, Transform], stack: str, given: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """The entries of tensors that change places with each other; what has no state yet counts as zeros."""
    parts = spec.stacks[stack]
    first = next(given[part] for part in parts if part in given)
    order = torch.arange(len(parts))
    for b in spec.on(stack):
        element = elements.get(b.group)
        if b.axis == 0 and isinstance(element, ScaledPermutation):
            order = element.perm
    sources = [parts[i] for i in order.tolist()]
    result: dict[str, dict[str, Any]] = {
        part: {} for part, source in zip(parts, sources, strict=True) if source in given
    }
    for key, example in first.items():
        if isinstance(example, Tensor) and example.dim() > 0:
            zeros = torch.zeros_like(example)
            whole = torch.stack([given[part][key] if part in given else zeros for part in parts])
            acted = act(whole, spec.on(stack), elements, -2 if key in _SQUARED else -1)
            values: dict[str, Any] = {part: acted[i].clone() for i, part in enumerate(parts)}
        else:
            values = {
                part: copy.deepcopy(given[source][key])
                for part, source in zip(parts, sources, strict=True)
                if source in given
            }
        for part, entries in result.items():
            entries[key] = values[part]
    return result


def _moved(
    spec: SymmetrySpec, elements: Mapping[str, Transform], name: str, entries: Mapping[str, Any]
) -> dict[str, Any]:
    shape = spec.shapes.get(spec.aliases.get(name, name))
    result: dict[str, Any] = {}
    for key, value in entries.items():
        if isinstance(value, Tensor) and value.dim() > 0:
            if tuple(value.shape) != shape:
                raise MismatchError(
                    f"the optimiser's {key} of {name!r} does not fit",
                    given=f"{tuple(value.shape)}",
                    expected=f"{shape}",
                    do="pass the parameter names in the optimiser's order",
                )
            value = act(value, spec.on(name), elements, -2 if key in _SQUARED else -1).clone()
        elif isinstance(value, Tensor):
            value = value.clone()
        result[key] = value
    return result
