"""Tables longer than the input: what these inputs do not read stays, since other inputs read it in order."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import pyalign

READS = {
    "slice": lambda table, n: table[:n],
    "narrow": lambda table, n: table.narrow(0, 2, n),
    "one by one": lambda table, n: torch.stack([table[i] for i in range(n)]),
    "index": lambda table, n: table[torch.arange(n)],
    "index_select": lambda table, n: table.index_select(0, torch.arange(n)),
    "split": lambda table, n: table.split([n, len(table) - n])[0],
    "gather": lambda table, n: table.gather(0, torch.arange(n)[:, None].expand(n, table.shape[1])),
    "normalised first": lambda table, n: nn.functional.layer_norm(table, table.shape[1:])[:n],
    "repeated": lambda table, n: table.repeat_interleave(2, 0)[: 2 * n : 2],
}


class Positions(nn.Module):
    """A hidden layer to which a row of a table is added at every place."""

    def __init__(self, read: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.read = READS[read]
        self.first, self.last = nn.Linear(5, 6), nn.Linear(6, 2)
        self.table = nn.Parameter(torch.randn(9, 6))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(x)) + self.read(self.table, x.shape[1]))


@pytest.mark.parametrize("read", READS)
def test_rows_that_are_not_read_stay(read: str) -> None:
    a, b = Positions(read), Positions(read)
    with torch.no_grad():
        b.table.copy_(b.table.flip(0))
    x, longer = torch.randn(2, 4, 5), torch.randn(2, 7, 5)
    spec = pyalign.derive(b, x)
    assert all(binding.axis == 1 for group in spec.groups for binding in spec.of(group) if binding.tensor == "table")
    aligned = pyalign.align(a, b, method="weight", example_inputs=x).apply(b)
    torch.testing.assert_close(aligned(longer), b(longer))


class Memory(nn.Module):
    """Slots that every place looks up: they have no order."""

    def __init__(self) -> None:
        super().__init__()
        self.slots = nn.Parameter(torch.randn(9, 5))

    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.slots.T).softmax(-1) @ self.slots


def test_slots_that_are_read_move() -> None:
    spec = pyalign.derive(Memory(), torch.randn(2, 4, 5))
    assert [(group.size, [(b.tensor, b.axis) for b in spec.of(name)]) for name, group in spec.groups.items()] == [
        (9, [("slots", 0)])
    ]
