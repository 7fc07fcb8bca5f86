"""Whole checkpoints aligned from disk: how near, how long against the matrix products alone, how much memory.

A is a Llama of random bfloat16 weights; B is a random element of its symmetry group applied to A, plus noise. Both are
written shard by shard, aligned in a process of its own, compared tensor by tensor, and deleted.

python -m benchmarks.studies.checkpoints --size 1b --folder /tmp/checkpoints --out benchmarks/results
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import resource
import shutil
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyalign._atomic import replacing
from pyalign.io import StateReader, bare_model, open_state, save_folder
from pyalign.io.huggingface import example_of
from pyalign.io.reader import Entry
from pyalign.matching import WeightMatching, align_folders
from pyalign.symmetry import Alignment, Kind, Role, SymmetrySpec, derive
from pyalign.symmetry.actions import act

SIZES = {
    "tiny": (256, 688, 2, 8, 2, 2000),
    "100m": (768, 2048, 12, 12, 4, 32000),
    "1b": (2048, 5632, 22, 32, 4, 32000),
    "7b": (4096, 11008, 32, 32, 32, 32000),
}
"""Width, inner width, layers, heads, key-value heads, vocabulary."""
NOISE = 0.01  # of the spread of the weights
SPREAD = 0.02
SHARD = 500_000_000
MEMORY = 6.0  # GB


def configuration(size: str) -> Any:
    """The Llama of a size."""
    from transformers import LlamaConfig

    width, inner, layers, heads, groups, words = SIZES[size]
    return LlamaConfig(
        hidden_size=width, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=groups, vocab_size=words, dtype="bfloat16", architectures=["LlamaForCausalLM"],
    )  # fmt: skip


def drawn(name: str, shape: tuple[int, ...], salt: int) -> Tensor:
    """Standard normal numbers that belong to a tensor's name."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()) + salt)
    return torch.randn(shape, generator=generator)


def write_pair(size: str, folder: Path) -> SymmetrySpec:
    """Write A and B, and the planted element."""
    blank = folder / "blank"
    configuration(size).save_pretrained(blank)
    model = bare_model(blank)
    spec = derive(model, example_of(model), within=Kind.INVERTIBLE)
    planted = spec.random(0)
    planted.save(folder / "planted.safetensors")
    entries = {n: Entry(s, 2 * math.prod(s), blank / "config.json", "bfloat16") for n, s in spec.shapes.items()}

    def weights(name: str) -> Tensor:
        x = SPREAD * drawn(name, spec.shapes[name], 0)
        return (x + 1 if len(spec.shapes[name]) == 1 else x).bfloat16()

    def moved(name: str) -> Tensor:
        x = act(weights(name).double(), spec.on(name), planted.transforms).float()
        return x.add_(drawn(name, spec.shapes[name], 1), alpha=NOISE * SPREAD).bfloat16()

    for side, fetch in (("a", weights), ("b", moved)):
        save_folder(StateReader(entries, fetch), folder / side, max_shard_bytes=SHARD)
        shutil.copyfile(blank / "config.json", folder / side / "config.json")
    shutil.rmtree(blank)
    return spec


@contextmanager
def watched() -> Iterator[Callable[[], float]]:
    """Samples, fifty times a second, the memory that is this process's own (no file pages); answers its peak in GB."""
    peak, done = [0.0], threading.Event()

    def look() -> None:
        while not done.wait(0.02):
            for line in Path("/proc/self/status").read_text().splitlines():
                if line.startswith("RssAnon:"):
                    peak[0] = max(peak[0], int(line.split()[1]) * 1024 / 1e9)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield lambda: peak[0]
    finally:
        done.set()
        thread.join()


def align_once(folder: Path, sweeps: int) -> dict[str, Any]:
    """Align B to A; what it took."""
    torch.set_num_threads(2)
    began, processor = time.perf_counter(), time.process_time()
    with watched() as own:
        method = WeightMatching(sweeps=sweeps)
        found = align_folders(
            folder / "a", folder / "b", folder / "out", method=method, max_shard_bytes=SHARD, progress=True
        )
        record = {
            "own_peak_gb": own(),
            "resident_peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
        }
    record |= {
        "wall_s": time.perf_counter() - began,
        "processor_s": time.process_time() - processor,
        "objective": found.objective,
        "sweeps_at_most": sweeps,
        "seconds": found.seconds,
        "worst_gap": found.worst_gap,
    }
    found.save(folder / "found.safetensors")
    return {**record, **products(found.spec)}


