"""What counts as the answer of a model: all but the states that it returns to be given back."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pyalign import derive
from pyalign.symmetry import verify
from pyalign.symmetry.calls import answers_of, returned_states

X = torch.randn(2, 3)


class Cell(nn.Module):
    """Gives its hidden units under a name, which may be that of an optional argument, or of the one it needs."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.first, self.last = nn.Linear(3, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor, state: Tensor | None = None) -> dict[str, Tensor]:
        hidden = torch.relu(self.first(x) if state is None else self.first(x) + state)
        return OrderedDict(out=self.last(hidden), **{self.name: hidden})


def test_only_a_state_that_is_taken_back_may_move() -> None:
    for name, sizes in (("state", [5]), ("x", []), ("hidden", [])):
        model = Cell(name)
        spec = derive(model, X)
        assert [g.size for g in spec.groups.values()] == sizes
        assert verify(spec, model, X).passed
        assert len(answers_of(model, model(X))) == 2 - len(sizes)


def test_outputs_without_names_are_answers() -> None:
    @dataclass
    class Out:
        state: Tensor
        rest: Tensor | None = None

    model = Cell("state")
    assert returned_states(model, Out(X)) == ("state",) and answers_of(model, Out(X)) == []
    assert returned_states(model, (X, X)) == () and len(answers_of(model, (X, [X]))) == 2
    assert returned_states(torch.jit.trace(nn.ReLU(), X), {"state": X}) == ()
