"""Whether two states fit each other, told tensor by tensor, and loading a state into a module."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from pyalign.errors import MismatchError
from pyalign.io.naming import entries_of, naming
from pyalign.io.reader import StateReader
from pyalign.io.states import load_state

__all__ = ["differences", "load_into"]

Shapes = Mapping[str, tuple[int, ...]]
PREFIXES = ("module.", "_orig_mod.", "model.")


def differences(given: Shapes, expected: Shapes) -> str:
    """What parts `given` from `expected`, as one text; '' where names and shapes agree.

    Example:
        >>> differences({"a": (2,), "c": (1,)}, {"a": (3,), "b": (1,)})
        "missing: 'b'; surplus: 'c'; of another shape: 'a' (2,) instead of (3,)"
    """
    missing = [repr(name) for name in expected if name not in given]
    surplus = [repr(name) for name in given if name not in expected]
    shapes = [
        f"{name!r} {given[name]} instead of {expected[name]}"
        for name in expected
        if name in given and tuple(given[name]) != tuple(expected[name])
    ]
    parts = (("missing", missing), ("surplus", surplus), ("of another shape", shapes))
    return "; ".join(f"{label}: {_few(names)}" for label, names in parts if names)


def _few(names: list[str], limit: int = 5) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def load_into(model: nn.Module, state: Mapping[str, Tensor] | str | os.PathLike[str]) -> None:
    """Load a state into `model`, in place; every tensor must fit, else nothing is changed.

    A name that is missing is no error where the model ties it to a name that is present. A prefix that a wrapper put
    before every name (`module.`, `_orig_mod.`, `model.`) is taken off where the names fit then, and names and parts in
    files of transformers (`pyalign.io.naming`) become those of its module.

    Args:
        model: The module to load into.
        state: name -> tensor, or the path of a checkpoint (see `load_state`).

    Raises:
        MismatchError: Tensors are missing, surplus, or of another shape.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> load_into(model, nn.Linear(2, 1).state_dict())
    """
    tensors = state if isinstance(state, Mapping) else load_state(state)
    own: dict[str, Any] = {name: tensor for name, tensor in model.state_dict().items() if isinstance(tensor, Tensor)}
    expected = {name: tuple(tensor.shape) for name, tensor in own.items()}
    tensors = _in_names_of(model, _without_prefix(tensors, expected), expected)
    given = {name: tuple(tensor.shape) for name, tensor in tensors.items() if isinstance(tensor, Tensor)}
    present = {_place(own[name]) for name in given if name in own}
    required = {name: shape for name, shape in expected.items() if name in given or _place(own[name]) not in present}
    found = differences(given, required)
    if found:
        raise MismatchError(
            f"the state does not fit {type(model).__name__}",
            given=found,
            expected=f"the {len(expected)} tensors of the model",
            do="build the model with the settings it was trained with, or choose its own checkpoint",
        )
    model.load_state_dict({name: tensors[name] for name in given}, strict=False)


def _in_names_of(model: nn.Module, state: Mapping[str, Tensor], expected: Shapes) -> Mapping[str, Tensor]:
    """A state of a file under the names of the module, where they are others."""
    tensors = {name: tensor for name, tensor in state.items() if isinstance(tensor, Tensor)}
    if set(tensors) <= set(expected):
        return state
    names = naming(model, entries_of(tensors))
    return state if names.plain else names.held(StateReader(entries_of(tensors), tensors.__getitem__)).load()


def _place(tensor: Tensor) -> tuple[object, ...]:
    # memory tells tied tensors; tensors without memory of their own (empty, meta) are told by identity
    return (tensor.device, tensor.data_ptr() or id(tensor), tensor.shape, tensor.stride())


def _without_prefix(state: Mapping[str, Tensor], expected: Shapes) -> Mapping[str, Tensor]:
    for prefix in PREFIXES:
        if state and all(name.startswith(prefix) for name in state):
            stripped = {name[len(prefix) :]: tensor for name, tensor in state.items()}
            if any(name in expected for name in stripped) and not any(name in expected for name in state):
                return stripped
    return state
