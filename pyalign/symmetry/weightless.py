"""Building a model without its weights: parameters on the meta device, buffers with their numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

__all__ = ["weightless"]


_LARGE = 1 << 26
"""Entries of a tensor without numbers of its own that is never allocated."""


class _Unallocated(TorchFunctionMode):
    """Large tensors that are made empty or random are weights: they never take memory, not even until registered."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.empty, torch.rand, torch.randn) and kwargs.get("device") is None:
            shape = kwargs.get("size", args[0] if args and isinstance(args[0], (tuple, list)) else args)
            if math.prod(int(n) for n in shape) > _LARGE:
                kwargs["device"] = "meta"
        return func(*args, **kwargs)


@contextmanager
def weightless() -> Iterator[None]:
    """Modules made in this context have parameters without numbers, which take no memory, and ordinary buffers.

    `torch.device("meta")` leaves out buffers too: rotary frequencies (which `derive` replaces by random ones) and
    tables of positions (which it cannot guess). Parameters that are one stay one.

    Example:
        >>> import torch
        >>> from pyalign import derive
        >>> with weightless():
        ...     model = nn.Sequential(nn.Linear(4, 100_000), nn.ReLU(), nn.Linear(100_000, 2))
        >>> model[0].weight.device, derive(model, torch.randn(2, 4)).groups["0"].size
        (device(type='meta'), 100000)
    """
    register = nn.Module.register_parameter
    known = WeakTensorKeyDictionary()

    def absent(module: nn.Module, name: str, param: nn.Parameter | None) -> None:
        register(module, name, param)
        if param is not None and param.device.type != "meta":
            if param not in known:
                known[param] = nn.Parameter(param.detach().to("meta"), requires_grad=param.requires_grad)
            module._parameters[name] = known[param]

    nn.Module.register_parameter = absent  # type: ignore[method-assign, assignment]
    try:
        with _Unallocated():
            yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]
