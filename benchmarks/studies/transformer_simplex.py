"""Three transformers in one frame: the loss over the simplex that they span, as in Theus et al. 2025, section 5.4.

python -m benchmarks.studies.transformer_simplex --scale cpu --work runs/transformers --out benchmarks/results

The shared pair of character GPTs and a third of the same recipe. Networks, alignments and records lie in the work
folder; a run that is stopped goes on from there.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn

import pyalign
from benchmarks.studies.data import Absent
from benchmarks.studies.transformer_ends import ends
from benchmarks.studies.transformers import SCALES as PAIRS
from benchmarks.studies.transformers import Given, given_for, units_by_activations
from pyalign import Alignment, LearnedMatching, WeightMatching
from pyalign._atomic import replacing
from pyalign.errors import PyalignWarning
from pyalign.matching import Problem, universe
from pyalign.paths import SimplexBarrier, simplex_barrier
from pyalign.symmetry import Kind, derive, fold

METHODS = ("none", "weights, to the first", "weights, universe", "learned, universe")


@dataclass(frozen=True)
class Scale:
    """How much is trained, learnt and measured.

    Args:
        seeds: Of the networks beside the shared pair.
        training: Steps of their training; None: those of the recipe.
        visits: Which network is learnt, one after the other, each to the mean of the first and those learnt before.
        steps: Of each visit.
        sweeps: Most of each weight matching.
        rounds: Most of the universe.
        resolution: Of the grid over the simplex.
        data: Scale of the study of pairs whose batches are used.
        test: Test windows.
    """

    seeds: tuple[int, ...]
    training: int | None
    visits: tuple[int, ...]
    steps: int
    sweeps: int
    rounds: int
    resolution: int
    data: str
    test: int


SCALES = {
    "tiny": Scale((3,), 2, (1, 2), 2, 1, 1, 3, "tiny", 4),
    "cpu": Scale((3,), None, (1, 2, 1), 400, 10, 4, 6, "cpu", 64),
}


class Simplex:
    """Networks of one architecture, with what was found about them in a folder."""

    def __init__(self, models: Sequence[nn.Module], given: Given, scale: Scale, work: Path) -> None:
        example = given.inputs[0][:2]
        folded = [fold(model, example) for model in models]
        self.models = [f.model for f in folded]
        self.spec = derive(self.models[0], example, within=Kind.INVERTIBLE, constants=folded[0].constants)
        self.given, self.scale, self.work = given, scale, work
        self.by_weights = WeightMatching(sweeps=scale.sweeps)

    def measured(self, method: str) -> SimplexBarrier:
        """The simplex of the networks as a method leaves them."""
        path = self.work / f"simplex-{method.replace(' ', '-').replace(',', '')}.json"
        if path.is_file():
            content = json.loads(path.read_text(encoding="utf-8"))
            return SimplexBarrier(tuple(map(tuple, content["weights"])), *map(tuple, _values(content)))
        moved = [a.apply(m) for a, m in zip(self.alignments(method), self.models, strict=True)]
        record = simplex_barrier(moved, self.given.test, resolution=self.scale.resolution)
        record.to_json(path)
        return record

    def alignments(self, method: str) -> list[Alignment]:
        """Of each network into the common frame."""
        if method == "none":
            return [self.spec.identity()] * len(self.models)
        if method == "weights, to the first":
            first = self.models[0]
            found = [self.by_weights.match(Problem(first, m, self.spec)) for m in self.models[1:]]
            return [self.spec.identity(), *found]
        return self.framed if method == "weights, universe" else self.learned()

    @cached_property
    def framed(self) -> list[Alignment]:
        """By weights, each to the mean of the others."""
        paths = [self.work / f"simplex-universe-{k}.safetensors" for k in range(len(self.models))]
        if not all(path.is_file() for path in paths):
            found = universe(self.models, self.spec, method=self.by_weights, sweeps=self.scale.rounds).alignments
            for path, alignment in zip(paths, found, strict=True):
                with replacing(path) as temporary:
                    alignment.save(temporary)
        return [Alignment.load(path) for path in paths]

    def learned(self) -> list[Alignment]:
        """From the universe on by the loss: the first network stays, the others are learnt by turns."""
        found = list(self.framed)
        present = {0: found[0].apply(self.models[0])}
        for visit, k in enumerate(self.scale.visits):
            path = self.work / f"simplex-learned-{visit}.safetensors"
            others = [model for j, model in present.items() if j != k]
            if not path.is_file():
                if k not in present:
                    found[k] = units_by_activations(found[k], others[0], self.models[k], self.given.inputs)
                learnt = self._to_the_mean(found[k], others, k, path)
                with replacing(path) as temporary:
                    learnt.save(temporary)
            found[k] = Alignment.load(path)
            present[k] = found[k].apply(self.models[k])
        return found

    def _to_the_mean(self, start: Alignment, others: list[nn.Module], k: int, path: Path) -> Alignment:
        """Network k learnt to the mean of others, around the weight that it has in the mean of all."""
        middle = 1 / (1 + len(others))
        method = LearnedMatching(
            start=start, steps=self.scale.steps, t=(middle - 0.1, middle + 0.1), every=50,
            checkpoint=path.with_suffix(".search.safetensors"),
        )  # fmt: skip
        frame = mean_of(others)
        return method.match(Problem(frame, self.models[k], self.spec, self.given.learning))


def mean_of(models: Sequence[nn.Module]) -> nn.Module:
    """The mean of the models' weights."""
    mean = models[0]
    for count, model in enumerate(models[1:], 2):
        mean = pyalign.interpolate(mean, model, t=1 / count)
    return mean


