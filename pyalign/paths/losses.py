"""Loss and accuracy of one batch: sums and counts, so that batches of any size weigh as they should."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pyalign.errors import DataError
from pyalign.statistics.batches import describe, outputs_of

__all__ = ["IGNORED", "Sums", "mean_loss", "sums_of"]

IGNORED = -100
"""The class index that counts in no loss and no accuracy, as in torch.nn.functional.cross_entropy."""


class Sums(NamedTuple):
    """Sums over the elements of one batch; `hits` is None where accuracy has no meaning."""

    loss: float
    weight: float
    hits: int | None
    counted: int


def sums_of(output: Any, targets: Any, size: int, loss: Callable[[Any, Any], Any] | None, index: int) -> Sums:
    """Loss and accuracy sums of batch `index`.

    Args:
        output: The model's answer.
        targets: What `split` gave: integers (classes) or floats (values), or anything a custom `loss` takes.
        size: Number of samples in the batch: the weight of a custom loss.
        loss: `loss(output, targets)`, the mean over the batch; None: cross-entropy for integer targets (index -100
            left out), mean squared error for floating targets.
        index: Number of the batch, for errors.

    Returns:
        The sums: cross-entropy by counted targets, squared errors by elements, a custom loss by samples.

    Raises:
        DataError: Targets are missing or do not fit the outputs.
    """
    classes = isinstance(targets, Tensor) and not targets.is_floating_point() and not targets.is_complex()
    scores = _by_class(outputs_of(output), targets) if classes else None
    hits, counted = _hits(*scores) if scores is not None else (None, 0)
    try:
        if loss is not None:
            return Sums(float(loss(output, targets)) * size, size, hits, counted)
        if scores is not None:
            total = F.cross_entropy(_wide(scores[0]), scores[1], ignore_index=IGNORED, reduction="sum")
            return Sums(float(total), counted, hits, counted)
        answer = outputs_of(output)
        if isinstance(targets, Tensor) and not classes and targets.shape == answer.shape:
            error = _wide(answer) - _wide(targets.to(answer.device))
            return Sums(float(error.square().sum(dtype=torch.float64)), targets.numel(), None, 0)
    except (RuntimeError, IndexError, TypeError, ValueError) as failure:
        raise _failed(output, targets, index, failure) from failure
    raise _unfit(output, targets, index)


def mean_loss(output: Any, targets: Any, loss: Callable[[Any, Any], Any] | None, index: int) -> Tensor:
    """The loss of batch `index` to train with: the mean that `sums_of` would give, with gradients.

    Raises:
        DataError: Targets are missing or do not fit the outputs, or a custom loss gives no number.
    """
    classes = isinstance(targets, Tensor) and not targets.is_floating_point() and not targets.is_complex()
    try:
        if loss is not None:
            value = loss(output, targets)
            if isinstance(value, Tensor) and value.numel() == 1:
                return value.reshape(())
            raise TypeError(f"the loss gives {describe(value)} instead of one number")
        scores = _by_class(outputs_of(output), targets) if classes else None
        if scores is not None:
            return F.cross_entropy(_wide(scores[0]), scores[1], ignore_index=IGNORED)
        answer = outputs_of(output)
        if isinstance(targets, Tensor) and not classes and targets.shape == answer.shape:
            return F.mse_loss(_wide(answer), _wide(targets.to(answer.device)))
    except (RuntimeError, IndexError, TypeError, ValueError) as failure:
        raise _failed(output, targets, index, failure) from failure
    raise _unfit(output, targets, index)


def _failed(output: Any, targets: Any, index: int, failure: Exception) -> DataError:
    return DataError(
        f"the loss cannot be computed on batch {index} ({type(failure).__name__}: {failure})",
        given=f"outputs {describe(output)}, targets {describe(targets)}",
        expected="targets that fit the outputs",
        do="look at the range and dtype of the targets, or pass loss=",
    )


def _by_class(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor] | None:
    """Scores (elements, classes) and targets (elements,), whichever axis the classes are on; None where none fits.

    (B, K) with (B,); (B, T, K) with (B, T); (B, K, ...) with (B, ...). Where both readings fit, three axes are a
    sequence and more are an image.
    """
    if outputs.ndim != targets.ndim + 1:
        return None
    last = outputs.shape[:-1] == targets.shape
    second = outputs.ndim > 1 and outputs.shape[:1] + outputs.shape[2:] == targets.shape
    if second and (not last or outputs.ndim > 3):
        outputs, last = outputs.movedim(1, -1), True
    if not last:
        return None
    return outputs.reshape(-1, outputs.shape[-1]), targets.reshape(-1).to(outputs.device, torch.int64)


def _hits(scores: Tensor, targets: Tensor) -> tuple[int, int]:
    valid = targets != IGNORED
    hits = (scores.argmax(1) == targets) & valid
    return int(hits.sum()), int(valid.sum())


def _wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _unfit(output: Any, targets: Any, index: int) -> DataError:
    if targets is None:
        return DataError(
            f"batch {index} carries no targets",
            given=f"outputs {describe(output)}",
            expected="(inputs, targets), or a dict with labels",
            do="give targets, or pass loss=, which is called with targets None",
        )
    return DataError(
        f"the default loss cannot compare the outputs of batch {index} with its targets",
        given=f"outputs {describe(output)}, targets {describe(targets)}",
        expected="integer classes of the outputs' shape without the class axis, or floats of equal shape",
        do="reshape the targets, or pass loss=",
    )
