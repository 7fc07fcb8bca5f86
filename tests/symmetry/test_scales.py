"""Which factors a group gets where its units have several of them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pyalign.symmetry import Kind, derive


class Branches(nn.Module):
    """A residual stream that several norms read: the output of each has factors of its own."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.embed, self.out = nn.Linear(5, 8), nn.Linear(8, 3)
        self.norms = nn.ModuleList(nn.LayerNorm(8) for _ in range(depth))
        self.branches = nn.ModuleList(nn.Sequential(nn.Linear(8, 6), nn.GELU(), nn.Linear(6, 8)) for _ in range(depth))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        for norm, branch in zip(self.norms, self.branches, strict=True):
            x = x + branch(norm(x))
        return self.out(torch.tanh(x))


@pytest.mark.parametrize("depth", range(2, 8))
def test_the_factors_of_a_stream_are_those_of_its_first_norm(depth: int) -> None:
    """Whatever else is looked for: else an element of one spec would be none of the other."""
    for within in (Kind.SCALED, Kind.INVERTIBLE):
        spec = derive(Branches(depth).double(), torch.randn(4, 5, dtype=torch.float64), within=within)
        scaled = {binding.tensor for binding in spec.of("embed") if binding.side.power}
        assert scaled == {"norms.0.weight", "norms.0.bias", "branches.0.0.weight"}
