"""Several models in one frame: each is aligned to the mean of all, until that stays (Theus et al. 2025, section 4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from pyalign.errors import InputError
from pyalign.matching.problem import Problem, check_finite, check_same_architecture
from pyalign.matching.weight import WeightMatching
from pyalign.symmetry import Alignment, Role, SymmetrySpec, state_of
from pyalign.symmetry.copies import copy_of

__all__ = ["Universe", "universe"]


@dataclass(frozen=True, eq=False)
class Universe:
    """Alignments of several models into one frame.

    Maps between models go through the frame and are cycle-consistent: `between(i, k)` is `between(i, j)` after
    `between(j, k)`.

    Args:
        alignments: One for each model: `alignments[k].apply(models[k])` is model k in the common frame.
        trace: Sum of the squared distances of all models from their mean after each sweep, first of the models as they
            were; it never rises.
    """

    alignments: tuple[Alignment, ...]
    trace: tuple[float, ...]

    def apply(self, models: Sequence[nn.Module]) -> list[nn.Module]:
        """The models in the common frame, each a new module with the function it had."""
        return [alignment.apply(model) for alignment, model in zip(self.alignments, models, strict=True)]

    def between(self, to: int, source: int) -> Alignment:
        """What brings model `source` into the coordinates of model `to`."""
        return self.alignments[to].inverse().compose(self.alignments[source])


def universe(
    models: Sequence[nn.Module],
    spec: SymmetrySpec,
    *,
    method: WeightMatching | None = None,
    sweeps: int = 10,
    seed: int = 0,
    progress: bool | None = None,
) -> Universe:
    r"""Bring several models into one frame, over all classes of transforms.

    Minimises \(\sum_k \|g_k(\theta_k) - U\|^2\) over the elements g and the frame U, the mean of the aligned models:
    one model after the other is matched by weights to the mean of the others, from where it is, which lowers the sum as
    matching it to the mean of all would, only further. It begins with all models aligned to the first.

    Args:
        models: Two or more models of one architecture; they stay as they are.
        spec: Their symmetry, as `derive` or `fold` and `derive` give it.
        method: How models are matched to the frame.
        sweeps: Most rounds over all models; it ends when a round brings nothing.
        seed: Of the orders in which groups are visited.
        progress: Show a progress bar; None: on a terminal.

    Returns:
        The alignments; measure the aligned models with `pyalign.paths.simplex_barrier`.

    Raises:
        MismatchError: The models, or they and the spec, are of different architecture.
        NonFiniteError: A weight is NaN or infinite.
        InputError: Fewer than two models, or no round.

    Source:
        Theus et al. 2025 (arXiv 2506.22712), section 4 (several models); Ainsworth et al. 2022, section 5 (MergeMany).

    Example:
        >>> import pyalign
        >>> model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2))
        >>> spec = pyalign.derive(model, torch.randn(8, 4))
        >>> found = universe([spec.random(seed).apply(model) for seed in range(3)], spec)
        >>> found.trace[-1] < 1e-9
        True
    """
    if len(models) < 2 or isinstance(sweeps, bool) or sweeps < 1:
        raise InputError(
            "nothing to bring together", given=f"{len(models)} models, {sweeps} sweeps",
            expected="2 or more models, 1 or more sweeps",
        )  # fmt: skip
    for number, model in enumerate(models):
        spec.check_model(model)
        check_same_architecture(state_of(models[0]), state_of(model))
        check_finite(state_of(model), str(number))
    search = _Search(list(models), spec, method or WeightMatching(), seed)
    trace = [search.spread()]
    hidden = None if progress is None else not progress
    for _ in tqdm(range(sweeps), desc="universe", unit="sweep", leave=False, disable=hidden):
        if len(trace) == 1:
            search.gather()
        search.sweep()
        trace.append(min(trace[-1], search.spread()))
        if len(trace) > 2 and trace[-2] - trace[-1] <= 1e-9 * trace[0]:
            break
    return Universe(tuple(search.alignments), tuple(trace))


class _Search:
    def __init__(self, models: list[nn.Module], spec: SymmetrySpec, method: WeightMatching, seed: int) -> None:
        self.models, self.spec, self.method, self.seed = models, spec, method, seed
        matched = dict.fromkeys(b.tensor for b in spec.bindings if b.role is Role.MATCHED)
        self.names = [part for name in matched for part in spec.stacks.get(name, (name,))]
        self.alignments = [replace(spec.identity(), method="universe") for _ in models]
        self.states = [state_of(model) for model in models]

    def gather(self) -> None:
        """Align all models to the first, where that brings them nearer together."""
        before, alignments, states = self.spread(), list(self.alignments), list(self.states)
        for k in range(1, len(self.models)):
            self._match(k, self.models[0], None)
        if self.spread() > before:
            self.alignments, self.states = alignments, states

    def sweep(self) -> None:
        """Match every model to the mean of the others, from where it is, and keep what brings it nearer."""
        for k in range(len(self.models)):
            frame = copy_of(self.models[0])
            others = [state for j, state in enumerate(self.states) if j != k]
            with torch.no_grad():
                for name, tensor in state_of(frame).items():
                    if tensor.is_floating_point():
                        tensor.copy_(torch.stack([s[name].double() for s in others]).mean(0))
            self._match(k, frame, self.alignments[k])

    def _match(self, k: int, frame: nn.Module, start: Alignment | None) -> None:
        method = replace(self.method, start=start)
        found = method.match(Problem(frame, self.models[k], self.spec, seed=self.seed, progress=False))
        state = self.spec.apply(found.transforms, state_of(self.models[k]))
        target = state_of(frame)
        if start is None or self._distance(state, target) <= self._distance(self.states[k], target):
            self.alignments[k] = replace(found, method=f"universe ({found.method})")
            self.states[k] = state

    def spread(self) -> float:
        """The sum of the squared distances of the models from their mean."""
        total = 0.0
        for name in self.names:
            stacked = torch.stack([state[name].double() for state in self.states])
            total += float((stacked - stacked.mean(0)).square().sum())
        return total

    def _distance(self, one: dict[str, Tensor], two: dict[str, Tensor]) -> float:
        return sum(float((one[n].double() - two[n].double()).square().sum()) for n in self.names)
