"""A small model with made-up weights in the place of one whose weights are absent, for what only numbers can show.

Whether experts may change places depends on how tokens are routed, and that is code: it is the same in a model of the
same architecture whose vectors are shorter. So the configuration that a model of transformers holds is changed where it
gives sizes, never where it counts layers, heads or experts. The small model has the same modules and tensors by name.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pyalign.symmetry.calls import call, map_tensors, state_of
from pyalign.symmetry.tracing.absent import is_absent, stand_in
from pyalign.symmetry.weightless import weightless

__all__ = ["miniature"]

LARGEST = 30_000_000
"""Entries of the weights that are made up at most."""
_DIVISORS = (256, 128, 64, 32, 16, 8, 4, 2)
_LEAST = 4
_SIZES = re.compile(r"(^|_)(size|dim|rank|width|model|embd|inner|ff|intermediate)$")
_NO_SIZES = re.compile(r"^(image|patch|kernel|window|chunk|group|num|batch|type|conv)_|heads$|groups$")
_BATCH = 16
_WORDS = (1000, 250, 60, 15, 4)

Alike = Callable[[nn.Module], bool]


def miniature(model: nn.Module, inputs: Any, alike: Alike) -> tuple[nn.Module, Any] | None:
    """A model with weights that stands for one without, and inputs for it; None where none can be made.

    Args:
        model: The model; some weights are absent.
        inputs: One batch for it.
        alike: Whether another model has all that matters in its place.

    Returns:
        The model in evaluation mode, float32, with random weights, and a batch several times as large.
    """
    for divisor in (*_DIVISORS, 1):
        try:
            small = model if divisor == 1 else _smaller(model, divisor)
            if small is None or _entries(small) > LARGEST or not alike(small):
                continue
            filled = _filled(small)
        except Exception:  # a configuration that its own checks or the constructor refuse
            continue
        for words in _WORDS:
            try:
                batch = map_tensors(inputs, partial(_several, words=words))
                with torch.no_grad():
                    call(filled, batch)
            except Exception:  # a smaller vocabulary, or sizes that do not fit each other
                continue
            return filled, batch
    return None


def _entries(model: nn.Module) -> int:
    return sum(t.numel() for t in state_of(model).values())


def _smaller(model: nn.Module, divisor: int) -> nn.Module | None:
    """The model with its sizes divided; None where there are none in its configuration."""
    config = copy.deepcopy(getattr(model, "config", None))
    if config is None or not hasattr(config, "to_dict"):
        return None
    changed = False
    for part in _configurations(config):
        for name, value in list(vars(part).items()):
            size = type(value) is int and _SIZES.search(name) and not _NO_SIZES.search(name)
            if size and value >= _LEAST * divisor:
                setattr(part, name, value // divisor)
                changed = True
    if not changed:
        return None
    with weightless():
        build: Any = type(model)
        return build(config).eval()  # type: ignore[no-any-return]


def _configurations(config: Any) -> Iterator[Any]:
    """A configuration and those within it."""
    yield config
    for value in vars(config).values():
        if hasattr(value, "to_dict") and value is not config:
            yield from _configurations(value)


def _filled(model: nn.Module) -> nn.Module:
    """A copy with random numbers where there were none; what was one tensor stays one."""
    generator, made = torch.Generator().manual_seed(0), dict[int, Any]()

    def numbers(tensor: Tensor, vector: bool) -> Tensor:
        if not tensor.is_floating_point():
            return stand_in(tensor)
        drawn = torch.randn(tensor.shape, generator=generator)
        return drawn / max(tensor.shape[-1], 1) ** 0.5 if not vector else 1 + 0.1 * drawn

    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None and is_absent(parameter):
                made.setdefault(id(parameter), nn.Parameter(numbers(parameter, parameter.dim() < 2)))
        for buffer in module._buffers.values():
            if buffer is not None and is_absent(buffer):
                made.setdefault(id(buffer), numbers(buffer, False))
    return copy.deepcopy(model, made).float().eval()  # what has numbers now is not looked at


def _several(tensor: Tensor, words: int) -> Tensor:
    """A batch several times, with other words each time: experts that no word chooses show nothing."""
    tensor = stand_in(tensor)
    if tensor.dim() == 0 or tensor.dtype is torch.bool:
        return tensor
    generator, whole = torch.Generator().manual_seed(0), tensor.repeat(_BATCH, *[1] * (tensor.dim() - 1))
    if tensor.is_floating_point():
        return whole + torch.randn(whole.shape, generator=generator).to(whole)
    mask = int(tensor.max()) < 2
    return whole if mask else torch.randint(words, whole.shape, generator=generator).to(whole)
