"""Which implementation runs, why the others do not, and what is said when the compiled module is missing."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from engine.helpers_engine import run_script
from helpers_elsewhere import Elsewhere, elsewhere

from pyalign import errors
from pyalign.engine import backends, build, cpu, cross_moments, dispatch, linear_assignment, permuted_lerp

X = torch.rand(6, 4)
CALLS = {
    "cross_moments": lambda backend: cross_moments(X, X, backend=backend),
    "linear_assignment": lambda backend: linear_assignment(X, backend=backend),
    "permuted_lerp": lambda backend: permuted_lerp(X, X, 0.5, backend=backend),
}


@pytest.mark.parametrize("operation", CALLS)
def test_every_implementation_runs_or_says_why_not(operation):
    for candidate in dispatch.OPERATIONS[operation]:
        if candidate.why_not([X]):
            with pytest.raises(errors.BackendError, match=f"{candidate.name}: .*pyalign doctor"):
                CALLS[operation](candidate.name)
        else:
            CALLS[operation](candidate.name)


@pytest.mark.parametrize("operation", CALLS)
def test_unknown_and_foreign_names(operation):
    with pytest.raises(errors.InputError, match="one of auto, cuda, triton, cpu, reference"):
        CALLS[operation]("gpu")
    foreign = "cuda" if operation == "permuted_lerp" else "triton"
    with pytest.raises(errors.BackendError, match="no such implementation"):
        CALLS[operation](foreign)


@pytest.mark.parametrize("operation", CALLS)
def test_auto_takes_the_first_without_reasons(operation):
    assert dispatch.choose(operation, "auto", [X]) == "cpu"
    meta = torch.empty(3, 3, device="meta")
    assert dispatch.choose(operation, "auto", [meta]) == "reference"


def test_costs_of_a_device_without_a_solver_go_to_the_compiled_one(monkeypatch):
    listed = {i.name: i for i in dispatch.OPERATIONS["linear_assignment"]}
    there = SimpleNamespace(device=torch.device("cuda", 0), dtype=torch.float32)
    able = dataclasses.replace(listed["cuda"], missing="", refusals=lambda tensors: ["compute capability 7.5"])
    monkeypatch.setattr(dispatch, "OPERATIONS", {"linear_assignment": (able, listed["cpu"], listed["reference"])})
    assert dispatch.choose("linear_assignment", "auto", [there]) == "cpu"
    able = dataclasses.replace(able, refusals=lambda tensors: [])
    monkeypatch.setattr(dispatch, "OPERATIONS", {"linear_assignment": (able, listed["cpu"], listed["reference"])})
    assert dispatch.choose("linear_assignment", "auto", [there]) == "cuda"


def test_answers_for_costs_of_a_device_are_on_that_device():
    costs = [torch.rand(5, 7), torch.rand(3, 4, 4)]
    want = cpu.linear_assignment(costs, True, [])
    with elsewhere() as to_host:
        got = cpu.linear_assignment([Elsewhere(cost) for cost in costs], True, [])
        again = cpu.linear_assignment([Elsewhere(cost) for cost in costs], True, [(a[1], a[2], a[0]) for a in got])
    assert all(isinstance(field, Elsewhere) for answer in (*got, *again) for field in answer)
    for answer, other, expected in zip(got, again, want, strict=True):
        assert all(torch.equal(x.host, y) for x, y in zip(answer, expected, strict=True))
        assert torch.equal(other[0].host, expected[0])
    assert {35, 48} <= set(to_host)


@pytest.mark.parametrize("operation", CALLS)
def test_why_not_follows_the_declared_limits(operation):
    for candidate in dispatch.OPERATIONS[operation]:
        able = dataclasses.replace(candidate, missing="")
        for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.int32, torch.complex64):
            reasons = able.why_not([torch.zeros(2, 2, dtype=dtype, device="meta")])
            assert any("is on meta" in r for r in reasons) == bool(able.devices)
            assert any(str(dtype) in r for r in reasons) == (dtype not in able.dtypes)


def test_table_for_doctor():
    rows = backends()
    assert {row.operation for row in rows} == set(CALLS)
    for row in rows:
        assert row.available != bool(row.reasons)
    assert all(row.available for row in rows if row.implementation in ("cpu", "reference"))
    assert set(build()) >= {"compiler", "simd", "threads"}


def test_missing_module_falls_back_with_one_warning():
    script = """
        import sys, warnings
        sys.modules["pyalign._cpu"] = None
        import torch
        from pyalign import errors
        from pyalign.engine import build, cross_moments, linear_assignment
        x = torch.rand(5, 5)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert cross_moments(x, x).backend == linear_assignment(x).backend == "reference"
        said = [str(w.message) for w in caught if issubclass(w.category, errors.PyalignWarning)]
        assert len(said) == 1 and "_cpu cannot be imported" in said[0], said
        assert build()["compiler"] == "none" and "cannot be imported" in build()["why"]
        try:
            linear_assignment(x, backend="cpu")
        except errors.BackendError as error:
            assert "cannot be imported" in str(error)
        else:
            raise AssertionError("a named backend must not fall back")
    """
    run_script(script)
