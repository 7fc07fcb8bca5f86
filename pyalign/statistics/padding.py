"""Padding: which samples of a batch count, and where the mask of a batch falls on the axes of an activation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import permutations
from typing import Any

import torch
from torch import Tensor

from pyalign.errors import DataError, InputError

__all__ = ["MASKING", "Mask", "over_samples", "padding_of", "without_blocked"]

MASKING = ("aten.add", "aten.masked_fill", "aten.where")
"""The operators by which attention masks enter scores."""
BLOCKED = -1e8
"""Scores below this were blocked by a mask: minus infinity, or the least number of the dtype added to them."""

Mask = str | int | Callable[[Any], Tensor | None]
"""The name of an entry of dict batches, the place of an input in tuples, or a function of the inputs."""


def padding_of(inputs: Any, mask: Mask) -> Tensor | None:
    """The padding mask of one batch, False where a token is padding; None where the batch carries none.

    Args:
        inputs: What `split` gave.
        mask: Where the mask is: an entry whose zeros mark padding (of a dict by name, of a tuple by number), or a
            function of the inputs that returns such a mask, as where ones mark padding:
            `lambda inputs: ~inputs["src_key_padding_mask"]`.

    Returns:
        Shape (batch, tokens), bool, or None.

    Raises:
        DataError: What is there is no mask of tokens, or masks everything.

    Example:
        >>> padding_of({"x": torch.zeros(1, 3), "attention_mask": torch.tensor([[1, 1, 0]])}, "attention_mask")
        tensor([[ True,  True, False]])
    """
    found: Any = None
    if callable(mask):
        found = mask(inputs)
    elif isinstance(mask, str):
        found = inputs.get(mask) if isinstance(inputs, Mapping) else None
    elif isinstance(mask, int) and not isinstance(mask, bool):
        found = inputs[mask] if isinstance(inputs, (tuple, list)) and -len(inputs) <= mask < len(inputs) else None
    else:
        raise InputError(
            "no place of a mask", given=repr(mask), expected="a name, a number or a function of the inputs"
        )
    if found is None:
        return None
    if not isinstance(found, Tensor) or found.dim() != 2 or _negative(found):
        given = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise DataError(
            "the padding mask of a batch is none",
            given=f"{given}",
            expected="shape (batch, tokens), nonzero where a token counts",
            do="give mask= as a function of the inputs that returns it",
        )
    kept = found.to(torch.bool)
    if kept.numel() and not bool(kept.any()):
        raise DataError("a batch consists of padding only", given=f"a mask of {tuple(kept.shape)} zeros")
    return kept


def _negative(mask: Tensor) -> bool:
    """Whether entries are below zero, as in masks that are added to scores."""
    return mask.dtype != torch.bool and bool((mask < 0).any())


def over_samples(mask: Tensor | None, samples: Sequence[int]) -> Tensor | None:
    """A padding mask as it falls on the sample axes of an activation.

    The axes of the mask are found among the sample axes by their sizes: (batch, tokens) in this order where that fits,
    with axes such as heads before, between or after; (tokens, batch); or both in one axis, as where a model flattens
    its tokens. An activation without an axis of tokens, such as a pooled one, has no padding.

    Args:
        mask: Shape (batch, tokens), or None.
        samples: Sizes of the axes of the activation other than that of the units.

    Returns:
        A mask that broadcasts to `samples`, or None.

    Example:
        >>> mask = torch.tensor([[True, False]])
        >>> [over_samples(mask, shape).shape for shape in ((1, 2), (1, 4, 2), (2, 1))]
        [torch.Size([1, 2]), torch.Size([1, 1, 2]), torch.Size([2, 1])]
        >>> over_samples(mask, (2,)), over_samples(mask, (1,))
        (tensor([ True, False]), None)
    """
    if mask is None:
        return None
    sizes = tuple(samples)
    for places in permutations(range(len(sizes)), mask.dim()):
        if all(sizes[place] == size for place, size in zip(places, mask.shape, strict=True)):
            order = sorted(range(mask.dim()), key=places.__getitem__)
            shape = [sizes[at] if at in places else 1 for at in range(len(sizes))]
            return mask.permute(order).reshape(shape)
    if sizes and sizes[0] == mask.numel() > mask.shape[0]:
        return mask.reshape(-1, *[1] * (len(sizes) - 1))
    return None


def without_blocked(x: Tensor, y: Tensor, axis: int, mask: Tensor | None) -> Tensor | None:
    """The mask without the samples that an attention mask has blocked in both models, for all units alike.

    Args:
        x: Activations of model A, such as the scores of all heads after the mask was added.
        y: Those of model B, of the same shape.
        axis: The axis of the units.
        mask: What counts so far, or None for everything.

    Returns:
        The mask, or a new one of the shape of the samples where something is blocked.

    Example:
        >>> scores = torch.tensor([[[0.5, -torch.inf], [0.1, 0.2]]])
        >>> without_blocked(scores, scores, 0, None).tolist()
        [[True, False], [True, True]]
    """
    least = max(BLOCKED, torch.finfo(x.dtype).min / 4) if x.is_floating_point() else BLOCKED
    blocked = x <= least
    if not x.numel() or not bool(blocked.any()):
        return mask
    everywhere = blocked.all(axis)
    if not torch.equal(blocked.any(axis), everywhere) or not torch.equal((y <= least).all(axis), everywhere):
        return mask
    return ~everywhere if mask is None else mask.to(x.device) & ~everywhere
