"""A run in one page: paths, planes, alignments, correlations of layers, robust numbers, settings and versions."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyalign._atomic import replacing
from pyalign.errors import InputError
from pyalign.paths import Barrier, Correlations, CurveRecord, PlaneRecord
from pyalign.report.figures import barrier_figure
from pyalign.report.landscapes import alignment_figure, layers_figure, plane_figure
from pyalign.report.page import Picture, Section, Table, Tile, page
from pyalign.train import RobustRecord

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Run", "export_figures", "run_page"]

PACKAGES = ("pyalign-nn", "torch", "numpy", "scipy", "matplotlib")


@dataclass(frozen=True)
class Run:
    """Everything that a run has measured, by name; what is empty is left out of the page.

    Args:
        title: The page's heading.
        lead: One paragraph under it.
        paths: Lines and curves.
        planes: Planes of models.
        alignments: For each alignment, group -> mean correlation before and after it.
        correlations: Correlations of layers along paths.
        robust: Clean and attacked inputs along paths.
        settings: Settings, seeds and whatever else should be told, as texts.
    """

    title: str
    lead: str = ""
    paths: Mapping[str, Barrier] = field(default_factory=dict)
    planes: Mapping[str, PlaneRecord] = field(default_factory=dict)
    alignments: Mapping[str, Mapping[str, tuple[float, float]]] = field(default_factory=dict)
    correlations: Mapping[str, Correlations] = field(default_factory=dict)
    robust: Mapping[str, RobustRecord] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """All numbers as plain values: what the page's button copies."""
        kinds = ("paths", "planes", "correlations", "robust")
        records = {kind: {name: r.to_dict() for name, r in getattr(self, kind).items()} for kind in kinds}
        texts = {"title": self.title, "settings": dict(self.settings), "versions": _versions()}
        aligned = {name: {g: list(pair) for g, pair in groups.items()} for name, groups in self.alignments.items()}
        return {**texts, **records, "alignments": aligned}


def run_page(run: Run) -> str:
    """The page of a run: self-contained HTML with a button that copies all numbers as JSON.

    Args:
        run: What was measured.

    Returns:
        The page, readable on a phone, in print, in light and dark.

    Raises:
        InputError: Nothing was measured, or more curves than one figure can tell apart.
        PyalignError: matplotlib is not installed.
    """
    parts = (_paths, _robust, _planes, _alignments, _correlations)
    sections = [section for part in parts for section in part(run)]
    if not sections:
        raise InputError("there is nothing to show", given="a run without records", expected="at least one record")
    numbers = json.dumps(run.to_dict(), indent=1)
    footer = f"Made by pyalign {_version('pyalign-nn')}."
    return page(run.title, [*sections, _made(run)], lead=run.lead, footer=footer, numbers=numbers)


def export_figures(run: Run, folder: str | os.PathLike[str], formats: tuple[str, ...] = ("svg", "png")) -> list[Path]:
    """Write every figure of the page to files.

    Args:
        run: What was measured.
        folder: Where to; made when missing.
        formats: Of each figure, as matplotlib knows them.

    Returns:
        The files.
    """
    written = []
    for name, figure in _figures(run):
        for kind in formats:
            target = Path(folder) / f"{name}.{kind}"
            with replacing(target) as temporary:
                figure.savefig(temporary, format=kind, dpi=150)
            written.append(target)
    return written


def _figures(run: Run) -> Iterator[tuple[str, Figure]]:
    if run.paths:
        yield "paths", barrier_figure(run.paths)
    if run.robust:
        yield "robust", barrier_figure(_both(run.robust))
    for name, plane in run.planes.items():
        for quantity in ("loss",) if plane.accuracy is None else ("loss", "accuracy"):
            yield f"plane-{_file(name)}-{quantity}", plane_figure(plane, quantity=quantity)
    for name, groups in run.alignments.items():
        yield f"alignment-{_file(name)}", alignment_figure(groups)
    if run.correlations:
        yield "correlations", layers_figure(run.correlations)
        yield "correlations-matched", layers_figure(run.correlations, matched=True)


def _file(name: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in name).strip("-").lower() or "unnamed"


def _paths(run: Run) -> Iterator[Section]:
    if not run.paths:
        return
    tiles = [
        Tile(f"Least accuracy, {n}" if r.accuracy else f"Highest loss, {n}", *_worst(r)) for n, r in run.paths.items()
    ]
    graded = all(record.accuracy is not None for record in run.paths.values())
    pictures = [
        Picture(
            barrier_figure(run.paths, quantity=quantity),
            f"Line chart of the {quantity} over the position t from model A to model B, for {_listed(run.paths)}.",
            f"{quantity.capitalize()} at {_positions(run.paths)} positions.",
        )
        for quantity in (("loss", "accuracy") if graded else ("loss",))
    ]
    head = ["path", "loss: min", "max", "mean", "over arc", "barrier"]
    tables = [Table("Loss along the paths", head, [_row(n, r, "loss") for n, r in run.paths.items()])]
    if graded:
        head = ["path", "accuracy (%): min", "max", "mean", "over arc", "barrier"]
        tables.append(Table("Accuracy along the paths", head, [_row(n, r, "accuracy") for n, r in run.paths.items()]))
    text = (
        "The barrier is how far the loss rises above (the accuracy falls below) the line between the ends; below zero "
        "the path is better than its ends. The mean over arc does not depend on how fast a curve is run through."
    )
    yield Section("From model A to model B", [text], [*tiles, *pictures, *tables])


