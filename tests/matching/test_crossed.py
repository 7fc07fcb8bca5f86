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


def test_no_site_holds_the_samples_that_the_model_was_derived_with() -> None:
    """The product with the columns has them on one axis with the samples, so they are seen beside the rows only."""
    torch.manual_seed(0)
    model, x = Crossing(), torch.randn(200, 4, 5)
    spec = derive(model, x[:8])
    assert {site.group: site.crossed for site in spec.sites} == {"rows": False, "out": True}
    assert error(model, spec.random(1, Kind.PERMUTATION).apply(model), spec, [x]) == 0


def test_nothing_is_put_off_where_all_cross_each_other() -> None:
    spec = derive(Crossing(), torch.randn(8, 4, 5))
    crossed = replace(spec, sites=tuple(replace(site, crossed=True) for site in spec.sites))
    assert crossed_groups(crossed) == frozenset()


class OverChannels(nn.Module):
    """Attention whose inside may be mixed, between channels: every entry is seen once for each of them."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads, self.stem, self.tokens = heads, nn.Linear(8, 7), nn.Linear(9, 5)
        self.q, self.k, self.v, self.o = (nn.Linear(*size) for size in ((5, 6), (5, 6), (5, 6), (6, 5)))
        self.mix, self.head = nn.Linear(5, 2), nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.tokens(torch.tanh(self.stem(x)).mT))
        q, k, v = (f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        x = x + self.o(((q @ k.mT).softmax(-1) @ v).transpose(1, 2).flatten(2))
        return torch.as_tensor(self.head(torch.tanh(self.mix(x)).mT))


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("kind", [Kind.PERMUTATION, Kind.INVERTIBLE])
def test_what_is_within_blocks_is_put_off_too(heads: int, kind: Kind) -> None:
    """Also where a group could be mixed: the move that puts the others in order mixes nothing."""
    torch.manual_seed(0)
    model, x = OverChannels(heads).double(), torch.randn(300, 9, 8, dtype=torch.float64)
    spec = derive(model, x[:4], within=kind)
    late = crossed_groups(spec)
    assert late == set(spec.groups) - {"stem"} and {site.group for site in spec.sites if site.crossed} == late
    assert error(model, spec.random(1, Kind.PERMUTATION).apply(model), spec, [x]) < 1e-9
