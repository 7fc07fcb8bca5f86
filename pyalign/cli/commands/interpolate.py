"""`pyalign interpolate`: the model at a point between two."""

from __future__ import annotations

import argparse

from pyalign.cli.answers import Answer
from pyalign.cli.data import add_data_options, load_data, load_recalibration
from pyalign.cli.models import add_pair_options, check_output, load_alignment, load_pair, save_model
from pyalign.paths import interpolate
from pyalign.statistics import has_batchnorm, reestimate_batchnorm

__all__ = ["DESCRIPTION", "EXAMPLES", "HELP", "NAME", "add_options", "run"]

NAME = "interpolate"
HELP = "the model at a point t between two"
DESCRIPTION = """\
Writes the model (1 - t) A + t B. Model B should have been brought to A (`pyalign align`), or --alignment names the
alignment to apply first. A model with BatchNorm needs --recalibrate to be of use."""
EXAMPLES = (
    "pyalign interpolate --model pyalign.demo:network --a a.safetensors --b b_aligned.safetensors -t 0.5 \\",
    "    --recalibrate digits:train --out middle.safetensors",
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of this command."""
    add_pair_options(parser)
    parser.add_argument("-t", type=float, default=0.5, metavar="T", help="position, 0 is A and 1 is B (default: 0.5)")
    parser.add_argument("--alignment", metavar="FILE", help="apply this alignment to model B first")
    parser.add_argument("--out", required=True, metavar="PATH", help="write the model, in the form that --a has")
    add_data_options(parser, required=False, recalibrate=True)


def run(args: argparse.Namespace) -> Answer:
    """Interpolate, re-estimate where asked, write."""
    check_output(args.out, args.a)
    model_a, model_b = load_pair(args)
    alignment = load_alignment(args.alignment, model_b)
    data = None if args.data is None else load_data(args.data, args)
    recalibration = load_recalibration(args, data)
    model = interpolate(model_a, model_b if alignment is None else alignment.apply(model_b), args.t)
    if recalibration is not None:
        reestimate_batchnorm(model, recalibration)
    save_model(model, args.out, args.a)
    stale = has_batchnorm(model) and recalibration is None and args.t not in (0.0, 1.0)
    note = "its BatchNorm statistics are averages of the two models' and fit neither; see --recalibrate"
    record = {
        "t": args.t,
        "recalibrated": recalibration is not None,
        "written": [args.out],
        "notes": [note] if stale else [],
    }
    return Answer(f"wrote {args.out}, the model at t = {args.t:g}" + (f"\nnote: {note}" if stale else ""), record)
