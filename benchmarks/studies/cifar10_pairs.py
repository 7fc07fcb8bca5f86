"""The main job on trained networks: align, interpolate, measure the barrier, against the plain method's numbers.

python -m benchmarks.studies.cifar10_pairs --draws 1 --out benchmarks/results
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

import pyalign
from benchmarks.studies.data import Absent, Images, cifar10, pair
from benchmarks.studies.timing import cost_of_aligning
from pyalign._atomic import replacing
from pyalign.errors import PyalignWarning

POSITIONS = (0.0, 0.25, 0.5, 0.75, 1.0)
ALLOWANCE = 0.005
MOST_COST = 1.3
BATCH = {"mlp": 1000, "resnet20": 250}
# Loss barrier, accuracy barrier, accuracy at t = 0.5 of a plain scipy and float64 implementation, on one random draw.
PLAIN = {
    ("mlp", "none", False): (0.943, 0.398, 0.135),
    ("mlp", "activation", False): (0.104, 0.020, 0.513),
    ("mlp", "weight", False): (0.132, 0.028, 0.505),
    ("resnet20", "none", False): (2.407, 0.735, 0.099),
    ("resnet20", "activation", False): (2.326, 0.686, 0.148),
    ("resnet20", "activation", True): (0.454, 0.151, 0.676),
    ("resnet20", "weight", False): (2.767, 0.709, 0.125),
    ("resnet20", "weight", True): (0.900, 0.275, 0.552),
}


@dataclass(frozen=True)
class Row:
    """One method on one pair and one random draw of images."""

    pair: str
    method: str
    recalibrated: bool
    draw: int
    t: tuple[float, ...]
    loss: tuple[float, ...]
    accuracy: tuple[float, ...]
    loss_barrier: float
    accuracy_barrier: float
    accuracy_middle: float
    seconds: float
    objective: float | None


def rows_of(name: str, draw: int, seed: int, images: int, batch: int) -> Iterator[Row]:
    """Every method on one pair, with statistics from random training images, measured on random test images."""
    a, b = pair(name)
    training = cifar10("train", images, seed=seed + 2 * draw)
    test = cifar10("test", images, seed=seed + 2 * draw + 1).batches(500)
    inputs = [x for x, _ in training.batches(batch)]
    for method in ("none", "activation", "weight"):
        alignment = None if method == "none" else pyalign.align(a, b, inputs, method=method, seed=seed + draw)
        moved = b if alignment is None else alignment.apply(b)
        for recalibrate in (None, inputs) if name == "resnet20" else (None,):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", PyalignWarning)
                record = pyalign.barrier(a, moved, test, t=POSITIONS, recalibrate=recalibrate)
            assert record.accuracy is not None
            yield Row(
                pair=name,
                method=method,
                recalibrated=recalibrate is not None,
                draw=draw,
                t=record.t,
                loss=record.loss,
                accuracy=record.accuracy,
                loss_barrier=record.loss_barrier,
                accuracy_barrier=float(record.accuracy_barrier or 0.0),
                accuracy_middle=record.accuracy[len(record.t) // 2],
                seconds=0.0 if alignment is None else sum(alignment.seconds.values()),
                objective=None if alignment is None else alignment.objective,
            )


def summary(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Medians over the draws, beside the plain method's numbers."""
    lines = []
    for key in dict.fromkeys((r.pair, r.method, r.recalibrated) for r in rows):
        mine = [r for r in rows if (r.pair, r.method, r.recalibrated) == key]
        barriers = [r.loss_barrier for r in mine]
        plain = PLAIN.get(key)
        line: dict[str, Any] = {"pair": key[0], "method": key[1], "recalibrated": key[2], "draws": len(mine)}
        line["loss_barrier"] = statistics.median(barriers)
        line["loss_barrier_range"] = [min(barriers), max(barriers)]
        line["accuracy_barrier"] = statistics.median(r.accuracy_barrier for r in mine)
        line["accuracy_middle"] = statistics.median(r.accuracy_middle for r in mine)
        line["plain_loss_barrier"] = None if plain is None else plain[0]
        judged = plain is not None and key[1] != "none"
        line["reached"] = line["loss_barrier"] <= plain[0] + ALLOWANCE if judged and plain is not None else None
        lines.append(line)
    return lines


def markdown(lines: Sequence[dict[str, Any]], costs: dict[str, dict[str, Any]], settings: dict[str, Any]) -> str:
    """The tables of the study."""
    head = "| pair | method | BatchNorm | loss barrier | plain method | accuracy barrier | accuracy at t = 0.5 |"
    out = [head, "|---|---|---|---|---|---|---|"]
    for line in lines:
        low, high = line["loss_barrier_range"]
        spread = f" ({low:.3f} to {high:.3f})" if line["draws"] > 1 else ""
        plain = "" if line["plain_loss_barrier"] is None else f"{line['plain_loss_barrier']:.3f}"
        norm = "" if line["pair"] == "mlp" else "re-estimated at every t" if line["recalibrated"] else "interpolated"
        cells = [line["pair"], line["method"], norm, f"{line['loss_barrier']:.3f}{spread}", plain]
        cells += [f"{line['accuracy_barrier']:.3f}", f"{line['accuracy_middle']:.3f}"]
        out.append("| " + " | ".join(cells) + " |")
    out += ["", "| pair | aligning by activations | two forward passes | ratio (wall clock) | ratio (processor) |"]
    out += ["|---|---|---|---|---|"]
    for name, cost in costs.items():
        times = f"{cost['align_wall_seconds']:.2f} s | {cost['forward_wall_seconds']:.2f} s"
        out.append(f"| {name} | {times} | {cost['wall_ratio']:.2f} | {cost['processor_ratio']:.2f} |")
    out += [
        "",
        f"{settings['images']} random training images for statistics, as many test images, {settings['draws']} "
        f"random draw(s) (median, range), t = 0, 0.25, 0.5, 0.75, 1; {settings['machine']}, "
        f"{settings['threads']} thread(s), torch {settings['torch']}, pyalign {settings['pyalign']}.",
    ]
    return "\n".join(out) + "\n"


