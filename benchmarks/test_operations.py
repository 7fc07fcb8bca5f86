"""Every case and contestant under pytest-benchmark; ratios and gates are the business of `python -m benchmarks.run`."""

from __future__ import annotations

from functools import lru_cache

import pytest
import torch

from benchmarks.record import Case, Contest, Skipped


@lru_cache(maxsize=1)  # the contestants of a case come one after another
def built(case: Case) -> Contest:
    return case.build()


def test_case(case, name, benchmark):
    try:
        contest = built(case)
    except Skipped as reason:
        pytest.skip(str(reason))
    found = [c for c in contest.contestants if c.name == name]
    if not found:
        pytest.skip(f"{name}: {contest.missing.get(name, 'not in this case')}")
    benchmark.group = f"{case.operation}: {case.name}"
    if found[0].threads is not None:
        torch.set_num_threads(found[0].threads)
    wrong = contest.check(name, found[0].run())
    if wrong and found[0].role == "competitor":
        pytest.skip(f"{name} is wrong: {wrong}")
    assert not wrong
    benchmark(found[0].run)
