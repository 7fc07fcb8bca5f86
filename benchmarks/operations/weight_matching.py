"""Whole weight matching of networks against a plain implementation of the published method."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import pyalign
from benchmarks.competitors import Plain, axes_of, objective, weight_matching
from benchmarks.record import Case, Contest, Contestant, Gate, Skipped
from benchmarks.studies.data import Absent, architecture, pair

__all__ = ["cases"]

OURS, WHOLE, PLAIN = "pyalign", "pyalign, deriving and verifying", "torch and scipy"
NAMES = (OURS, WHOLE, PLAIN)
GATES = (Gate(OURS, PLAIN, 0.1), Gate(OURS, PLAIN, 1.0 + 1e-6, figure="objective"))
COLD, WARM = "cold starts", "warm starts"

Pair = tuple[nn.Module, nn.Module, Tensor]


def cases(quick: bool, threads: int) -> list[Case]:
    """The networks of the shared pairs, or one small network."""
    if quick:
        return [_case("small MLP", _small), _replay("small MLP", _small)]
    networks: dict[str, Callable[[], Pair]] = {
        "vgg, random weights": lambda: _untrained("vgg"),
        "resnet20, trained": lambda: _trained("resnet20"),
        "mlp, trained": lambda: _trained("mlp"),
    }
    return [_case(name, make) for name, make in networks.items()] + [_replay("mlp", lambda: _trained("mlp"))]


def _small() -> Pair:
    models = []
    for seed in (0, 1):
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            models.append(nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4)))
    return (models[0].eval(), models[1].eval(), torch.zeros(2, 16))


def _trained(name: str) -> Pair:
    try:
        return (*pair(name), torch.zeros(2, 3, 32, 32))
    except Absent as reason:
        raise Skipped(str(reason)) from None


def _untrained(name: str) -> Pair:
    models = []
    try:
        for seed in (0, 1):
            with torch.random.fork_rng([]):
                torch.manual_seed(seed)
                models.append(architecture(name).eval())
    except Absent as reason:
        raise Skipped(str(reason)) from None
    return models[0], models[1], torch.zeros(2, 3, 32, 32)


def _prepared(a: nn.Module, b: nn.Module, x: Tensor) -> tuple[Any, ...]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pyalign.errors.PyalignWarning)
        spec = pyalign.derive(a, x)
    axes, shapes = axes_of(spec)
    one, two = ({n: m.state_dict()[n].reshape(shapes[n]) for n in axes} for m in (a, b))
    return spec, axes, one, two


def _case(network: str, make: Callable[[], Pair]) -> Case:
    def build() -> Contest:
        a, b, x = make()
        spec, axes, one, two = _prepared(a, b, x)

        def align(**options: Any) -> pyalign.Alignment:
            return pyalign.align(a, b, method="weight", progress=False, **options)

        def perms(answer: Plain | pyalign.Alignment) -> dict[str, Tensor]:
            return answer.perms if isinstance(answer, Plain) else {g: answer.transforms[g].perm for g in spec.groups}

        def check(name: str, answer: Plain | pyalign.Alignment) -> str:
            for group, perm in perms(answer).items():
                if not torch.equal(perm.sort().values, torch.arange(spec.groups[group].size)):
                    return f"no permutation for group {group!r}"
            if isinstance(answer, Plain):
                return ""
            reached = objective(axes, one, two, perms(answer))
            off = abs(reached - answer.objective)
            return "" if off <= 1e-6 * abs(reached) else f"says {answer.objective:.8g}, reached {reached:.8g}"

        contestants = [
            Contestant(OURS, "ours", lambda: align(spec=spec, verify=False)),
            Contestant(WHOLE, "ours", lambda: align(example_inputs=x)),
            Contestant(PLAIN, "competitor", lambda: weight_matching(axes, one, two)),
        ]
        figures = lambda name, answer: {"objective": objective(axes, one, two, perms(answer))}  # noqa: E731
        return Contest(contestants, check, figures=figures)

    return Case("weight_matching", "networks", network, 1, NAMES, GATES, build)


def _replay(network: str, make: Callable[[], Pair]) -> Case:
    """The assignments inside one descent, each group's solved anew or from its answer of the preceding sweep."""

    def build() -> Contest:
        _, axes, one, two = _prepared(*make())
        costs = weight_matching(axes, one, two, keep=True).costs

        def solve(warm: bool) -> list[float]:
            earlier: dict[str, pyalign.engine.Assignment] = {}
            objectives = []
            for group, similarity in costs:
                start = earlier.get(group) if warm else None
                answer = pyalign.engine.linear_assignment(similarity, maximize=True, start=start)
                earlier[group] = answer
                objectives.append(float(answer.objective))
            return objectives

        expected = torch.tensor([_optimum(c) for _, c in costs], dtype=torch.float64)

        def check(name: str, answer: list[float]) -> str:
            worst = float((torch.tensor(answer, dtype=torch.float64) / expected - 1).abs().max())
            return "" if worst <= 1e-6 else f"an objective is off by {worst:.3g} of scipy's"

        both = [Contestant(COLD, "ours", lambda: solve(False)), Contestant(WARM, "ours", lambda: solve(True))]
        return Contest(both, check, figures=lambda name, answer: {"assignments": float(len(answer))})

    name = f"{network}: its assignments"
    return Case("weight_matching", "warm starts", name, 1, (COLD, WARM), (Gate(WARM, COLD, 1.0),), build)


def _optimum(similarity: Tensor) -> float:
    from scipy.optimize import linear_sum_assignment

    costs = similarity.double().numpy()
    return float(costs[linear_sum_assignment(costs, maximize=True)].sum())
