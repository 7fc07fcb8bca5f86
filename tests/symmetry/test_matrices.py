"""Laws of elements that mix units: one list of classes, one body; and the order between classes."""

import pytest
import torch

from pyalign.errors import InputError
from pyalign.symmetry import BlockLinear, Kind, ScaledPermutation
from pyalign.symmetry.linear import from_pairs, pairs_of

KINDS = [Kind.ORTHOGONAL, Kind.CENTRED, Kind.TURN, Kind.INVERTIBLE, Kind.ROTATION]
SIZES = [(1, 2), (1, 6), (3, 4), (5, 2), (2, 0)]


def element(kind: Kind, blocks: int, width: int, seed: int) -> BlockLinear:
    generator = torch.Generator().manual_seed(seed)
    perm = torch.randperm(blocks, generator=generator)
    return BlockLinear.random(blocks, width, kind, generator=generator, perm=perm)


def assert_same(g: BlockLinear, h: BlockLinear) -> None:
    assert torch.equal(g.order, h.order)
    torch.testing.assert_close(g.matrices, h.matrices, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize(("blocks", "width"), SIZES)
def test_group_laws(kind: Kind, blocks: int, width: int) -> None:
    g, h, k = (element(kind, blocks, width, seed) for seed in range(3))
    one = BlockLinear.identity(blocks, width, kind)
    assert one.is_identity
    assert_same(g @ one, g)
    assert_same(one @ g, g)
    assert_same(g @ g.inverse(), one)
    assert_same(g.inverse() @ g, one)
    assert_same((g @ h) @ k, g @ (h @ k))
    assert (g @ h).kind is kind


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("power", [1, -1])
def test_action_is_one_of_the_group(kind: Kind, axis: int, power: int) -> None:
    g, h = element(kind, 3, 4, 1), element(kind, 3, 4, 2)
    x = torch.randn(12, 12, 12, dtype=torch.float64)
    torch.testing.assert_close((g @ h).apply(x, axis, power), g.apply(h.apply(x, axis, power), axis, power))


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_producer_and_consumer_cancel(kind: Kind) -> None:
    g = element(kind, 3, 4, 3)
    w, v = torch.randn(12, 4, dtype=torch.float64), torch.randn(5, 12, dtype=torch.float64)
    torch.testing.assert_close(g.apply(v, 1, -1) @ g.apply(w, 0, 1), v @ w)


@pytest.mark.parametrize("kind", [Kind.ORTHOGONAL, Kind.CENTRED, Kind.TURN, Kind.ROTATION], ids=str)
def test_best_isometry_recovers_a_planted_one_from_noise(kind: Kind) -> None:
    planted = BlockLinear.best(element(kind, 4, 6, 5).matrices, kind)
    rows = torch.randn(4, 6, 500, dtype=torch.float64)
    seen = planted.matrices @ rows + 0.01 * torch.randn_like(rows)
    found = BlockLinear.best(seen @ rows.mT, kind)
    torch.testing.assert_close(found.matrices, planted.matrices, rtol=0, atol=5e-3)


def test_the_closed_form_angle_beats_every_other() -> None:
    c = torch.randn(1, 2, 2, dtype=torch.float64)
    best = float((BlockLinear.best(c, Kind.ROTATION).matrices * c).sum())
    angles = torch.linspace(0, 6.2832, 1000, dtype=torch.float64)
    every = from_pairs(torch.polar(torch.ones(1000, dtype=torch.float64), angles).unsqueeze(1))
    assert float((every * c).sum((1, 2)).max()) <= best + 1e-12


def test_pairs_and_blocks_are_inverse() -> None:
    numbers = torch.randn(3, 5, dtype=torch.complex128)
    torch.testing.assert_close(pairs_of(from_pairs(numbers)), numbers)


@pytest.mark.parametrize(
    ("matrices", "kind", "perm"),
    [
        (2 * torch.eye(3).unsqueeze(0), Kind.ORTHOGONAL, None),
        (torch.ones(1, 2, 2), Kind.ROTATION, None),
        (2 * torch.eye(2).unsqueeze(0), Kind.TURN, None),
        (-torch.eye(3).unsqueeze(0), Kind.CENTRED, None),
        (torch.zeros(1, 2, 2), Kind.INVERTIBLE, None),
        (torch.eye(3).unsqueeze(0), Kind.ROTATION, None),
        (torch.eye(2), Kind.INVERTIBLE, None),
        (torch.full((1, 2, 2), float("nan")), Kind.INVERTIBLE, None),
        (torch.eye(2).unsqueeze(0), Kind.PERMUTATION, None),
        (torch.eye(2).repeat(2, 1, 1), Kind.INVERTIBLE, torch.tensor([0, 0])),
    ],
)
def test_what_is_not_of_the_class_is_refused(matrices: torch.Tensor, kind: Kind, perm: torch.Tensor | None) -> None:
    with pytest.raises(InputError):
        BlockLinear(matrices, kind, perm)


def test_elements_of_different_groups_do_not_compose() -> None:
    with pytest.raises(InputError, match="different groups"):
        _ = element(Kind.ORTHOGONAL, 2, 3, 0) @ element(Kind.ORTHOGONAL, 3, 2, 0)
    with pytest.raises(InputError, match="different groups"):
        _ = element(Kind.ORTHOGONAL, 1, 3, 0) @ ScaledPermutation.identity(3)
