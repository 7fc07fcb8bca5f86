"""Learned matching: gradient descent on the loss between the models (Theus et al. 2025, section 4, algorithm 1)."""

from __future__ import annotations

import math
import os
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch

from pyalign.errors import InputError, NonFiniteError, PyalignWarning
from pyalign.matching.latents import Latent, Projection, latents_of
from pyalign.matching.learned_objective import LearnedObjective, Sampler, held_batches, sampler_of
from pyalign.matching.problem import Method, Problem
from pyalign.matching.weight import WeightMatching
from pyalign.paths.point import Loss
from pyalign.paths.training import Callback, Settings, train
from pyalign.symmetry import Alignment, Kind, Transform
from pyalign.symmetry.elements import composed

__all__ = ["LearnedMatching"]

PROJECTORS = ("assignment", "sinkhorn")


def half_cosine(fraction: float) -> float:
    """The factor of the learning rate after a share of the steps: from 1 to 0.01 along half a cosine.

    Example:
        >>> [round(half_cosine(x), 3) for x in (0.0, 0.5, 1.0)]
        [1.0, 0.505, 0.01]
    """
    return 0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * fraction))


@dataclass(frozen=True, eq=False)
class LearnedMatching:
    r"""Learn the group elements by descent on the loss between the models.

    Minimises \(\mathbb{E}_t\, L((1 - t) A + t\, g(B))\) over g by Adam on one latent per group, each projected onto
    its class in every step: linear assignment with the gradient straight through for permutations (with signs, where
    they are free) or Sinkhorn's scaling, the polar factor for orthogonal groups, \(e^X\) for invertible ones, a size
    and an angle for each pair of scaled rotations, the exponential of a number for factors of units; block by block
    within heads and experts. All latents begin at the identity, and g acts after the alignment that the search starts
    from. The answer is an exact element of the group: the aligned model computes what model B does.

    Args:
        start: Where to begin: an alignment of the same spec, a method such as `WeightMatching()`, or None for the
            identity (which is rarely good: a start by weights saves most of the steps).
        steps: Number of batches to learn from; or
        epochs: number of passes over the data. Without either, 1000 steps.
        lr: Learning rate of the latents.
        optimizer: Called as `optimizer(parameters, lr=lr)`.
        schedule: Factor of `lr`, given the share of the steps that is done; half a cosine.
        t: Where on the path the loss is taken: an interval with equal chances, a number, or a function of a
            torch.Generator. Around the middle both the middle and the flanks come down (section 5.3 of the paper).
        loss: `loss(output, targets)`; None as for `pyalign.curve`.
        clip: Largest norm of the gradient of all latents together.
        permutations: Whether permutations are learnt too, or only what mixes or scales units: they hardly change after
            weight matching.
        projector: "assignment", or "sinkhorn": doubly stochastic matrices while learning, rounded at the end.
        temperature: Of Sinkhorn's scaling.
        lead: How far ahead the start is in the latents of permutations: the smaller, the sooner they change (a step of
            Adam moves an entry by about `lr`).
        held: Held-out batches that decide which latents are kept, never worse than the start; None: the mean loss over
            each window of steps decides.
        window: Steps between decisions.
        checkpoint: A `.safetensors` file that is written every `every` steps and at the end; where it exists, the
            search goes on from it, to the bit.
        every: Steps between checkpoints.
        callback: Called after every step with its `pyalign.paths.Step`; a true answer ends the search.
        within: The largest class `pyalign.align` derives for it.

    Source:
        Theus et al. 2025 (arXiv 2506.22712), algorithm 1; Sinkhorn: Guerrero Pena et al. 2023 (arXiv 2212.12042).

    Example:
        >>> LearnedMatching(steps=200, t=(0.4, 0.6)).projector
        'assignment'
    """

    start: Alignment | Method | None = field(default_factory=WeightMatching)
    steps: int | None = None
    epochs: int | None = None
    lr: float = 1e-2
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.Adam
    schedule: Callable[[float], float] = half_cosine
    t: float | tuple[float, float] | Sampler = (0.4, 0.6)
    loss: Loss | None = None
    clip: float | None = None
    permutations: bool = True
    projector: str = "assignment"
    temperature: float = 1.0
    lead: float = 1.0
    held: Iterable[Any] | None = None
    window: int = 50
    checkpoint: str | os.PathLike[str] | None = None
    every: int = 500
    callback: Callback | None = None
    within: Kind = Kind.INVERTIBLE

    def __post_init__(self) -> None:
        if self.projector not in PROJECTORS:
            raise InputError("unknown projector", given=repr(self.projector), expected=" or ".join(PROJECTORS))
        if not min(self.temperature, self.lead) > 0 or isinstance(self.window, bool) or self.window < 1:
            raise InputError(
                "settings that cannot be",
                given=f"temperature={self.temperature!r}, lead={self.lead!r}, window={self.window!r}",
                expected="a temperature and a lead above 0, a window of 1 step or more",
            )
        sampler_of(self.t)

    def match(self, problem: Problem) -> Alignment:
        """Search, from the start on.

        Raises:
            InputError: There is no data.
            DataError: The data has no targets, runs out, or does not fit the models.
            NonFiniteError: The loss is NaN or infinite before anything was learnt. Later on the search ends there, with
                a warning and the best element so far.
            CheckpointError: The checkpoint is damaged or belongs to another run.
        """
        if problem.data is None:
            raise InputError("this search needs data", expected="training batches with targets", do="pass data=")
        began = time.perf_counter()
        start = problem.begun(self.start)
        started = time.perf_counter()
        like = next(p for p in problem.model_b.parameters() if p.is_floating_point())
        projection = Projection(self.projector == "sinkhorn", self.temperature, self.lead)
        latents, held = latents_of(problem.spec, like.detach(), permutations=self.permutations, projection=projection)
        objective = LearnedObjective(
            problem.spec, problem.model_a, start.apply(problem.model_b), latents, sampler=sampler_of(self.t),
            loss=self.loss, seed=problem.seed, window=self.window, held=held_batches(self.held),
            name=f"t={_told(self.t)}, {projection}, permutations={self.permutations}",
        )  # fmt: skip
        notes = self._learn(problem, objective) if objective.parameters else ["nothing of the symmetry can be learnt"]
        learned = _elements(latents)
        both = {name: composed(learned[name], first) for name, first in start.transforms.items()}
        known = objective.value < float("inf")
        return Alignment(
            problem.spec,
            both,
            method=f"learned matching ({start.method} first)",
            objective=-objective.value if known else None,
            trace=(-objective.value,) if known else (),
            worst_gap=start.worst_gap,
            seconds={"start": started - began, "matching": time.perf_counter() - started},
            notes=(*notes, *(f"group {name!r} stays where it began: {why}" for name, why in held.items())),
        )

    def _learn(self, problem: Problem, objective: LearnedObjective) -> list[str]:
        assert problem.data is not None
        steps = 1000 if self.steps is None and self.epochs is None else self.steps
        settings = Settings(
            lr=self.lr, optimizer=self.optimizer, steps=steps, epochs=self.epochs, schedule=self.schedule,
            clip=self.clip, seed=problem.seed, checkpoint=self.checkpoint, every=self.every, callback=self.callback,
            progress=problem.progress,
        )  # fmt: skip
        objective.begin()
        judged = "held-out batches" if self.held is not None else f"{self.window} steps"
        notes = [f"the objective is the negated mean loss on {judged} between the models"]
        try:
            record, _ = train(objective, problem.data, settings, "learned matching")
            judged_once = objective.value < float("inf")
            found = f"best after {objective.best_step} of" if judged_once else "the latest of so few to judge,"
            notes.append(f"{found} {record['taken']} steps")
        except NonFiniteError as failure:
            if objective.value == float("inf"):
                raise
            warnings.warn(f"learned matching ended early: {failure}", PyalignWarning, stacklevel=4)
            notes.append(f"ended early, best after {objective.best_step} steps: {failure}")
        if objective.value < float("inf"):
            objective.settle()
        return notes


def _elements(latents: dict[str, Latent]) -> dict[str, Transform]:
    found: dict[str, Transform] = {}
    for name, latent in latents.items():
        found[name] = latent.element(found)
    return found


def _told(t: Any) -> str:
    return getattr(t, "__name__", "function") if callable(t) else str(t)
