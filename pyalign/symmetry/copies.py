"""Copies of modules, also of those that hold tensors computed from others."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import nn

from pyalign.errors import InputError
from pyalign.symmetry.calls import tensors_of

__all__ = ["copy_of", "renewed"]

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def copy_of(model: ModuleT) -> ModuleT:
    """A deep copy of `model`, which stays as it is.

    Tensors that were computed from others and kept on a module, as `torch.nn.utils.weight_norm` and `prune` do, are
    copied by value: their hooks compute them anew from the copy's parameters in its next forward pass.

    Raises:
        InputError: The module cannot be copied.

    Example:
        >>> model = nn.Linear(1, 1)
        >>> copy_of(model).weight is model.weight
        False
    """
    try:
        # With gradients, copies of scripted modules would be computed from their parameters; tensors that are made in
        # inference mode may be written to nowhere else.
        with torch.inference_mode(False), torch.no_grad():
            try:
                copied = copy.deepcopy(model)
            except RuntimeError:
                copied = copy.deepcopy(model, _computed(model))
    except (RuntimeError, TypeError) as failure:
        raise InputError(
            f"{type(model).__name__} cannot be copied ({str(failure).splitlines()[0]})",
            given="a module that copy.deepcopy refuses",
            expected="a module that copy.deepcopy takes",
            do="take off what cannot be copied (an open file, a lock), or give state dicts",
        ) from failure
    for one, two in zip(model.parameters(), copied.parameters(), strict=True):
        two.requires_grad_(one.requires_grad)
    return copied


def _computed(model: nn.Module) -> dict[int, object]:
    """What deepcopy is to take for the tensors that it refuses: their values."""
    kept = [tensor for module in model.modules() for tensor in tensors_of(vars(module))]
    return {id(tensor): tensor.detach().clone() for tensor in kept if not tensor.is_leaf}


def renewed(model: nn.Module) -> None:
    """Let modules drop what they keep of their weights between passes in evaluation mode, after these were changed.

    Modules that keep such values (LeViT its attention biases) drop them when they go back to training: so do those
    whose class has a `train` of its own here, and are put back into their modes.
    """
    if any(type(module).train is not nn.Module.train for module in model.modules()):
        modes = [(module, module.training) for module in model.modules()]
        model.train()
        for module, mode in modes:
            module.training = mode
