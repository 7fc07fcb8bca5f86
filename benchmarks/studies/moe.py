"""Mixtures of experts of different seeds, as in Tran et al. 2025: in a frozen transformer, and trained from scratch.

python -m benchmarks.studies.moe --scale cpu --work runs/moe --out benchmarks/results

Trained networks stay in the work folder; a run that is stopped goes on from there.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from benchmarks.studies.data import Absent
from benchmarks.studies.moe_networks import Text, scratch, tinyshakespeare, trained, transplanted


@dataclass(frozen=True)
class Scale:
    """How much is trained and measured."""

    kinds: tuple[str, ...]
    layers: tuple[str, ...]
    length: int
    batch: int
    steps: int
    scratch_kinds: tuple[str, ...]
    scratch_steps: int
    width: int
    depth: int
    windows: int
    points: int


SCALES = {
    "tiny": Scale(("top2",), ("first",), 16, 2, 2, ("top2",), 2, 16, 1, 4, 3),
    "cpu": Scale(("dense", "top2", "shared"), ("first", "all"), 64, 8, 300, ("top2",), 800, 64, 2, 64, 25),
    "full": Scale(
        ("dense", "top2", "shared"), ("first", "all"), 128, 64, 5000, ("dense", "top2", "shared"), 10000, 128, 4, 512,
        25,
    ),
}  # fmt: skip


def pairs(scale: Scale, text: Text, work: Path) -> dict[str, tuple[nn.Module, nn.Module]]:
    """Two trained networks for every setting; names begin with "frozen" or "scratch"."""
    found: dict[str, tuple[nn.Module, nn.Module]] = {}
    for layers in scale.layers:
        for kind in scale.kinds:
            name = f"frozen {kind} {layers}"
            ends = [
                trained(
                    transplanted(kind, layers, seed), text, work / f"{name.replace(' ', '_')}_{seed}.safetensors",
                    steps=scale.steps, batch=scale.batch, lr=3e-3, seed=seed,
                )
                for seed in (1, 2)
            ]  # fmt: skip
            found[name] = ends[0], ends[1]
    for kind in scale.scratch_kinds:
        name = f"scratch {kind}"
        ends = [
            trained(
                scratch(kind, seed, scale.width, scale.depth), text,
                work / f"{name.replace(' ', '_')}_{seed}.safetensors",
                steps=scale.scratch_steps, batch=2 * scale.batch, lr=3e-3, seed=seed,
            )
            for seed in (1, 2)
        ]  # fmt: skip
        found[name] = ends[0], ends[1]
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", choices=SCALES, default="cpu")
    parser.add_argument("--work", type=Path, default=Path("runs/moe"), help="folder of the trained networks")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parents[1] / "results")
    options = parser.parse_args(arguments)
    scale = SCALES[options.scale]
    try:
        text = tinyshakespeare(scale.length)
        ends = pairs(scale, text, options.work)
    except Absent as reason:
        print(f"skipped: {reason}")
        return 0
    print(len(ends))
    return 0


if __name__ == "__main__":
    sys.exit(main())
