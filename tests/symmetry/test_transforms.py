"""Laws of group elements: one list of classes, one body."""

import pytest
import torch

from pyalign.errors import InputError
from pyalign.symmetry import Kind, ScaledPermutation

KINDS = [Kind.IDENTITY, Kind.PERMUTATION, Kind.SIGNED, Kind.POSITIVE, Kind.SCALED]
SIZES = [0, 1, 2, 7, 64]


def element(kind: Kind, size: int, seed: int) -> ScaledPermutation:
    return ScaledPermutation.random(size, kind, generator=torch.Generator().manual_seed(seed))


def same(g: ScaledPermutation, h: ScaledPermutation) -> bool:
    x = torch.arange(1.0, g.size + 1, dtype=torch.float64)
    return torch.equal(g.perm, h.perm) and torch.allclose(g.apply(x), h.apply(x), rtol=1e-14)


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_group_laws(kind: Kind, size: int) -> None:
    g, h, k = (element(kind, size, seed) for seed in range(3))
    one = ScaledPermutation.identity(size)
    assert same(g @ one, g)
    assert same(one @ g, g)
    assert same(g @ g.inverse(), one)
    assert same(g.inverse() @ g, one)
    assert same((g @ h) @ k, g @ (h @ k))


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_action_is_one_of_the_group(kind: Kind, axis: int) -> None:
    g, h = element(kind, 6, 1), element(kind, 6, 2)
    x = torch.randn(6, 6, 6, dtype=torch.float64)
    torch.testing.assert_close((g @ h).apply(x, axis), g.apply(h.apply(x, axis), axis))
    torch.testing.assert_close((g @ h).apply(x, axis, -1), g.apply(h.apply(x, axis, -1), axis, -1))


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_producer_and_consumer_cancel(kind: Kind) -> None:
    g = element(kind, 9, 3)
    w, v = torch.randn(9, 4, dtype=torch.float64), torch.randn(5, 9, dtype=torch.float64)
    torch.testing.assert_close(g.apply(v, 1, -1) @ g.apply(w, 0, 1), v @ w)


def test_convention_is_that_of_index_select() -> None:
    g = ScaledPermutation(torch.tensor([2, 0, 1]))
    assert g.apply(torch.tensor([10.0, 20.0, 30.0])).tolist() == [30.0, 10.0, 20.0]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_random_elements_stay_in_their_class_and_reach_it(kind: Kind) -> None:
    kinds = {element(kind, 12, seed).kind for seed in range(20)}
    assert all(k <= kind for k in kinds)
    assert kind in kinds


def test_same_seed_same_element() -> None:
    assert same(element(Kind.SCALED, 20, 5), element(Kind.SCALED, 20, 5))
    assert not same(element(Kind.SCALED, 20, 5), element(Kind.SCALED, 20, 6))


@pytest.mark.parametrize("perm", [[0, 0, 1], [0, 2], [-1, 0], [[0, 1]]])
def test_what_is_no_permutation_is_refused(perm: list[int]) -> None:
    with pytest.raises(InputError, match="not a permutation"):
        ScaledPermutation(torch.tensor(perm))


@pytest.mark.parametrize("scale", [[1.0, 0.0], [1.0, float("nan")], [1.0], [1.0, float("inf")]])
def test_what_is_no_scale_is_refused(scale: list[float]) -> None:
    with pytest.raises(InputError, match="not a scale vector"):
        ScaledPermutation(torch.arange(2), torch.tensor(scale))


def test_elements_of_different_groups_do_not_compose() -> None:
    with pytest.raises(InputError, match="different groups"):
        _ = element(Kind.SIGNED, 3, 0) @ element(Kind.SIGNED, 4, 0)


@pytest.mark.parametrize(
    ("a", "b", "meet"),
    [
        (Kind.SIGNED, Kind.POSITIVE, Kind.PERMUTATION),
        (Kind.SCALED, Kind.SIGNED, Kind.SIGNED),
        (Kind.SCALED, Kind.POSITIVE, Kind.POSITIVE),
        (Kind.IDENTITY, Kind.SCALED, Kind.IDENTITY),
        (Kind.PERMUTATION, Kind.SCALED, Kind.PERMUTATION),
        (Kind.ORTHOGONAL, Kind.PERMUTATION, Kind.PERMUTATION),
        (Kind.ORTHOGONAL, Kind.POSITIVE, Kind.PERMUTATION),
        (Kind.ORTHOGONAL, Kind.SCALED, Kind.SIGNED),
        (Kind.ORTHOGONAL, Kind.SIGNED, Kind.SIGNED),
        (Kind.INVERTIBLE, Kind.ORTHOGONAL, Kind.ORTHOGONAL),
        (Kind.INVERTIBLE, Kind.ROTATION, Kind.ROTATION),
        (Kind.INVERTIBLE, Kind.SCALED, Kind.SCALED),
        (Kind.ROTATION, Kind.PERMUTATION, Kind.IDENTITY),
        (Kind.ROTATION, Kind.ORTHOGONAL, Kind.TURN),
        (Kind.TURN, Kind.SIGNED, Kind.IDENTITY),
        (Kind.CENTRED, Kind.ORTHOGONAL, Kind.CENTRED),
        (Kind.CENTRED, Kind.SIGNED, Kind.PERMUTATION),
    ],
)
def test_meet_of_classes(a: Kind, b: Kind, meet: Kind) -> None:
    assert a & b is meet
    assert b & a is meet
    assert meet <= a
    assert meet <= b
