"""Running `pyalign` inside a test, and small files of a user's own."""

import contextlib
import json
import os
import textwrap
from typing import NamedTuple

from pyalign.cli import main

NETS = """
import torch
from torch import nn

def factory(width=6):
    print("a user's own print")
    return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 3))

def fails():
    raise RuntimeError("no weights today")

def no_model():
    return 3

not_callable = 5
zoo = {"small": factory}

def data():
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(32, 4, generator=generator), torch.randint(3, (32,), generator=generator)) for _ in range(2)]

def one_pass():
    print("called")
    yield from data()

def empty():
    return []

def number():
    return 7

def fails_late():
    yield data()[0]
    raise ValueError("the file ended")
"""


class Outcome(NamedTuple):
    code: int
    out: str
    err: str

    def json(self):
        return json.loads(self.out)


def pyalign(capsys, *words):
    """Run one command; what it printed on stdout and stderr is read and taken away."""
    capsys.readouterr()
    code = main([str(word) for word in words])
    captured = capsys.readouterr()
    return Outcome(code, captured.out, captured.err)


def write_nets(folder):
    (folder / "nets_of_a_user.py").write_text(textwrap.dedent(NETS))


@contextlib.contextmanager
def inside(folder):
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield folder
    finally:
        os.chdir(before)
