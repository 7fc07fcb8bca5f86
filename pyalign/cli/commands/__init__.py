"""One command a file: NAME, HELP, DESCRIPTION, EXAMPLES, add_options(parser), run(args) -> Answer."""

from pyalign.cli.commands import (
    align,
    barrier,
    curve,
    demo,
    derive,
    doctor,
    evaluate,
    interpolate,
    merge,
    plane,
    report,
)

__all__ = ["COMMANDS"]

COMMANDS = (demo, derive, align, interpolate, barrier, curve, evaluate, plane, report, merge, doctor)
