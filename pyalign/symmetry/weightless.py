"""Building a model without its weights: parameters on the meta device, buffers with their numbers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.utils.weak import WeakTensorKeyDictionary

__all__ = ["weightless"]


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
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]
