"""A study in words and pictures: the text for a terminal, and the page."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

import torch

from pyalign.demo.study import METHODS, Study
from pyalign.paths import Barrier
from pyalign.report import Picture, Section, Table, Tile, barrier_figure, correlation_figure, page, terminal_plot
from pyalign.symmetry.printing import table

__all__ = ["make_page", "terminal_text"]

PACKAGES = ("pyalign-nn", "torch", "numpy", "scipy", "scikit-learn", "matplotlib")
HEAD = ["", "BatchNorm statistics", "loss barrier", "accuracy barrier (points)"]
LEAD = (
    "Two networks of one architecture were trained on the same handwritten digits from different random seeds. "
    "They compute alike, but store their units in different orders, so the straight line between their weights "
    "leads through bad models. pyalign finds the order of the second network's units that matches the first, proves "
    "that reordering changed nothing, and measures the line again."
)


def terminal_text(study: Study, *, unicode: bool = True) -> str:
    """The table of barriers and a plot of the loss, for a terminal.

    Args:
        study: What the run found.
        unicode: False draws with ASCII characters only.
    """
    curves = {METHODS[name]: (record.t, record.loss) for name, record in study.recalibrated.items()}
    plot = terminal_plot(curves, label="test loss, BatchNorm statistics re-estimated", unicode=unicode)
    s = study.settings
    lines = [
        f"model A (seed {s.seed}): {_percent(study.accuracy_a)} of the test digits right, "
        f"model B (seed {s.seed + 1}): {_percent(study.accuracy_b)}",
        "",
        table(HEAD, _rows(study)),
        "",
        plot,
        "",
        "time: " + ", ".join(f"{name} {seconds:.1f} s" for name, seconds in study.seconds.items()),
    ]
    return "\n".join(lines)


def make_page(study: Study) -> str:
    """The page of a study: self-contained HTML.

    Args:
        study: What the run found.

    Raises:
        PyalignError: matplotlib is not installed.
    """
    sections = [_short(study), _curves(study), _maps(study), _numbers(study), _symmetry(study), _made(study)]
    made = f"Made by pyalign {_version('pyalign-nn')}."
    return page("Two networks, one coordinate system", sections, lead=LEAD, footer=made)


def _rows(study: Study) -> list[list[str]]:
    kinds = (("interpolated", study.barriers), ("re-estimated", study.recalibrated))
    return [
        [METHODS[name], kind, f"{records[name].loss_barrier:.3f}", _accuracy_barrier(records[name])]
        for kind, records in kinds
        for name in records
    ]


def _short(study: Study) -> Section:
    naive = study.recalibrated["naive"]
    tiles = [Tile("Loss barrier, not aligned", f"{naive.loss_barrier:.3f}", _drop(naive))]
    for name in study.alignments:
        record = study.recalibrated[name]
        tiles.append(Tile(f"Loss barrier, {METHODS[name]}", f"{record.loss_barrier:.3f}", _drop(record)))
    tiles.append(
        Tile("Accuracy of the two networks", f"{_percent(study.accuracy_a)}", f"model B {_percent(study.accuracy_b)}")
    )
    text = (
        "The barrier is how far the test loss rises above (and the accuracy falls below) the line between its ends. "
        "These numbers are with BatchNorm statistics re-estimated at every point."
    )
    return Section("In short", [text], tiles)


def _curves(study: Study) -> Section:
    texts = [
        "Interpolated weights do not fit interpolated BatchNorm statistics: the spread of the activations collapses. "
        "In the lower pair the statistics are re-estimated on training images at every point, which leaves what the "
        "weights themselves cost.",
    ]
    items = [
        _picture(records, quantity, f"BatchNorm statistics {kind}")
        for kind, records in (("interpolated", study.barriers), ("re-estimated", study.recalibrated))
        for quantity in ("loss", "accuracy")
    ]
    return Section("Along the line from A to B", texts, items)


def _picture(records: dict[str, Barrier], quantity: str, title: str) -> Picture:
    named = {METHODS[name]: record for name, record in records.items()}
    heights = ", ".join(
        f"{name} {record.loss_barrier:.3f}" if quantity == "loss" else f"{name} {_accuracy_barrier(record)} points"
        for name, record in named.items()
    )
    first = next(iter(records.values()))
    return Picture(
        barrier_figure(named, quantity=quantity, title=title),
        f"Line chart of the test {quantity} over the position t from model A to model B, {title}. "
        f"Largest distance from the line between the ends: {heights}.",
        f"Test {quantity} at {len(first.t)} positions, {first.samples} test images; {title}.",
    )


def _maps(study: Study) -> Section:
    found = study.alignments["activation"]
    text = (
        "Each cell is the correlation of one unit of A (row) with one unit of B (column) over the training images, "
        "after the nonlinearity: blue together, orange opposed. Before aligning, matching units are scattered; after "
        "it they lie on the diagonal, whose mean stands above each map. A group that is seen at several places is "
        "shown at the last of them."
    )
    items = []
    for name, (before, after) in study.correlations.items():
        size = before.shape[0]
        means = [float(matrix.diagonal().mean()) for matrix in (before, after)]
        items.append(
            Picture(
                correlation_figure(before, after, name=f"{name}: {size} units"),
                f"Two heat maps of the correlations of the {size} units of group {name}: before aligning the mean of "
                f"the diagonal is {means[0]:.2f}, after it {means[1]:.2f}.",
                f"Group {name}. {100 * found.moved.get(name, 0.0):.0f} % of its units changed place.",
            )
        )
    return Section("Who corresponds to whom", [text], items)


def _numbers(study: Study) -> Section:
    rows = _rows(study)
    best = min(range(len(rows)), key=lambda k: float(rows[k][2]))
    barriers = Table("Barriers between the two networks on the test images", ["method", *HEAD[1:]], rows, strong=[best])
    found = study.alignments["activation"]
    groups = [
        [name, str(group.size), f"{100 * found.moved.get(name, 0.0):.0f} %", *_means(study, name)]
        for name, group in study.spec.groups.items()
    ]
    head = ["group", "units", "moved", "correlation before", "correlation after"]
    return Section(
        "Numbers", [], [barriers, Table("Aligned by activations: mean correlation of units slot by slot", head, groups)]
    )


def _means(study: Study, name: str) -> list[str]:
    found = study.alignments["activation"]
    pair = (found.correlation_before.get(name), found.correlation_after.get(name))
    return ["not measured" if value is None else f"{value:.3f}" for value in pair]


def _symmetry(study: Study) -> Section:
    rows = [[g.name, str(g.size), str(g.kind), str(len(study.spec.of(g.name)))] for g in study.spec.groups.values()]
    text = (
        "The groups below were derived from one computation of the model: all axes of all tensors that must be "
        "reordered together so that the function stays the same. Random members of every group were applied and the "
        "outputs compared before anything was aligned."
    )
    items = [Table("Groups of units that may change order", ["group", "units", "class", "tensor axes"], rows)]
    return Section("What may move", [text], items)


def _made(study: Study) -> Section:
    s = study.settings
    settings = [
        ["seeds of A and B", f"{s.seed} and {s.seed + 1}"],
        ["epochs", str(s.epochs)],
        ["width of the three stages", f"{s.width}, {2 * s.width}, {4 * s.width}"],
        ["parameters", str(sum(p.numel() for p in study.model_a.parameters()))],
        ["positions on a path", str(s.points)],
        ["data", "scikit-learn's handwritten digits, 1297 to train, 500 to test"],
    ]
    versions = [["python", platform.python_version()], ["platform", platform.platform()]]
    versions += [
        [name, _version(name)] for name in ("pyalign-nn", "torch", "numpy", "scipy", "scikit-learn", "matplotlib")
    ]
    versions.append(["threads", str(torch.get_num_threads())])
    times = [[name, f"{seconds:.1f}"] for name, seconds in study.seconds.items()]
    items = [
        Table("Settings", ["setting", "value"], settings),
        Table("Versions", ["what", "version"], versions),
        Table("Time", ["phase", "seconds"], times),
    ]
    return Section("How this page was made", [], items)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _accuracy_barrier(record: Barrier) -> str:
    return "not measured" if record.accuracy_barrier is None else f"{100 * record.accuracy_barrier:.1f}"


def _drop(record: Barrier) -> str:
    return f"accuracy barrier {_accuracy_barrier(record)} points"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
