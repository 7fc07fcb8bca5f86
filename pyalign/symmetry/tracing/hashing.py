"""Hashes by which atoms are compared: equal histories have equal sums of hashes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["HashArray", "IntArray", "mix"]

IntArray = npt.NDArray[np.int64]
HashArray = npt.NDArray[np.uint64]


def mix(x: HashArray) -> HashArray:
    """splitmix64: spreads a counter over 64 bits."""
    with np.errstate(over="ignore"):
        x = x + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return np.asarray(x ^ (x >> np.uint64(31)), np.uint64)
