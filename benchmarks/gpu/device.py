"""The device of a run: why there is none, what it is, and contestants that end when the device has ended."""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import ON_DEVICE, versions
from benchmarks.record import Contestant
from pyalign import engine

__all__ = ["contestant", "describe", "run_tests", "why_not"]

ROOT = Path(__file__).resolve().parents[2]


def why_not() -> list[str]:
    """Why nothing can be measured on a CUDA device here; empty where it can."""
    if not torch.cuda.is_available():
        found = "sees no CUDA device" if torch.version.cuda else "is built without CUDA"
        reasons = [f"torch {torch.__version__} {found}"]
        if importlib.util.find_spec("pyalign._cuda") is not None:
            reasons.append(importlib.import_module("pyalign._cuda").why_not(0))
        return [reason for reason in reasons if reason]
    names = ("cuda", "triton")
    rows = [row for row in engine.backends() if row.implementation in names and not row.available]
    return [f"{row.operation}: {'; '.join(row.reasons)}" for row in rows]


def describe() -> dict[str, str]:
    """Name, capability, memory and CUDA version."""
    found = torch.cuda.get_device_properties(0)
    return {
        "device": found.name,
        "compute capability": f"{found.major}.{found.minor}",
        "multiprocessors": str(found.multi_processor_count),
        "device memory": f"{found.total_memory / 2**30:.1f} GiB",
        "torch CUDA": str(torch.version.cuda),
        **versions(ON_DEVICE),
    }


def contestant(name: str, role: str, run: Callable[[], Any], device: str) -> Contestant:
    """A contestant whose time ends when the device has done its work."""
    if device == "cpu":
        return Contestant(name, role, run)

    def finished() -> Any:
        answer = run()
        torch.cuda.synchronize()
        return answer

    return Contestant(name, role, finished)


def run_tests() -> int:
    """Run `pytest -m gpu`; gives its exit status. No figure is worth anything before these pass."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", str(ROOT / "tests")]
    return subprocess.run(command, cwd=ROOT, check=False).returncode
