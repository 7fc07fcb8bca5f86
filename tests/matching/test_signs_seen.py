"""Signs in activation matching: they are told where they act, and nowhere else."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pyalign
from pyalign.matching import ActivationMatching
from pyalign.symmetry import SymmetrySpec, derive

INPUTS = torch.randn(400, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Stream(nn.Module):
    """A residual stream between norms with shifts: its signs act on what one norm gives and on no sum."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(6, 12), nn.Linear(12, 3)
        self.norms = nn.ModuleList(nn.LayerNorm(12) for _ in range(3))
        self.up = nn.ModuleList(nn.Linear(12, 20) for _ in range(2))
        self.down = nn.ModuleList(nn.Linear(20, 12) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for norm, up, down in zip(self.norms, self.up, self.down, strict=False):
            x = x + down(F.softplus(up(norm(x))))
        return self.head(self.norms[-1](x))


class Gated(nn.Module):
    """A gated layer that is seen behind its gate, on which its signs do not act."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(6, 9), nn.Linear(6, 9), nn.Linear(9, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


def network(build: type[nn.Module]) -> tuple[nn.Module, SymmetrySpec]:
    torch.manual_seed(1)
    model = build().double()
    with torch.no_grad():
        for p in model.parameters():
            p += 0.2 * torch.randn_like(p)
    return model, derive(model, INPUTS[:8])


@pytest.mark.parametrize("similarity", ["correlation", "covariance"])
def test_signs_are_told_where_they_act(similarity: str) -> None:
    model, spec = network(Stream)
    assert spec.groups["stem"].kind.signs
    assert sorted(site.acts for site in spec.sites_of("stem")) == [False, False, False, False, True]
    assert [site.acts for site in SymmetrySpec.from_dict(spec.to_dict()).sites] == [site.acts for site in spec.sites]
    truth = spec.random(3)
    moved = truth.apply(model)
    found = pyalign.align(model, moved, [INPUTS], method=ActivationMatching(similarity), spec=spec, progress=False)
    expected = truth.inverse().transforms["stem"]
    assert torch.equal(found.transforms["stem"].perm, expected.perm)
    assert torch.equal(found.transforms["stem"].scale.sign(), expected.scale.sign())
    assert bool((expected.scale < 0).any()) and found.correlation_after["stem"] == pytest.approx(1.0)


def test_units_seen_where_no_sign_acts_keep_theirs() -> None:
    """Unalike units would else be given signs by chance."""
    model, spec = network(Gated)
    assert spec.groups["gate"].kind.signs and not any(site.acts for site in spec.sites_of("gate"))
    other = network(Gated)[0]
    with torch.no_grad():
        for p in other.parameters():
            p.copy_(torch.randn_like(p))
    found = pyalign.align(model, other, [INPUTS], spec=spec, progress=False)
    assert found.transforms["gate"].scale is None
    planted = spec.random(2, pyalign.symmetry.Kind.PERMUTATION)
    found = pyalign.align(model, planted.apply(model), [INPUTS], spec=spec, progress=False)
    assert found.compose(planted).is_identity
