"""One Bezier curve trained twice: by `pyalign.curve`, and by the public code of Garipov et al. 2018.

Both get the same ends, batches, draws of t and hyper-parameters (SGD 0.9, weight decay on the point, the
learning rate changed once an epoch). What is compared is the bend and the loss along the curve.

python -m benchmarks.studies.garipov_peer --reference path/to/dnn-mode-connectivity --out benchmarks/results
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pyalign
from benchmarks.studies.data import Absent, Augmented, cifar10
from pyalign._atomic import replacing
from pyalign.paths import CurveRecord, garipov_schedule
from pyalign.paths.measure import evaluate
from pyalign.train import fit

LR, DECAY, BATCH = 0.015, 5e-4, 64
NOISE = 0.01
"""Largest difference of the loss at any point of the curve that counts as none."""


def by_epoch(epochs: int) -> Any:
    """The published schedule as the public code runs it: once an epoch, counted from 1."""
    return lambda fraction: garipov_schedule((int(fraction * epochs + 1e-9) + 1) / epochs)


def theirs(
    module: Any, architecture: Any, ends: Sequence[nn.Module], stream: Augmented, ts: Sequence[float], epochs: int
) -> nn.Module:
    """The curve network of the public code, trained as its `train.py` does."""
    net = module.CurveNet(10, module.Bezier, architecture.curve, 3, architecture_kwargs=architecture.kwargs)
    for index, end in zip((0, 2), ends, strict=True):
        net.import_base_parameters(end, index)
    net.init_linear()
    optimizer = torch.optim.SGD((p for p in net.parameters() if p.requires_grad), lr=LR, momentum=0.9)
    regularizer = module.l2_regularizer(DECAY)
    net.train()
    step = 0
    for epoch in range(1, epochs + 1):
        for group in optimizer.param_groups:
            group["lr"] = LR * garipov_schedule(epoch / epochs)
        for x, y in stream:
            loss = F.cross_entropy(net(x, torch.tensor([ts[step]])), y) + regularizer(net)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
    return net


def study(reference: Path, images: int, tested: int, epochs: int, points: int) -> dict[str, Any]:
    """Train both and compare."""
    sys.path.insert(0, str(reference))
    module, models = importlib.import_module("curves"), importlib.import_module("models.convfc")
    architecture = models.ConvFC
    train, test = cifar10("train", images, seed=0), cifar10("test", tested, seed=1)
    ends = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        model = architecture.base(num_classes=10)
        fit(model, Augmented(train, BATCH, seed), epochs=epochs, lr=0.02, seed=seed)
        ends.append(model.eval())
    batches = test.batches(500)
    straight = pyalign.Curve(*ends).evaluate(batches, points=points)
    ours = pyalign.curve(
        *ends, Augmented(train, BATCH, 5), epochs=epochs, optimizer=partial(torch.optim.SGD, momentum=0.9), lr=LR,
        weight_decay=DECAY, schedule=by_epoch(epochs), seed=3,
    )  # fmt: skip
    ts = [t for t, _ in ours.history]
    net = theirs(module, architecture, ends, Augmented(train, BATCH, 5), ts, epochs)
    record = ours.evaluate(batches, points=points)
    reference_loss = [_loss(architecture, net, t, batches) for t in record.t]
    theirs_bend = [parameter.detach() for parameter in net.net.parameters()][1::3]
    mine = list(ours.control_point(1).values())
    gap = sum(float((p - q).square().sum()) for p, q in zip(mine, theirs_bend, strict=True)) ** 0.5
    start = list(pyalign.Curve(*ends).control_point(1).values())
    way = sum(float((p - q).square().sum()) for p, q in zip(mine, start, strict=True)) ** 0.5
    return _summed(
        record,
        straight,
        reference_loss,
        gap,
        way,
        {"images": images, "test": tested, "epochs": epochs, "steps": len(ts)},
    )


def _loss(architecture: Any, net: Any, t: float, batches: list[tuple[Tensor, Tensor]]) -> float:
    """The loss of the public code's network at t, its weights exported to the plain network."""
    model = architecture.base(num_classes=10)
    coefficients = net.coeff_layer(torch.tensor([t]))
    parameters = list(net.net.parameters())
    with torch.no_grad():
        for index, parameter in enumerate(model.parameters()):
            points = parameters[3 * index : 3 * index + 3]
            parameter.copy_(sum(c * p for c, p in zip(coefficients, points, strict=True)))
    return evaluate(model, batches)[0]


def _summed(
    ours: CurveRecord, straight: CurveRecord, reference: list[float], gap: float, way: float, settings: dict[str, Any]
) -> dict[str, Any]:
    difference = max(abs(x - y) for x, y in zip(ours.loss, reference, strict=True))
    return {
        "settings": {**settings, "torch": torch.__version__, "pyalign": pyalign.__version__},
        "t": list(ours.t), "ours": list(ours.loss), "theirs": reference, "straight": list(straight.loss),
        "largest_difference": difference, "bend_distance": gap, "bend_moved": way,
        "reached": difference <= NOISE,
    }  # fmt: skip


def markdown(found: dict[str, Any]) -> str:
    """The table of the study."""
    out = ["| t | straight line | pyalign | public code |", "|---|---|---|---|"]
    for row in zip(found["t"], found["straight"], found["ours"], found["theirs"], strict=True):
        out.append(f"| {row[0]:.2f} | {row[1]:.4f} | {row[2]:.4f} | {row[3]:.4f} |")
    s = found["settings"]
    out += [
        "",
        f"Test loss. Largest difference {found['largest_difference']:.2g}; the bends lie {found['bend_distance']:.2g} "
        f"apart after moving {found['bend_moved']:.2g} from the middle of the ends. ConvFC on CIFAR-10, {s['images']} "
        f"training and {s['test']} test images, {s['epochs']} epochs of batch {BATCH} ({s['steps']} steps), "
        f"torch {s['torch']}.",
    ]
    return "\n".join(out) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the study; the exit status is 1 where the losses differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", type=Path, required=True, help="a checkout of timgaripov/dnn-mode-connectivity")
    parser.add_argument("--images", type=int, default=2560)
    parser.add_argument("--test", type=int, default=1000, help="test images (default 1000)")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--points", type=int, default=11)
    parser.add_argument("--out", type=Path, help="folder to write garipov_peer.json and garipov_peer.md to")
    options = parser.parse_args(arguments)
    if not (options.reference / "curves.py").is_file():
        print(f"skipped: no curves.py in {options.reference}")
        return 0
    try:
        found = study(options.reference, options.images, options.test, options.epochs, options.points)
    except Absent as reason:
        print(f"skipped: {reason}")
        return 0
    table = markdown(found)
    print(table)
    texts = {"json": json.dumps(found, indent=1) + "\n", "md": "# A curve trained by two programs\n\n" + table}
    for name, text in texts.items():
        if options.out is not None:
            with replacing(options.out / f"garipov_peer.{name}") as temporary:
                temporary.write_text(text, encoding="utf-8")
    return 0 if found["reached"] else 1


if __name__ == "__main__":
    sys.exit(main())
