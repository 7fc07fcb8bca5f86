"""Units seen only beside units of other groups: activation matching puts the others in order first."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import pyalign
from pyalign.matching.crossed import crossed_groups
from pyalign.symmetry import Kind, SymmetrySpec, derive


class Mixer(nn.Module):
    """MLPs over channels and over tokens: hidden units of the second have a value for every channel."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two, self.end = nn.Linear(5, 12), *(nn.LayerNorm(12) for _ in range(3))
        self.tokens = nn.Sequential(nn.Linear(6, 20), nn.GELU(), nn.Linear(20, 6))
        self.channels = nn.Sequential(nn.Linear(12, 24), nn.GELU(), nn.Linear(24, 12))
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.tokens(self.one(x).mT).mT
        x = x + self.channels(self.two(x))
        return torch.as_tensor(self.head(self.end(x).mean(1)))


class Crossing(nn.Module):
    """Two groups of units that meet on one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.rows, self.columns = nn.Parameter(torch.randn(7, 4)), nn.Parameter(torch.randn(5, 9))
        self.last, self.out = nn.Parameter(torch.randn(3, 7)), nn.Parameter(torch.randn(9, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.last @ torch.relu(self.rows @ x @ self.columns) @ self.out


@pytest.fixture
def pair() -> tuple[nn.Module, nn.Module, SymmetrySpec, Tensor]:
    torch.manual_seed(0)
    model, x = Mixer(), torch.randn(40, 6, 5)
    spec = derive(model, x)
    return model, spec.random(1, Kind.PERMUTATION).apply(model), spec, x


def error(model: nn.Module, moved: nn.Module, spec: SymmetrySpec, data: Iterable[Tensor] | Iterator[Tensor]) -> float:
    found = pyalign.align(model, moved, data, spec=spec, verify=False, progress=False)
    pairs = zip(model.parameters(), found.apply(moved).parameters(), strict=True)
    return max(float((p - q).detach().abs().max()) for p, q in pairs)


def test_a_permuted_copy_comes_back(pair: tuple[nn.Module, nn.Module, SymmetrySpec, Tensor]) -> None:
    model, moved, spec, x = pair
    assert crossed_groups(spec) == {"tokens.0"}
    assert error(model, moved, spec, [x]) == 0


def test_units_that_are_seen_by_themselves_are_matched_there(
    pair: tuple[nn.Module, nn.Module, SymmetrySpec, Tensor],
) -> None:
    spec = pair[2]
    assert spec.sites_of("stem") and not any(site.crossed for site in spec.sites_of("stem"))
    again = SymmetrySpec.from_dict(spec.to_dict())
    assert [site.crossed for site in again.sites] == [site.crossed for site in spec.sites]


def test_data_that_can_be_read_once_is_read_once(pair: tuple[nn.Module, nn.Module, SymmetrySpec, Tensor]) -> None:
    model, moved, spec, x = pair
    found = pyalign.align(model, moved, iter([x]), spec=spec, verify=False, progress=False)
    state = found.apply(moved).state_dict()
    assert torch.equal(state["channels.0.weight"], model.state_dict()["channels.0.weight"])
    assert any("read only once" in note and "tokens.0" in note for note in found.notes)


def test_products_before_the_crossing_show_units_by_themselves() -> None:
    torch.manual_seed(0)
    model, x = Crossing(), torch.randn(200, 4, 5)
    spec = derive(model, x)
    assert spec.sites and len(spec.groups) == 2 and not any(site.crossed for site in spec.sites)
    assert error(model, spec.random(1, Kind.PERMUTATION).apply(model), spec, [x]) == 0


def test_nothing_is_put_off_where_all_cross_each_other() -> None:
    spec = derive(Crossing(), torch.randn(8, 4, 5))
    crossed = replace(spec, sites=tuple(replace(site, crossed=True) for site in spec.sites))
    assert crossed_groups(crossed) == frozenset()
