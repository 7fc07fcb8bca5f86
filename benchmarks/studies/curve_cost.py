"""What a step on a curve costs against a plain training step of the same network, in time and in memory.

python -m benchmarks.studies.curve_cost --out benchmarks/results
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pyalign
from benchmarks.studies.data import Absent, architecture
from pyalign._atomic import replacing
from pyalign.paths import Curve
from pyalign.paths.point import CurveObjective

MOST_TIME = 1.35
Step = Callable[[], Any]


def plain_step(model: nn.Module, x: Tensor, y: Tensor) -> Step:
    """One step of SGD on the network itself."""
    model = copy.deepcopy(model).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, nesterov=True, weight_decay=5e-4)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(model(x), y).backward()
        optimizer.step()

    return step


def curve_step(a: nn.Module, b: nn.Module, bends: int, x: Tensor, y: Tensor) -> Step:
    """One step of SGD on the bends of a curve, as `pyalign.curve` takes it."""
    path = Curve.borrowing(a, b, bends=bends)
    objective = CurveObjective(path, a, weight_decay=5e-4)
    optimizer = torch.optim.SGD(objective.parameters, lr=1e-3, momentum=0.9, nesterov=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        objective.loss((x, y), 0, 1.0).backward()
        optimizer.step()

    return step


def times(steps: dict[str, Step], repetitions: int) -> dict[str, list[float]]:
    """Seconds of every step, alternated, after one warm-up each; under "name, processor" those of the processor."""
    found: dict[str, list[float]] = {f"{name}{clock}": [] for name in steps for clock in ("", ", processor")}
    for round_ in range(repetitions + 1):
        for name, step in steps.items():
            began, worked = time.perf_counter(), time.process_time()
            step()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if round_:
                found[name].append(time.perf_counter() - began)
                found[f"{name}, processor"].append(time.process_time() - worked)
    return found


def peak(make: Callable[[], Step]) -> int:
    """Most bytes that torch held at once while a step was made and run twice, above what was held before."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step = make()
        step(), step()
        return torch.cuda.max_memory_allocated() - before
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        step = make()
        step(), step()
    held = most = 0
    for event in sorted(_memory_events(profile), key=lambda e: e[0]):
        held += event[1]
        most = max(most, held)
    del step
    return most


def _memory_events(profile: Any) -> list[tuple[int, int]]:
    events = profile.profiler.kineto_results.events()
    return [(event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]"]


def study(width: int, batch: int, bends: Sequence[int], repetitions: int) -> dict[str, Any]:
    """Ratios of time and differences of memory, for every number of bends."""
    name = {1: "resnet20", 2: "resnet20w2", 4: "resnet20w4"}[width]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    a, b = (architecture(name).to(device) for _ in range(2))
    x = torch.randn(batch, 3, 32, 32, device=device)
    y = torch.randint(10, (batch,), device=device)
    makers: dict[str, Callable[[], Step]] = {"plain": lambda: plain_step(a, x, y)}
    makers |= {f"{k} bends": lambda k=k: curve_step(a, b, k, x, y) for k in bends}
    seconds = times({key: make() for key, make in makers.items()}, repetitions)
    weights = sum(p.numel() * p.element_size() for p in a.parameters())
    # Small batches: what the weights take is not hidden behind the activations.
    x, y = x[:2], y[:2]
    memory = {key: peak(make) for key, make in makers.items()}
    middle = {key: statistics.median(values) for key, values in seconds.items()}
    rows = [
        {
            "contestant": key,
            "control_points": 0 if key == "plain" else int(key.split()[0]) + 2,
            "seconds": middle[key],
            "range": [min(seconds[key]), max(seconds[key])],
            "time_ratio": _ratio(seconds[key], seconds["plain"]),
            "processor_ratio": _ratio(seconds[f"{key}, processor"], seconds["plain, processor"]),
            "peak_weights": (memory[key] - memory["plain"]) / weights,
        }
        for key in makers
    ]
    about = {"network": name, "batch": batch, "repetitions": repetitions, "weights_bytes": weights, "device": device}
    machine = {"machine": platform.processor() or platform.machine(), "threads": torch.get_num_threads()}
    versions = {"torch": torch.__version__, "pyalign": pyalign.__version__}
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"settings": {**about, **machine, **versions, "process_peak_kib": peak_kib}, "rows": rows}


def _ratio(times: Sequence[float], plain: Sequence[float]) -> float:
    return statistics.median(x / y for x, y in zip(times, plain, strict=True))


def markdown(found: dict[str, Any]) -> str:
    """The table of the study."""
    s = found["settings"]
    out = [
        "| step | control points k | seconds | ratio (wall clock) | ratio (processor) | peak weights beyond | k + 1 |"
    ]
    out += ["|---|---|---|---|---|---|---|"]
    for row in found["rows"]:
        k = row["control_points"]
        cells = [row["contestant"], str(k or ""), f"{row['seconds']:.4f}", f"{row['time_ratio']:.3f}"]
        cells.append(f"{row['processor_ratio']:.3f}")
        cells += ["", ""] if not k else [f"{row['peak_weights']:.2f}", str(k + 1)]
        out.append("| " + " | ".join(cells) + " |")
    out += [
        "",
        f"{s['network']}, batch {s['batch']}, {s['repetitions']} alternated repetitions (medians), {s['device']}, ",
    ]
    out[-1] += f"{s['machine']}, {s['threads']} thread(s), torch {s['torch']}, pyalign {s['pyalign']}."
    return "\n".join(out) + "\n"


def failures(found: dict[str, Any]) -> list[str]:
    """What costs more than it may."""
    bad = []
    for row in found["rows"][1:]:
        if row["time_ratio"] > MOST_TIME:
            bad.append(
                f"{row['contestant']}: {row['time_ratio']:.2f} times a plain step, at most {MOST_TIME} is allowed"
            )
        if row["peak_weights"] > row["control_points"] + 1:
            bad.append(f"{row['contestant']}: {row['peak_weights']:.2f} weights, at most {row['control_points'] + 1}")
    return bad


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the study; the exit status is 1 where it costs too much."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=1, choices=[1, 2, 4], help="of the ResNet-20 (default 1)")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--bends", type=int, nargs="+", default=[1, 3])
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--out", type=Path, help="folder to write curve_cost.json and curve_cost.md to")
    options = parser.parse_args(arguments)
    try:
        found = study(options.width, options.batch, options.bends, options.repetitions)
    except Absent as reason:
        print(f"skipped: {reason}")
        return 0
    print(markdown(found))
    for name, text in (
        ("json", json.dumps(found, indent=1) + "\n"),
        ("md", "# A step on a curve\n\n" + markdown(found)),
    ):
        if options.out is not None:
            with replacing(options.out / f"curve_cost.{name}") as temporary:
                temporary.write_text(text, encoding="utf-8")
    short = failures(found)
    for line in short:
        print("falls short:", line)
    return 1 if short else 0


if __name__ == "__main__":
    sys.exit(main())
