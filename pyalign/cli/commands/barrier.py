"""`pyalign barrier`: loss and accuracy along the line between two models."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pyalign._atomic import replacing
from pyalign.cli.answers import Answer, check_file
from pyalign.cli.data import add_data_options, load_data, load_recalibration
from pyalign.cli.models import add_pair_options, load_alignment, load_pair
from pyalign.paths import Barrier, barrier
from pyalign.report import barrier_figure, terminal_plot

__all__ = ["DESCRIPTION", "EXAMPLES", "HELP", "NAME", "add_options", "can_print", "run"]

NAME = "barrier"
HELP = "loss and accuracy barrier between two models"
DESCRIPTION = """\
Measures loss and accuracy on the straight line from model A to model B, and the barriers: how far the loss rises
above, and the accuracy falls below, the line between the two ends. Nothing is clipped at zero."""
EXAMPLES = (
    "pyalign barrier --model pyalign.demo:network --a a.safetensors --b b_aligned.safetensors --points 5 \\",
    "    --data digits:test --recalibrate digits:train --plot barrier.svg",
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of this command."""
    add_pair_options(parser)
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--points", type=int, default=25, metavar="N", help="equidistant positions (default: 25)")
    where.add_argument("-t", type=_positions, metavar="T,...", help="these positions instead, such as 0,0.5,1")
    parser.add_argument("--alignment", metavar="FILE", help="apply this alignment to model B first")
    parser.add_argument("--plot", metavar="FILE", help="draw the curves (.svg, .png or .pdf; needs matplotlib)")
    add_data_options(parser, recalibrate=True, purpose="batches with targets: ")


def run(args: argparse.Namespace) -> Answer:
    """Measure, draw, print."""
    check_file(args.plot, "--plot", (".svg", ".png", ".pdf"))
    model_a, model_b = load_pair(args)
    alignment = load_alignment(args.alignment, model_b)
    data = load_data(args.data, args)
    measured = barrier(
        model_a,
        model_b if alignment is None else alignment.apply(model_b),
        data,
        points=args.points,
        t=args.t,
        recalibrate=load_recalibration(args, data),
        progress=args.progress,
    )
    if args.plot is not None:
        _draw(measured, args.plot, "not aligned" if alignment is None else alignment.method)
    written = [args.plot] if args.plot else []
    plot = terminal_plot({"loss": (measured.t, measured.loss)}, unicode=can_print("█│●"))
    text = "\n".join([str(measured), "", plot, *(f"wrote {path}" for path in written)])
    return Answer(text, {**measured.to_dict(), "written": written})


def can_print(text: str) -> bool:
    """Whether the terminal's encoding has these characters."""
    try:
        text.encode((sys.__stdout__ and sys.__stdout__.encoding) or "ascii")
    except UnicodeEncodeError:
        return False
    return True


def _draw(measured: Barrier, path: str, name: str) -> None:
    figure = barrier_figure({name: measured})
    with replacing(path) as temporary:
        figure.savefig(temporary, format=Path(path).suffix[1:], dpi=150)


def _positions(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as failure:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of positions such as 0,0.5,1") from failure
