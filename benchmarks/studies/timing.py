"""What aligning by activations costs, against the forward passes of the two models over the same images."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import pyalign


def cost_of_aligning(a: nn.Module, b: nn.Module, inputs: list[Tensor], repetitions: int) -> dict[str, Any]:
    """Time both, alternated, and compare medians; deriving and verifying the symmetry count as aligning.

    Args:
        a: Model A.
        b: Model B.
        inputs: Batches.
        repetitions: Of each, after one warm-up.

    Returns:
        Medians and ranges in seconds of wall-clock and processor time, their ratios, and the backends that ran.
    """
    answers: list[pyalign.Alignment] = []

    def forward() -> None:
        with torch.no_grad():
            for x in inputs:
                a(x)
                b(x)

    def align() -> None:
        answers.append(pyalign.align(a, b, inputs, progress=False))

    forward()
    align()
    runs = {"forward": [_timed(forward)], "align": [_timed(align)]}
    for _ in range(repetitions - 1):
        runs["forward"].append(_timed(forward))
        runs["align"].append(_timed(align))
    record: dict[str, Any] = {"images": sum(len(x) for x in inputs), "repetitions": repetitions}
    for clock, at in (("wall", 0), ("processor", 1)):
        for what, times in runs.items():
            values = [pair[at] for pair in times]
            record[f"{what}_{clock}_seconds"] = statistics.median(values)
            record[f"{what}_{clock}_range"] = [min(values), max(values)]
        record[f"{clock}_ratio"] = record[f"align_{clock}_seconds"] / record[f"forward_{clock}_seconds"]
    return {**record, "backends": answers[-1].backends, "phases": answers[-1].seconds}


def _timed(run: Callable[[], None]) -> tuple[float, float]:
    wall, processor = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - wall, time.process_time() - processor
