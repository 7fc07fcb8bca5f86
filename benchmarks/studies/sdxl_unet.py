"""Weight matching at the size of Stable Diffusion XL's U-Net: one block in full size, and a reduced U-Net to the end.

python -m benchmarks.studies.sdxl_unet --out benchmarks/results
python -m benchmarks.studies.sdxl_unet --widths 5 --depths 2       a fifth of the widths (they must be multiples of 64)
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

import pyalign
from benchmarks.machine import describe
from benchmarks.studies.unet import Plan, Transformer, UNet, parameters, randomised
from pyalign._atomic import replacing

__all__ = ["block", "main", "matched", "reduced"]

MEBI = 2**20


def reduced(widths: int, depths: int) -> Plan:
    """The plan with every width, but that of a head, and every depth divided."""
    full = Plan()
    return replace(
        full,
        channels=tuple(c // widths for c in full.channels),
        depths=tuple(-(-d // depths) for d in full.depths),
        middle=-(-full.middle // depths),
        text=full.text // widths,
        pooled=full.pooled // widths,
    )


def matched(a: nn.Module, b: nn.Module, inputs: tuple[Tensor, ...], sweeps: int = 100) -> dict[str, Any]:
    """Derive the symmetry and match the weights; seconds of each phase, sizes, and the objective before and after.

    The symmetry is not verified: on random weights that would measure forward passes in bfloat16.
    """
    began = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pyalign.errors.PyalignWarning)
        spec = pyalign.derive(a, inputs)
    derived = time.perf_counter() - began
    method = pyalign.WeightMatching(sweeps=sweeps)
    alignment = pyalign.align(a, b, method=method, spec=spec, verify=False)
    moving = [g for g in spec.groups.values() if g.kind is not pyalign.symmetry.Kind.IDENTITY]
    return {
        "parameters": parameters(a),
        "groups": len(moving),
        "widest group": max(g.size for g in moving),
        "seconds deriving": derived,
        "seconds matching": alignment.seconds["matching"],
        "steps": len(alignment.trace) - 1,
        "converged": not any("still improving" in note for note in alignment.notes),
        "objective before": alignment.trace[0],
        "objective after": alignment.objective,
        "worst gap": alignment.worst_gap,
    }


def block(plan: Plan) -> dict[str, Any]:
    """One transformer block of the widest resolution, in full size, between its projections."""
    width = plan.channels[-1]
    a, b = (randomised(Transformer, (width, 1, plan), seed) for seed in (0, 1))
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(s, generator=generator).bfloat16() for s in ((2, width, 2, 2), (2, 4, plan.text))]
    return matched(a, b, tuple(inputs))


def whole(plan: Plan, sweeps: int) -> dict[str, Any]:
    """A U-Net of this plan, matched with another from different random weights."""
    a, b = (randomised(UNet, (plan,), seed) for seed in (0, 1))
    return matched(a, b, UNet.inputs(plan), sweeps)


def peak() -> float:
    """Most memory that this process ever held, in MiB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / MEBI


def estimate(measured: dict[str, Any], full: int) -> float:
    """Seconds for the full network at the block's rate per parameter."""
    return float(measured["seconds matching"]) * full / int(measured["parameters"])


def markdown(record: dict[str, Any]) -> str:
    """The record as a table and two sentences."""
    columns = {"one block, full size": record["block"], "reduced U-Net": record["reduced"]}
    lines = ["# Weight matching at the size of SDXL's U-Net", "", "| | " + " | ".join(columns) + " |", "|---|---|---|"]
    for key in record["block"]:
        lines.append("| " + " | ".join([key, *(_cell(c.get(key, "")) for c in columns.values())]) + " |")
    plan = record["plan"]
    lines += [
        "",
        f"Random bfloat16 weights. The full U-Net has {record['full parameters']:,} parameters; the reduced one has "
        f"channels {plan['channels']}, transformers of depth {plan['depths']}, in the middle {plan['middle']}.",
        "",
        f"At the block's rate per parameter the full U-Net would take {record['estimate for full'] / 60:.1f} minutes, "
        f"the reduced one {record['estimate for reduced']:.0f} s; it took "
        f"{record['reduced']['seconds matching']:.0f} s.",
        "",
        ", ".join(f"{key} {value}" for key, value in record["machine"].items()) + ".",
    ]
    return "\n".join(lines) + "\n"


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run both parts and write sdxl_unet.json and sdxl_unet.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, default=2, help="divide the reduced U-Net's widths by this (default 2)")
    parser.add_argument("--depths", type=int, default=2, help="divide its transformers' depths by this (default 2)")
    parser.add_argument("--sweeps", type=int, default=100, help="most sweeps (default 100)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parents[1] / "results")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    plan = reduced(options.widths, options.depths)
    with torch.device("meta"):
        full = parameters(UNet(Plan()))
    with tqdm(total=2, desc="one block, full size", unit="part", disable=None) as bar:
        first = {**block(Plan()), "peak memory so far, MiB": peak()}
        bar.update()
        bar.set_description("reduced U-Net")
        second = {**whole(plan, options.sweeps), "peak memory so far, MiB": peak()}
        bar.update()
    record = {
        "machine": describe(),
        "full parameters": full,
        "plan": vars(plan),
        "block": first,
        "reduced": second,
        "estimate for full": estimate(first, full),
        "estimate for reduced": estimate(first, second["parameters"]),
    }
    text = markdown(record)
    for name, content in (("sdxl_unet.json", json.dumps(record, indent=1) + "\n"), ("sdxl_unet.md", text)):
        with replacing(options.out / name) as temporary:
            temporary.write_text(content, encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
