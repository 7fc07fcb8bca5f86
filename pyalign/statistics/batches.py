"""Batches: what `data` may be and what a batch holds."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from pyalign.errors import DataError, PyalignWarning
from pyalign.symmetry.calls import tensors_of

__all__ = ["batch_size", "checked", "describe", "outputs_of", "plain", "repeatable", "split"]

TARGET_KEYS = ("labels", "label", "targets", "target", "y")
FORMS = "a tensor, an (inputs, targets) pair, or a dict of tensors"


def split(batch: Any) -> tuple[Any, Any]:
    """Part one batch into the model's inputs and the targets.

    Args:
        batch: A tensor (no targets); a pair (inputs, targets), where inputs may again be a tensor, tuple or dict;
            a one-element sequence (inputs,); or a mapping, whose entries `labels`, `label`, `targets`, `target` or `y`
            are the targets (the first of these that is present) and whose rest are the inputs.

    Returns:
        (inputs, targets), targets None where the batch carries none.

    Raises:
        DataError: The batch is none of these.

    Example:
        >>> split({"pixel_values": torch.zeros(2, 3), "labels": torch.tensor([0, 1])})[1]
        tensor([0, 1])
    """
    if isinstance(batch, Tensor):
        return batch, None
    if isinstance(batch, Mapping):
        key = next((key for key in TARGET_KEYS if key in batch), None)
        inputs = {name: value for name, value in batch.items() if name != key}
        return _inputs(inputs, batch), None if key is None else batch[key]
    if isinstance(batch, (tuple, list)) and len(batch) in (1, 2):
        return _inputs(batch[0], batch), batch[1] if len(batch) == 2 else None
    if isinstance(batch, (tuple, list)) and batch:
        do = "leave out what the model does not take, ((x, y) for x, y, *_ in data), or give ((first, second), targets)"
    else:
        do = (
            "convert arrays with torch.as_tensor; several inputs go into a tuple, ((first, second), targets), or a dict"
        )
    raise DataError(
        "a batch has a form that cannot be told into inputs and targets", given=describe(batch), expected=FORMS, do=do
    )


def _inputs(inputs: Any, batch: Any) -> Any:
    if tensors_of(inputs):
        return inputs
    raise DataError(
        "a batch holds no input tensor",
        given=describe(batch),
        expected=FORMS,
        do="convert arrays with torch.as_tensor; wrap a Dataset in a torch DataLoader",
    )


def outputs_of(output: Any) -> Tensor:
    """The tensor of a model's answer that is compared with targets: `.logits`, `["logits"]`, else the first tensor.

    Example:
        >>> outputs_of({"logits": torch.ones(1), "hidden": torch.zeros(1)})
        tensor([1.])
    """
    logits = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if isinstance(logits, Tensor):
        return logits
    tensors = tensors_of(output)
    if not tensors:
        raise DataError(
            "the model answers without any tensor",
            given=type(output).__name__,
            expected="a tensor, or a tuple, dict or dataclass that holds one",
            do="wrap the model in a module whose forward returns the outputs",
        )
    return tensors[0]


def checked(data: Iterable[Any]) -> Iterator[Any]:
    """Iterate over the batches of `data`; no batch at all, or no iterable of batches, is an error.

    Args:
        data: Any iterable of batches (see `split`), such as a DataLoader, a list or a generator.

    Yields:
        The batches as they are.

    Raises:
        DataError: `data` is one tensor or one mapping, is not iterable, or yields nothing.

    Example:
        >>> sum(len(batch) for batch in checked([torch.zeros(2, 3), torch.zeros(4, 3)]))
        6
    """
    if isinstance(data, (Tensor, Mapping, str, bytes)) or not isinstance(data, Iterable):
        # a Dataset without __iter__ is iterated by index without end or yields samples instead of batches
        raise DataError(
            "data is not an iterable of batches",
            given=describe(data),
            expected=f"batches, each {FORMS}",
            do="put a single batch into a list; wrap a Dataset in a torch DataLoader",
        )
    empty = True
    for batch in data:
        empty = False
        yield batch
    if empty:
        raise DataError(
            "data is empty",
            given="an iterable that yields no batch",
            expected="at least one batch",
            do="give data again; a generator can be read only once",
        )


def repeatable(data: Iterable[Any], passes: int) -> Iterable[Any]:
    """`data` in a form that can be read `passes` times: a one-pass iterator is kept in memory, with a warning.

    Example:
        >>> batches = [torch.zeros(1)]
        >>> repeatable(batches, 5) is batches
        True
    """
    if passes < 2 or not isinstance(data, Iterator):
        return data
    warnings.warn(
        f"data is a one-pass iterator and is read {passes} times: all of its batches are kept in memory; "
        "give a DataLoader or a list to avoid this",
        PyalignWarning,
        stacklevel=3,
    )
    return list(data)


def batch_size(inputs: Any) -> int:
    """Number of samples of a batch: the first axis of its first input tensor with an axis.

    Example:
        >>> batch_size((torch.zeros(4, 2), torch.zeros(4)))
        4
    """
    return next((tensor.shape[0] for tensor in tensors_of(inputs) if tensor.ndim), 1)


def describe(value: Any) -> str:
    """Shapes, dtypes and devices of a batch in one line.

    Example:
        >>> describe((torch.zeros(2, 3), 1))
        'tuple(float32 (2, 3) on cpu, int)'
    """
    if isinstance(value, Tensor):
        return f"{plain(value.dtype)} {tuple(value.shape)} on {value.device}"
    if isinstance(value, Mapping):
        return "dict(" + ", ".join(f"{key}: {describe(child)}" for key, child in value.items()) + ")"
    if isinstance(value, (tuple, list)):
        shown = ", ".join(describe(child) for child in value[:6]) + (", ..." if len(value) > 6 else "")
        return f"{type(value).__name__}({shown})"
    return type(value).__name__


def plain(dtype: torch.dtype) -> str:
    """A dtype's name without `torch.`."""
    return str(dtype).removeprefix("torch.")
