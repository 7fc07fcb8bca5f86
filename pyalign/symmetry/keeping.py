"""What a forward pass leaves on modules, also in evaluation mode (counters, caches): taken away again after it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pyalign.symmetry.calls import tensors_of
from pyalign.symmetry.tracing.absent import is_absent

__all__ = ["keeping_attributes", "keeping_buffers"]


@contextmanager
def keeping_buffers(*models: nn.Module) -> Iterator[None]:
    """Put every buffer of `models` back after the block: the tensors themselves, with the entries they had.

    Args:
        models: Modules, whose buffers are copied first.

    Example:
        >>> class Counting(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.register_buffer("calls", torch.zeros(()))
        ...     def forward(self, x):
        ...         self.calls += 1
        ...         return x
        >>> model = Counting()
        >>> with keeping_buffers(model):
        ...     _ = model(torch.ones(1))
        >>> model.calls
        tensor(0.)
    """
    with torch.inference_mode(False):  # copies made inside it could not be written to
        before = [
            (module, name, buffer, buffer.detach().clone())
            for model in models
            for module in model.modules()
            for name, buffer in module._buffers.items()
            if buffer is not None
        ]
    try:
        yield
    finally:
        for module, name, buffer, entries in before:
            if module._buffers.get(name) is not buffer:
                module._buffers[name] = buffer
            # BatchNorm writes to its statistics without counting that as a version of them.
            if not is_absent(buffer) and not torch.equal(buffer, entries):
                with torch.inference_mode() if buffer.is_inference() else torch.no_grad():
                    buffer.copy_(entries)


@contextmanager
def keeping_attributes(model: nn.Module) -> Iterator[None]:
    """Take out of the modules' own attributes, and of lists and dicts there, the tensors that a pass puts there."""
    before = [(vars(module), _attributes(module)) for module in model.modules()]
    try:
        yield
    finally:
        for attributes, kept in before:
            for name in [n for n in attributes if not n.startswith("_")]:
                value, content = kept.get(name, (None, None))
                if isinstance(attributes[name], Tensor) and attributes[name] is not value:
                    attributes.pop(name) if name not in kept else attributes.update({name: value})
                elif attributes[name] is value and isinstance(value, dict) and _more(value, content):
                    value.clear()
                    value.update(content)
                elif attributes[name] is value and isinstance(value, list) and _more(value, content):
                    value[:] = content


def _attributes(module: nn.Module) -> dict[str, tuple[Any, Any]]:
    own = {name: value for name, value in vars(module).items() if not name.startswith("_")}
    return {name: (value, copy.copy(value) if type(value) in (dict, list) else None) for name, value in own.items()}


def _more(value: dict[Any, Any] | list[Any], content: Any) -> bool:
    """Whether tensors came into a container."""
    return content is not None and len(tensors_of(value)) > len(tensors_of(content))
