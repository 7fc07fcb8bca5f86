"""Operators that make values out of nothing or look them up: noise, embeddings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyalign.symmetry.calls import tensors_of
from pyalign.symmetry.tracing.labels import Plane
from pyalign.symmetry.tracing.rules.base import Planes, Rule, pin

if TYPE_CHECKING:
    from pyalign.symmetry.tracing.tracer import Call, Trace

__all__ = ["CONSTANT", "RANDOM", "RULES"]

CONSTANT = frozenset(
    {
        "fill",
        "zero",
        "zeros_like",
        "ones_like",
        "full_like",
        "empty_like",
        "new_zeros",
        "new_ones",
        "new_empty",
        "new_full",
        "new_empty_strided",
    }
)

RANDOM = frozenset(
    {
        "bernoulli",
        "rand",
        "randn",
        "rand_like",
        "randn_like",
        "uniform",
        "normal",
        "exponential",
        "randint",
        "randperm",
        "multinomial",
        "_sample_dirichlet",
        "native_dropout_mask",
        "poisson",
    }
)


def embedding(trace: Trace, call: Call) -> list[Planes]:
    """embedding: rows are looked up by number (they stay), columns are units."""
    weight, out = call.args[0], tensors_of(call.out)[0]
    pin(trace, tuple(p for t in tensors_of([call.args[1:], call.kwargs]) for p in trace.planes(t)), "used as an index")
    planes = []
    for plane in trace.planes(weight):
        if plane.along({0}):
            pin(trace, (plane,), "rows of a lookup table are numbered by the input")
        else:
            planes.append(Plane(plane.atoms.reshape([1] * (out.dim() - 1) + [-1]), plane.scaled))
    return [tuple(planes)]


RULES: dict[str, Rule] = {"embedding": embedding, "_embedding_bag": embedding, "_embedding_bag_forward_only": embedding}
