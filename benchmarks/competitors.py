"""The ways that exist without pyalign: public assignment solvers, what people write in torch, plain weight matching.

The weight matching is written from the algorithm of Ainsworth, Hayase and Srinivasa 2022 (arXiv 2209.04836, section
3.2, algorithm 1) as git-re-basin does it: in every step the whole cost matrix of one group is summed anew from its
tensors, with the other groups' permutations applied, and solved by scipy, until a sweep improves nothing.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from pyalign.symmetry import Role, SymmetrySpec, Wreath

__all__ = [
    "Axes",
    "Plain",
    "Solver",
    "axes_of",
    "naive_lerp",
    "naive_moments",
    "objective",
    "packed",
    "solvers",
    "weight_matching",
]

Costs = NDArray[Any]


@dataclass(frozen=True)
class Solver:
    """A public solver of the linear assignment problem.

    Args:
        name: What tables call it.
        module: What it is imported from.
        load: Given the module, gives the function of a cost matrix.
        columns: Given the cost matrix's shape and the function's answer, gives the column of each row, -1 for none.
        square: Whether it takes square matrices only.
    """

    name: str
    module: str
    load: Callable[[Any], Callable[[Costs], Any]]
    columns: Callable[[tuple[int, int], Any], NDArray[Any]]
    square: bool = False


def _from_pairs(shape: tuple[int, int], answer: Any) -> NDArray[Any]:
    columns = np.full(shape[0], -1)
    columns[answer[0]] = answer[1]
    return columns


def _from_rows(shape: tuple[int, int], answer: Any) -> NDArray[Any]:
    return np.asarray(answer[0])


def _lapx(function: str, name: str = "", columns: Any = _from_pairs, **options: Any) -> Solver:
    def load(lap: Any) -> Callable[[Costs], Any]:
        solve = getattr(lap, function)
        return lambda cost: solve(cost, return_cost=False, **options)

    return Solver(f"lapx {name or function}", "lap", load, columns)


SOLVERS = (
    Solver("scipy", "scipy.optimize", lambda m: m.linear_sum_assignment, _from_pairs),
    _lapx("lapjv", columns=_from_rows, extend_cost=True),
    _lapx("lapjvx", extend_cost=True),
    _lapx("lapjvc"),
    _lapx("lapjvs"),  # solves in float32 by default
    _lapx("lapjvs", "lapjvs float64", prefer_float32=False),
    _lapx("lapjvh", extend_cost=True),
    _lapx("lapjvr", extend_cost=True),
    Solver("lapjv", "lapjv", lambda m: m.lapjv, _from_rows, square=True),  # keeps its duals in float32 by default
    Solver("lapjv float64", "lapjv", lambda m: lambda c: m.lapjv(c, force_doubles=True), _from_rows, square=True),
)


def solvers() -> tuple[dict[str, tuple[Solver, Callable[[Costs], Any]]], dict[str, str]]:
    """The solvers that are installed, by name, and why each other one is not among them."""
    found, missing = {}, {}
    for solver in SOLVERS:
        try:
            found[solver.name] = solver, solver.load(importlib.import_module(solver.module))
        except (ImportError, AttributeError) as error:
            missing[solver.name] = f"not installed ({error}); pip install 'pyalign-nn[bench]'"
    return found, missing


def packed(x: Tensor, axis: int) -> Tensor:
    """Activations as a contiguous matrix of units by samples."""
    return x.movedim(axis, 0).reshape(x.shape[axis], -1).contiguous()


def naive_moments(x: Tensor, y: Tensor, axis: int) -> tuple[Tensor, ...]:
    """Uncentred moments by transposing, reshaping and multiplying: product, sums and sums of squares."""
    a, b = (z.movedim(axis, 0).reshape(z.shape[axis], -1).float() for z in (x, y))
    return a @ b.T, a.sum(1), b.sum(1), a.square().sum(1), b.square().sum(1)


def naive_lerp(a: Tensor, b: Tensor, t: float, perms: list[Tensor | None]) -> Tensor:
    """Index b along every permuted axis, then blend."""
    for axis, perm in enumerate(perms):
        if perm is not None:
            runs = b.shape[axis] // len(perm)
            index = perm if runs == 1 else (perm.unsqueeze(1) * runs + torch.arange(runs)).reshape(-1)
            b = b[(slice(None),) * axis + (index,)]
    return torch.lerp(a, b, t)


Axes = Mapping[str, tuple[str | None, ...]]
"""For each tensor the group on each axis, or None."""


@dataclass(frozen=True)
class Plain:
    """What the plain method found.

    Args:
        perms: Permutation by group.
        sweeps: Sweeps over all groups, the last one without progress included.
        costs: Every matrix that was solved, with its group, in order (when they were asked for).
    """

    perms: dict[str, Tensor]
    sweeps: int
    costs: list[tuple[str, Tensor]]


def axes_of(spec: SymmetrySpec) -> tuple[Axes, dict[str, tuple[int, ...]]]:
    """The table of axes in git-re-basin's form, and the shapes in which product axes are split in two.

    Raises:
        ValueError: The spec needs more than permutations of whole axes: blocks, or units with scattered entries.
    """
    axes: dict[str, tuple[str | None, ...]] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    if any(isinstance(group.structure, Wreath) for group in spec.groups.values()):
        raise ValueError("the plain method knows no groups in blocks")
    for name in dict.fromkeys(b.tensor for b in spec.bindings if b.role is Role.MATCHED):
        on = {b.axis: b for b in spec.on(name)}
        groups: list[str | None] = []
        shape: list[int] = []
        for axis, length in enumerate(spec.shapes[name]):
            if axis not in on:
                groups, shape = [*groups, None], [*shape, length]
                continue
            units, runs = on[axis].positions.shape
            whole = torch.arange(length).reshape(units, -1)
            if on[axis].blocks != 1 or not torch.equal(on[axis].positions, whole):
                raise ValueError(f"the plain method cannot move axis {axis} of {name!r}")
            groups, shape = [*groups, on[axis].group], [*shape, units]
            if runs > 1:
                groups, shape = [*groups, None], [*shape, runs]
        axes[name], shapes[name] = tuple(groups), tuple(shape)
    return axes, shapes


def _permuted(tensor: Tensor, groups: tuple[str | None, ...], perms: Mapping[str, Tensor], leave: int = -1) -> Tensor:
    for axis, group in enumerate(groups):
        if group is not None and axis != leave:
            tensor = tensor.index_select(axis, perms[group])
    return tensor


def _similarity(
    group: str, axes: Axes, a: Mapping[str, Tensor], b: Mapping[str, Tensor], perms: Mapping[str, Tensor]
) -> Tensor:
    """Inner products of the slices of all pairs of units, summed over every tensor of the group."""
    n = len(perms[group])
    total = torch.zeros(n, n)
    for name, groups in axes.items():
        for axis, here in enumerate(groups):
            if here == group:
                moved = _permuted(b[name], groups, perms, leave=axis)
                total += a[name].movedim(axis, 0).reshape(n, -1) @ moved.movedim(axis, 0).reshape(n, -1).T
    return total


def weight_matching(
    axes: Axes,
    a: Mapping[str, Tensor],
    b: Mapping[str, Tensor],
    seed: int = 0,
    sweeps: int = 100,
    keep: bool = False,
    solve: Callable[..., Any] = linear_sum_assignment,
) -> Plain:
    """Coordinate descent from the identity, in float32, until a sweep improves nothing.

    Args:
        axes: The group on each axis of each tensor.
        a: Tensors of model A, product axes split.
        b: Tensors of model B.
        seed: Of the order of groups in each sweep.
        sweeps: Most sweeps.
        keep: Also return every matrix that was solved.
        solve: A solver with scipy's interface.
    """
    sizes = {g: a[name].shape[k] for name, groups in axes.items() for k, g in enumerate(groups) if g is not None}
    perms = {group: torch.arange(n) for group, n in sizes.items()}
    names, generator = list(sizes), torch.Generator().manual_seed(seed)
    costs = []
    done, progress = 0, True
    while progress and done < sweeps:
        done, progress = done + 1, False
        for k in torch.randperm(len(names), generator=generator).tolist():
            group = names[k]
            similarity = _similarity(group, axes, a, b, perms)
            if keep:
                costs.append((group, similarity))
            _, columns = solve(similarity.numpy(), maximize=True)
            perm = torch.as_tensor(columns)
            rows = torch.arange(len(perm))
            progress |= bool(similarity[rows, perm].sum() > similarity[rows, perms[group]].sum() + 1e-12)
            perms[group] = perm
    return Plain(perms, done, costs)


def objective(axes: Axes, a: Mapping[str, Tensor], b: Mapping[str, Tensor], perms: Mapping[str, Tensor]) -> float:
    """The sum of the inner products of all tensors of A with those of the permuted B, in float64."""
    return sum(float((a[n].double() * _permuted(b[n].double(), groups, perms)).sum()) for n, groups in axes.items())
