r"""Units matched again with the factors found so far, as between a network and one that was rescaled.

Products of weights favour units with large factors: where these differ by more than units do, a few units of a rescaled
copy take each other's places. With B moved by the factors the others are measured alike, so these are found as well.
Units whose factors fit the partners that they have by mistake are told by what pairs cost under the best factor of each
pair: with \(p\) the products of what the factor acts on it is
\(2 \min_s [\tfrac12 (a^2 + b'^2) / s + \tfrac12 s (b^2 + a'^2)] - 2 p\), see `Products.sizes`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from pyalign.matching.assign import Evidence, children_of, signs_of
from pyalign.matching.families import by_blocks
from pyalign.matching.pair import Pair
from pyalign.matching.products import Products
from pyalign.matching.scaling import halfway
from pyalign.symmetry import Group, Role, ScaledPermutation, SymmetrySpec, Wreath
from pyalign.symmetry.actions import act

__all__ = ["rematched"]

ROUNDS = 10

Elements = Mapping[str, ScaledPermutation]
State = Mapping[str, Tensor]


def rematched(
    spec: SymmetrySpec,
    a: State,
    b: State,
    elements: Elements,
    products: float,
    search: Callable[[State], Elements],
    signs: bool = True,
) -> Elements:
    r"""Elements with factors, where these bring the networks nearer, and the permutations that are best beside them.

    Args:
        spec: The symmetry.
        a: Weights of model A by name.
        b: Weights of model B by name.
        elements: Permutations and signs that move B.
        products: \(\sum a b\) over the matched tensors, with B moved by them.
        search: The best permutations and signs, from `elements` on, for other weights of B.
        signs: Whether signs are used.

    Returns:
        New elements, or `elements` themselves.
    """
    best = halfway(spec, a, b, elements, products)
    if best is elements:
        return elements
    distance = _distance(a, _moved(spec, b, best))
    ways: list[Callable[[Elements], Elements]] = [
        lambda known: search(_moved(spec, b, _by_unit(known))),
        lambda known: _by_pairs(spec, a, b, known, signs),
    ]
    for _ in range(ROUNDS):
        before = distance
        for way in ways:
            found = way(best)
            if all(torch.equal(found[name].perm, element.perm) for name, element in best.items()):
                continue
            trial = halfway(spec, a, b, found, _products(a, _moved(spec, b, found)))
            nearer = _distance(a, _moved(spec, b, trial))
            if nearer < distance:
                best, distance = trial, nearer
        if distance == before:
            break
    return best


def _by_pairs(spec: SymmetrySpec, a: State, b: State, elements: Elements, signs: bool) -> dict[str, ScaledPermutation]:
    """Permutations and signs by what pairs of units cost under the best factor of each, one group after the other."""
    pair, found, outer = Pair(spec, a, b), dict(elements), children_of(spec.groups)
    for name, group in spec.groups.items():
        if not group.kind.scales or name in outer:
            continue
        products = Products(pair, found)
        evidence = products.evidence(group, [])
        if evidence is None:
            continue
        missing = products.sizes(group).neg_()
        known = Evidence(evidence.similarity, missing if evidence.even is None else missing.add_(evidence.even))
        perm = _assigned(group, known.gain(signs and group.kind.signs))
        if not torch.equal(perm, torch.arange(group.size)):
            turned = signs_of(known.similarity, perm, signs and group.kind.signs)
            factor = products.balance(group, perm) * (1.0 if turned is None else turned)
            found[name] = ScaledPermutation(perm, factor) @ found[name]
    return {name: ScaledPermutation(e.perm, None if e.scale is None else e.scale.sign()) for name, e in found.items()}


def _assigned(group: Group, gain: Tensor) -> Tensor:
    """The best permutation of a group, within the blocks as they stand where it lies in any."""
    structure = group.structure
    standing = isinstance(structure, Wreath) and {structure.outer: ScaledPermutation.identity(structure.blocks)}
    return by_blocks(gain, standing or {}, group, "auto")[0]


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
