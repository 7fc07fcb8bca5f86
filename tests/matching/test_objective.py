"""The objective of weight matching: similarities kept within their error bound, rises against whole values."""

from __future__ import annotations

import pytest
import torch
from symmetry.architectures import ARCHITECTURES
from torch import nn

import pyalign
from pyalign.matching import layout, slices
from pyalign.matching.objective import Objective
from pyalign.symmetry import Kind, ScaledPermutation, state_of
from pyalign.symmetry.actions import act
from pyalign.symmetry.verify import holding


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


def make(dtype=torch.float32):
    a, b = network(0).to(dtype), network(1).to(dtype)
    spec = pyalign.derive(a, torch.randn(4, 3, 12, 12, dtype=dtype))
    return Objective(spec, state_of(a), state_of(b), spec.identity().transforms)


@pytest.fixture
def objective():
    return make()


def plain(objective, group):
    """The similarity of a group's units from the moved tensors themselves, those that signs reach and the others."""
    odd, even = torch.zeros(2, *[objective.spec.groups[group].size] * 2, dtype=torch.float64)
    others = {name: e for name, e in objective.elements.items() if name != group}
    for term in objective.terms[group]:
        name = term.binding.tensor
        moved = act(objective.b[name], objective.on[name], others)
        rows_a, rows_b = (term.binding.unfold(t).double() for t in (objective.a[name], moved))
        into = odd if term.binding.side.power else even
        into += rows_a @ rows_b.T
    return odd, even


def close(objective, group):
    """Whether a group's similarity is that of the moved tensors, within the error that it admits."""
    evidence = objective.evidence(group)
    odd, even = plain(objective, group)
    bound = objective.error(group) * torch.outer(*objective.norms(group))
    if evidence.even is None:
        return bool(((evidence.similarity - odd - even).abs() <= bound).all())
    return bool(((evidence.similarity - odd).abs() <= bound).all() and ((evidence.even - even).abs() <= bound).all())


def move(objective, group, element):
    objective.elements = {**objective.elements, group: element}


@pytest.mark.parametrize("limits", [(0, layout.TOTAL), (layout.KEPT, layout.TOTAL), (layout.KEPT, 300)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_similarities_follow_the_other_groups(limits, dtype, monkeypatch):
    """Whatever is kept: nothing, everything, or what is small."""
    for name, value in zip(("KEPT", "TOTAL"), limits, strict=True):
        monkeypatch.setattr(layout, name, value)
    objective = make(dtype)
    generator = torch.Generator().manual_seed(0)
    groups = list(objective.spec.groups.values())
    assert any(group.kind.signs for group in groups) and len(groups) == 3
    for step in range(12):
        group = groups[step % 3]
        element = random_element(group, generator, few=step % 2 == 0)
        move(objective, group.name, ScaledPermutation(element.perm) if step > 6 else element)
        for name in objective.terms:
            assert close(objective, name), name
            assert objective.error(name) < (1e-4 if dtype == torch.float32 else 1e-12)


def test_a_wrong_similarity_is_told(objective):
    group = list(objective.spec.groups)[1]
    assert close(objective, group)
    objective.evidence(group).similarity[3, 4] += 1e-3
    assert not close(objective, group)


def test_a_rise_is_the_difference_of_whole_values(objective):
    generator = torch.Generator().manual_seed(1)
    rises = 0
    for step in range(40):
        group = list(objective.spec.groups.values())[step % 3]
        evidence = objective.evidence(group.name)
        element, before = random_element(group, generator), objective.exact()
        present = objective.elements[group.name]
        accepted = objective.accept_one(group.name, element, evidence)
        whole = sum(objective.value(name, objective.elements) for name in objective.on)
        assert objective.exact() == pytest.approx(whole, abs=1e-10)
        assert objective.total == pytest.approx(whole, abs=1e-4)
        assert accepted == (objective.exact() > before) == (objective.elements[group.name] is not present)
        rises += accepted
    assert rises > 3
    assert not objective.accept(dict(objective.elements))


def test_what_rounding_leaves_open_is_decided_in_float64(objective, monkeypatch):
    """With an error bound so large that it tells nothing, the same elements are accepted."""
    monkeypatch.setattr(Objective, "error", lambda self, group: 1.0)
    test_a_rise_is_the_difference_of_whole_values(objective)
    assert objective.total == pytest.approx(objective.exact(), abs=1e-10)


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
            assert objective.cosine(name) == pytest.approx(want, abs=1e-6)


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if "experts" not in name])
def test_cosines_of_moved_units_in_every_architecture(name):
    """Whatever tensors are like: units in blocks, on several axes, or in no tensor that is kept."""
    architecture = ARCHITECTURES[name]
    model = architecture.model()
    spec = pyalign.derive(model, architecture.inputs())
    spec = holding(spec, sorted(spec.placed), "the objective of all classes knows them")
    generator = torch.Generator().manual_seed(0)
    a = state_of(model)
    b = {n: t + 0.1 * torch.randn(t.shape, generator=generator) if t.is_floating_point() else t for n, t in a.items()}
    objective = Objective(spec, a, b, spec.random(3, Kind.PERMUTATION).reorderings)
    for group in (g for g in spec.groups if objective.terms[g]):
        assert objective.cosine(group) == pytest.approx(objective._moved_cosine(group), abs=1e-5)


def plain_rows(objective, term):
    moved = act(objective.b[term.binding.tensor], objective.on[term.binding.tensor], objective.elements)
    return term.binding.unfold(moved).double()


def test_the_bound_knows_the_precision_of_products_on_a_gpu(monkeypatch):
    """Torch's flag for TF32 changes float32 products on a GPU alone: their rounding is then 2^13 times as large."""
    gpu, host = torch.device("cuda"), torch.device("cpu")
    kinds = [(torch.float32, gpu), (torch.float64, gpu), (torch.float32, host)]
    for allowed, ratio in ((False, 1.0), (True, 2.0**13)):
        monkeypatch.setattr(slices, "tf32_allowed", lambda allowed=allowed: allowed)
        found = [slices.rounding(dtype, 100, device) for dtype, device in kinds]
        assert found == [40 * 2.0**-23 * ratio, 40 * 2.0**-52, 40 * 2.0**-23]