def products(spec: SymmetrySpec) -> dict[str, float]:
    """The products of one pass over all groups, and what they take alone, at the speed of the largest of them here."""
    work: dict[tuple[int, int], int] = {}
    for b in spec.bindings:
        if b.role is Role.MATCHED and not b.placed:
            shape, units = spec.shapes[b.tensor], spec.groups[b.group].size
            features = math.prod(shape) // shape[b.axis] * b.positions.shape[1]
            work[units, features] = work.get((units, features), 0) + 2 * units * units * features
    seconds, flops = 0.0, sum(work.values())
    for (units, features), count in work.items():
        if count > 0.02 * flops:
            one = torch.randn(units, features)
            rates = []
            for _ in range(3):
                began = time.process_time()
                one @ one.T
                rates.append((time.process_time() - began) / (2 * units * units * features))
            seconds += count * sorted(rates)[1]
    return {"products_tflop": flops / 1e12, "products_processor_s": seconds}


def judge(spec: SymmetrySpec, folder: Path) -> dict[str, float]:
    """Relative distances to A: of B, of what was written, and of B under the inverse of what was planted."""
    back = Alignment.load(folder / "planted.safetensors").inverse().transforms
    found = Alignment.load(folder / "found.safetensors").transforms
    sums = torch.zeros(4, dtype=torch.float64)
    with open_state(folder / "a") as a, open_state(folder / "b") as b, open_state(folder / "out") as out:
        for name in spec.shapes:
            x, y = a[name].double(), b[name].double()
            parts = (y - x, out[name].double() - x, act(y, spec.on(name), back) - x, x)
            sums += torch.stack([p.square().sum() for p in parts])
    alike = [
        torch.equal(getattr(found[n], "perm"), getattr(back[n], "perm")) for n in spec.groups  # noqa: B009
    ]  # fmt: skip
    distances = (sums[:3] / sums[3]).sqrt().tolist()
    names = ("distance_before", "distance_after", "distance_of_the_planted_inverse")
    return {**dict(zip(names, distances, strict=True)), "groups_in_the_planted_order": sum(alike) / len(alike)}


def study(size: str, folder: Path, sweeps: int) -> dict[str, Any]:
    """Everything about one size."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        spec = write_pair(size, folder)
        words = [
            sys.executable,
            "-m",
            "benchmarks.studies.checkpoints",
            "--align",
            str(folder),
            "--sweeps",
            str(sweeps),
        ]
        answer = json.loads(subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout)
        parameters = sum(math.prod(s) for s in spec.shapes.values())
        files = sum(p.stat().st_size for p in (folder / "a").glob("*.safetensors"))
        return {
            "size": size, "parameters": parameters, "file_gb": files / 1e9, "groups": len(spec.groups), "noise": NOISE,
            **answer, **judge(spec, folder),
        }  # fmt: skip
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def page(records: list[dict[str, Any]]) -> str:
    """The results as Markdown."""
    head = (
        "checkpoint", "parameters", "distance before", "after", "of the planted inverse", "groups in planted order",
        "own memory (GB)", "resident, files included (GB)", "wall (s)", "processor (s)", "products alone (processor s)",
    )  # fmt: skip
    lines = ["# Whole checkpoints", "", "| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for r in records:
        cells = (
            f"Llama {r['size']}", f"{r['parameters'] / 1e6:.0f} M", f"{r['distance_before']:.3f}",
            f"{r['distance_after']:.5f}", f"{r['distance_of_the_planted_inverse']:.5f}",
            f"{r['groups_in_the_planted_order']:.0%}", f"{r['own_peak_gb']:.2f}", f"{r['resident_peak_gb']:.2f}",
            f"{r['wall_s']:.0f}", f"{r['processor_s']:.0f}", f"{r['products_processor_s']:.0f}",
        )  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    lines += [
        "",
        f"bfloat16, noise {NOISE} of the spread of the weights, 2 threads, {platform.machine()}, torch "
        f"{torch.__version__}. Own memory: the peak of RssAnon, sampled 50 times a second; the resident peak counts "
        "pages of the mapped checkpoint files too. Products: one pass over all groups. The machine was loaded by other "
        "work, so the processor's time is the one to read.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", nargs="+", choices=SIZES, default=["100m"])
    parser.add_argument("--folder", type=Path, default=Path("checkpoints"), help="scratch space, deleted afterwards")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument(
        "--sweeps", type=int, default=100, help="at most so many after the pass that anchors the groups"
    )
    parser.add_argument("--align", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.align is not None:
        print(json.dumps(align_once(args.align, args.sweeps)))
        return
    target = args.out / "checkpoints.json"
    known = {r["size"]: r for r in json.loads(target.read_text())} if target.exists() else {}
    for size in args.size:
        known[size] = study(size, args.folder, args.sweeps)
        records = sorted(known.values(), key=lambda r: int(r["parameters"]))
        args.out.mkdir(parents=True, exist_ok=True)
        for file, text in ((target, json.dumps(records, indent=1) + "\n"), (target.with_suffix(".md"), page(records))):
            with replacing(file) as temporary:
                temporary.write_text(text, encoding="utf-8")
        print(json.dumps(known[size], indent=1))


if __name__ == "__main__":
    main()
