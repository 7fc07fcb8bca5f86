"""`pyalign curve`: a low-loss curve between two models."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import torch

from pyalign.cli.answers import Answer, check_file
from pyalign.cli.data import add_data_options, load_data
from pyalign.cli.models import add_pair_options, load_alignment, load_pair
from pyalign.paths import curve
from pyalign.paths.family import KINDS

__all__ = ["DESCRIPTION", "EXAMPLES", "HELP", "NAME", "add_options", "run"]

NAME = "curve"
HELP = "a low-loss curve between two models"
DESCRIPTION = """\
Trains the bends of a curve from model A to model B, so that the loss is low all along it, and writes the curve. Model B
should have been brought to A (`pyalign align`), or --alignment names the alignment to apply first. A run that is
stopped goes on from its --checkpoint, to the bit. `pyalign evaluate` measures the curve."""
EXAMPLES = (
    "pyalign curve --model pyalign.demo:network --a a.safetensors --b b_aligned.safetensors --steps 10 \\",
    "    --data digits:train --checkpoint run.safetensors --out curve.safetensors",
)
PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "nesterov": partial(torch.optim.SGD, momentum=0.9, nesterov=True),
    "sgd": partial(torch.optim.SGD, momentum=0.9),
    "adam": torch.optim.Adam,
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of this command."""
    add_pair_options(parser)
    parser.add_argument("--out", required=True, metavar="FILE", help="write the curve (.safetensors)")
    parser.add_argument("--alignment", metavar="FILE", help="apply this alignment to model B first")
    group = parser.add_argument_group("curve")
    group.add_argument("--kind", choices=KINDS, default="bezier", help="default: %(default)s")
    group.add_argument("--bends", type=int, default=1, metavar="N", help="inner control points (default: 1)")
    group = parser.add_argument_group("training")
    length = group.add_mutually_exclusive_group(required=True)
    length.add_argument("--epochs", type=int, metavar="N", help="passes over the data")
    length.add_argument("--steps", type=int, metavar="N", help="batches, instead of --epochs")
    group.add_argument("--optimizer", choices=tuple(OPTIMIZERS), default="nesterov", help="default: %(default)s")
    group.add_argument("--lr", type=float, default=0.03, help="learning rate (default: %(default)s)")
    group.add_argument("--weight-decay", type=float, default=5e-4, help="of the point on the curve (default: 0.0005)")
    group.add_argument("--clip", type=float, metavar="X", help="largest norm of the gradient")
    group.add_argument("--precision", choices=tuple(PRECISIONS), default="float32", help="default: %(default)s")
    group.add_argument("--checkpoint", metavar="FILE", help="written while training; a run goes on from it")
    group.add_argument("--every", type=int, default=500, metavar="N", help="steps between checkpoints (default: 500)")
    add_data_options(parser, purpose="training batches with targets: ")


def run(args: argparse.Namespace) -> Answer:
    """Train, write."""
    check_file(args.out, "--out", (".safetensors",))
    check_file(args.checkpoint, "--checkpoint", (".safetensors",))
    model_a, model_b = load_pair(args)
    alignment = load_alignment(args.alignment, model_b)
    found = curve(
        model_a,
        model_b if alignment is None else alignment.apply(model_b),
        load_data(args.data, args, shuffle=True),
        kind=args.kind,
        bends=args.bends,
        steps=args.steps,
        epochs=args.epochs,
        optimizer=OPTIMIZERS[args.optimizer],
        lr=args.lr,
        weight_decay=args.weight_decay,
        clip=args.clip,
        precision=PRECISIONS[args.precision],
        seed=args.seed,
        checkpoint=args.checkpoint,
        every=args.every,
        progress=args.progress,
    )
    found.save(args.out)
    last = [loss for _, loss in found.history[-20:]]
    record = {
        "kind": found.kind,
        "bends": found.bends,
        "length": found.length,
        "planarity": found.planarity,
        "loss_of_last_steps": sum(last) / max(1, len(last)),
        "settings": found.settings,
        "written": [args.out],
    }
    text = f"wrote {args.out}: {found.kind} with {found.bends} bend(s), length {found.length:.4g}"
    steps = f"{found.settings['taken']} steps, mean loss of the last {len(last)}: {record['loss_of_last_steps']:.4f}"
    return Answer(f"{text}\n{steps}", record)
