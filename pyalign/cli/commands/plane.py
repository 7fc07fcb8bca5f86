"""`pyalign plane`: loss and accuracy on the plane through three models."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pyalign._atomic import replacing
from pyalign.cli.answers import Answer, UsageError, check_file, write_text
from pyalign.cli.data import add_data_options, load_data, load_recalibration
from pyalign.cli.models import add_model_options, load_model
from pyalign.paths import Curve, PlaneRecord, plane
from pyalign.report import plane_figure

__all__ = ["DESCRIPTION", "EXAMPLES", "HELP", "NAME", "add_options", "run"]

NAME = "plane"
HELP = "loss and accuracy on the plane through three models"
DESCRIPTION = """\
Measures a grid of models on the plane through three: the ends and the middle of a curve, which is drawn into the
picture, or any three checkpoints. Models with BatchNorm need --recalibrate. A run that is stopped goes on from its
--checkpoint."""
EXAMPLES = (
    "pyalign plane --model pyalign.demo:network --curve curve.safetensors --resolution 2 --data digits:test \\",
    "    --recalibrate digits:train --limit 128 --checkpoint plane-run.json --plot plane.svg --save plane.json",
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of this command."""
    add_model_options(parser)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--curve", metavar="FILE", help="a curve that `pyalign curve` wrote")
    what.add_argument("--anchors", nargs=3, metavar="PATH", help="three models: files, or Hugging Face folders")
    parser.add_argument("--resolution", type=int, default=21, metavar="N", help="rows and columns (default: 21)")
    parser.add_argument("--margin", type=float, default=0.2, help="around the models, of their extent (default: 0.2)")
    parser.add_argument("--quantity", choices=("loss", "accuracy"), default="loss", help="to draw (default: loss)")
    parser.add_argument("--plot", metavar="FILE", help="draw contours (.svg, .png or .pdf; needs matplotlib)")
    parser.add_argument("--save", metavar="FILE", help="write the values (.json)")
    parser.add_argument("--checkpoint", metavar="FILE", help="written point by point; a run goes on from it (.json)")
    add_data_options(parser, recalibrate=True, purpose="batches with targets: ")


def run(args: argparse.Namespace) -> Answer:
    """Measure, draw, write."""
    check_file(args.plot, "--plot", (".svg", ".png", ".pdf"))
    check_file(args.save, "--save", (".json",))
    check_file(args.checkpoint, "--checkpoint", (".json",))
    if args.plot is None and args.save is None:
        raise UsageError("give --plot or --save: there is nothing else to look at")
    curves: dict[str, Any] = {}
    if args.curve is None:
        models = [load_model(args, path, "--anchors") for path in args.anchors]
    else:
        curves["curve"] = Curve.load(args.curve, load_model(args, None, "--model"))
        models = [curves["curve"].at(t) for t in (0.0, 1.0, 0.5)]
    data = load_data(args.data, args)
    found = plane(
        models[0],
        models[1],
        models[2],
        data,
        resolution=args.resolution,
        margin=args.margin,
        curves=curves,
        recalibrate=load_recalibration(args, data),
        checkpoint=args.checkpoint,
        progress=args.progress,
    )
    written = [path for path in (args.plot, args.save) if path is not None]
    if args.plot is not None:
        figure = plane_figure(found, quantity=args.quantity)
        with replacing(args.plot) as temporary:
            figure.savefig(temporary, format=Path(args.plot).suffix[1:], dpi=150)
    if args.save is not None:
        write_text(args.save, found.to_json() + "\n")
    return Answer("\n".join([_text(found), *(f"wrote {p}" for p in written)]), {**found.to_dict(), "written": written})


def _text(found: PlaneRecord) -> str:
    lines = [f"{len(found.y)} x {len(found.x)} points, {found.samples} samples each"]
    for index, (place, loss) in enumerate(zip(found.anchors, found.anchor_loss, strict=True)):
        accuracy = "" if found.anchor_accuracy is None else f", accuracy {found.anchor_accuracy[index]:.4f}"
        lines.append(f"model {'abc'[index]} at ({place[0]:.4g}, {place[1]:.4g}): loss {loss:.4f}{accuracy}")
    return "\n".join(lines)
