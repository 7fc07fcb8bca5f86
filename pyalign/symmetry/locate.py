"""Where a computation is: the running module and its call number, without touching the model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

__all__ = ["ModuleScope", "plain_operators"]


class ModuleScope:
    """Knows, while a model runs, which of its modules is running and for the how-manieth time in this forward pass.

    It uses torch's global module hooks, so the model itself gets no hooks.

    Args:
        model: The model whose module names are used; modules of others are named as their caller.

    Example:
        >>> model = nn.Sequential(nn.ReLU())
        >>> with ModuleScope(model) as scope:
        ...     _ = model(torch.ones(1))
        >>> scope.current
        ('', 0)
    """

    def __init__(self, model: nn.Module) -> None:
        self._names = {id(module): name for name, module in reversed(list(model.named_modules(remove_duplicate=False)))}
        self._stack: list[tuple[str, int]] = []
        self._calls: Counter[str] = Counter()
        self._hooks: list[Any] = []

    @property
    def current(self) -> tuple[str, int]:
        """(qualified name of the innermost running module, number of its calls before this one)."""
        return self._stack[-1] if self._stack else ("", 0)

    def restart(self) -> None:
        """Forget the call numbers: a new forward pass begins."""
        self._stack.clear()
        self._calls.clear()

    def __enter__(self) -> ModuleScope:
        self.restart()
        self._hooks = [
            register_module_forward_pre_hook(self._enter),
            register_module_forward_hook(self._leave, always_call=True),
        ]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for hook in self._hooks:
            hook.remove()

    def _enter(self, module: nn.Module, args: Any) -> None:
        name = self._names.get(id(module))
        if name is None:
            self._stack.append(self.current)
            return
        self._stack.append((name, self._calls[name]))
        self._calls[name] += 1

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        if self._stack:
            self._stack.pop()


@contextmanager
def plain_operators(model: nn.Module) -> Iterator[None]:
    """Have fused attention and recurrent operators run as the plain ones they stand for, so that each can be seen."""
    fast_path = torch.backends.mha.get_fastpath_enabled()
    recurrent = any(isinstance(module, nn.RNNBase) for module in model.modules())
    onednn = torch._C._get_mkldnn_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    torch._C._set_mkldnn_enabled(onednn and not recurrent)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        torch._C._set_mkldnn_enabled(onednn)
