"""Curves between networks of different seeds, as in Tatro et al. 2020: unaligned, PAM unaligned, PAM aligned, aligned.

python -m benchmarks.studies.tatro --scale cpu --work runs/tatro --out benchmarks/results

Every phase leaves its result in the work folder; a run that is stopped, by --minutes or otherwise, goes on from there.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import pyalign
from benchmarks.studies.data import MEAN, STD, Absent, Augmented, Images, cifar10, image_folder
from benchmarks.studies.networks import NETWORKS
from benchmarks.studies.tatro_tables import METHODS, row_of, verdicts, write
from pyalign._atomic import replacing
from pyalign.errors import PyalignWarning
from pyalign.matching import PAM, Problem
from pyalign.paths import Correlations, Curve, CurveRecord, PlaneRecord, correlations
from pyalign.report import Run
from pyalign.train import PGD, Normalised, RobustRecord, fit, robust_measure


@dataclass(frozen=True)
class Scale:
    """How much is trained and measured; `width` is that of the first layer by network."""

    networks: tuple[tuple[str, int], ...]
    pairs: int
    images: int
    test: int
    statistics: int
    batch: int
    epochs: int
    lr: float
    curve_epochs: int
    curve_lr: float
    permutation_epochs: int
    points: int
    grid: int
    robust_epochs: int
    robust_curve_epochs: int
    robust_points: int
    robust_test: int
    precision: str = "float32"


SCALES = {
    "tiny": Scale((("tinyten", 4),), 1, 256, 128, 128, 64, 1, 0.1, 1, 0.05, 1, 3, 2, 1, 1, 3, 64),
    "cpu": Scale(
        (("resnet20", 8), ("tinyten", 8)), 2, 10000, 2000, 2000, 128, 15, 0.1, 10, 0.05, 2, 21, 11, 8, 5, 5, 500
    ),
    "paper": Scale(
        (("resnet32", 16), ("tinyten", 16)), 3, 50000, 10000, 10000, 128, 250, 0.1, 250, 0.1, 20, 61, 21, 200, 200, 61,
        10000,
    ),
}  # fmt: skip


def tatro_schedule(epochs: int) -> Callable[[float], float]:
    """Half every 20 of 250 epochs, and 0.9996 an epoch, spread over the epochs that are trained."""

    def factor(fraction: float) -> float:
        return 0.5 ** int(12.5 * fraction) * 0.9996 ** (epochs * fraction)

    return factor


class TimeUp(Exception):
    """The minutes of this run are used up; the next run goes on."""


class Study:
    """One study in a folder: every method computes what it returns once and reads it back afterwards."""

    def __init__(
        self, scale: Scale, work: Path, train: Images, test: Images, device: str, minutes: float | None
    ) -> None:
        self.scale, self.work, self.device = scale, work, device
        self.train, self.test = train, test
        self.until = None if minutes is None else time.monotonic() + 60 * minutes
        self.precision = None if scale.precision == "float32" else getattr(torch, scale.precision)

    def check(self, _step: Any = None) -> None:
        """Stop where the time is used up."""
        if self.until is not None and time.monotonic() > self.until:
            raise TimeUp

    def kept(self, name: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The JSON record of a phase."""
        path = self.work / f"{name}.json"
        if path.is_file():
            return dict(json.loads(path.read_text(encoding="utf-8")))
        self.check()
        began = time.monotonic()
        record = {**compute(), "study_seconds": 0.0}
        record["study_seconds"] = time.monotonic() - began
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(record), encoding="utf-8")
        return record

    def moved(self, x: Tensor) -> Tensor:
        """A batch on the device."""
        return x.to(self.device)

    def pixels(self, x: Tensor) -> Tensor:
        """A normalised batch as pixels in [0, 1], on the device."""
        mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in (MEAN, STD))
        return (x * std + mean).clamp(0, 1).to(self.device)

    def batches(self, images: Images, count: int, robust: bool) -> list[tuple[Tensor, Tensor]]:
        """The first `count` images without augmentation."""
        change = self.pixels if robust else self.moved
        part = Images(images.x[:count], images.y[:count])
        return [(change(x), y.to(self.device)) for x, y in part.batches(512 if count >= 512 else count)]

    def stream(self, seed: int, robust: bool) -> Augmented:
        """Training batches."""
        return Augmented(self.train, self.scale.batch, seed, self.pixels if robust else self.moved)

    def end(self, name: str, width: int, seed: int, robust: bool) -> nn.Module:
        """A trained network."""
        torch.manual_seed(seed)
        classes = int(self.train.y.max()) + 1
        model: nn.Module = NETWORKS[name](width, classes)
        model = (Normalised(model, MEAN, STD) if robust else model).to(self.device)
        s, stem = self.scale, self.work / f"{name}-{'robust-' if robust else ''}{seed}"
        epochs = s.robust_epochs if robust else s.epochs
        file = stem.with_suffix(".safetensors")
        if file.is_file():
            pyalign.io.load_into(model, file)
            return model.eval()
        fit(
            model, self.stream(seed, robust), epochs=epochs, lr=s.lr, schedule=tatro_schedule(epochs), seed=seed,
            attack=PGD() if robust else None, precision=self.precision, callback=self.check, every=100,
            checkpoint=stem.with_suffix(".run.safetensors"),
        )  # fmt: skip
        pyalign.io.save_state(model, file)
        return model.eval()

    def pair(self, name: str, width: int, index: int, robust: bool = False) -> tuple[nn.Module, nn.Module]:
        """Two networks of different seeds."""
        first, second = (self.end(name, width, seed, robust) for seed in (2 * index, 2 * index + 1))
        return first, second

    def alignment(self, a: nn.Module, b: nn.Module, stem: str, robust: bool) -> pyalign.Alignment:
        """Alignment by activations on the first training images, not augmented."""
        file = self.work / f"{stem}-alignment.safetensors"
        if not file.is_file():
            self.check()
            inputs = [x for x, _ in self.batches(self.train, min(10000, len(self.train.y)), robust)]
            pyalign.align(a, b, inputs, seed=0).save(file)
        return pyalign.Alignment.load(file, a)

    def curve(self, a: nn.Module, b: nn.Module, stem: str, method: str, robust: bool = False) -> Curve:
        """The curve of one method."""
        file = self.work / f"{stem}-{method.replace(' ', '-')}.safetensors"
        if file.is_file():
            return Curve.load(file, a)
        s, alignment = self.scale, None
        if "unaligned" not in method:
            alignment = self.alignment(a, b, stem, robust)
        epochs = s.robust_curve_epochs if robust else s.curve_epochs
        how: dict[str, Any] = {"lr": s.curve_lr, "epochs": epochs, "schedule": tatro_schedule(epochs), "every": 100}
        if method.startswith("PAM"):
            folder = file.with_suffix("")
            pam = PAM(alignment, permutation_epochs=s.permutation_epochs, checkpoint=folder, callback=self.check, **how)
            spec = pyalign.derive(a, self.batches(self.train, 8, robust)[0][0]) if alignment is None else alignment.spec
            found = pam.run(Problem(a, b, spec, self.stream(100, robust), seed=0)).curve
        else:
            found = pyalign.curve(
                a, b if alignment is None else alignment.apply(b), self.stream(100, robust), precision=self.precision,
                attack=PGD() if robust else None, checkpoint=file.with_suffix(".run.safetensors"), callback=self.check,
                **how,
            )  # fmt: skip
        found.save(file)
        return found

    def measured(self, a: nn.Module, b: nn.Module, stem: str, method: str) -> CurveRecord:
        """Loss and accuracy along the curve of a method."""

        def compute() -> dict[str, Any]:
            data = self.batches(self.test, self.scale.test, False)
            statistics = self.batches(self.train, self.scale.statistics, False)
            curve = self.curve(a, b, stem, method)
            return curve.evaluate(data, points=self.scale.points, recalibrate=statistics).to_dict()

        return CurveRecord.from_dict(self.kept(f"{stem}-{method.replace(' ', '-')}-curve", compute))

    def layers(self, a: nn.Module, b: nn.Module, stem: str, method: str) -> Correlations:
        """Correlations of layers along the curve of a method."""

        def compute() -> dict[str, Any]:
            statistics = self.batches(self.train, self.scale.statistics, False)
            inputs = [x for x, _ in statistics]
            spec = self.alignment(a, b, stem, False).spec
            curve = self.curve(a, b, stem, method)
            return correlations(curve, inputs, spec=spec, t=(0.25, 0.5, 0.75, 1.0), recalibrate=inputs).to_dict()

        return Correlations.from_dict(self.kept(f"{stem}-{method}-layers", compute))

    def plane(self, a: nn.Module, b: nn.Module, stem: str, method: str) -> PlaneRecord:
        """The plane of a curve."""

        def compute() -> dict[str, Any]:
            curve = self.curve(a, b, stem, method)
            data = self.batches(self.test, self.scale.test, False)
            statistics = self.batches(self.train, self.scale.statistics, False)
            found = pyalign.plane(
                curve.at(0.0), curve.at(1.0), curve.at(0.5), data, resolution=self.scale.grid, curves={method: curve},
                recalibrate=statistics, checkpoint=self.work / f"{stem}-{method}-plane-run.json",
            )  # fmt: skip
            return found.to_dict()

        return PlaneRecord.from_dict(self.kept(f"{stem}-{method}-plane", compute))

    def robust(self, a: nn.Module, b: nn.Module, stem: str, method: str) -> RobustRecord:
        """Clean and robust numbers along the curve of a method between robust networks."""

        def compute() -> dict[str, Any]:
            curve = self.curve(a, b, stem, method, robust=True)
            data = self.batches(self.test, self.scale.robust_test, True)
            statistics = self.batches(self.train, min(self.scale.statistics, self.scale.robust_test), True)
            record = robust_measure(curve, data, PGD(), points=self.scale.robust_points, recalibrate=statistics)
            return record.to_dict()

        return RobustRecord.from_dict(self.kept(f"{stem}-{method}-robust", compute))


