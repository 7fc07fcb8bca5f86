"""What every path of models can do, whatever its shape: a line, a curve, a chain, a plane's edge."""

from __future__ import annotations

import math
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from pyalign.errors import InputError

__all__ = ["Path", "checked_t"]


@runtime_checkable
class Path(Protocol):
    """Models along t from 0 to 1: model A lies at 0, model B (brought to A) at 1."""

    def state(self, t: float) -> dict[str, Tensor]:
        """The state dict at t."""
        ...

    def at(self, t: float) -> nn.Module:
        """A new module at t."""
        ...

    def into(self, t: float, model: nn.Module) -> None:
        """Write the weights and buffers at t into `model`, a module that `at` gave: no further memory."""
        ...


def checked_t(t: float) -> float:
    """`t` as a float, which must lie in [0, 1].

    Example:
        >>> checked_t(1)
        1.0
    """
    try:
        value = float(t)
    except (TypeError, ValueError) as failure:
        raise InputError("t is no number", given=f"t={t!r}", expected="a number, 0 <= t <= 1") from failure
    if math.isnan(value) or not 0.0 <= value <= 1.0:
        raise InputError(
            "t is outside the path",
            given=f"t={value}",
            expected="0 <= t <= 1",
            do="use merge with weights (1 - t, t) to go beyond the ends",
        )
    return value
