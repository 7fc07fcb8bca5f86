"""Units matched again with the factors found so far, as between a network and one that was rescaled.

Products of weights favour units with large factors: where these differ by more than units do, a few units of a rescaled
copy take each other's places. With B moved by the factors the others are measured alike, so these are found as well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from pyalign.matching.scaling import halfway
from pyalign.symmetry import Role, ScaledPermutation, SymmetrySpec
from pyalign.symmetry.actions import act

__all__ = ["rematched"]

ROUNDS = 10

Elements = Mapping[str, ScaledPermutation]
State = Mapping[str, Tensor]


def rematched(
    spec: SymmetrySpec, a: State, b: State, elements: Elements, products: float, search: Callable[[State], Elements]
) -> Elements:
    r"""Elements with factors, where these bring the networks nearer, and the permutations that are best beside them.

    Args:
        spec: The symmetry.
        a: Weights of model A by name.
        b: Weights of model B by name.
        elements: Permutations and signs that move B.
        products: \(\sum a b\) over the matched tensors, with B moved by them.
        search: The best permutations and signs, from `elements` on, for other weights of B.

    Returns:
        New elements, or `elements` themselves.
    """
    best = halfway(spec, a, b, elements, products)
    if best is elements:
        return elements
    distance = _distance(a, _moved(spec, b, best))
    for _ in range(ROUNDS):
        found = search(_moved(spec, b, _by_unit(best)))
        if all(torch.equal(found[name].perm, element.perm) for name, element in best.items()):
            break
        trial = halfway(spec, a, b, found, _products(a, _moved(spec, b, found)))
        nearer = _distance(a, _moved(spec, b, trial))
        if nearer >= distance:
            break
        best, distance = trial, nearer
    return best


def _by_unit(elements: Elements) -> dict[str, ScaledPermutation]:
    """The factors alone, each with the unit of B that it belongs to, in the order of B."""
    found = {}
    for name, element in elements.items():
        here = torch.arange(len(element.perm))
        factors = None if element.scale is None else torch.empty_like(element.scale)
        if factors is not None and element.scale is not None:
            factors[element.perm] = element.scale.abs()
        found[name] = ScaledPermutation(here, factors)
    return found


def _moved(spec: SymmetrySpec, state: State, elements: Elements) -> dict[str, Tensor]:
    names = dict.fromkeys(binding.tensor for binding in spec.bindings if binding.role is Role.MATCHED)
    return {name: act(state[name], spec.on(name), elements) for name in names}


def _distance(a: State, moved: State) -> float:
    return sum(float((a[name].double() - tensor.double()).square().sum()) for name, tensor in moved.items())


def _products(a: State, moved: State) -> float:
    return sum(float((a[name].double() * tensor.double()).sum()) for name, tensor in moved.items())