def carry_out(study: Study) -> tuple[dict[str, Any], Run]:
    """All phases in order; what is done already is read back."""
    rows, layers, paths, planes, along = [], {}, {}, {}, {}
    alignments: dict[str, dict[str, tuple[float, float]]] = {}
    for name, width in study.scale.networks:
        for index in range(study.scale.pairs):
            stem = f"{name}-{index}"
            a, b = study.pair(name, width, index)
            records = {method: study.measured(a, b, stem, method) for method in METHODS}
            rows += [row_of(name, width, index, method, record) for method, record in records.items()]
            seen = {method: study.layers(a, b, stem, method) for method in ("unaligned", "aligned")}
            layers[stem] = {method: sum(r.mean()) / len(r.t) for method, r in seen.items()}
            if not paths:
                paths, along = records, seen
                planes = {f"{stem}, {method}": study.plane(a, b, stem, method) for method in ("unaligned", "aligned")}
                found = study.alignment(a, b, stem, False)
                before, after = found.correlation_before, found.correlation_after
                alignments[stem] = {group: (before[group], after[group]) for group in before if group in after}
    name, width = study.scale.networks[-1]
    a, b = study.pair(name, width, 0, robust=True)
    attacks = {method: study.robust(a, b, f"{name}-robust", method) for method in ("unaligned", "aligned")}
    barriers = {method: record.robust.loss_barrier for method, record in attacks.items()}
    content = {"rows": rows, "layers": layers, "robust": barriers, "falls_short": verdicts(rows, layers, barriers)}
    run = Run(
        "Curves between aligned networks", "After Tatro et al. 2020: one Bezier bend between networks of two seeds.",
        paths, planes, alignments, along, attacks, {k: str(v) for k, v in asdict(study.scale).items()},
    )  # fmt: skip
    return content, run


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the study; 0 done and as published, 1 falls short, 3 time is up and the next run goes on."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", choices=tuple(SCALES), default="cpu", help="tiny only tries the code")
    parser.add_argument("--images", type=Path, help="a folder with train and test, each one folder a class")
    parser.add_argument("--work", type=Path, required=True, help="folder for checkpoints and records")
    parser.add_argument("--out", type=Path, required=True, help="folder for table, page and figures")
    parser.add_argument("--minutes", type=float, help="stop after so many; the next run goes on")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(arguments)
    scale = SCALES[options.scale]
    read = cifar10 if options.images is None else partial(image_folder, options.images)
    try:
        train, test = read("train", scale.images, seed=0), read("test", scale.test, seed=1)
        study = Study(scale, options.work, train, test, options.device, options.minutes)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PyalignWarning)
            content, run = carry_out(study)
    except Absent as reason:
        print(f"skipped: {reason}")
        return 0
    except TimeUp:
        print(f"time is up; run again to go on from {options.work}")
        return 3
    content["settings"] = {
        "scale": options.scale, "device": options.device, "torch": torch.__version__, "pyalign": pyalign.__version__,
        "machine": platform.processor() or platform.machine(), **asdict(scale),
    }  # fmt: skip
    print(write(options.out, content, run))
    return 1 if content["falls_short"] else 0


if __name__ == "__main__":
    sys.exit(main())
