"""Seeing the activations of a running model at observation sites, without storing or changing them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pyalign.symmetry import tensors_of
from pyalign.symmetry.locate import ModuleScope, plain_operators

__all__ = ["Held", "Key", "Observer", "observing"]

Key = tuple[str, int, str, int]
"""Module path, call of the module, operator, call of the operator: `Site.key`."""


class Held:
    """Tensors of a forward pass that is under way, kept by reference and copied only if the model overwrites them."""

    def __init__(self) -> None:
        self._tensors: dict[Key, Tensor] = {}
        self._shared: dict[int, list[Key]] = {}
        self.largest = self.total = 0

    def keep(self, key: Key, tensor: Tensor) -> None:
        """Remember a tensor as it is now."""
        if tensor.device.type == "cpu":
            size = tensor.numel() * tensor.element_size()
            self.largest, self.total = max(self.largest, size), self.total + size
        self._tensors[key] = tensor
        self._shared.setdefault(_storage(tensor), []).append(key)

    def protect(self, written: Tensor) -> None:
        """An operator is about to write into `written`: copy what is remembered of its storage."""
        for key in self._shared.pop(_storage(written), ()):
            self._tensors[key] = self._tensors[key].clone()

    def release(self, key: Key) -> Tensor | None:
        """Hand out a remembered tensor and forget it."""
        return self._tensors.pop(key, None)

    @property
    def keys(self) -> list[Key]:
        """What is still remembered, in the order of the computation."""
        return list(self._tensors)


class Observer(TorchDispatchMode):
    """Calls `take(key, tensor)` for every watched operator of a forward pass.

    Args:
        scope: Tells which module is running.
        after: Keys whose output is wanted.
        before: Keys whose first tensor input is wanted, read before the operator runs.
        take: Gets each wanted tensor the moment it exists; it may be overwritten later.
        protect: Called with each tensor that an operator is about to overwrite.
    """

    def __init__(
        self,
        scope: ModuleScope,
        after: Collection[Key],
        before: Collection[Key],
        take: Callable[[Key, Tensor], None],
        protect: Callable[[Tensor], None] | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._scope, self._after, self._before = scope, frozenset(after), frozenset(before)
        self._operators = {key[2] for key in (*after, *before)}
        self._take, self._protect = take, protect
        self._counts: Counter[tuple[str, int, str]] = Counter()
        self._names: dict[Any, str] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operator; take its input before, or its output after, where it is watched."""
        kwargs = kwargs or {}
        key = self._key(func)
        if key in self._before:
            self._offer(key, (args, kwargs))
        if self._protect is not None and func._schema.is_mutable:
            for tensor in _written(func, args, kwargs):
                self._protect(tensor)
        out = func(*args, **kwargs)
        if key in self._after:
            self._offer(key, out)
        return out

    def _key(self, func: Any) -> Key | None:
        name = self._names.get(func)
        if name is None:
            name = self._names[func] = str(func)
        if name not in self._operators:
            return None
        place = (*self._scope.current, name)
        self._counts[place] += 1
        return (*place, self._counts[place] - 1)

    def _offer(self, key: Key | None, values: Any) -> None:
        tensor = next(iter(tensors_of(values)), None)
        if key is not None and tensor is not None:
            self._take(key, tensor)


@contextmanager
def observing(
    model: nn.Module,
    after: Collection[Key],
    before: Collection[Key],
    take: Callable[[Key, Tensor], None],
    protect: Callable[[Tensor], None] | None = None,
) -> Iterator[None]:
    """Inside the block, one forward pass of `model` is observed; operators are named as they are when deriving."""
    with plain_operators(model), ModuleScope(model) as scope, Observer(scope, after, before, take, protect):
        yield


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    found = []
    for position, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[position] if position < len(args) else kwargs.get(argument.name)
            found += tensors_of(value)
    return found


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata if tensor.layout is torch.strided else id(tensor)
