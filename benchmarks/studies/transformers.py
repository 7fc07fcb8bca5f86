"""Transformers of different seeds: the loss barrier without alignment, by activations, by weights and learned.

python -m benchmarks.studies.transformers --scale cpu --work runs/transformers --out benchmarks/results

A character GPT on tinyshakespeare and a ViT on CIFAR-10, as in Theus et al. 2025, table 2. Alignments and records
lie in the work folder; a run that is stopped goes on from there.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

import pyalign
from benchmarks.studies.data import Absent, Augmented, cifar10
from benchmarks.studies.transformer_ends import TRAINED, Windows, characters, ends, held_out, windows
from benchmarks.studies.transformer_tables import METHODS, verdicts, write
from pyalign import ActivationMatching, Alignment, LearnedMatching, SymmetrySpec, WeightMatching
from pyalign._atomic import replacing
from pyalign.errors import PyalignWarning
from pyalign.matching import Problem
from pyalign.paths import Barrier
from pyalign.symmetry import Kind, Wreath, derive, fold
from pyalign.symmetry.elements import composed

POSITIONS = tuple(i / 10 for i in range(11))


@dataclass(frozen=True)
class Scale:
    """How much is measured and learnt; `seeds` are those trained besides the shared pair, `batch` that of learning."""

    networks: tuple[str, ...]
    seeds: tuple[tuple[str, tuple[int, ...]], ...]
    test: int
    statistics: int
    steps: tuple[tuple[str, int], ...]
    lr: float
    batch: tuple[tuple[str, int], ...]


SCALES = {
    "tiny": Scale(("gpt",), (("gpt", ()),), 4, 4, (("gpt", 2),), 3e-3, (("gpt", 2),)),
    "cpu": Scale(
        ("gpt", "vit"), (("gpt", ()), ("vit", (1, 2))), 128, 256, (("gpt", 2500), ("vit", 1000)), 1e-2,
        (("gpt", 16), ("vit", 64)),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Given:
    """What one network is aligned and measured with: batches of statistics, of learning and of the test."""

    inputs: list[Any]
    learning: Iterable[Any]
    test: list[Any]


def given_for(network: str, scale: Scale) -> Given:
    """The data of a network.

    Raises:
        Absent: It is not on this machine.
    """
    batch = dict(scale.batch)[network]
    if network == "gpt":
        text = characters()
        starts = torch.randint(TRAINED - 256, (scale.statistics,), generator=torch.Generator().manual_seed(0))
        seen = windows(text, starts)[0]
        learning = Windows(text, batch, dict(scale.steps)[network], seed=5)
        return Given(list(seen.split(32)), learning, held_out(text, scale.test, 32))
    train, test = cifar10("train", 20000, seed=3), cifar10("test", 8 * scale.test, seed=1)
    seen = train.x[: 8 * scale.statistics]
    return Given(list(seen.split(256)), Augmented(train, batch, seed=5), test.batches(256))


class Study:
    """One pair of networks, with everything that was found about it in a folder."""

    def __init__(self, network: str, a: nn.Module, b: nn.Module, given: Given, scale: Scale, work: Path) -> None:
        self.network, self.a, self.b, self.given, self.scale, self.work = network, a, b, given, scale, work
        self._folded: tuple[nn.Module, nn.Module, SymmetrySpec] | None = None

    def folded(self) -> tuple[nn.Module, nn.Module, SymmetrySpec]:
        """Both models with the scales of their norms in the readers, and the symmetry of all classes."""
        if self._folded is None:
            example = self.given.inputs[0][:2]
            one, two = fold(self.a, example), fold(self.b, example)
            spec = derive(one.model, example, within=Kind.INVERTIBLE, constants=one.constants)
            self._folded = one.model, two.model, spec
        return self._folded

    def plain(self) -> SymmetrySpec:
        """The permutations of the models as they are; heads move as wholes, as in the paper."""
        spec = derive(self.a, self.given.inputs[0][:2], within=Kind.PERMUTATION)
        return pyalign.declare(self.a, {}, base=spec, fixed=sorted(spec.placed))

    def measured(self, method: str) -> Barrier:
        """The barrier of a method."""
        path = self.work / f"{self.network}-{method.replace(' ', '-').replace(',', '')}.json"
        if path.is_file():
            return Barrier.from_dict(json.loads(path.read_text(encoding="utf-8")))
        a, b = self.folded()[:2] if "all" in method else (self.a, self.b)
        moved = b if method == "vanilla" else self.alignment(method).apply(b)
        record = pyalign.barrier(a, moved, self.given.test, t=POSITIONS)
        record.to_json(path)
        return record

    def alignment(self, method: str) -> Alignment:
        """The alignment of a method, found or read back."""
        path = self.work / f"{self.network}-{method.replace(' ', '-').replace(',', '')}.safetensors"
        if not path.is_file():
            found = self._found(method, path)
            with replacing(path) as temporary:
                found.save(temporary)
        return Alignment.load(path)

    def _found(self, method: str, path: Path) -> Alignment:
        if method == "activation":
            return self._heads_and_units()
        everything = "all" in method
        a, b, spec = self.folded() if everything else (self.a, self.b, self.plain())
        if method.startswith("weight"):
            return WeightMatching(sweeps=30).match(Problem(a, b, spec))
        start = self.alignment(method.replace("learned", "weight"))
        if everything:
            start = units_by_activations(start, a, b, self.given.inputs)
        learned = LearnedMatching(
            start=start, steps=dict(self.scale.steps)[self.network], lr=self.scale.lr,
            checkpoint=path.with_suffix(".search.safetensors"), every=50,
        )  # fmt: skip
        return learned.match(Problem(a, b, spec, self.given.learning))

    def _heads_and_units(self) -> Alignment:
        """Heads and units of the feed-forward layers by their activations; the residual stream stays."""
        spec = self.plain()
        found = ActivationMatching().match(Problem(self.a, self.b, spec, self.given.inputs))
        stream = max(spec.groups, key=lambda name: len(spec.of(name)))
        stay = spec.identity().transforms[stream]
        return found.with_transforms({**found.transforms, stream: stay})


def units_by_activations(start: Alignment, a: nn.Module, b: nn.Module, inputs: list[Any]) -> Alignment:
    """The start with feed-forward units matched by what they do instead.

    They correlate three times as well as those matched by weights, and learning comes further in as many steps.
    """
    spec = derive(a, inputs[0][:2])
    seen = ActivationMatching().match(Problem(a, start.apply(b), spec, inputs))
    outer = {g.structure.outer for g in start.spec.groups.values() if isinstance(g.structure, Wreath)}
    elements = dict(start.transforms)
    for name, group in start.spec.groups.items():
        if group.kind is Kind.PERMUTATION and name not in outer and name in seen.transforms:
            elements[name] = composed(seen.transforms[name], elements[name])
    return start.with_transforms(elements, method=f"{start.method}, units by activations")


def carry_out(scale: Scale, work: Path, methods: Sequence[str] = METHODS) -> dict[str, Any]:
    """The methods on all networks; what is done already is read back."""
    rows = []
    for network in scale.networks:
        a, b = ends(network, dict(scale.seeds)[network], work)[:2]
        study = Study(network, a, b, given_for(network, scale), scale, work)
        for method in methods:
            record = study.measured(method)
            rows.append({"network": network, "method": method, **record.to_dict()})
    return {"rows": rows, "falls_short": verdicts(rows) if set(METHODS) <= set(methods) else []}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the study; the exit status is 1 where it falls short of what was published."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", choices=tuple(SCALES), default="cpu", help="tiny only tries the code")
    parser.add_argument("--networks", nargs="+", choices=["gpt", "vit"], help="only these")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS, help="only these, without the tables")
    parser.add_argument("--work", type=Path, required=True, help="folder for networks, alignments and records")
    parser.add_argument("--out", type=Path, required=True, help="folder for the tables")
    options = parser.parse_args(arguments)
    scale = SCALES[options.scale]
    if options.networks:
        scale = Scale(**{**asdict(scale), "networks": tuple(options.networks)})
    options.work.mkdir(parents=True, exist_ok=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PyalignWarning)
            content = carry_out(scale, options.work, options.methods)
    except Absent as reason:
        print(f"skipped: {reason}")
        return 0
    if set(options.methods) != set(METHODS):
        return 0
    content["settings"] = {
        "scale": options.scale, "torch": torch.__version__, "pyalign": pyalign.__version__,
        "machine": platform.processor() or platform.machine(), **asdict(scale),
    }  # fmt: skip
    print(write(options.out, content))
    return 1 if content["falls_short"] else 0


if __name__ == "__main__":
    sys.exit(main())
