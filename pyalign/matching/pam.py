"""Proximal alternating minimisation over permutations and a curve (Tatro et al. 2020, section 4, algorithm 2)."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pyalign.errors import InputError
from pyalign.matching.birkhoff import decompose, nearest
from pyalign.matching.problem import Method, Problem
from pyalign.matching.relaxed import RelaxedObjective, movable
from pyalign.paths import Curve, Step, garipov_schedule
from pyalign.paths.family import check_family
from pyalign.paths.fit import SGD
from pyalign.paths.point import CurveObjective, Loss
from pyalign.paths.randomness import forked
from pyalign.paths.training import Settings, train
from pyalign.statistics.batches import checked, repeatable, split
from pyalign.symmetry import Alignment, ScaledPermutation

__all__ = ["PAM", "PAMAnswer"]

Perms = dict[str, Tensor]
Offsets = list[dict[str, Tensor]]


class PAMAnswer(NamedTuple):
    """The alignment that was found, and the curve that was trained with it."""

    alignment: Alignment
    curve: Curve


@dataclass(frozen=True)
class PAM:
    r"""Search for permutations and a curve in turn, each held near where it was.

    The curve is \((1 - t) A + t\,P B + \sum_i c_i(t)\,\varphi_i\), with an offset \(\varphi_i\) for every bend; for one
    bend of a Bezier curve it is \(2 t (1 - t)\,\varphi\). In a round the permutations are relaxed to doubly stochastic
    matrices and follow the gradient of the curve's loss, each step pulled towards the last permutations and projected
    onto the Birkhoff polytope. They are rounded by draws from their Birkhoff-von Neumann decompositions; the nearest
    permutations and the present ones are candidates too, all judged on the same batches at the same t, and the best is
    kept, so that a round never leaves a worse one. Then the curve is trained, pulled towards the last one.
    It is a reference for how close alignment by activations comes, at many times its cost.

    Args:
        start: Where to begin: an alignment of the same spec, a method such as `ActivationMatching()`, or None for the
            identity.
        rounds: How often permutations and curve take turns.
        permutation_epochs: Passes over the data for the matrices, in each round.
        permutation_lr: Their learning rate (plain gradient descent).
        epochs: Passes over the data for the curve, in each round.
        lr: Its learning rate (Nesterov's momentum 0.9).
        weight_decay: Of the point on the curve.
        schedule: Factor of `lr`, given the share of the training that is done.
        proximity: \(\nu\); the pulls are \(\|x - x_\text{old}\|^2 / 2 \nu\).
        candidates: Permutations to draw when rounding.
        judged: Batches that candidates are judged on, each at its own t.
        loss: `loss(output, targets)`; None as for `pyalign.curve`.
        kind: "bezier" or "polychain".
        bends: Number of inner control points of the curve.
        precision: torch.bfloat16 or torch.float16 for mixed precision in both phases; weights stay as they are.
        checkpoint: A folder for the checkpoints of all phases; a search that is stopped goes on from them.
        every: Steps between checkpoints.
        callback: Called after every step of every phase with its `Step`; it may raise to stop the search.

    Source:
        Tatro et al. 2020 (arXiv 2009.02439), section 4 and appendix.

    Example:
        >>> PAM(permutation_epochs=5, epochs=10).candidates
        32
    """

    start: Alignment | Method | None = None
    rounds: int = 1
    permutation_epochs: int = 20
    permutation_lr: float = 0.05
    epochs: int = 250
    lr: float = 0.1
    weight_decay: float = 5e-4
    schedule: Callable[[float], float] = garipov_schedule
    proximity: float = 1e3
    candidates: int = 32
    judged: int = 16
    loss: Loss | None = None
    kind: str = "bezier"
    bends: int = 1
    precision: torch.dtype | None = None
    checkpoint: str | os.PathLike[str] | None = None
    every: int = 500
    callback: Callable[[Step], None] | None = None

    def __post_init__(self) -> None:
        counts = {n: getattr(self, n) for n in ("rounds", "permutation_epochs", "epochs", "judged")}
        if any(isinstance(v, bool) or not isinstance(v, int) or v < 1 for v in counts.values()) or self.candidates < 0:
            raise InputError(
                "nothing to search",
                given=", ".join(f"{k}={v!r}" for k, v in {**counts, "candidates": self.candidates}.items()),
                expected="1 or more of each, 0 or more candidates",
            )
        if not self.proximity > 0.0:
            raise InputError("the pull is no distance", given=f"proximity={self.proximity!r}", expected="above 0")
        check_family(self.kind, self.bends)

    def match(self, problem: Problem) -> Alignment:
        """Search; the alignment alone (`run` gives the curve as well).

        Raises:
            InputError: There is no data.
            DataError: The data has no targets, or does not fit the models.
            NonFiniteError: The loss became NaN or infinite; tells step and t.
        """
        return self.run(problem).alignment

    def run(self, problem: Problem) -> PAMAnswer:
        """Search for an alignment and the curve that goes with it; raises as `match` does."""
        if problem.data is None:
            raise InputError("this search needs data", expected="training batches with targets", do="pass data=")
        problem = replace(problem, data=repeatable(problem.data, 2))
        began = time.perf_counter()
        start = problem.begun(self.start)
        free, held = movable(problem.spec)
        aligned = start.apply(problem.model_b)
        perms = {name: torch.arange(problem.spec.groups[name].size) for name in free}
        offsets: Offsets = [{} for _ in range(self.bends)]
        losses: list[float] = []
        path = Curve(problem.model_a, aligned, kind=self.kind, bends=self.bends)
        for round_ in range(self.rounds):
            perms, values = self._permutations(problem, aligned, offsets, perms, round_)
            losses += values
            path, offsets = self._curve(problem, _moved(problem, aligned, perms), offsets, round_)
        begun = {n: g for n, g in start.transforms.items() if n in free and isinstance(g, ScaledPermutation)}
        elements = {name: ScaledPermutation(perms[name]) @ element for name, element in begun.items()}
        notes = [f"group {name!r} stays where it began: {why}" for name, why in held.items()]
        alignment = Alignment(
            problem.spec,
            {name: elements.get(name, element) for name, element in start.transforms.items()},
            method=f"proximal alternating minimisation ({start.method} first)",
            objective=-losses[-1],
            trace=tuple(-loss for loss in losses),
            seconds={"matching": time.perf_counter() - began},
            notes=("the objective is the negated training loss on the judged batches", *notes),
        )
        return PAMAnswer(alignment, path)

    def _permutations(
        self, problem: Problem, aligned: nn.Module, offsets: Offsets, perms: Perms, round_: int
    ) -> tuple[Perms, list[float]]:
        """The permutation phase: the better of the present permutations and what the matrices suggest, and its loss."""
        if not perms:
            return perms, [0.0]
        moved = _moved(problem, aligned, perms)
        objective = RelaxedObjective(
            problem.spec, problem.model_a, moved, offsets, list(perms), kind=self.kind, loss=self.loss,
            proximity=self.proximity, precision=self.precision, seed=problem.seed + 2 * round_,
        )  # fmt: skip
        settings = self._settings(problem, round_, "permutations")
        sgd = partial(torch.optim.SGD, momentum=0.0)
        settings = replace(settings, lr=self.permutation_lr, optimizer=sgd, epochs=self.permutation_epochs)
        train(objective, self._data(problem), settings, "permutations")
        generator = torch.Generator().manual_seed(problem.seed + 2 * round_)
        mixtures = {name: decompose(matrix.detach()) for name, matrix in objective.matrices.items()}
        stay = {name: torch.arange(len(perm)) for name, perm in perms.items()}
        tried = [stay, {name: nearest(matrix.detach()) for name, matrix in objective.matrices.items()}]
        tried += [{n: m.sample(generator) for n, m in mixtures.items()} for _ in range(self.candidates)]
        with forked(problem.seed, []):
            batches = list(islice(checked(self._data(problem)), self.judged))
        values = [_judge(objective, change, batches, problem.seed) for change in tried]
        # The first of equal ones is taken, and the present permutations stand first.
        best = min(range(len(tried)), key=values.__getitem__)
        return {name: perm[tried[best][name]] for name, perm in perms.items()}, [values[0], values[best]]

    def _curve(self, problem: Problem, moved: nn.Module, offsets: Offsets, round_: int) -> tuple[Curve, Offsets]:
        """The curve phase: the offsets of the bends from the line of the ends, trained and pulled to what they were."""
        path = Curve(problem.model_a, moved, kind=self.kind, bends=self.bends)
        line = [[buffer.clone() for buffer in point] for point in path.inner]
        earlier = [
            path.layout.pack(offset) if offset else [torch.zeros_like(buffer) for buffer in point]
            for offset, point in zip(offsets, line, strict=True)
        ]
        for point, old in zip(path.inner, earlier, strict=True):
            for buffer, shift in zip(point, old, strict=True):
                buffer.add_(shift)

        def pull(parameters: list[Tensor], lr: float) -> None:
            share = lr / self.proximity
            for bend, center, old in zip(parameters, chain(*line), chain(*earlier), strict=True):
                bend.sub_(center).add_(old, alpha=share).div_(1.0 + share).add_(center)

        objective = CurveObjective(
            path, problem.model_a, loss=self.loss, weight_decay=self.weight_decay, precision=self.precision,
            seed=problem.seed + 2 * round_ + 1, pull=pull,
        )  # fmt: skip
        settings = self._settings(problem, round_, "curve")
        path.settings, path.history = train(objective, self._data(problem), settings, "curve")
        return path, [
            path.layout.unpack([bend - center for bend, center in zip(point, centers, strict=True)])
            for point, centers in zip(path.inner, line, strict=True)
        ]

    def _settings(self, problem: Problem, round_: int, phase: str) -> Settings:
        return Settings(
            lr=self.lr, optimizer=SGD, epochs=self.epochs, schedule=self.schedule, seed=problem.seed,
            checkpoint=None if self.checkpoint is None else Path(self.checkpoint) / f"{phase}-{round_}.safetensors",
            every=self.every, callback=self.callback, progress=problem.progress, precision=self.precision,
        )  # fmt: skip

    def _data(self, problem: Problem) -> Iterable[Any]:
        assert problem.data is not None
        return problem.data


def _moved(problem: Problem, aligned: nn.Module, perms: Perms) -> nn.Module:
    elements = problem.spec.identity().transforms | {n: ScaledPermutation(perm) for n, perm in perms.items()}
    return Alignment(problem.spec, elements).apply(aligned)


@torch.no_grad()
def _judge(objective: RelaxedObjective, change: Perms, batches: list[Any], seed: int) -> float:
    """The mean loss over batches, each at its own t: the same batches, t and random numbers for every candidate."""
    total = 0.0
    device = objective.parameters[0].device
    matrices = {name: torch.eye(len(perm), device=device)[perm.to(device)] for name, perm in change.items()}
    with forked(seed, [device.index or 0] if device.type == "cuda" else []):
        for index, batch in enumerate(batches):
            inputs, targets = split(batch)
            total += float(objective.at((index + 0.5) / len(batches), inputs, targets, index, matrices))
    return total / len(batches)
