"""The straight line between two models: (1 - t) A + t B, tensor by tensor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar, cast

from torch import Tensor, nn

from pyalign.errors import InputError
from pyalign.paths.blend import Blend
from pyalign.paths.path import checked_t
from pyalign.symmetry.calls import state_of
from pyalign.symmetry.copies import copy_of

__all__ = ["LinearPath", "interpolate"]

Ends = TypeVar("Ends", nn.Module, Mapping[str, Tensor])


class LinearPath:
    r"""The path \(\theta(t) = (1 - t)\,\theta_A + t\,\theta_B\); its ends are A and B bit by bit.

    Integer and boolean tensors come from A, except at t = 1. Parameters are blended as they are stored: for a
    parametrised module the originals. The path refers to its ends and does not change them.

    Args:
        a: Model A, a module or a state dict.
        b: Model B, brought to A before (see `pyalign.align`), of the same kind and architecture.

    Raises:
        MismatchError: The architectures differ; the tensors are named.
        NonFiniteError: A weight is NaN or infinite; tensor and model are named.

    Example:
        >>> a, b = nn.Linear(1, 1), nn.Linear(1, 1)
        >>> path = LinearPath(a, b)
        >>> bool((path.at(0.5).weight == (a.weight + b.weight) / 2).all())
        True
    """

    def __init__(self, a: nn.Module | Mapping[str, Tensor], b: nn.Module | Mapping[str, Tensor]) -> None:
        if isinstance(a, nn.Module) != isinstance(b, nn.Module):
            raise InputError(
                "the ends of the path are of different kinds",
                given=f"{type(a).__name__} and {type(b).__name__}",
                expected="two modules or two state dicts",
                do="load the state dict into a module",
            )
        self._module = a if isinstance(a, nn.Module) else None
        states = [state_of(end) if isinstance(end, nn.Module) else end for end in (a, b)]
        self._blend = Blend(states, ("model a", "model b"))
        self._blend.check()

    def state(self, t: float) -> dict[str, Tensor]:
        """New tensors at t, by name."""
        t = checked_t(t)
        return self._blend.sum((1.0 - t, t))

    def at(self, t: float) -> nn.Module:
        """A new module at t: a copy of A (its hooks, modes and structure) with the weights of the path."""
        t = checked_t(t)
        if self._module is None:
            raise InputError(
                "a path between state dicts has no modules",
                given="state dicts",
                expected="modules as ends",
                do="use state(t), or give modules",
            )
        model = copy_of(self._module)
        self.into(t, model)
        return model

    def into(self, t: float, model: nn.Module) -> None:
        """Write the weights and buffers at t into `model`, in place."""
        t = checked_t(t)
        self._blend.into((1.0 - t, t), model)


def interpolate(a: Ends, b: Ends, t: float) -> Ends:
    r"""The model at t on the line from `a` to `b`: \((1 - t)\,\theta_A + t\,\theta_B\), of the kind that was given.

    Args:
        a: Model A, a module or a state dict; at t = 0 the answer is A bit by bit.
        b: Model B, brought to A before; at t = 1 the answer is B bit by bit.
        t: Position on the path, 0 to 1; it multiplies B.

    Returns:
        A new module or a new state dict; `a` and `b` stay as they are. BatchNorm statistics are blended as well and fit
        no model between the ends: follow with `pyalign.statistics.reestimate_batchnorm`.

    Raises:
        InputError: t is outside [0, 1].
        MismatchError: The architectures differ; the tensors are named.
        NonFiniteError: A weight is NaN or infinite; tensor and model are named.

    Example:
        >>> import torch
        >>> interpolate({"weight": torch.zeros(2)}, {"weight": torch.ones(2)}, 0.25)
        {'weight': tensor([0.2500, 0.2500])}
    """
    path = LinearPath(a, b)
    answer: Any = path.at(t) if isinstance(a, nn.Module) else path.state(t)
    return cast(Ends, answer)
