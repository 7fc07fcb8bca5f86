"""The GPU's linear assignment by threads that meet only at barriers, watched for data races: every barrier is there."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMPILER = os.environ.get("CXX", "g++")


def built(sources, folder):
    """Build with the thread sanitizer; skips where the compiler has none."""
    if platform.system() != "Linux" or shutil.which(COMPILER) is None or shutil.which("setarch") is None:
        pytest.skip(f"needs Linux, {COMPILER} and setarch")
    options = ["-std=c++20", "-O1", "-g1", "-ffp-contract=off", "-fsanitize=thread", "-pthread"]
    command = [COMPILER, *options, f"-I{sources}", str(ROOT / "tests/engine/team_of_threads.cpp"), "-o", "team"]
    made = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if made.returncode != 0 and "tsan" in made.stderr:
        pytest.skip(f"{COMPILER} has no thread sanitizer here: {made.stderr[:200]}")
    assert made.returncode == 0, made.stderr
    return folder / "team"


def run(program):
    environment = {**os.environ, "TSAN_OPTIONS": "halt_on_error=1"}
    environment.pop("LD_PRELOAD", None)  # of .ci/sanitize
    # The sanitizer needs addresses that are not randomised.
    return subprocess.run(
        ["setarch", "-R", str(program)], env=environment, capture_output=True, text=True, timeout=120
    )  # fmt: skip


@pytest.mark.slow
def test_no_barrier_is_missing(tmp_path):
    done = run(built(ROOT / "csrc", tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    counts = [int(part.split()[0]) for part in done.stdout.split(", ")]
    assert sum(counts) == 60 and all(counts), done.stdout


@pytest.mark.slow
def test_a_missing_barrier_is_seen(tmp_path):
    """The one before the gap is summed, on which nothing depends that the threads decide by."""
    sources = tmp_path / "csrc"
    shutil.copytree(ROOT / "csrc", sources)
    file = sources / "linear_assignment" / "parallel_solver.h"
    before, after = file.read_text().split("team_.sync();\n        const int32_t chunks")
    file.write_text(f"{before}const int32_t chunks{after}")
    done = run(built(sources, tmp_path))
    assert done.returncode != 0 and ("data race" in done.stderr or "another answer" in done.stdout), done.stderr
