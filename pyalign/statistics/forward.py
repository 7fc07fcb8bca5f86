"""Running a model on a batch: modes that come back, and errors that name the batch and the layer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from pyalign.errors import DataError, NonFiniteError, PyalignError
from pyalign.statistics.batches import describe, plain
from pyalign.symmetry.calls import call, tensors_of
from pyalign.symmetry.keeping import keeping_buffers
from pyalign.symmetry.wide import WideForms

__all__ = ["evaluating", "first_nonfinite", "nonfinite_error", "respond"]


def respond(model: nn.Module, inputs: Any, index: int) -> Any:
    """Call `model` on the inputs of batch `index`; what it cannot take is a DataError that names the batch.

    Args:
        model: The module, called as `pyalign.symmetry.call` does.
        inputs: The inputs that `split` gave.
        index: Number of the batch in its data, from 0.

    Returns:
        The model's answer.

    Raises:
        DataError: The model raised; the message tells batch, shapes, dtypes, devices and the model's own message.

    Example:
        >>> respond(nn.Identity(), torch.ones(1), 0)
        tensor([1.])
    """
    try:
        with WideForms():
            return call(model, inputs)
    except (PyalignError, torch.cuda.OutOfMemoryError):
        raise
    except Exception as failure:
        expected, do = _advice(model, inputs)
        raise DataError(
            f"{type(model).__name__} cannot take batch {index}: {type(failure).__name__}: {failure}",
            given=describe(inputs),
            expected=expected,
            do=do,
        ) from failure


def _advice(model: nn.Module, inputs: Any) -> tuple[str, str]:
    """What the model expects and what to do, told from devices, then dtypes, then shapes."""
    weights, tensors = list(model.parameters()), tensors_of(inputs)
    devices = {str(tensor.device) for tensor in weights}
    if devices and any(str(tensor.device) not in devices for tensor in tensors):
        other = next(str(tensor.device) for tensor in tensors if str(tensor.device) not in devices)
        return (
            f"inputs on {', '.join(sorted(devices))}, where the model is",
            f"move the batches there, or the models with model.to({other!r})",
        )
    dtypes = {plain(tensor.dtype) for tensor in weights if tensor.is_floating_point()}
    if dtypes and any(plain(tensor.dtype) not in dtypes for tensor in tensors if tensor.is_floating_point()):
        dtype = sorted(dtypes)[0]
        return f"inputs of {', '.join(sorted(dtypes))}, as the model is", f"convert the batches with .to(torch.{dtype})"
    return "inputs that model(x), model(*inputs) or model(**inputs) accepts", (
        "compare the batch with what forward takes; targets go second in a pair or under 'labels' in a dict"
    )


@contextmanager
def evaluating(*models: nn.Module, keep: bool = True) -> Iterator[None]:
    """Evaluation mode without gradients for `models` inside the block; each submodule's own mode returns after it.

    Args:
        models: The modules.
        keep: Whether buffers that change nevertheless, such as counters, are put back too.

    Example:
        >>> model = nn.Dropout()
        >>> with evaluating(model):
        ...     model.training
        False
        >>> model.training
        True
    """
    modes = [(module, module.training) for model in models for module in model.modules()]
    try:
        for model in models:
            model.eval()
        with keeping_buffers(*models if keep else ()), torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def first_nonfinite(model: nn.Module, inputs: Any) -> str:
    """Name of the first submodule whose output holds NaN or infinity on `inputs` ('' where none does).

    Example:
        >>> first_nonfinite(nn.Sequential(nn.ReLU(), nn.Identity()), torch.tensor([float("nan")]))
        '0'
    """
    found: list[str] = []

    def watch(name: str) -> Any:
        def look(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if not found and not _finite(output):
                found.append(name)

        return look

    handles = [module.register_forward_hook(watch(name)) for name, module in model.named_modules() if name]
    try:
        call(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else ""


def nonfinite_error(model: nn.Module, inputs: Any, index: int, where: str = "") -> NonFiniteError:
    """The error for a batch on which `model` answers with NaN or infinity, naming the first layer that does."""
    if not _finite(inputs):
        return NonFiniteError(
            f"the inputs of batch {index} hold NaN or infinity",
            expected="finite inputs",
            do="clean the data; look at its normalisation",
        )
    layer = first_nonfinite(model, inputs)
    if not layer and _finite(call(model, inputs)):
        return NonFiniteError(
            f"the loss is NaN or infinite{where}, though all activations are finite",
            given=f"batch {index}",
            expected="a finite loss",
            do="look at the targets and at loss=",
        )
    return NonFiniteError(
        f"NaN or infinity in the activations of layer {layer or 'the model itself'!r}{where}",
        given=f"batch {index}",
        expected="finite activations",
        do="look at the weights of that layer and at the dtype (float16 overflows at 65504)",
    )


def _finite(value: Any) -> bool:
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors_of(value) if tensor.is_floating_point())
