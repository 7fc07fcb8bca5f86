"""One rule for each operator family: what an operator does to the units of its inputs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pyalign.symmetry.tracing.labels import Plane, as_array
from pyalign.symmetry.tracing.rules import (
    complex,
    contraction,
    creation,
    moving,
    normalisation,
    pairs,
    pointwise,
    pooling,
    reduction,
    writing,
)
from pyalign.symmetry.tracing.rules.base import Rule

if TYPE_CHECKING:
    from pyalign.symmetry.tracing.tracer import Call, Trace

__all__ = ["CONSTANT", "MOVING", "RULES", "SIGHTS", "fallback", "is_random"]

RULES: dict[str, Rule] = {
    **pointwise.RULES,
    **moving.RULES,
    **writing.RULES,
    **contraction.RULES,
    **pairs.RULES,
    **normalisation.RULES,
    **reduction.RULES,
    **pooling.RULES,
    **creation.RULES,
    **complex.RULES,
}
"""Base name of an ATen operator (in-place ones without their underscore) -> its rule."""

SIGHTS: dict[str, int] = {**pointwise.SIGHTS, **normalisation.SIGHTS, **contraction.SIGHTS}
"""Operators whose output may serve as an observation site: 0 nonlinearity, 1 gate, 2 sum or norm, 3 product."""


CONSTANT = creation.CONSTANT

MOVING = frozenset(moving.RULES)
"""Operators that move entries and compute nothing from them."""


def is_random(name: str) -> bool:
    """Whether an operator draws random numbers, which know no order of units."""
    return name in creation.RANDOM


def fallback(trace: Trace, call: Call) -> list[tuple[Plane, ...]]:
    """An operator without a rule: everything it touches stays where it is, and the trace remembers its name."""
    from pyalign.symmetry.calls import tensors_of

    touched = [plane for t in tensors_of([call.args, call.kwargs]) for plane in trace.planes(t)]
    if touched:
        trace.unknown[(str(call.func), call.place)] += 1
        for plane in touched:
            trace.ties.pin(np.unique(as_array(plane.atoms)), f"no rule for operator {call.func}")
    return []
