"""`pyalign demo`: the main job on two small networks, in a terminal and on a page."""

from __future__ import annotations

import argparse
from pathlib import Path

from pyalign import io
from pyalign.cli.answers import Answer, check_file, write_text
from pyalign.cli.commands.barrier import can_print
from pyalign.demo import Settings, make_page, terminal_text
from pyalign.demo import run as run_study

__all__ = ["DESCRIPTION", "EXAMPLES", "HELP", "NAME", "add_options", "run"]

NAME = "demo"
HELP = "trains two small networks, aligns them both ways, shows the barriers, writes a page"
DESCRIPTION = """\
Trains two small residual networks from different seeds on scikit-learn's handwritten digits (nothing is downloaded),
aligns them by activations and by weights, prints the barriers and writes one HTML page. Takes about half a minute."""
EXAMPLES = ("pyalign demo --epochs 5 --points 9 --models . --out pyalign-demo.html",)
DEFAULTS = Settings()


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of this command."""
    parser.add_argument("--out", default="pyalign-demo.html", metavar="FILE", help="the page (default: %(default)s)")
    parser.add_argument("--models", metavar="FOLDER", help="also write a.safetensors and b.safetensors to this folder")
    for name, text in (
        ("seed", "of model A; model B takes the next one"),
        ("epochs", "passes over the training images"),
        ("width", "channels of the first stage"),
        ("points", "positions on each path"),
    ):
        default = getattr(DEFAULTS, name)
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N", help=f"{text} (default: {default})")


def run(args: argparse.Namespace) -> Answer:
    """Run the study, write the page, print the table."""
    settings = Settings(seed=args.seed, epochs=args.epochs, width=args.width, points=args.points)
    check_file(args.out, "--out", (".html", ".htm"))
    for name in "ab":
        check_file(args.models and f"{args.models}/{name}.safetensors", "--models", ())
    study = run_study(settings, progress=args.progress)
    written = [args.out]
    write_text(args.out, make_page(study))
    if args.models is not None:
        for name, model in (("a", study.model_a), ("b", study.model_b)):
            path = Path(args.models) / f"{name}.safetensors"
            io.save_state(model, path)
            written.append(str(path))
    text = "\n".join([terminal_text(study, unicode=can_print("■●▲│└─")), *(f"wrote {path}" for path in written)])
    return Answer(text, {**study.to_dict(), "written": written})
