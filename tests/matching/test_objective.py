"""The objective of weight matching: similarities kept and updated against plain sums, rises against whole values."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import pyalign
from pyalign.matching import objective as module
from pyalign.matching import slices
from pyalign.matching.objective import Objective
from pyalign.symmetry import ScaledPermutation, state_of


def network(seed):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 12, 3), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 10, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(2),
        nn.Flatten(), nn.Linear(40, 17), nn.ReLU(), nn.Linear(17, 5),
    ).eval()  # fmt: skip


def random_element(group, generator, few=False):
    perm = torch.randperm(group.size, generator=generator)
    if few:
        perm = torch.arange(group.size)
        perm[:2] = perm[:2].flip(0)
    scale = torch.randint(2, (group.size,), generator=generator).double() * 2 - 1 if group.kind.signs else None
    return ScaledPermutation(perm, scale)


@pytest.fixture
def objective():
    a, b = network(0), network(1)
    spec = pyalign.derive(a, torch.randn(4, 3, 12, 12))
    return Objective(spec, state_of(a), state_of(b), spec.identity().transforms)


def plain(objective, term):
    """One binding's similarity from the moved tensor itself."""
    rows_a, rows_b = objective._rows(term, objective.elements)
    return rows_a @ rows_b.T


@pytest.mark.parametrize("small", [0, slices.SMALL])
def test_similarities_follow_the_other_groups(objective, small, monkeypatch):
    monkeypatch.setattr(slices, "SMALL", small)
    generator = torch.Generator().manual_seed(0)
    groups = list(objective.spec.groups.values())
    assert any(group.kind.signs for group in groups) and len(groups) == 3
    for step in range(12):
        group = groups[step % 3]
        element = random_element(group, generator, few=step % 2 == 0)
        element = ScaledPermutation(element.perm) if step > 6 else element  # factors, and then none
        objective.elements[group.name] = element
        objective.versions[group.name] += 1
        for name, terms in objective.terms.items():
            for term in terms:
                assert torch.allclose(objective.contribution(term), plain(objective, term), rtol=0, atol=1e-12), name


def test_tensors_too_large_to_keep_agree(objective, monkeypatch):
    for group in objective.spec.groups:
        kept = objective.evidence(group)
        with monkeypatch.context() as patch:
            patch.setattr(module, "KEPT", 0)
            spec, identity = objective.spec, objective.elements
            whole = Objective(spec, objective.a, objective.b, identity).evidence(group)
        assert torch.allclose(kept.similarity, whole.similarity, rtol=0, atol=1e-12)


def test_a_rise_is_the_difference_of_whole_values(objective):
    generator = torch.Generator().manual_seed(1)
    rises = 0
    for step in range(40):
        group = list(objective.spec.groups.values())[step % 3]
        evidence = objective.evidence(group.name)
        element, before = random_element(group, generator), objective.total
        present = objective.elements[group.name]
        accepted = objective.accept_one(group.name, element, evidence)
        whole = sum(objective.value(name, objective.elements) for name in objective.on)
        assert objective.total == pytest.approx(whole, abs=1e-10)
        assert accepted == (objective.total > before) == (objective.elements[group.name] is not present)
        rises += accepted
    assert rises > 3
    values = {name: objective.value(name, objective.elements) for name in objective.on}
    assert not objective.accept(dict(objective.elements)) and objective.total == pytest.approx(sum(values.values()))


def test_cosines_agree_with_the_moved_tensors(objective):
    generator = torch.Generator().manual_seed(2)
    for moved in (False, True):
        for name, group in objective.spec.groups.items():
            if moved:
                perm = random_element(group, generator).perm
                objective.restart({**objective.elements, name: ScaledPermutation(perm)})
        for name in objective.spec.groups:
            rows = [
                (t.binding.unfold(objective.a[t.binding.tensor]).double(), plain_rows(objective, t))
                for t in objective.terms[name]
            ]
            one, two = (torch.cat(side, 1) for side in zip(*rows, strict=True))
            want = torch.nn.functional.cosine_similarity(one, two).mean().item()
            assert objective.cosine(name) == pytest.approx(want, abs=1e-12)


def plain_rows(objective, term):
    moved = module.act(objective.b[term.binding.tensor], objective.on[term.binding.tensor], objective.elements)
    return term.binding.unfold(moved).double()
