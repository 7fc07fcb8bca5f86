"""Weights that are not there: a model on the meta device, or of fake tensors, is run with made-up numbers.

Which units may move depends on the operators and the constants of a model, not on its weights. So what is computed from
weights alone stays a shape without numbers; where an activation meets a weight, random numbers come out; all else is
computed. Nothing of the size of a weight is ever in memory, while masks, positions, rotary frequencies and the routing
to experts are real.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from pyalign.errors import DataError
from pyalign.symmetry.calls import map_tensors, tensors_of

__all__ = ["Absent", "is_absent", "stand_in", "storage_of"]

_LARGEST = 1 << 24
"""Entries that are made up at most where an operator cannot be run on shapes alone."""
_FACTORIES = frozenset({"zeros_like", "ones_like", "full_like", "empty_like"})


def is_absent(tensor: Tensor) -> bool:
    """Whether a tensor has a shape but no numbers."""
    return tensor.device.type == "meta" or isinstance(tensor, FakeTensor)


def storage_of(tensor: Tensor) -> int:
    """What tells the memory of tensors apart, also where it holds nothing."""
    storage = tensor.untyped_storage()
    return int(storage._cdata) if is_absent(tensor) else storage.data_ptr()


def stand_in(tensor: Tensor) -> Tensor:
    """An example input for one without numbers: random, or ones where it counts or masks."""
    if not is_absent(tensor):
        return tensor
    if tensor.dtype.is_floating_point or tensor.dtype.is_complex:
        return torch.randn(tensor.shape, generator=torch.Generator().manual_seed(0), dtype=tensor.dtype)
    return torch.ones(tensor.shape, dtype=tensor.dtype)


class Absent:
    """Runs operators of which some arguments are absent.

    Args:
        weight: Whether an absent tensor is a weight or was computed from weights; others are constants.
        ones: Absent constants that are known to be one everywhere.
        seed: Of the numbers that are made up.
    """

    def __init__(self, weight: Callable[[Tensor], bool], ones: Iterable[Tensor] = (), seed: int = 0) -> None:
        self.weight = weight
        self.seen = False
        self._generator = torch.Generator().manual_seed(seed)
        self._constants = {self._key(t): torch.ones(t.shape, dtype=t.dtype) for t in ones if is_absent(t)}

    def constants(self, arguments: Any) -> Any:
        """The arguments with numbers for those that are no weights."""
        if not any(map(is_absent, tensors_of(arguments))):
            return arguments
        self.seen = True
        return map_tensors(arguments, lambda t: self._constant(t) if is_absent(t) and not self.weight(t) else t)

    def run(self, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The result of an operator: computed, without numbers, or made up."""
        given = tensors_of([args, kwargs])
        missing = [is_absent(t) for t in given]
        if str(kwargs.get("device")) == "meta" or (any(missing) and (name in _FACTORIES or name.startswith("new_"))):
            kwargs = {**kwargs, "device": torch.device("cpu")}
        elif all(missing) or not any(missing):
            return func(*args, **kwargs)
        else:
            shapes = None if func._schema.is_mutable else _shapes(func, args, kwargs)
            if shapes is not None:
                return map_tensors(shapes[0], self._made_up)
            args, kwargs = map_tensors(args, self._filled), map_tensors(kwargs, self._filled)
        return func(*args, **kwargs)

    def _made_up(self, like: Tensor) -> Tensor:
        """Random numbers in the shape of a tensor; masks that hide the upper triangle, ones for integers."""
        if like.dtype.is_floating_point or like.dtype.is_complex:
            return torch.randn(like.shape, generator=self._generator, dtype=like.dtype)
        ones = torch.ones(like.shape, dtype=like.dtype)
        return ones.tril() if like.dtype is torch.bool and like.dim() > 1 else ones

    def _filled(self, tensor: Tensor) -> Tensor:
        if is_absent(tensor) and tensor.numel() > _LARGEST:
            raise DataError(
                "what the model computes depends on the numbers of its weights, which are not there",
                given=f"a weight of shape {tuple(tensor.shape)} on the meta device",
                expected="operators whose answer has a shape of its own",
                do="derive from the model with its weights, or from the same architecture in a smaller size",
            )
        return self._made_up(tensor) if is_absent(tensor) else tensor

    def _constant(self, tensor: Tensor) -> Tensor:
        """Numbers for a buffer that has none: generic ones; whole numbers cannot be guessed."""
        key = self._key(tensor)
        if key not in self._constants:
            whole = not (tensor.dtype.is_floating_point or tensor.dtype.is_complex or tensor.dtype is torch.bool)
            if whole and tensor.numel() > 1:
                raise DataError(
                    "the model reads a table of whole numbers that is not there",
                    given=f"a buffer of shape {tuple(tensor.shape)} and {tensor.dtype} on the meta device",
                    expected="buffers with their numbers (only weights may be absent)",
                    do="build the model within pyalign.symmetry.weightless(), which leaves out the parameters alone",
                )
            self._constants[key] = self._made_up(tensor)
        return self._constants[key]

    def _key(self, tensor: Tensor) -> tuple[Any, ...]:
        return (storage_of(tensor), tensor.storage_offset(), tuple(tensor.shape), tensor.stride())


def _shapes(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any] | None:
    """What an operator answers, as shapes; None where that depends on the numbers of its arguments."""
    floats = [t.dtype for t in tensors_of([args, kwargs]) if t.is_floating_point()]
    for half in (False, True):  # some operators know their shapes in one precision only
        try:
            found = func(
                *map_tensors(args, partial(_shape, half=half)), **map_tensors(kwargs, partial(_shape, half=half))
            )
        except (RuntimeError, NotImplementedError):
            continue
        return (map_tensors(found, partial(_like, dtype=floats[0])) if half else found,)
    return None


def _like(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _shape(tensor: Tensor, half: bool) -> Tensor:
    dtype = torch.bfloat16 if half and tensor.is_floating_point() else tensor.dtype
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=dtype, device="meta")
