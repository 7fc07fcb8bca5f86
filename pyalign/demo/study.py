"""The demo's run: train two networks, align them both ways, measure the barriers; all that the page needs."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pyalign.demo.digits import batches, digits
from pyalign.demo.network import Network
from pyalign.demo.training import accuracy, train
from pyalign.errors import InputError, PyalignWarning
from pyalign.matching import align
from pyalign.paths import Barrier, barrier
from pyalign.statistics.collect import collect
from pyalign.symmetry import Alignment, SymmetrySpec, derive

__all__ = ["METHODS", "Settings", "Study", "run"]

METHODS = {"naive": "not aligned", "activation": "aligned by activations", "weight": "aligned by weights"}
MAPS = 4
"""How many groups the heat maps show."""


@dataclass(frozen=True)
class Settings:
    """What decides a run.

    Args:
        seed: Of model A; model B takes the next one.
        epochs: Passes over the training images.
        width: Width of the first stage, in channels.
        points: Positions on each path.
    """

    seed: int = 0
    epochs: int = 20
    width: int = 16
    points: int = 25

    def __post_init__(self) -> None:
        for name, least in (("seed", 0), ("epochs", 1), ("width", 1), ("points", 2)):
            if getattr(self, name) < least:
                raise InputError(f"{name} is too small", given=str(getattr(self, name)), expected=f"at least {least}")


@dataclass(frozen=True, eq=False)
class Study:
    """What a run found.

    Args:
        settings: What decided it.
        model_a: The first network.
        model_b: The second network, as it was trained.
        accuracy_a: Share of the test images that A classifies rightly.
        accuracy_b: The same for B.
        spec: The symmetry that was derived.
        alignments: By method, "activation" and "weight".
        barriers: By method ("naive" too), with BatchNorm statistics interpolated.
        recalibrated: The same with the statistics re-estimated on the training images at every position.
        correlations: By group: (units of A, units of B) before and after aligning by activations.
        seconds: Wall-clock time by phase.
    """

    settings: Settings
    model_a: Network
    model_b: Network
    accuracy_a: float
    accuracy_b: float
    spec: SymmetrySpec
    alignments: dict[str, Alignment]
    barriers: dict[str, Barrier]
    recalibrated: dict[str, Barrier]
    correlations: dict[str, tuple[Tensor, Tensor]]
    seconds: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Settings and numbers, without weights and correlations."""
        return {
            "settings": asdict(self.settings),
            "accuracy": {"a": self.accuracy_a, "b": self.accuracy_b},
            "barriers": {name: record.to_dict() for name, record in self.barriers.items()},
            "barriers_recalibrated": {name: record.to_dict() for name, record in self.recalibrated.items()},
            "correlation_before": self.alignments["activation"].correlation_before,
            "correlation_after": self.alignments["activation"].correlation_after,
            "worst_gap": {name: found.worst_gap for name, found in self.alignments.items()},
            "seconds": self.seconds,
        }


def run(settings: Settings | None = None, *, progress: bool | None = None) -> Study:
    """Train two networks from different seeds and measure what aligning them does; same settings, same numbers.

    Args:
        settings: What decides the run.
        progress: True or False to force progress bars or none; None shows them on a terminal.

    Returns:
        The record of the run.

    Raises:
        PyalignError: scikit-learn, which brings the digits, is not installed.
    """
    with _one_thread():
        return _run(settings or Settings(), progress)


def _run(chosen: Settings, progress: bool | None) -> Study:
    seconds: dict[str, float] = {}
    learnt, unseen = digits("train"), digits("test")
    with _timed(seconds, "training"):
        model_a, model_b = (
            train(learnt, chosen.seed + k, epochs=chosen.epochs, width=chosen.width, name=name, progress=progress)
            for k, name in enumerate(("model A", "model B"))
        )
    data, tests = batches(learnt), batches(unseen, size=len(unseen.labels))
    with _timed(seconds, "deriving the symmetry"):
        spec = derive(model_a, data[0][0])
    alignments = {}
    for method in ("activation", "weight"):
        with _timed(seconds, f"aligning by {method}s"):
            alignments[method] = align(
                model_a, model_b, data, method=method, spec=spec, seed=chosen.seed, progress=progress
            )
    ends = {"naive": model_b, **{method: found.apply(model_b) for method, found in alignments.items()}}
    with _timed(seconds, "measuring barriers"):
        barriers, recalibrated = (
            _barriers(model_a, ends, tests, chosen.points, recalibration, progress) for recalibration in (None, data)
        )
    with _timed(seconds, "correlations"):
        correlations = _correlations(model_a, model_b, ends["activation"], spec, data)
    right_a, right_b = accuracy(model_a, unseen), accuracy(model_b, unseen)
    return Study(
        chosen, model_a, model_b, right_a, right_b, spec, alignments, barriers, recalibrated, correlations, seconds
    )


def _barriers(
    model_a: nn.Module, ends: dict[str, Network], tests: Any, points: int, recalibration: Any, progress: bool | None
) -> dict[str, Barrier]:
    with warnings.catch_warnings():
        # without recalibration on purpose: the page shows what BatchNorm does to an interpolated model
        warnings.filterwarnings("ignore", message="the models have BatchNorm", category=PyalignWarning)
        return {
            name: barrier(model_a, end, tests, points=points, recalibrate=recalibration, progress=progress)
            for name, end in ends.items()
        }


def _correlations(
    model_a: nn.Module, model_b: nn.Module, aligned_b: nn.Module, spec: SymmetrySpec, data: Any
) -> dict[str, tuple[Tensor, Tensor]]:
    """Correlations at the last site of some groups, spread over the depth of the network."""
    pairs = [
        {site.group: moments.correlation() for site, moments in seen.items()}
        for seen in (collect(model_a, end, spec, data, sites="last", progress=False) for end in (model_b, aligned_b))
    ]
    names = [name for name in spec.groups if name in pairs[0]]
    chosen = sorted({round(k * (len(names) - 1) / (MAPS - 1)) for k in range(MAPS)}) if names else []
    return {names[k]: (pairs[0][names[k]], pairs[1][names[k]]) for k in chosen}


@contextmanager
def _one_thread() -> Iterator[None]:
    """Tensors this small gain nothing from threads, lose much where cores are shared, and sum in another order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - start
