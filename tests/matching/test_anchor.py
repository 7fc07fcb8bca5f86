"""Where weight matching begins: the order of the groups, what is known of each, and planted permutations."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from matching import handmade
from torch import nn

import pyalign
from pyalign.matching.anchor import anchored_start
from pyalign.matching.objective import Objective
from pyalign.matching.signature import signature_similarity
from pyalign.symmetry import ScaledPermutation, state_of
from pyalign.symmetry.actions import act


def chain(widths, seed):
    torch.manual_seed(seed)
    layers = [layer for n, m in pairwise(widths) for layer in (nn.Linear(n, m), nn.ReLU())]
    return nn.Sequential(*layers[:-1]).eval()


def objective_of(a, b, *shape):
    spec = pyalign.derive(a, torch.randn(*shape))
    return Objective(spec, state_of(a), state_of(b), spec.identity().reorderings)


def order(objective):
    return [[group.name for group in family] for family in objective.anchoring]


def test_the_order_leads_from_what_no_group_moves_inwards():
    # the input is wide, the output less so: known entries per unit are 41, 1, 1, 21 at first
    wide = chain((40, 6, 5, 7, 20), 0)
    assert order(objective_of(wide, wide, 3, 40)) == [["0"], ["4"], ["2"]]
    narrow = chain((4, 6, 5, 7, 20), 0)
    assert order(objective_of(narrow, narrow, 3, 4)) == [["4"], ["2"], ["0"]]


@pytest.mark.parametrize("case", handmade.CASES)
def test_every_group_comes_once_and_none_of_which_less_is_known(case):
    build, spec_of, _ = handmade.CASES[case]
    model = handmade.generic(build(), 0)
    spec = spec_of(model)
    objective = Objective(spec, state_of(model), state_of(model), spec.identity().reorderings)
    families, settled = objective.anchoring, set()
    assert sorted(g.name for family in families for g in family) == sorted(spec.groups)

    def known(family):
        return sum(t.features for g in family for t in objective.terms[g.name] if t.known(settled))

    for k, family in enumerate(families):
        assert known(family) == max(map(known, families[k:]))
        settled |= {group.name for group in family}


@pytest.mark.parametrize("count", [0, 1, 2])
def test_known_is_what_only_settled_groups_move(count):
    a, b = chain((9, 6, 5, 7, 4), 0), chain((9, 6, 5, 7, 4), 1)
    objective = objective_of(a, b, 3, 9)
    names = list(objective.spec.groups)
    generator = torch.Generator().manual_seed(0)
    settled = set(names[:count])
    elements = {n: ScaledPermutation(torch.randperm(g.size, generator=generator)) if n in settled else
                ScaledPermutation.identity(g.size) for n, g in objective.spec.groups.items()}  # fmt: skip
    for name in names[count:]:
        want = torch.zeros(objective.spec.groups[name].size, objective.spec.groups[name].size, dtype=torch.float64)
        for t in objective.terms[name]:
            if not set(t.depends) <= settled:
                continue
            moved = act(
                objective.b[t.binding.tensor],
                objective.on[t.binding.tensor],
                {n: e for n, e in elements.items() if n != name},
            )
            want += t.binding.unfold(objective.a[t.binding.tensor]).double() @ t.binding.unfold(moved).double().T
        found = objective.known(name, elements, settled, None)
        assert torch.allclose(found.similarity.double(), want, atol=1e-5)
        more = objective.known(name, elements, settled, torch.ones_like(want))
        assert torch.allclose(more.gain(False).double(), want + 1, atol=1e-5)


def test_signatures_do_not_depend_on_other_groups():
    a, b = chain((9, 6, 40, 7, 4), 0), chain((9, 6, 40, 7, 4), 1)
    objective = objective_of(a, b, 3, 9)
    generator = torch.Generator().manual_seed(0)
    perms = {
        n: ScaledPermutation(torch.randperm(g.size, generator=generator)) for n, g in objective.spec.groups.items()
    }

    def signature(elements):
        moved = {name: act(tensor, objective.on[name], elements) for name, tensor in objective.b.items()}
        there = Objective(objective.spec, objective.a, moved, objective.elements)
        return signature_similarity(there, there.spec.groups["2"], there.terms["2"])

    still = signature({})
    assert torch.allclose(signature({n: e for n, e in perms.items() if n != "2"}), still, atol=1e-5)
    assert torch.allclose(signature(perms), still[:, perms["2"].perm], atol=1e-5)
    assert not torch.allclose(signature(perms), still, atol=1e-2)


@pytest.mark.parametrize("case", handmade.CASES)
@pytest.mark.parametrize("seed", [None, 0, 1])
def test_one_pass_finds_planted_permutations_in_any_order(case, seed):
    build, spec_of, _ = handmade.CASES[case]
    model = handmade.generic(build(), 3)
    spec = spec_of(model)
    truth = spec.random(5, pyalign.symmetry.Kind.PERMUTATION)
    objective = Objective(spec, state_of(model), state_of(truth.apply(model)), spec.identity().reorderings)
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    found = anchored_start(objective, generator=generator)
    for name, element in truth.inverse().transforms.items():
        assert torch.equal(found[name].perm, element.perm), name
