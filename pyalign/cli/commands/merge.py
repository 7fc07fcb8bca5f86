"""`pyalign merge`: one model out of several."""

from __future__ import annotations

import argparse

from pyalign.cli.answers import Answer, UsageError
from pyalign.cli.commands.align import record_of
from pyalign.cli.data import add_data_options, load_data
from pyalign.cli.models import add_model_options, check_output, load_model, save_model
from pyalign.matching import align
from pyalign.merge import merge

__all__ = ["DESCRIPTION", "EXAMPLES", "HELP", "NAME", "add_options", "run"]

NAME = "merge"
HELP = "one model out of several"
DESCRIPTION = """\
Writes the weighted average of models, with BatchNorm statistics or activations repaired where asked. The models should
have been brought to the first one (`pyalign align`), or --align does it here."""
EXAMPLES = (
    "pyalign merge --model pyalign.demo:network a.safetensors b.safetensors --align activation --repair repair \\",
    "    --data digits:train --out merged.safetensors",
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of this command."""
    add_model_options(parser)
    parser.add_argument("checkpoints", nargs="+", metavar="PATH", help="models: files, or Hugging Face folders")
    parser.add_argument("--weights", type=float, nargs="+", metavar="W", help="one number a model (default: equal)")
    parser.add_argument("--align", choices=("activation", "weight"), help="bring every model to the first one before")
    parser.add_argument(
        "--repair", choices=("bn_reset", "rescale", "repair"),
        help="re-estimate BatchNorm statistics; restore the spread of activations; restore mean and spread",
    )  # fmt: skip
    parser.add_argument("--out", required=True, metavar="PATH", help="write the merged model, in the form of the first")
    add_data_options(parser, required=False, purpose="needed by --align and --repair: ")


def run(args: argparse.Namespace) -> Answer:
    """Align where asked, merge, write."""
    check_output(args.out, args.checkpoints[0])
    if len(args.checkpoints) < 2:
        raise UsageError("give at least two models")
    if args.weights is not None and len(args.weights) != len(args.checkpoints):
        raise UsageError(f"--weights: {len(args.weights)} numbers for {len(args.checkpoints)} models")
    if args.data is None and (args.align or args.repair):
        raise UsageError("--align and --repair need --data")
    data = None if args.data is None else load_data(args.data, args)
    models = [load_model(args, path, "PATH") for path in args.checkpoints]
    alignments = []
    if args.align is not None:
        alignments = [
            align(models[0], model, data, method=args.align, seed=args.seed, progress=args.progress)
            for model in models[1:]
        ]
        models[1:] = [found.apply(model) for found, model in zip(alignments, models[1:], strict=True)]
    merged = merge(models, weights=args.weights, repair=args.repair, data=data)
    save_model(merged, args.out, args.checkpoints[0])
    record = {
        "models": args.checkpoints,
        "weights": args.weights,
        "repair": args.repair,
        "alignments": [record_of(found) for found in alignments],
        "written": [args.out],
    }
    how = f"aligned by {args.align}s, " if args.align else ""
    return Answer(f"wrote {args.out}: {len(models)} models, {how}repair: {args.repair or 'none'}", record)
