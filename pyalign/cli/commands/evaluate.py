"""`pyalign evaluate`: loss and accuracy of a model, or along a curve."""

from __future__ import annotations

import argparse
from pathlib import Path

from pyalign._atomic import replacing
from pyalign.cli.answers import Answer, UsageError, check_file
from pyalign.cli.commands.barrier import can_print
from pyalign.cli.data import add_data_options, load_data, load_recalibration
from pyalign.cli.models import add_model_options, load_model
from pyalign.paths import Curve, CurveRecord
from pyalign.paths.measure import evaluate
from pyalign.report import barrier_figure, terminal_plot
from pyalign.statistics import reestimate_batchnorm

__all__ = ["DESCRIPTION", "EXAMPLES", "HELP", "NAME", "add_options", "run"]

NAME = "evaluate"
HELP = "loss and accuracy of a model, or along a curve"
DESCRIPTION = """\
Measures a model, or a curve that `pyalign curve` wrote: loss and accuracy at every point, their minimum, maximum and
means, and the barriers. Models with BatchNorm need --recalibrate between the ends of a curve."""
EXAMPLES = (
    "pyalign evaluate --model pyalign.demo:network --curve curve.safetensors --points 5 --data digits:test \\",
    "    --recalibrate digits:train --limit 256 --plot curve.svg",
    "pyalign evaluate --model pyalign.demo:network --checkpoint a.safetensors --data digits:test",
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of this command."""
    add_model_options(parser)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--curve", metavar="FILE", help="a curve that `pyalign curve` wrote; --model makes its models")
    what.add_argument("--checkpoint", metavar="PATH", help="a model: a file, or a Hugging Face folder")
    parser.add_argument("--points", type=int, metavar="N", help="equidistant positions on the curve (default: 61)")
    parser.add_argument("--plot", metavar="FILE", help="draw loss and accuracy along the curve (.svg, .png or .pdf)")
    add_data_options(parser, recalibrate=True, purpose="batches with targets: ")


def run(args: argparse.Namespace) -> Answer:
    """Measure, draw, print."""
    check_file(args.plot, "--plot", (".svg", ".png", ".pdf"))
    if args.curve is None and (args.plot is not None or args.points is not None):
        raise UsageError("--points and --plot are for a --curve")
    model = load_model(args, args.checkpoint, "--checkpoint")
    data = load_data(args.data, args)
    recalibration = load_recalibration(args, data)
    if args.curve is None:
        if recalibration is not None:
            reestimate_batchnorm(model, recalibration)
        loss, accuracy, samples = evaluate(model, data)
        shown = "" if accuracy is None else f", accuracy {accuracy:.4f}"
        record = {"loss": loss, "accuracy": accuracy, "samples": samples, "recalibrated": recalibration is not None}
        return Answer(f"loss {loss:.4f}{shown} on {samples} samples", record)
    curve = Curve.load(args.curve, model)
    points = 61 if args.points is None else args.points
    measured = curve.evaluate(data, points=points, recalibrate=recalibration, progress=args.progress)
    if args.plot is not None:
        _draw(measured, args.plot)
    written = [args.plot] if args.plot else []
    plot = terminal_plot({"loss": (measured.t, measured.loss)}, unicode=can_print("█│●"))
    text = "\n".join([str(measured), "", plot, *(f"wrote {path}" for path in written)])
    # How the curve was fitted, for whoever reads the numbers; the names of all parameters are of no use there.
    settings = {name: value for name, value in curve.settings.items() if name != "parameters"}
    about = {"planarity": curve.planarity, "settings": settings, "written": written}
    return Answer(text, {**measured.to_dict(), **about})


def _draw(measured: CurveRecord, path: str) -> None:
    figure = barrier_figure({"curve": measured})
    with replacing(path) as temporary:
        figure.savefig(temporary, format=Path(path).suffix[1:], dpi=150)