def _positions(paths: Mapping[str, Barrier]) -> str:
    counts = sorted({len(record.t) for record in paths.values()})
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"


def _worst(record: Barrier) -> tuple[str, str]:
    loss = f"highest loss {max(record.loss):.3f}"
    if record.accuracy is None:
        return f"{max(record.loss):.3f}", f"loss barrier {record.loss_barrier:.3f}"
    return f"{100 * min(record.accuracy):.1f} %", loss


def _row(name: str, record: Barrier, quantity: str) -> list[str]:
    scale, digits = (100.0, 2) if quantity == "accuracy" else (1.0, 4)
    values = [scale * value for value in getattr(record, quantity)]
    over_arc = "" if not isinstance(record, CurveRecord) else f"{scale * record.summary(quantity).arc_mean:.{digits}f}"
    height = scale * float(getattr(record, f"{quantity}_barrier"))
    cells = [min(values), max(values), sum(values) / len(values)]
    return [name, *(f"{value:.{digits}f}" for value in cells), over_arc, f"{height:.{digits}f}"]


def _both(robust: Mapping[str, RobustRecord]) -> dict[str, Barrier]:
    return {f"{n}, {kind}": getattr(r, kind) for n, r in robust.items() for kind in ("clean", "robust")}


def _robust(run: Run) -> Iterator[Section]:
    if not run.robust:
        return
    records = _both(run.robust)
    graded = all(record.accuracy is not None for record in records.values())
    pictures = [
        Picture(
            barrier_figure(records, quantity=quantity),
            f"Line chart of the clean and robust {quantity} over the position t for {_listed(run.robust)}.",
            f"{quantity.capitalize()} on clean and on attacked inputs.",
        )
        for quantity in (("loss", "accuracy") if graded else ("loss",))
    ]
    rows = [_row(name, record, "loss") for name, record in records.items()]
    head = ["path and inputs", "loss: min", "max", "mean", "over arc", "barrier"]
    text = "Robust numbers are on inputs attacked against the very model at each position."
    yield Section("Under attack", [text], [*pictures, Table("Clean and robust loss", head, rows)])


def _planes(run: Run) -> Iterator[Section]:
    for name, plane in run.planes.items():
        pictures = []
        for quantity in ("loss",) if plane.accuracy is None else ("loss", "accuracy"):
            drawn = f", with {_listed(plane.curves)} drawn in it" if plane.curves else ""
            pictures.append(
                Picture(
                    plane_figure(plane, quantity=quantity),
                    f"Contours of the {quantity} on the plane through models A, B and C{drawn}.",
                    f"{quantity.capitalize()} at {len(plane.x)} x {len(plane.y)} points.",
                )
            )
        rates = plane.anchor_accuracy or (None,) * 3
        rows = [
            [model, f"{x:.3f}", f"{y:.3f}", f"{loss:.4f}", "not measured" if rate is None else f"{100 * rate:.2f}"]
            for model, (x, y), loss, rate in zip("ABC", plane.anchors, plane.anchor_loss, rates, strict=True)
        ]
        table = Table("The three models", ["model", "x", "y", "loss", "accuracy (%)"], rows)
        yield Section(f"Plane: {name}", [], [*pictures, table])


def _alignments(run: Run) -> Iterator[Section]:
    for name, groups in run.alignments.items():
        means = [sum(pair[i] for pair in groups.values()) / len(groups) for i in (0, 1)]
        picture = Picture(
            alignment_figure(groups),
            f"Mean correlation of {len(groups)} groups of units before and after aligning: on average {means[0]:.2f} "
            f"before, {means[1]:.2f} after.",
            "Correlation of units slot by slot.",
            wide=len(groups) > 12,
        )
        rows = [[group, f"{before:.3f}", f"{after:.3f}"] for group, (before, after) in groups.items()]
        table = Table("Mean correlation of units", ["group", "before", "after"], rows)
        yield Section(f"Alignment: {name}", [], [picture, table])


def _correlations(run: Run) -> Iterator[Section]:
    if not run.correlations:
        return
    pictures = [
        Picture(
            layers_figure(run.correlations, matched=matched),
            f"Correlation of the units at each position t, {how}, for {_listed(run.correlations)}: thin lines are "
            "layers, the thick line is their mean.",
            f"Units {how}.",
        )
        for matched, how in ((False, "as they are stored"), (True, "in their best order"))
    ]
    rows = [
        [f"{name}: {layer}", f"{min(slots):.3f}", f"{sum(slots) / len(slots):.3f}", f"{min(best):.3f}"]
        for name, record in run.correlations.items()
        for layer, slots, best in zip(record.layers, record.slots, record.matched, strict=True)
    ]
    head = ["path: layer", "least", "mean", "least, best order"]
    yield Section("Layers along the path", [], [*pictures, Table("Correlation of every layer", head, rows)])


def _made(run: Run) -> Section:
    settings = [[name, text] for name, text in run.settings.items()]
    tables = [Table("Settings and seeds", ["setting", "value"], settings)] if settings else []
    versions = [[name, text] for name, text in _versions().items()]
    return Section("How these numbers were made", [], [*tables, Table("Versions", ["what", "version"], versions)])


def _listed(names: Mapping[str, Any]) -> str:
    return ", ".join(names)


def _versions() -> dict[str, str]:
    system = {"python": platform.python_version(), "platform": platform.platform()}
    return {**system, **{name: _version(name) for name in PACKAGES}}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
