"""A device that is not there: tensors in host memory that say they are elsewhere, and refuse to meet all others.

What torch refuses on a GPU is refused here: an operator on tensors of two devices (but for numbers, copies, and indices
in host memory). Every way to the host is counted.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import ClassVar

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

ELSEWHERE = torch.device("meta")  # the one name of a device that torch always knows
ATEN = torch.ops.aten
MEETING = {
    ATEN.copy_.default,
    ATEN._to_copy.default,
    ATEN.index.Tensor,
    ATEN.index_put_.default,
    ATEN._unsafe_index.Tensor,
}


class Elsewhere(torch.Tensor):
    """A tensor of the device that is not there."""

    to_host: ClassVar[list[int]] = []

    @staticmethod
    def __new__(cls, host, requires_grad=False):
        return torch.Tensor._make_wrapper_subclass(
            cls, host.shape, host.stride(), host.storage_offset(), dtype=host.dtype, device=ELSEWHERE,
            requires_grad=requires_grad,
        )  # fmt: skip

    def __init__(self, host, requires_grad=False):
        self.host = host

    def data_ptr(self):
        return self.host.data_ptr()

    def untyped_storage(self):
        return self.host.untyped_storage()

    def __deepcopy__(self, memo):
        if id(self) not in memo:
            copied = Elsewhere(self.host.clone())
            is_parameter = isinstance(self, nn.Parameter)
            memo[id(self)] = nn.Parameter(copied, self.requires_grad) if is_parameter else copied
        return memo[id(self)]

    def __repr__(self):
        return f"Elsewhere({self.host})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})


def run(func, args, kwargs):
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    there = [tensor for tensor in tensors if isinstance(tensor, Elsewhere)]
    strangers = [tensor for tensor in tensors if not isinstance(tensor, Elsewhere) and tensor.dim() > 0]
    if there and strangers and func not in MEETING and func.namespace != "pyalign":
        shapes = [tuple(tensor.shape) for tensor in strangers]
        raise RuntimeError(f"Expected all tensors to be on the same device, {func} has some of {shapes} on the cpu")
    wanted = kwargs.get("device")
    target = torch.device(wanted) if wanted is not None else (there[0].device if there else torch.device("cpu"))
    if func is ATEN.copy_.default and not isinstance(args[0], Elsewhere):
        target = torch.device("cpu")
    away = target.type == ELSEWHERE.type
    if there and (not away or func is ATEN._local_scalar_dense.default):
        Elsewhere.to_host.append(max(tensor.numel() for tensor in there))
    hosts = [tree_map(lambda x: x.host if isinstance(x, Elsewhere) else x, part) for part in (args, kwargs)]
    if wanted is not None:
        hosts[1]["device"] = torch.device("cpu")
    with torch._C._DisableTorchDispatch():
        out = func(*hosts[0], **hosts[1])
    if func is ATEN._to_copy.default and there and not away:
        out = tree_map(lambda x: x.clone() if isinstance(x, torch.Tensor) else x, out)
    if not away:
        return args[0] if func is ATEN.copy_.default else out
    wrapped = tree_map(lambda x: Elsewhere(x) if isinstance(x, torch.Tensor) else x, out)
    return return_and_correct_aliasing(func, args, kwargs, wrapped) if there else wrapped


class Making(TorchDispatchMode):
    """What is made there without being given anything from there."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        wanted = kwargs.get("device")
        if wanted is not None and torch.device(wanted).type == ELSEWHERE.type:
            return run(func, args, kwargs)
        return func(*args, **kwargs)


def moved(model):
    """A module with its tensors there instead of here; the module itself is changed."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(Elsewhere(parameter.detach()), parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = Elsewhere(buffer)
    return model


@contextmanager
def elsewhere():
    """Gives the list that the number of entries of every tensor that came to the host is written to."""
    Elsewhere.to_host = []
    with Making():
        yield Elsewhere.to_host
