"""Parsing, logging, exit codes: what every command shares."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any, TextIO

from pyalign.cli.answers import Answer, UsageError
from pyalign.cli.commands import COMMANDS
from pyalign.errors import PyalignError, PyalignWarning

__all__ = ["main", "make_parser"]

DONE, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130
DESCRIPTION = """\
Aligns trained networks: finds the symmetry between two models, proves it, interpolates, measures barriers, merges.

Begin with `pyalign demo`. Every command has an example in its --help; the examples use the two models that
`pyalign demo --models .` writes to the current folder."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: The words after `pyalign`; None takes those of the process.

    Returns:
        The exit code: 0 done, 1 an error (one line on stderr), 2 wrong usage, 130 interrupted by Ctrl-C.
    """
    parser = make_parser()
    try:
        args = parser.parse_args(argv)
    except SystemExit as finished:
        return int(finished.code or 0)
    if args.command is None:
        parser.print_help(sys.stderr)
        return USAGE
    try:
        with _talking(args):
            answer = _answer(args)
        return _print(answer, args.json)
    except UsageError as failure:
        return _tell(args, f"error: {failure}\nsee: pyalign {args.command} --help", USAGE)
    except PyalignError as failure:
        return _tell(args, f"error: {failure}", FAILED)
    except KeyboardInterrupt:
        return _tell(args, "interrupted; nothing was left half written", INTERRUPTED)
    except OSError as failure:
        return _tell(args, f"error: {failure}", FAILED)
    except Exception as failure:
        text = " ".join(f"{type(failure).__name__}: {failure}".split())
        return _tell(args, f"error: {text} (this was not expected; repeat with --debug to see where)", FAILED)


def make_parser() -> argparse.ArgumentParser:
    """The parser of `pyalign` with all its commands."""
    parser = argparse.ArgumentParser(
        prog="pyalign", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"pyalign {_version()}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    for command in COMMANDS:
        sub = commands.add_parser(
            command.NAME,
            help=command.HELP,
            description=command.DESCRIPTION,
            epilog="example:\n" + "\n".join(f"  {line}" for line in command.EXAMPLES),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        command.add_options(sub)
        common = sub.add_argument_group("output")
        common.add_argument("--json", action="store_true", help="print the answer as JSON, and nothing else, on stdout")
        common.add_argument("-q", "--quiet", action="store_true", help="no progress bars, no warnings")
        common.add_argument("-v", "--verbose", action="store_true", help="tell more on stderr")
        common.add_argument("--debug", action="store_true", help="show the traceback of an error")
        sub.set_defaults(run=command.run)
    return parser


def _answer(args: argparse.Namespace) -> Answer:
    args.progress = False if args.quiet else None
    # what a user's own functions print must not get between the answer and who reads it
    with contextlib.redirect_stdout(sys.stderr):
        answer: Answer = args.run(args)
    return answer


def _print(answer: Answer, as_json: bool) -> int:
    try:
        print(answer.json() if as_json else _printable(answer.text, sys.stdout), flush=True)
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return DONE


def _printable(text: str, stream: TextIO) -> str:
    encoding = stream.encoding or "utf-8"
    return text.encode(encoding, errors="replace").decode(encoding)


def _tell(args: argparse.Namespace, text: str, code: int) -> int:
    if args.debug and sys.exc_info()[0] is not None:
        traceback.print_exc(file=sys.stderr)
    print(_printable(f"pyalign {args.command}: {text}", sys.stderr), file=sys.stderr, flush=True)
    return code


@contextlib.contextmanager
def _talking(args: argparse.Namespace) -> Iterator[None]:
    """Inside the block logs and warnings of the library go to stderr, one line each."""
    logger = logging.getLogger("pyalign")
    handler, level = logging.StreamHandler(sys.stderr), logger.level
    handler.setFormatter(logging.Formatter("pyalign: %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.ERROR if args.quiet else logging.INFO if args.verbose else logging.WARNING)
    try:
        with warnings.catch_warnings():
            others = warnings.showwarning

            def show(message: Warning | str, category: type[Warning], *rest: Any, **named: Any) -> None:
                if issubclass(category, PyalignWarning):
                    print(_printable(f"pyalign: warning: {message}", sys.stderr), file=sys.stderr, flush=True)
                else:
                    others(message, category, *rest, **named)

            warnings.showwarning = show
            if args.quiet:
                warnings.simplefilter("ignore")
            yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def _version() -> str:
    try:
        return version("pyalign-nn")
    except PackageNotFoundError:
        return "(not installed)"
