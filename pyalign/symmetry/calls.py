"""How a model is called with a batch, and which tensors its answer holds."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["answers_of", "call", "map_tensors", "returned_states", "state_of", "tensors_of"]


def call(model: nn.Module, inputs: Any) -> Any:
    """Run `model`: a mapping is passed by keyword, a tuple or list by position, anything else as the one argument.

    Inside `torch.autocast` the model's present weights are cast, whatever was cast before.

    Example:
        >>> call(nn.Identity(), (torch.ones(2),))
        tensor([1., 1.])
    """
    with _casting_anew():
        if isinstance(inputs, Mapping):
            return model(**inputs)
        if isinstance(inputs, (tuple, list)):
            return model(*inputs)
        return model(inputs)


@contextmanager
def _casting_anew() -> Iterator[None]:
    """Within `torch.autocast`, without the casts that it keeps of weights: here they change between calls."""
    kept = torch.is_autocast_cache_enabled() and any(map(torch.is_autocast_enabled, ("cpu", "cuda")))
    if kept:
        torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        if kept:
            torch.set_autocast_cache_enabled(True)


def answers_of(model: nn.Module, output: Any) -> list[Tensor]:
    """The tensors of a model's output, without those that it returns to be given back to it (`returned_states`)."""
    states = returned_states(model, output)
    return tensors_of([value for name, value in _fields(output) if name not in states] if states else output)


def returned_states(model: nn.Module, output: Any) -> tuple[str, ...]:
    """The fields of an output that are named like an optional argument of the forward pass.

    Such are the keys and values that a language model returns as `past_key_values`: they stand in the model's own
    coordinates, and go back into the model that made them.

    Example:
        >>> class Cell(nn.Module):
        ...     def forward(self, x, state=None):
        ...         return {"out": x, "state": x}
        >>> cell = Cell()
        >>> returned_states(cell, cell(torch.ones(1))), len(answers_of(cell, cell(torch.ones(1))))
        (('state',), 1)
    """
    fields = [name for name, value in _fields(output) if value is not None]
    if not fields:
        return ()
    try:
        parameters = inspect.signature(model.forward).parameters
    except (TypeError, ValueError):  # of scripted modules
        return ()
    optional = {name for name, parameter in parameters.items() if parameter.default is not parameter.empty}
    return tuple(name for name in fields if name in optional)


def _fields(output: Any) -> list[tuple[str, Any]]:
    """Names and values of a mapping or dataclass."""
    if isinstance(output, Mapping):
        return [(str(name), value) for name, value in output.items()]
    if dataclasses.is_dataclass(output) and not isinstance(output, type):
        return [(field.name, getattr(output, field.name)) for field in dataclasses.fields(output)]
    return []


def tensors_of(output: Any) -> list[Tensor]:
    """All tensors inside nested mappings, sequences, dataclasses and plain objects, in a fixed order.

    Example:
        >>> len(tensors_of({"logits": torch.ones(1), "aux": [torch.ones(1), None]}))
        2
    """
    return list(_walk(output, set()))


def _walk(value: Any, seen: set[int]) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
        return
    if value is None or isinstance(value, (str, bytes, int, float, bool, complex, nn.Module)) or id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, Mapping):
        children: Any = value.values()
    elif isinstance(value, (tuple, list, set, frozenset)):
        children = value
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        children = [getattr(value, field.name) for field in dataclasses.fields(value)]
    else:
        children = vars(value).values() if hasattr(value, "__dict__") else ()
    for child in children:
        yield from _walk(child, seen)


def map_tensors(value: Any, change: Any) -> Any:
    """A copy of a batch (tensor, or nested tuple, list, mapping) with `change` applied to every tensor."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return {key: map_tensors(child, change) for key, child in value.items()}
    if isinstance(value, (tuple, list)):
        changed = [map_tensors(child, change) for child in value]
        return type(value)(*changed) if hasattr(value, "_fields") else type(value)(changed)
    return value


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name, detached and not copied; tied tensors under every name.

    Example:
        >>> sorted(state_of(nn.Linear(2, 3)))
        ['bias', 'weight']
    """
    return {name: tensor for name, tensor in model.state_dict().items() if isinstance(tensor, torch.Tensor)}
