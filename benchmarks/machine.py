"""What the measurements were taken on: machine, threads and versions."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from pyalign import engine

__all__ = ["ON_DEVICE", "describe", "versions"]

PACKAGES = ("pyalign-nn", "torch", "numpy", "scipy", "lapx", "lapjv")
ON_DEVICE = ("triton", "torch-lap-cuda", "torch-linear-assignment")


def describe() -> dict[str, str]:
    """Processor, cores, caches, threads, the engine's build, and the version of every contestant's package."""
    found = {"processor": _processor(), "cores": str(os.cpu_count()), "threads": str(torch.get_num_threads())}
    found |= {"last-level cache": _cache(), "system": platform.platform(), "python": platform.python_version()}
    found |= {f"engine {key}": str(value) for key, value in engine.build().items()}
    return found | versions(PACKAGES)


def versions(packages: Sequence[str]) -> dict[str, str]:
    """The installed version of each package."""
    return {name: _version(name) for name in packages}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _cache() -> str:
    sizes = sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"))
    try:
        return sizes[-1].read_text().strip() if sizes else "unknown"
    except OSError:
        return "unknown"
