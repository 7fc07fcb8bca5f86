"""Mixtures of experts of different seeds, as in Tran et al. 2025: in a frozen transformer, and trained from scratch.

python -m benchmarks.studies.moe --scale cpu --work runs/moe --out benchmarks/results

Trained networks stay in the work folder; a run that is stopped goes on from there.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

import pyalign
from benchmarks.studies.data import Absent
from benchmarks.studies.moe_networks import Text, Training, scratch, tinyshakespeare, trained, transplanted
from benchmarks.studies.moe_tables import Ranking, Row, failures, write
from pyalign._atomic import json_text, replacing
from pyalign.matching import WeightMatching, expert_orders
from pyalign.matching.experts import EXPERTS, expert_groups, units_by_weights
from pyalign.paths import expert_overlap
from pyalign.symmetry import Alignment, Kind, ScaledPermutation, SymmetrySpec, Transform, state_of
from pyalign.symmetry.elements import following

RANKED = (0.0, 0.5, 1.0)
"""Positions at which each of all orders of the experts is measured."""
STATISTICS = 8
"""Batches of 32 training windows for matching by activations."""


@dataclass(frozen=True)
class Scale:
    """How much is trained and measured; the first layer's top-2 mixture also in variants (name, steps, how)."""

    kinds: tuple[str, ...]
    layers: tuple[str, ...]
    length: int
    batch: int
    steps: int
    variants: tuple[tuple[str, int, Training], ...]
    scratch_kinds: tuple[str, ...]
    scratch_steps: int
    width: int
    depth: int
    windows: int
    points: int
    training: Training = field(default_factory=Training)


SMALL = Training(hidden=512, deviation=0.005)
"""Weights that begin small, so that what is learnt outweighs what was drawn: only the former can be matched."""
SCALES = {
    "tiny": Scale(("top2",), ("first",), 16, 2, 2, (), ("top2",), 2, 16, 1, 4, 3),
    "cpu": Scale(
        ("dense", "top2", "shared"), ("first", "all"), 64, 8, 300,
        (("frozen top2 first longer", 900, SMALL), ("control top2 first", 300, Training())), ("top2",), 800, 64, 2, 64,
        25, SMALL,
    ),
    "full": Scale(
        ("dense", "top2", "shared"), ("first", "all"), 128, 64, 5000, (), ("dense", "top2", "shared"), 10000, 128, 4,
        512, 25, SMALL,
    ),
}  # fmt: skip


def pairs(scale: Scale, text: Text, work: Path) -> dict[str, tuple[nn.Module, nn.Module]]:
    """Two trained networks for every setting; names begin with "frozen", "control" or "scratch"."""
    found: dict[str, tuple[nn.Module, nn.Module]] = {}
    settings = {f"frozen {k} {at}": (k, at, scale.steps, scale.training) for at in scale.layers for k in scale.kinds}
    settings |= {name: ("top2", "first", steps, how) for name, steps, how in scale.variants}
    for name, (kind, layers, steps, how) in settings.items():
        ends = [
            trained(
                transplanted(kind, layers, seed, how), text, work / f"{name.replace(' ', '_')}_{seed}.safetensors",
                steps=steps, batch=scale.batch, seed=seed, how=how,
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
                steps=scale.scratch_steps, batch=2 * scale.batch, seed=seed, how=Training(),
            )
            for seed in (1, 2)
        ]  # fmt: skip
        found[name] = ends[0], ends[1]
    return found


def frozen(
    name: str,
    ends: tuple[nn.Module, nn.Module],
    inputs: list[Tensor],
    data: list[tuple[Tensor, Tensor]],
    points: int,
) -> list[Row]:
    """A pair whose networks differ in their mixtures only: nothing else is moved."""
    a, b = ends
    spec = mixtures_only(a, data[0][0][:8])
    rows = [measured(name, "none", spec.identity(), a, b, data, points)]
    for how in EXPERTS:
        found = pyalign.align(a, b, method=WeightMatching(experts=how), spec=spec, verify=False)
        known = next((r for r in rows[1:] if r.orders == expert_orders(found)), None)
        if known is None:
            rows.append(measured(name, how, found, a, b, data, points))
        else:
            rows.append(replace(known, method=how))
    seen = pyalign.align(a, b, inputs, method="activation", spec=spec, verify=False)
    rows.append(measured(name, "activations", seen, a, b, data, points))
    kept = units_inside(spec, {g: tuple(range(spec.groups[g].size)) for g in expert_groups(spec)}, a, b)
    return [*rows, measured(name, "units only", kept, a, b, data, points)]


def from_scratch(
    name: str, ends: tuple[nn.Module, nn.Module], data: list[tuple[Tensor, Tensor]], points: int
) -> list[Row]:
    """A pair whose networks share nothing: permutations, then all classes."""
    a, b = ends
    rows = []
    for method, within in (("none", None), ("permutations", Kind.PERMUTATION), ("all classes", Kind.INVERTIBLE)):
        if within is None:
            spec = pyalign.derive(a, data[0][0][:8])
            found = spec.identity()
        else:
            found = pyalign.align(a, b, method=WeightMatching(within=within), example_inputs=data[0][0][:8])
        rows.append(measured(name, method, found, a, b, data, points))
    return rows


def mixtures_only(model: nn.Module, inputs: Tensor) -> SymmetrySpec:
    """The symmetry of the mixtures in a transformer; everything else is held in place."""
    spec = pyalign.derive(model, inputs).within(Kind.PERMUTATION)
    others = [name for name in spec.groups if ".mlp" not in name]
    return pyalign.declare(model, {}, base=spec, fixed=others)