def plot(rows: Sequence[Row], name: str, path: Path) -> None:
    """Loss and accuracy along the line between the two networks of a pair, first draw."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), constrained_layout=True)
    colours = {"none": "#999999", "activation": "#0072b2", "weight": "#d55e00"}
    for row in (r for r in rows if r.pair == name and r.draw == 0):
        label = row.method + (", BatchNorm re-estimated" if row.recalibrated else "")
        style = {"color": colours[row.method], "linestyle": "-" if row.recalibrated or name == "mlp" else ":"}
        for axis, values, what in ((axes[0], row.loss, "test loss"), (axes[1], row.accuracy, "test accuracy")):
            axis.plot(row.t, values, marker="o", label=label, **style)
            axis.set(xlabel="t (0: model A, 1: aligned model B)", ylabel=what)
    axes[0].legend(frameon=False)
    figure.suptitle(f"{name}: between two independently trained networks")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def write(folder: Path, rows: Sequence[Row], costs: dict[str, dict[str, Any]], settings: dict[str, Any]) -> str:
    """Write the table (JSON and Markdown) and the plots, each whole or not at all; return the Markdown."""
    lines = summary(rows)
    table = markdown(lines, costs, settings)
    content = {"settings": settings, "summary": lines, "cost": costs, "rows": [asdict(row) for row in rows]}
    writers: dict[str, Callable[[Path], Any]] = {
        "cifar10_pairs.json": lambda path: path.write_text(json.dumps(content, indent=1) + "\n"),
        "cifar10_pairs.md": lambda path: path.write_text("# Pairs of trained networks on CIFAR-10\n\n" + table),
    }
    for name in dict.fromkeys(row.pair for row in rows):
        writers[f"cifar10_{name}.png"] = lambda path, name=name: plot(rows, name, path)
    for file, save in writers.items():
        with replacing(folder / file) as temporary:
            save(temporary)
    return table


def failures(lines: Sequence[dict[str, Any]], costs: dict[str, dict[str, Any]]) -> list[str]:
    """What falls short of the plain method's numbers or costs too much."""
    found = [
        f"{line['pair']}, {line['method']}{', re-estimated' if line['recalibrated'] else ''}: loss barrier "
        f"{line['loss_barrier']:.3f}, expected at most {line['plain_loss_barrier'] + ALLOWANCE:.3f}"
        for line in lines
        if line["reached"] is False
    ]
    found += [
        f"{name}: aligning costs {cost['wall_ratio']:.2f} times the forward passes, expected at most {MOST_COST}"
        for name, cost in costs.items()
        if cost["wall_ratio"] > MOST_COST
    ]
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the study; the exit status is 1 where a number falls short."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", nargs="+", default=["mlp", "resnet20"], choices=["mlp", "resnet20"])
    parser.add_argument("--draws", type=int, default=1, help="random draws of images (default 1)")
    parser.add_argument("--images", type=int, default=5000, help="training images, and test images (default 5000)")
    parser.add_argument("--batch", type=int, help="batch size for statistics (default: 1000 for mlp, 250 for resnet20)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repetitions", type=int, default=3, help="of the timing, 0 to leave it out (default 3)")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parents[1] / "results")
    options = parser.parse_args(arguments)
    rows: list[Row] = []
    costs: dict[str, dict[str, Any]] = {}
    try:
        for name in options.pairs:
            batch = options.batch or BATCH[name]
            if options.repetitions:
                images: Images = cifar10("train", options.images, options.seed)
                inputs = [x for x, _ in images.batches(batch)]
                costs[name] = cost_of_aligning(*pair(name), inputs, options.repetitions)
            for draw in tqdm(range(options.draws), desc=name, unit="draw", disable=None):
                rows += rows_of(name, draw, options.seed, options.images, batch)
    except Absent as reason:
        print(f"skipped: {reason}")
        return 0
    settings = {
        "images": options.images,
        "batch": options.batch or BATCH,
        "draws": options.draws,
        "seed": options.seed,
        "machine": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "pyalign": pyalign.__version__,
        "python": platform.python_version(),
    }
    print(write(options.out, rows, costs, settings))
    short = failures(summary(rows), costs)
    for line in short:
        print("falls short:", line)
    return 1 if short else 0


if __name__ == "__main__":
    sys.exit(main())
