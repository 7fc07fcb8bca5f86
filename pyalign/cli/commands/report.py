"""`pyalign report`: one page out of what other commands have measured."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from pyalign.cli.answers import Answer, UsageError, check_file, check_target, write_text
from pyalign.errors import InputError
from pyalign.paths import Barrier, Correlations, CurveRecord, PlaneRecord
from pyalign.report import Run, export_figures, run_page
from pyalign.train import RobustRecord

__all__ = ["DESCRIPTION", "EXAMPLES", "HELP", "NAME", "add_options", "run"]

NAME = "report"
HELP = "one page out of what was measured"
DESCRIPTION = """\
Writes one self-contained HTML page out of files that other commands wrote with --json or --save: barriers, curves,
planes, alignments, and the records of pyalign.paths.correlations and pyalign.train.robust_measure."""
EXAMPLES = ("pyalign report plane.json --title 'Two networks' --out report.html --figures figures",)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of this command."""
    parser.add_argument("records", nargs="+", metavar="[NAME=]FILE", help="what was measured, with the name to show")
    parser.add_argument("--title", default="A run of pyalign", help="the page's heading (default: %(default)s)")
    parser.add_argument("--lead", default="", metavar="TEXT", help="a paragraph under the heading")
    parser.add_argument(
        "--setting", action="append", default=[], metavar="NAME=TEXT", help="told on the page, such as seed=0"
    )
    parser.add_argument("--out", required=True, metavar="FILE", help="write the page (.html)")
    parser.add_argument("--figures", metavar="FOLDER", help="write every figure as SVG and PNG too")


def run(args: argparse.Namespace) -> Answer:
    """Read, write the page."""
    check_file(args.out, "--out", (".html",))
    check_target(args.figures, "--figures")
    wrong = [text for text in args.setting if "=" not in text]
    if wrong:
        raise UsageError(f"--setting: {wrong[0]!r} is no NAME=TEXT")
    found: dict[str, dict[str, Any]] = {}
    settings = dict(text.split("=", 1) for text in args.setting)
    for text in args.records:
        given, _, file = text.rpartition("=")
        name, content = given or Path(file).stem, _content(Path(file))
        kind, record = _record(Path(file), content)
        found.setdefault(kind, {})[name] = record
        settings |= {f"{name}: {key}": text for key, text in _settings(content).items()}
    made = Run(args.title, args.lead, settings=settings, **found)
    write_text(args.out, run_page(made))
    figures = [] if args.figures is None else [str(path) for path in export_figures(made, args.figures)]
    written = [args.out, *figures]
    return Answer("\n".join(f"wrote {path}" for path in written), {"written": written})


def _content(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as failure:
        raise InputError(f"{path} is no JSON ({failure})", do="name a file written with --json or --save") from failure
    return content if isinstance(content, dict) else {}


def _settings(content: dict[str, Any]) -> dict[str, str]:
    """How a curve was fitted, where its record tells: what was set, as texts."""
    settings = content.get("settings")
    given = settings.items() if isinstance(settings, dict) else ()
    flat = {k: ", ".join(map(str, v.values())) if isinstance(v, dict) else v for k, v in given if k != "ends"}
    return {name: str(value) for name, value in flat.items() if value is not None}


def _record(path: Path, content: dict[str, Any]) -> tuple[str, Any]:
    """What a file holds, told by its entries."""
    keys = set(content)
    if "anchors" in keys:
        return "planes", PlaneRecord.from_dict(content)
    if "slots" in keys:
        return "correlations", Correlations.from_dict(content)
    if {"clean", "robust"} <= keys:
        return "robust", RobustRecord.from_dict(content)
    if {"arc", "t"} <= keys:
        return "paths", CurveRecord.from_dict(content)
    if {"loss", "t"} <= keys:
        return "paths", Barrier.from_dict(content)
    if "groups" in keys:
        pairs = {g["name"]: (g["correlation_before"], g["correlation_after"]) for g in content["groups"]}
        known = {name: pair for name, pair in pairs.items() if None not in pair}
        if known:
            return "alignments", known
    raise InputError(
        f"{path} holds no record that can be shown",
        given=f"entries {', '.join(sorted(keys)[:8]) or 'none'}",
        expected="what barrier, evaluate, plane or align answer with --json or --save",
    )
