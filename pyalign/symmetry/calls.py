"""How a model is called with a batch, and which tensors its answer holds."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["call", "map_tensors", "state_of", "tensors_of"]


def call(model: nn.Module, inputs: Any) -> Any:
    """Run `model`: a mapping is passed by keyword, a tuple or list by position, anything else as the one argument.

    Example:
        >>> call(nn.Identity(), (torch.ones(2),))
        tensor([1., 1.])
    """
    if isinstance(inputs, Mapping):
        return model(**inputs)
    if isinstance(inputs, (tuple, list)):
        return model(*inputs)
    return model(inputs)


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
