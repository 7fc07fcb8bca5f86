"""`pyalign derive`: the symmetry of a model, what was left alone and why."""

from __future__ import annotations

import argparse
import json
from typing import Any

import torch

from pyalign.cli.answers import Answer, UsageError, check_file, write_text
from pyalign.cli.data import add_data_options, load_data
from pyalign.cli.models import add_model_options, load_model
from pyalign.statistics import checked, split
from pyalign.symmetry import Group, Wreath, derive

__all__ = ["DESCRIPTION", "EXAMPLES", "HELP", "NAME", "add_options", "run"]

NAME = "derive"
HELP = "the symmetry of a model, and what was left alone"
DESCRIPTION = """\
Derives the symmetry of a model from one computation: which axes of which tensors may move together without
changing the function, what was left alone and why; and verifies it numerically."""
EXAMPLES = (
    "pyalign derive --model pyalign.demo:network --data digits",
    "pyalign derive --model pyalign.demo:network --shape 2,1,8,8 --out spec.json",
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of this command."""
    add_model_options(parser)
    parser.add_argument(
        "--a", metavar="PATH", help="weights: a file, or a Hugging Face folder; without it, the factory's own weights"
    )
    parser.add_argument(
        "--shape",
        type=_shape,
        metavar="N,...",
        help="random inputs of this shape, such as 2,3,32,32, instead of --data",
    )
    parser.add_argument("--no-verify", action="store_true", help="do not verify what was derived")
    parser.add_argument("--out", metavar="FILE", help="also write the specification to this JSON file")
    add_data_options(parser, required=False, purpose="the first batch is the example input: ")


def run(args: argparse.Namespace) -> Answer:
    """Derive, verify, print."""
    if (args.data is None) == (args.shape is None):
        raise UsageError("give --data or --shape, and only one of them")
    check_file(args.out, "--out", ())
    model = load_model(args, args.a, "--a")
    inputs = _inputs(args)
    spec = derive(model, inputs)
    proof = None if args.no_verify else spec.verify(model, inputs, seed=args.seed)
    if args.out is not None:
        write_text(args.out, json.dumps(spec.to_dict()) + "\n")
    text = spec.report()
    if proof is not None:
        text += (
            f"\n\nverified: random elements of {proof.groups} groups change the outputs by {proof.error:.2g} of their "
            f"largest value (rounding explains {proof.tolerance:.2g})"
        )
    record: dict[str, Any] = {
        "fingerprint": spec.fingerprint,
        "groups": [
            {
                "name": group.name,
                "size": group.size,
                "kind": group.kind,
                "structure": _structure(group),
                "reason": group.reason,
                "bindings": [
                    {"tensor": b.tensor, "axis": b.axis, "side": b.side, "role": b.role} for b in spec.of(group.name)
                ],
            }
            for group in spec.groups.values()
        ],
        "fixed": spec.fixed,
        "notes": spec.notes,
        "verified": proof,
        "written": [args.out] if args.out else [],
    }
    return Answer(text, record)


def _structure(group: Group) -> dict[str, Any]:
    if isinstance(group.structure, Wreath):
        return {"name": "blocks", "outer": group.structure.outer, "blocks": group.structure.blocks}
    return {"name": "flat"}


def _inputs(args: argparse.Namespace) -> Any:
    if args.data is not None:
        inputs, _ = split(next(iter(checked(load_data(args.data, args)))))
        return inputs
    generator = torch.Generator().manual_seed(args.seed)
    return torch.randn(args.shape, generator=generator).to(args.device)


def _shape(text: str) -> tuple[int, ...]:
    try:
        shape = tuple(int(part) for part in text.split(","))
    except ValueError as failure:
        raise argparse.ArgumentTypeError(f"{text!r} is no shape such as 2,3,32,32") from failure
    if min(shape) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} holds an axis without entries")
    return shape
