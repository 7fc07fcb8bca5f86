"""Scikit-learn's handwritten digits: 1797 images of 8 x 8 pixels, installed with it, so nothing is downloaded."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pyalign.errors import InputError, PyalignError

__all__ = ["Digits", "batches", "digits"]

TEST_SHARE = 500
PARTS = ("all", "train", "test")


class Digits(NamedTuple):
    """Images (n, 1, 8, 8), float32 in [0, 1], and labels (n,), int64 in 0 .. 9."""

    images: Tensor
    labels: Tensor


def digits(part: str = "all", seed: int = 0) -> Digits:
    """The handwritten digits, or one part of a seeded split of them.

    Args:
        part: "all" (1797 images), "train" (1297) or "test" (500).
        seed: Decides the split, and the order of all three.

    Returns:
        Images and labels in the order of the split.

    Raises:
        InputError: `part` is none of the three.
        PyalignError: scikit-learn is not installed.

    Example:
        >>> [len(digits(part).labels) for part in ("all", "train", "test")]
        [1797, 1297, 500]
    """
    if part not in PARTS:
        raise InputError("no such part of the digits", given=repr(part), expected=", ".join(PARTS))
    try:
        from sklearn.datasets import load_digits
    except ImportError as missing:
        raise PyalignError(
            "the handwritten digits come with scikit-learn, which is not installed",
            given=str(missing),
            do="pip install 'pyalign-nn[demo]'",
        ) from missing
    pixels, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    kept = {"all": order, "train": order[TEST_SHARE:], "test": order[:TEST_SHARE]}[part]
    images = torch.as_tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    return Digits(images[kept], torch.as_tensor(labels, dtype=torch.int64)[kept])


def batches(data: Digits, size: int = 256) -> list[tuple[Tensor, Tensor]]:
    """Pairs (images, labels) of at most `size` samples, as equal in size as can be.

    Example:
        >>> [len(labels) for _, labels in batches(digits("test"), size=200)]
        [167, 167, 166]
    """
    count = -(-len(data.labels) // size)
    return list(zip(data.images.tensor_split(count), data.labels.tensor_split(count), strict=True))
