"""Assignment of groups with structure, against the best of all allowed elements by exhaustive search."""

from __future__ import annotations

import itertools

import pytest
import torch

from pyalign.matching.assign import Evidence, assign_groups
from pyalign.symmetry import Group, Kind, Wreath


def random_matrix(n, seed):
    return torch.randn(n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def along(matrix, perm):
    return float(matrix[torch.arange(len(perm)), torch.as_tensor(perm)].sum())


def inner_perms(outer, size):
    """All permutations that move blocks by `outer` and units only within their block."""
    for choice in itertools.product(itertools.permutations(range(size)), repeat=len(outer)):
        yield [block * size + c for block, order in zip(outer, choice, strict=True) for c in order]


@pytest.mark.parametrize("seed", range(3))
def test_flat_group_is_optimal(seed):
    matrix = random_matrix(5, seed)
    solution = assign_groups([Group("g", 5)], {"g": Evidence(matrix)})
    best = max(along(matrix, p) for p in itertools.permutations(range(5)))
    assert along(matrix, solution.elements["g"].perm) == pytest.approx(best)
    assert solution.objective == pytest.approx(best) and solution.worst_gap < 1e-12


@pytest.mark.parametrize("seed", range(3))
def test_blocks_shared_by_two_groups_are_optimal(seed):
    outer, a, b = random_matrix(3, seed), random_matrix(6, seed + 10), random_matrix(9, seed + 20)
    groups = [Group("o", 3), Group("a", 6, structure=Wreath("o", 3)), Group("b", 9, structure=Wreath("o", 3))]
    solution = assign_groups(groups, {n: Evidence(m) for n, m in (("o", outer), ("a", a), ("b", b))})
    best = max(
        along(outer, p) + max(along(a, q) for q in inner_perms(p, 2)) + max(along(b, q) for q in inner_perms(p, 3))
        for p in itertools.permutations(range(3))
    )
    assert solution.objective == pytest.approx(best)
    found = sum(along(m, solution.elements[n].perm) for n, m in (("o", outer), ("a", a), ("b", b)))
    assert found == pytest.approx(best)
    for name, size in (("a", 2), ("b", 3)):
        blocks = solution.elements[name].perm.reshape(3, size) // size
        assert torch.equal(blocks, solution.elements["o"].perm.unsqueeze(1).expand(3, size))


def test_blocks_within_blocks_are_optimal():
    top, middle, inner = Group("t", 2), Group("m", 4, structure=Wreath("t", 2)), Group("i", 8, structure=Wreath("m", 4))
    matrix = random_matrix(8, 5)
    solution = assign_groups([top, middle, inner], {"i": Evidence(matrix)})
    best = max(
        along(matrix, q) for p in itertools.permutations(range(2)) for m in inner_perms(p, 2) for q in inner_perms(m, 2)
    )
    assert along(matrix, solution.elements["i"].perm) == pytest.approx(best)
    assert torch.equal(solution.elements["i"].perm.reshape(4, 2)[:, 0] // 2, solution.elements["m"].perm)


def test_groups_without_evidence_stay_within_their_blocks():
    matrix = torch.eye(3, dtype=torch.float64)[[2, 0, 1]]
    groups = [Group("o", 3), Group("a", 6, structure=Wreath("o", 3)), Group("alone", 4)]
    solution = assign_groups(groups, {"o": Evidence(matrix)})
    assert solution.elements["o"].perm.tolist() == [2, 0, 1]
    assert solution.elements["a"].perm.tolist() == [4, 5, 0, 1, 2, 3]
    assert solution.elements["alone"].is_identity


def test_identity_kind_never_moves():
    groups = [
        Group("o", 3, Kind.IDENTITY),
        Group("a", 6, structure=Wreath("o", 3)),
        Group("b", 6, Kind.IDENTITY, Wreath("p", 3)),
        Group("p", 3),
    ]
    matrix = random_matrix(6, 1)
    groups = [groups[0], groups[3], groups[1], groups[2]]
    solution = assign_groups(groups, {"a": Evidence(matrix), "b": Evidence(matrix)})
    assert solution.elements["o"].is_identity
    assert (solution.elements["a"].perm // 2).tolist() == [0, 0, 1, 1, 2, 2]
    assert (solution.elements["b"].perm % 2).tolist() == [0, 1] * 3
    assert torch.equal(solution.elements["b"].perm[::2] // 2, solution.elements["p"].perm)


@pytest.mark.parametrize("kind", [Kind.SIGNED, Kind.SCALED])
def test_signs_follow_the_similarity(kind):
    matrix = torch.tensor([[0.1, -0.9], [0.5, 0.3]], dtype=torch.float64)
    signed = assign_groups([Group("g", 2, kind)], {"g": Evidence(matrix)}).elements["g"]
    assert signed.perm.tolist() == [1, 0] and signed.scale.tolist() == [-1.0, 1.0]
    plain = assign_groups([Group("g", 2, kind)], {"g": Evidence(matrix)}, signs=False).elements["g"]
    assert plain.perm.tolist() == [0, 1] and plain.scale is None
    positive = assign_groups([Group("g", 2, Kind.POSITIVE)], {"g": Evidence(matrix)}).elements["g"]
    assert positive.scale is None


def test_dead_units_are_matched_among_themselves():
    matrix = -torch.rand(5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 0.5
    dead_a = torch.tensor([False, True, False, True, False])
    dead_b = torch.tensor([True, False, False, True, False])
    matrix[dead_a], matrix[:, dead_b] = 0.0, 0.0
    perm = assign_groups([Group("g", 5)], {"g": Evidence(matrix, None, dead_a, dead_b)}).elements["g"].perm
    assert perm[3] == 3 and perm[1] == 0
    plain = assign_groups([Group("g", 5)], {"g": Evidence(matrix)}).elements["g"].perm
    assert bool((dead_b[plain] != dead_a).any()), "without the preference live units would take the dead ones"


def test_more_dead_units_in_one_model():
    matrix = random_matrix(4, 2).abs()
    dead_a, dead_b = torch.tensor([True, True, True, False]), torch.tensor([False, False, True, False])
    matrix[dead_a], matrix[:, dead_b] = 0.0, 0.0
    perm = assign_groups([Group("g", 4)], {"g": Evidence(matrix, None, dead_a, dead_b)}).elements["g"].perm
    assert perm[2] == 2 and int(perm[3]) == int(matrix[3].argmax())


def test_groups_of_no_units():
    solution = assign_groups([Group("g", 0)], {"g": Evidence(torch.zeros(0, 0, dtype=torch.float64))})
    assert solution.elements["g"].size == 0
