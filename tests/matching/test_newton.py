"""The joint Newton step of all factors: it is that of the dense problem, and ends slow modes shared by many groups."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import pyalign
from pyalign.matching import scaling
from pyalign.matching.newton import Logarithms, newton_step
from pyalign.symmetry import SymmetrySpec, derive, state_of


def chain(depth: int, width: int, seed: int) -> nn.Sequential:
    """Many layers in a row, as in a network without normalisation."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        layers: list[nn.Module] = [nn.Linear(3, width), nn.ReLU()]
        for _ in range(depth - 1):
            layers += [nn.Linear(width, width), nn.ReLU()]
        return nn.Sequential(*layers, nn.Linear(width, 2)).double()


def grouped(seed: int) -> nn.Sequential:
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        layers = [nn.Conv2d(2, 6, 1), nn.ReLU(), nn.Conv2d(6, 4, 1, groups=2), nn.ReLU(), nn.Conv2d(4, 2, 1)]
        return nn.Sequential(*layers).double()


class Loop(nn.Module):
    """A square matrix between units and themselves: the factors meet twice."""

    def __init__(self) -> None:
        super().__init__()
        self.read, self.again, self.out = nn.Linear(3, 5), nn.Linear(5, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        state = torch.relu(self.read(x))
        return torch.as_tensor(self.out(torch.relu(self.again(state) + state)))


def problem(model: nn.Module, inputs: Tensor) -> tuple[SymmetrySpec, Logarithms, dict[str, Tensor], dict[str, Tensor]]:
    spec = derive(model, inputs)
    state = {name: t.square() for name, t in state_of(model).items() if spec.on(name)}
    generator = torch.Generator().manual_seed(1)
    other = {n: t * torch.rand(t.shape, generator=generator, dtype=torch.float64) for n, t in state.items()}
    sizes = {name: group.size for name, group in spec.groups.items()}
    bindings = {name: spec.of(name) for name in sizes}
    return spec, Logarithms(sizes, bindings, {n: t.shape for n, t in state.items()}), state, other


PROBLEMS = {
    "chain": (chain(3, 4, 0), torch.zeros(2, 3, dtype=torch.float64)),
    "fibres": (grouped(0), torch.zeros(2, 2, 3, 3, dtype=torch.float64)),
    "met twice": (Loop().double(), torch.zeros(2, 3, dtype=torch.float64)),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_step_is_that_of_the_dense_problem(name: str) -> None:
    spec, logarithms, a, b = problem(*PROBLEMS[name])
    names, sizes = list(spec.groups), [group.size for group in spec.groups.values()]

    def energy(x: Tensor) -> Tensor:
        parts = dict(zip(names, x.split(sizes), strict=True))
        total = torch.zeros((), dtype=torch.float64)
        for tensor, moved in a.items():
            s = torch.zeros_like(moved)
            for binding in spec.on(tensor):  # the sums of the logarithms, entry by entry, as the definition says
                unit = torch.full_like(moved, -1, dtype=torch.long)
                for i, places in enumerate(binding.positions.tolist()):
                    for place in places:
                        block, entry = divmod(place, moved.shape[binding.axis])
                        rows = moved.shape[0] // binding.blocks
                        here = unit if binding.blocks == 1 else unit[block * rows : (block + 1) * rows]
                        here.select(binding.axis, entry).fill_(i)
                s = s + torch.where(unit < 0, 0.0, parts[binding.group][unit]) * binding.side.power
            total = total + (moved * torch.exp(-s) + b[tensor] * torch.exp(s)).sum()
        return total

    zero = torch.zeros(sum(sizes), dtype=torch.float64)
    gradient = torch.func.grad(energy)(zero)
    curvature = torch.func.hessian(energy)(zero)
    expected = -torch.linalg.pinv(curvature, hermitian=True) @ gradient
    found = torch.cat([newton_step(logarithms, a, b)[n] for n in names])
    assert float(expected.abs().max()) < 3
    error, length = ((v @ curvature @ v).sqrt() for v in (found - expected, expected))
    assert error < 1e-3 * length  # conjugate gradients end where what is left is 1e-4 of the gradient
    assert energy(found) < energy(zero)


def test_nothing_moves_at_the_least() -> None:
    _, logarithms, a, _ = problem(*PROBLEMS["chain"])
    for step in newton_step(logarithms, a, {name: t.clone() for name, t in a.items()}).values():
        assert bool((step == 0).all())


def test_a_step_that_would_overshoot_is_shortened() -> None:
    _, logarithms, a, b = problem(*PROBLEMS["chain"])
    far = {name: t * 1e-30 for name, t in b.items()}
    step = newton_step(logarithms, a, far)
    moved = logarithms.on_entries(step)
    before = sum(float((a[n] + far[n]).sum()) for n in a)
    after = sum(float((a[n] / moved[n].exp() + far[n] * moved[n].exp()).sum()) for n in a)
    assert after < before and max(float(s.abs().max()) for s in step.values()) <= 3


def test_factors_that_many_layers_share_take_few_sweeps(monkeypatch: pytest.MonkeyPatch) -> None:
    """One group after the other, a chain of layers comes nearer in ever smaller steps."""
    monkeypatch.setattr(scaling, "SWEEPS", 12)
    model, inputs = chain(40, 8, 0), torch.randn(4, 3, dtype=torch.float64)
    spec = derive(model, inputs)
    moved = spec.random(1).apply(model)
    found = pyalign.align(model, moved, method="weight", spec=spec, verify=False, progress=False)
    pairs = zip(model.parameters(), found.apply(moved).parameters(), strict=True)
    assert max(float((p - q).detach().abs().max()) for p, q in pairs) < 1e-8
