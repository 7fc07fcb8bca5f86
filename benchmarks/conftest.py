"""`pytest benchmarks` runs every case once per contestant; the options of the harness are pytest's here."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

# Behind the installed package, which must be found first: it has the compiled engine.
sys.path.append(str(Path(__file__).resolve().parents[1]))


def pytest_addoption(parser):
    group = parser.getgroup("benchmarks of pyalign")
    group.addoption("--quick", action="store_true", help="small inputs, a few seconds")
    group.addoption("--max-n", type=int, default=1024, help="largest linear assignment problem (default 1024)")
    group.addoption("--threads", type=int, default=2, help="torch and engine threads (default 2)")
    group.addoption("--operation", action="append", default=[], help="only this operation; may be repeated")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config):
    config.option.benchmark_skip = False  # which pyproject.toml sets, for the tests


def pytest_generate_tests(metafunc):
    from benchmarks.operations import cases

    option = metafunc.config.getoption
    chosen = cases(option("operation"), option("quick"), option("max_n"), option("threads"))
    pairs = [(case, name) for case in chosen for name in case.names]
    metafunc.parametrize(("case", "name"), pairs, ids=[f"{c.operation}: {c.name}: {name}" for c, name in pairs])


@pytest.fixture(autouse=True)
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.config.getoption("threads"))
    yield
    torch.set_num_threads(before)
