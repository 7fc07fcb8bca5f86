"""Float64 for operators that have none: products grouped by expert, computed as one product for each expert."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["WideForms"]


class WideForms(TorchFunctionMode):
    """While active, grouped products of float64 tensors run as the plain products they stand for.

    Example:
        >>> x, w = torch.ones(3, 2, dtype=torch.float64), torch.ones(2, 2, 4, dtype=torch.float64)
        >>> with WideForms():
        ...     y = torch._grouped_mm(x, w, offs=torch.tensor([1, 3], dtype=torch.int32))
        >>> tuple(y.shape)
        (3, 4)
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Replace the operator where it is one of these."""
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") == "_grouped_mm" and args[0].dtype == torch.float64:
            offsets = kwargs.get("offs", args[2] if len(args) > 2 else None)
            if offsets is not None and args[0].dim() == 2 and args[1].dim() == 3:
                return _grouped(args[0], args[1], offsets)
        return func(*args, **kwargs)


def _grouped(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """Rows of x up to `ends[e]` times the matrix of expert e; rows after the last end are zero."""
    bounds = [0, *ends.tolist()]
    parts = [x[i:j] @ w for i, j, w in zip(bounds[:-1], bounds[1:], weight, strict=True)]
    return torch.cat([*parts, x.new_zeros(len(x) - bounds[-1], weight.shape[-1])])