def _values(content: dict[str, Any]) -> list[list[float]]:
    return [content[key] for key in ("loss", "accuracy") if content[key] is not None]


def row_of(method: str, record: SimplexBarrier) -> dict[str, Any]:
    """What the table shows of a simplex: its centre of mass, its worst point, and its edges."""
    count = len(record.weights[0])
    centre = min(range(len(record.weights)), key=lambda i: max(record.weights[i]))
    alone = [record.loss[record.weights.index(tuple(float(j == k) for j in range(count)))] for k in range(count)]
    return {
        "method": method,
        "centre": record.loss[centre],
        "centre_barrier": record.loss[centre] - sum(alone) / count,
        "models": alone,
        "edges": {f"{i}-{j}": edge(record, i, j).loss_barrier for i, j in combinations(range(count), 2)},
        **record.to_dict(),
    }


def edge(record: SimplexBarrier, i: int, j: int) -> SimplexBarrier:
    """The part of a simplex between two of its models."""
    on = [p for p, weights in enumerate(record.weights) if weights[i] + weights[j] > 1 - 1e-9]
    return SimplexBarrier(
        tuple((record.weights[p][i], record.weights[p][j]) for p in on), tuple(record.loss[p] for p in on)
    )


def verdicts(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What should hold and does not: networks of one quality, and a simplex that every method lowers."""
    found = []
    models = rows[0]["models"]
    if max(models) - min(models) > 0.05:
        found.append(f"the losses of the networks differ by {max(models) - min(models):.3f}, expected at most 0.05")
    for high, low in pairwise(row for row in rows if row["method"] != "weights, to the first"):
        for key, words in (("centre_barrier", "centre of mass"), ("loss_barrier", "worst point")):
            if low[key] >= high[key]:
                found.append(
                    f"{words}: {low['method']} ({low[key]:.3f}) is not below {high['method']} ({high[key]:.3f})"
                )
    return found


def markdown(content: dict[str, Any]) -> str:
    """The table of the study."""
    models = content["rows"][0]["models"]
    edges = list(content["rows"][0]["edges"])
    out = ["| aligned by | loss at the centre of mass | barrier there | barrier of the simplex | at weights | "]
    out[0] += " | ".join(f"barrier {name}" for name in edges) + " |"
    out.append("|" + "---|" * (5 + len(edges)))
    for row in content["rows"]:
        where = ", ".join(f"{w:.2f}" for w in row["highest"])
        cells = [row["method"], f"{row['centre']:.3f}", f"{row['centre_barrier']:.3f}", f"{row['loss_barrier']:.3f}"]
        out.append("| " + " | ".join([*cells, where, *(f"{row['edges'][name]:.3f}" for name in edges)]) + " |")
    settings = content["settings"]
    out += [
        "",
        f"Character GPTs on tinyshakespeare: 0 and 1 the shared pair, then one for each seed of {settings['seeds']}; "
        f"losses {', '.join(f'{m:.3f}' for m in models)} on {settings['test']} test windows. All classes, the scales "
        f"of norms folded into their readers. Weights are multiples of 1/{settings['resolution']}; the last "
        f"columns are the edges of the simplex. Learned: network 0 stays, networks {settings['visits']} by turns to "
        f"the mean of it and those learnt before, {settings['steps']} steps each. torch {settings['torch']}, pyalign "
        f"{settings['pyalign']}, {settings['machine']}.",
    ]
    out += ["", *(f"Falls short: {line}." for line in content["falls_short"])] if content["falls_short"] else []
    return "\n".join(out) + "\n"


def write(folder: Path, content: dict[str, Any]) -> str:
    """Write the table as JSON and Markdown, each whole or not at all; return the Markdown."""
    folder.mkdir(parents=True, exist_ok=True)
    table = markdown(content)
    texts = {"json": json.dumps(content, indent=1) + "\n", "md": "# Three transformers in one frame\n\n" + table}
    for name, text in texts.items():
        with replacing(folder / f"transformer_simplex.{name}") as temporary:
            temporary.write_text(text, encoding="utf-8")
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the study; the exit status is 1 where it falls short."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", choices=tuple(SCALES), default="cpu", help="tiny only tries the code")
    parser.add_argument("--work", type=Path, required=True, help="folder for networks, alignments and records")
    parser.add_argument("--out", type=Path, required=True, help="folder for the tables")
    options = parser.parse_args(arguments)
    scale = SCALES[options.scale]
    options.work.mkdir(parents=True, exist_ok=True)
    learning = (("gpt", scale.steps),)
    data = replace(PAIRS[scale.data], test=scale.test, steps=learning)
    try:
        models = ends("gpt", scale.seeds, options.work, scale.training)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PyalignWarning)
            study = Simplex(models, given_for("gpt", data), scale, options.work)
            rows = [row_of(method, study.measured(method)) for method in METHODS]
    except Absent as reason:
        print(f"skipped: {reason}")
        return 0
    settings = {
        **asdict(scale), "torch": torch.__version__, "pyalign": pyalign.__version__,
        "machine": platform.processor() or platform.machine(),
    }  # fmt: skip
    content = {"rows": rows, "falls_short": verdicts(rows), "settings": settings}
    print(write(options.out, content))
    return 1 if content["falls_short"] else 0


if __name__ == "__main__":
    sys.exit(main())
