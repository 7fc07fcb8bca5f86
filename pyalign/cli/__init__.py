"""The command line: parse, call, print; no algorithm."""

from pyalign.cli.main import main

__all__ = ["main"]
