"""One command a file: NAME, HELP, DESCRIPTION, EXAMPLES, add_options(parser), run(args) -> Answer."""

from pyalign.cli.commands import align, barrier, demo, derive, doctor, interpolate, merge

__all__ = ["COMMANDS"]

COMMANDS = (demo, derive, align, interpolate, barrier, merge, doctor)
