"""Operators that make values out of nothing or look them up: noise, embeddings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyalign.symmetry.labels import Plane
from pyalign.symmetry.rules.base import Planes, Rule, pin

if TYPE_CHECKING:
    from pyalign.symmetry.tracer import Call, Trace

__all__ = ["RANDOM", "RULES"]

RANDOM = frozenset({"bernoulli", "rand", "randn", "rand_like", "randn_like", "uniform", "normal", "exponential", "randint",
                    "randperm", "multinomial", "_sample_dirichlet", "native_dropout_mask", "poisson"})


def embedding(trace: Trace, call: Call) -> list[Planes]:
    """embedding: rows are looked up by number (they stay), columns are units."""
    weight, out = call.args[0], call.out
    planes = []
    for plane in trace.planes(weight):
        if plane.along({0}):
            pin(trace, (plane,), "rows of a lookup table are numbered by the input")
        else:
            planes.append(Plane(plane.atoms.reshape([1] * (out.dim() - 1) + [-1]), plane.scaled))
    return [tuple(planes)]


RULES: dict[str, Rule] = {"embedding": embedding, "_embedding_bag": embedding, "_embedding_bag_forward_only": embedding}
