"""Bezier curves trained twice: by `pyalign.curve`, and by the public code of Garipov et al. 2018.

Both get the same ends, batches, draws of t and published hyper-parameters (batches of 128, SGD 0.9, weight decay on the
point, the learning rate changed once an epoch). What is compared is the bend and the loss along the curve; the public
code with other batches and draws of t tells how far two of its own runs differ.

python -m benchmarks.studies.garipov_peer --reference path/to/dnn-mode-connectivity --out benchmarks/results
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pyalign
from benchmarks.studies.data import Absent, Augmented, Images, cifar10
from pyalign._atomic import replacing
from pyalign.paths import CurveRecord, garipov_schedule
from pyalign.paths.measure import evaluate
from pyalign.statistics import reestimate_batchnorm
from pyalign.train import fit

BATCH = 128
NOISE = 0.01
"""Largest difference of the loss at any point of the curve that counts as none."""


@dataclass(frozen=True)
class Network:
    """A network of the public code, with the published learning rates (of its ends and curves) and weight decay."""

    file: str
    name: str
    ends_lr: float
    lr: float
    decay: float
    options: dict[str, Any] = field(default_factory=dict)


NETWORKS = {
    # The plain network has the recipe of VGG-16, the short residual one that of PreResNet-164.
    "convfc": Network("models.convfc", "ConvFC", 0.05, 0.015, 5e-4),
    "preresnet8": Network("models.preresnet", "PreResNet110", 0.1, 0.03, 3e-4, {"depth": 8}),
}


def by_epoch(epochs: int) -> Any:
    """The published schedule as the public code runs it: once an epoch, counted from 1."""
    return lambda fraction: garipov_schedule((int(fraction * epochs + 1e-9) + 1) / epochs)


class Public:
    """The public code on one network."""

    def __init__(self, reference: Path, network: Network) -> None:
        sys.path.insert(0, str(reference))
        self.curves, self.network = importlib.import_module("curves"), network
        self.architecture = getattr(importlib.import_module(network.file), network.name)

    def base(self) -> nn.Module:
        """The plain network."""
        model: nn.Module = self.architecture.base(num_classes=10, **self.network.options)
        return model

    def train(self, ends: Sequence[nn.Module], stream: Augmented, ts: Sequence[float], epochs: int) -> nn.Module:
        """The curve network, trained as its `train.py` does."""
        net: nn.Module = self.curves.CurveNet(
            10, self.curves.Bezier, self.architecture.curve, 3, architecture_kwargs=self.network.options
        )
        for index, end in zip((0, 2), ends, strict=True):
            net.import_base_parameters(end, index)
        net.init_linear()
        regularizer = self.curves.l2_regularizer(self.network.decay)
        optimizer = torch.optim.SGD((p for p in net.parameters() if p.requires_grad), lr=self.network.lr, momentum=0.9)
        net.train()
        step = 0
        for epoch in range(1, epochs + 1):
            for group in optimizer.param_groups:
                group["lr"] = self.network.lr * garipov_schedule(epoch / epochs)
            for x, y in stream:
                loss = F.cross_entropy(net(x, torch.tensor([ts[step]])), y) + regularizer(net)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                step += 1
        return net

    def loss(self, net: Any, t: float, test: Sequence[Any], calibration: Sequence[Any]) -> float:
        """The loss of the curve network at t, its weights exported to the plain network."""
        model = self.base()
        coefficients = net.coeff_layer(torch.tensor([t]))
        parameters = list(net.net.parameters())
        with torch.no_grad():
            for index, parameter in enumerate(model.parameters()):
                points = parameters[3 * index : 3 * index + 3]
                parameter.copy_(sum(c * p for c, p in zip(coefficients, points, strict=True)))
        reestimate_batchnorm(model, calibration)
        return evaluate(model, test)[0]


def study(reference: Path, network: Network, train: Images, test: Images, epochs: int, points: int) -> dict[str, Any]:
    """Train a curve with both and compare."""
    public = Public(reference, network)
    ends = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        model = public.base()
        stream = Augmented(train, BATCH, seed)
        fit(model, stream, epochs=epochs, lr=network.ends_lr, weight_decay=network.decay, seed=seed,
            optimizer=partial(torch.optim.SGD, momentum=0.9), schedule=by_epoch(epochs))  # fmt: skip
        ends.append(model.eval())
    data: dict[str, Any] = {"data": test.batches(500), "recalibrate": train.batches(512)}
    straight = pyalign.Curve(*ends).evaluate(**data, points=points)
    ours = pyalign.curve(
        *ends, Augmented(train, BATCH, 5), epochs=epochs, optimizer=partial(torch.optim.SGD, momentum=0.9),
        lr=network.lr, weight_decay=network.decay, schedule=by_epoch(epochs), seed=3,
    )  # fmt: skip
    ts = [t for t, _ in ours.history]
    other = torch.rand(len(ts), generator=torch.Generator().manual_seed(4), dtype=torch.float64).tolist()
    nets = [public.train(ends, Augmented(train, BATCH, seed), draws, epochs) for seed, draws in ((5, ts), (6, other))]
    record = ours.evaluate(**data, points=points)
    losses = [[public.loss(net, t, *data.values()) for t in record.t] for net in nets]
    bend = [parameter.detach() for parameter in nets[0].net.parameters()][1::3]
    mine, start = (list(curve.control_point(1).values()) for curve in (ours, pyalign.Curve(*ends)))
    return {
        **_summed(record, straight, *losses),
        "bend_distance": _distance(mine, bend),
        "bend_moved": _distance(mine, start),
        "steps": len(ts),
    }


def _distance(one: Sequence[Tensor], two: Sequence[Tensor]) -> float:
    return sum(float((p - q).square().sum()) for p, q in zip(one, two, strict=True)) ** 0.5


def _summed(ours: CurveRecord, straight: CurveRecord, theirs: list[float], other: list[float]) -> dict[str, Any]:
    difference = max(abs(x - y) for x, y in zip(ours.loss, theirs, strict=True))
    return {
        "t": list(ours.t), "ours": list(ours.loss), "theirs": theirs, "theirs_other_draws": other,
        "straight": list(straight.loss), "largest_difference": difference,
        "difference_of_draws": max(abs(x - y) for x, y in zip(theirs, other, strict=True)),
        "reached": difference <= NOISE,
    }  # fmt: skip


def markdown(found: dict[str, Any]) -> str:
    """The tables of the study."""
    out = []
    s = found["settings"]
    for name, one in found["networks"].items():
        out += [f"## {name}", "", "| t | straight line | pyalign | public code | public code, other draws |"]
        out.append("|---|---|---|---|---|")
        columns = (one[key] for key in ("t", "straight", "ours", "theirs", "theirs_other_draws"))
        for t, *losses in zip(*columns, strict=True):
            out.append(f"| {t:.2f} | " + " | ".join(f"{loss:.4f}" for loss in losses) + " |")
        out += [
            "",
            f"Test loss. pyalign and the public code on the same batches and t differ by at most "
            f"{one['largest_difference']:.2g}, two runs of the public code on other batches and t by "
            f"{one['difference_of_draws']:.2g}; the bends lie {one['bend_distance']:.2g} apart after moving "
            f"{one['bend_moved']:.2g} from the middle of the ends in {one['steps']} steps.",
            "",
        ]
    out.append(
        f"CIFAR-10, {s['images']} training and {s['test']} test images, {s['epochs']} epochs of batch {BATCH}, "
        f"torch {s['torch']}. BatchNorm is re-estimated on the training images at every t."
    )
    return "\n".join(out) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the study; the exit status is 1 where the losses differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", type=Path, required=True, help="a checkout of timgaripov/dnn-mode-connectivity")
    parser.add_argument("--networks", nargs="+", choices=tuple(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--images", type=int, default=2048, help="training images (default 2048)")
    parser.add_argument("--test", type=int, default=1000, help="test images (default 1000)")
    parser.add_argument("--epochs", type=int, default=6, help="of the ends and of the curves (default 6)")
    parser.add_argument("--points", type=int, default=7)
    parser.add_argument("--out", type=Path, help="folder to write garipov_peer.json and garipov_peer.md to")
    options = parser.parse_args(arguments)
    if not (options.reference / "curves.py").is_file():
        print(f"skipped: no curves.py in {options.reference}")
        return 0
    try:
        train, test = cifar10("train", options.images, seed=0), cifar10("test", options.test, seed=1)
    except Absent as reason:
        print(f"skipped: {reason}")
        return 0
    sizes = {name: getattr(options, name) for name in ("images", "test", "epochs")}
    found = {
        "settings": {**sizes, "torch": torch.__version__, "pyalign": pyalign.__version__},
        "networks": {
            name: study(options.reference, NETWORKS[name], train, test, options.epochs, options.points)
            for name in options.networks
        },
    }
    table = markdown(found)
    print(table)
    texts = {"json": json.dumps(found, indent=1) + "\n", "md": "# Curves trained by two programs\n\n" + table}
    for name, text in texts.items():
        if options.out is not None:
            with replacing(options.out / f"garipov_peer.{name}") as temporary:
                temporary.write_text(text, encoding="utf-8")
    return 0 if all(one["reached"] for one in found["networks"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