def measured(name: str, method: str, found: Alignment, a: nn.Module, b: nn.Module, data: Any, points: int) -> Row:
    """The line from A to B, moved."""
    moved = found.apply(b)
    record = pyalign.barrier(a, moved, data, points=points, progress=False)
    overlap = expert_overlap(a, moved, data[:2], t=(0.25, 0.5, 0.75), spec=found.spec)
    least = overlap.least if overlap.layers else None
    return Row(name, method, record.loss, record.loss_barrier, expert_orders(found), least)


def units_inside(spec: SymmetrySpec, orders: dict[str, tuple[int, ...]], a: nn.Module, b: nn.Module) -> Alignment:
    """The alignment with given orders of the experts, and the best matching of each expert's units."""
    elements: dict[str, Transform] = {}
    for group in spec.outer_first():
        order = orders.get(group.name)
        own = None if order is None else ScaledPermutation(torch.tensor(order))
        elements[group.name] = own or following(group, elements)
    hidden = [g.name for gs in expert_groups(spec).values() for g in gs]
    states = [spec.stacked(state_of(model)) for model in (a, b)]
    elements |= units_by_weights(spec, elements, hidden, *states)
    shared = [n for n, g in spec.groups.items() if n not in hidden and n not in orders]
    own_spec = pyalign.declare(a, {}, base=spec, fixed=[n for n in spec.groups if n not in shared])
    if shared:
        apart = pyalign.align(a, b, method="weight", spec=own_spec, verify=False)
        elements |= apart.transforms
    return Alignment(spec, elements, method="given orders, units by weights")


def ranked(name: str, ends: tuple[nn.Module, nn.Module], data: Any, rows: Sequence[Row]) -> Ranking:
    """All orders of the experts of the one layer that has them."""
    a, b = ends
    spec = mixtures_only(a, data[0][0][:8])
    (group,) = expert_groups(spec)
    barriers = {}
    orders = list(itertools.permutations(range(spec.groups[group].size)))
    for order in tqdm(orders, desc=f"{name}: orders", disable=None, leave=False):
        moved = units_inside(spec, {group: order}, a, b).apply(b)
        barriers[str(list(order))] = pyalign.barrier(a, moved, data, t=RANKED, progress=False).loss_barrier
    found = {r.method: str(list(r.orders[group])) for r in rows if r.method in EXPERTS}
    return Ranking(name, barriers, found)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the study; finished pairs are read from the work folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", choices=SCALES, default="cpu")
    parser.add_argument("--work", type=Path, default=Path("runs/moe"), help="folder of the trained networks")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parents[1] / "results")
    options = parser.parse_args(arguments)
    scale = SCALES[options.scale]
    try:
        text = tinyshakespeare(scale.length)
        options.work.mkdir(parents=True, exist_ok=True)
        ends = pairs(scale, text, options.work)
    except Absent as reason:
        print(f"skipped: {reason}")
        return 0
    data = text.batches(scale.windows, 8)
    generator = torch.Generator().manual_seed(0)
    inputs = [text.draw(32, generator)[0] for _ in range(STATISTICS)]
    rows: list[Row] = []
    rankings: list[Ranking] = []
    for name, both in ends.items():
        done = options.work / f"{name.replace(' ', '_')}.json"
        if not done.is_file():
            study(name, both, inputs, data, scale.points, done)
        content = json.loads(done.read_text())
        rows += [Row(**row) for row in content["rows"]]
        rankings += [Ranking(**r) for r in content["rankings"]]
    settings = {**asdict(scale), "torch": torch.__version__, "pyalign": pyalign.__version__}
    settings["words"] = words(scale)
    print(write(options.out, rows, rankings, settings))
    return 1 if failures(rows, rankings) else 0


def words(scale: Scale) -> str:
    """What was trained and measured, for below the tables."""
    variants = "; ".join(f"{name}: {steps} steps, {told(how)}" for name, steps, how in scale.variants)
    return (
        f"Character GPT on tinyshakespeare; two seeds each; {scale.windows} test windows of {scale.length} characters, "
        f"{scale.points} points of t. Frozen: the trained network of the pairs, its first or all FFNs replaced by four "
        f"experts and trained for {scale.steps} steps of {scale.batch} windows, {told(scale.training)}, all else as it "
        f"was. {variants + '. ' if variants else ''}Units only: experts in the order they have. Scratch: {scale.depth} "
        f"layers of {scale.width} units, {scale.scratch_steps} steps. Orders are ranked by their barrier at t = 0, .5, "
        f"1. {platform.machine()}, torch {torch.__version__}."
    )


def told(how: Training) -> str:
    """A training in words."""
    begin = "as torch draws them" if how.deviation is None else f"with a deviation of {how.deviation}"
    return f"{how.hidden} units an expert, weights begun {begin}, rate {how.lr}, decay {how.decay}"


def study(
    name: str, ends: tuple[nn.Module, nn.Module], inputs: list[Tensor], data: Any, points: int, done: Path
) -> None:
    """Measure one pair and leave the result in its file."""
    if name.startswith("scratch"):
        rows = from_scratch(name, ends, data, points)
    else:
        rows = frozen(name, ends, inputs, data, points)
    rankings = [ranked(name, ends, data, rows)] if " first" in name else []
    content = {"rows": [asdict(r) for r in rows], "rankings": [asdict(r) for r in rankings]}
    with replacing(done) as temporary:
        temporary.write_text(json_text(content))


if __name__ == "__main__":
    sys.exit(main())
