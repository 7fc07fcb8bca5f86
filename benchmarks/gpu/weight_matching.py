"""One sweep of weight matching on a device against the same on the CPU; its limit is the sum of its products."""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

import pyalign
from benchmarks.gpu.device import contestant
from benchmarks.gpu.weight_networks import NETWORKS, QUICK, Network
from benchmarks.record import Case, Contest, Contestant, Gate
from pyalign.symmetry import Kind, Role, SymmetrySpec

__all__ = ["cases"]

OURS, CPU, PRODUCTS = "pyalign", "pyalign cpu", "its products"
GATES = (Gate(OURS, CPU, 0.1), Gate(OURS, CPU, 1.0 + 1e-3, figure="objective"))


def cases(quick: bool, device: str) -> list[Case]:
    """Pairs of networks with random weights: permutations of units and of heads, from the identity, one sweep."""
    return [_case(name, network, device) for name, network in (QUICK if quick else NETWORKS).items()]


def _case(name: str, network: Network, device: str) -> Case:
    build = lambda: _contest(network, device)  # noqa: E731
    return Case("weight_matching", "one sweep", f"{name}, one sweep", 1, (OURS, CPU, PRODUCTS), GATES, build)


def _contest(network: Network, device: str) -> Contest:
    make, inputs = network
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        here = (make().eval(), make().eval())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pyalign.errors.PyalignWarning)
        spec = pyalign.derive(here[0], inputs(), within=Kind.PERMUTATION)
    there = tuple(copy.deepcopy(model).to(device) for model in here)
    states = [dict(model.state_dict()) for model in here]
    on_device = [dict(model.state_dict()) for model in there]
    method = pyalign.WeightMatching(sweeps=1, start=spec.identity(), within=Kind.PERMUTATION)

    def sweep(models: tuple[nn.Module, ...]) -> pyalign.Alignment:
        return pyalign.align(*models, method=method, spec=spec, verify=False, progress=False)

    def check(name: str, answer: Any) -> str:
        if name == PRODUCTS:
            return ""
        reached = _objective(spec, states, answer) - (_half_norms(spec, states) if spec.placed else 0.0)
        off = abs(reached - answer.objective)
        return "" if off <= 1e-6 * abs(reached) else f"says {answer.objective:.8g}, reached {reached:.8g}"

    def figures(name: str, answer: Any) -> Mapping[str, float]:
        return {} if name == PRODUCTS else {"objective": _objective(spec, states, answer)}

    contestants = [
        contestant(OURS, "ours", lambda: sweep(there), device),
        Contestant(CPU, "ours", lambda: sweep(here), threads=os.cpu_count()),
        contestant(PRODUCTS, "limit", lambda: _products(spec, *on_device), device),
    ]
    return Contest(contestants, check, figures=figures)


def _products(spec: SymmetrySpec, a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> Tensor:
    """The products of the units of A with those of B, over every matched tensor of every group; the last of them."""
    last = torch.zeros(())
    for group in spec.groups:
        for bound in spec.of(group):
            if bound.role is Role.MATCHED and bound.tensor in a:
                last = bound.unfold(a[bound.tensor]) @ bound.unfold(b[bound.tensor]).T
    return last


def _objective(spec: SymmetrySpec, states: list[dict[str, Tensor]], answer: pyalign.Alignment) -> float:
    """The sum of the inner products of the matched tensors of A with those of the moved B, in float64, on the CPU."""
    moved = answer.apply(states[1])
    return sum(float((states[0][name].double() * moved[name].double()).sum()) for name in _matched(spec))


def _half_norms(spec: SymmetrySpec, states: list[dict[str, Tensor]]) -> float:
    """What the objective of groups within blocks, minus half the squared distance, has less than inner products."""
    return sum(0.5 * float(state[name].double().square().sum()) for state in states for name in _matched(spec))


def _matched(spec: SymmetrySpec) -> list[str]:
    return list(dict.fromkeys(x.tensor for x in spec.bindings if x.role is Role.MATCHED))
