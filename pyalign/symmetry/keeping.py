"""Buffers that a forward pass changes, also in evaluation mode (counters, caches), as they were before it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from pyalign.symmetry.tracing.absent import is_absent

__all__ = ["keeping_buffers"]


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
