"""`pyalign doctor`: what runs on this machine, and why something does not."""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import os
import platform
import sys
from typing import Any

import torch

from pyalign import engine
from pyalign.cli.answers import Answer
from pyalign.symmetry.printing import table

__all__ = ["DESCRIPTION", "EXAMPLES", "HELP", "NAME", "add_options", "run"]

NAME = "doctor"
HELP = "what runs on this machine, and why not"
DESCRIPTION = """\
Prints the versions of everything that matters, how the compiled module was built, and for each operation of the engine
which implementations can run here, and why the others cannot. Put its output into a bug report."""
EXAMPLES = ("pyalign doctor",)
PACKAGES = (
    "pyalign-nn", "torch", "numpy", "scipy", "safetensors", "tqdm", "triton", "scikit-learn", "matplotlib", "pillow",
    "transformers",
)  # fmt: skip


def add_options(parser: argparse.ArgumentParser) -> None:
    """This command has no options of its own."""


def run(args: argparse.Namespace) -> Answer:
    """Look around and print."""
    record: dict[str, Any] = {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "devices": [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())],
        "packages": {name: _version(name) for name in PACKAGES},
        "build": engine.build(),
        "backends": engine.backends(),
    }
    return Answer(_text(record), record)


def _text(record: dict[str, Any]) -> str:
    facts = [
        ["python", f"{record['python']} on {record['platform']}"],
        ["cpu", f"{record['machine']}, {record['cpus']} cores, {record['threads']} threads used"],
        ["gpu", ", ".join(record["devices"]) or "none"],
        *([name, version or "not installed"] for name, version in record["packages"].items()),
        *([f"build: {key}", str(value)] for key, value in record["build"].items()),
    ]
    rows = [
        [row.operation, row.implementation, "yes" if row.available else "no", "; ".join(row.reasons)]
        for row in record["backends"]
    ]
    wide = max(len(name) for name, _ in facts)
    lines = [f"{name.ljust(wide)}  {value}" for name, value in facts]
    return "\n".join([*lines, "", table(["operation", "implementation", "runs here", "why not"], rows, limit=400)])


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
