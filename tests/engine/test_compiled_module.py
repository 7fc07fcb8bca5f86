"""The compiled module called directly: stubs, wrong inputs, SIMD paths, threads, fork and Ctrl-C. Never a crash."""

from __future__ import annotations

import ast
import inspect
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time

import numpy as np
import pytest
import torch
from engine.helpers_engine import (
    check_assignment,
    check_blend,
    check_moments,
    permute,
    run_script,
    true_moments,
)

import pyalign.errors
from pyalign import _cpu
from pyalign.engine import cross_moments, linear_assignment, permuted_lerp

STUBS = pathlib.Path(pyalign.errors.__file__).parent


@pytest.mark.parametrize("module", ["_cpu", "_cuda"])
def test_stubs_list_exactly_the_functions_and_their_arguments(module):
    tree = ast.parse((STUBS / f"{module}.pyi").read_text())
    compiled = pytest.importorskip(f"pyalign.{module}", reason="not built: no CUDA compiler at install time")
    stubs = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    functions = {name: f for name, f in inspect.getmembers(compiled) if callable(f) and not name.startswith("_")}
    assert stubs.keys() == functions.keys()
    for name, function in functions.items():
        signature, _, text = function.__doc__.partition("\n\n")
        if stubs[name].args.posonlyargs:  # bound without pybind11, which writes the signatures
            text = function.__doc__
            with pytest.raises(TypeError, match=f"given 0 arguments, expected {len(stubs[name].args.posonlyargs)}"):
                function()
        else:
            inside = re.fullmatch(rf"{name}\((.*)\) -> .*", signature).group(1)
            assert re.findall(r"(\w+): ", inside) == [argument.arg for argument in stubs[name].args.args], name
        assert text.strip() == ast.get_docstring(stubs[name]).replace("\n", " "), name
    assert ast.get_docstring(tree).split("\n")[0].startswith(compiled.__doc__.split(". ")[0])


def zeros(*shape, dtype=torch.float64):
    return torch.zeros(shape, dtype=dtype)


def moments(**changes):
    given = {
        "x": torch.rand(5, 3), "y": torch.rand(5, 4), "mask": None, "axis_x": 1, "axis_y": 1, "full": False,
        "count": zeros(), "mean_a": zeros(3), "mean_b": zeros(4), "comoment": zeros(3, 4), "square_a": zeros(3),
        "square_b": zeros(4), "threads": 1,
    }  # fmt: skip
    return _cpu.cross_moments(**{**given, **changes})


def assignment(cost=None, answer=None, start=(), threads=1, **fields):
    given = {
        "perm": zeros(1, 3, dtype=torch.int64),
        "u": zeros(1, 3),
        "v": zeros(1, 4),
        "gap": zeros(1),
        "objective": zeros(1),
    }
    answer = list({**given, **fields}.values()) if answer is None else answer
    return _cpu.linear_assignment(
        [torch.rand(1, 3, 4) if cost is None else cost], False, list(start), [answer], threads
    )


def blend(out=None, tensors=None, weights=(0.5, 0.5), perms=((None, None), (None, None)), threads=1):
    tensors = [torch.rand(4, 6)] * 2 if tensors is None else tensors
    return _cpu.permuted_sum(torch.zeros(4, 6) if out is None else out, tensors, weights, list(perms), threads)


class OnCuda:
    """A tensor that says it is elsewhere; its memory must not be touched."""

    def __dlpack__(self):
        raise AssertionError("exported before its device was checked")

    def __dlpack_device__(self):
        return (2, 0)


WRONG = {
    "x a list": (lambda: moments(x=[[1.0]]), "x: given <class 'list'>, expected a tensor"),
    "x integers": (lambda: moments(x=torch.ones(5, 3, dtype=torch.int64)), "x: given int64, expected float32"),
    "x on cuda": (lambda: moments(x=OnCuda()), "x: given a tensor on cuda:0, expected cpu"),
    "x complex": (lambda: moments(x=torch.rand(5, 3) * 1j), "x: given another dtype, expected"),
    "axis too large": (lambda: moments(axis_x=2), "x: given unit axis 2 for shape (5, 3)"),
    "axis negative": (lambda: moments(axis_y=-1), "y: given unit axis -1"),
    "samples differ": (lambda: moments(y=torch.rand(6, 4)), "y: given sample shape (6,), expected (5,)"),
    "mask dtype": (lambda: moments(mask=torch.ones(5)), "mask: given float32, expected bool"),
    "mask shape": (lambda: moments(mask=torch.ones(4, dtype=torch.bool)), "mask: given shape (4,), expected (5,)"),
    "mean shape": (lambda: moments(mean_a=zeros(4)), "mean_a: given shape (4,), expected (3,)"),
    "comoment dtype": (lambda: moments(comoment=torch.zeros(3, 4)), "comoment: given float32, expected float64"),
    "comoment strides": (lambda: moments(comoment=zeros(4, 3).T), "comoment: given strides (1, 3)"),
    "square not full": (lambda: moments(full=True), "square_a: given shape (3,), expected (3, 3)"),
    "count an array": (lambda: moments(count=zeros(1)), "count: given shape (1,), expected ()"),
    "x requires grad": (lambda: moments(x=torch.rand(5, 3, requires_grad=True)), "grad"),
    "no threads": (lambda: moments(threads=0), "threads: given 0, expected at least 1"),
    "meta": (lambda: moments(x=torch.empty(5, 3, device="meta")), "."),
    "cost vector": (lambda: assignment(torch.rand(4)), "costs[0]: given shape (4,), expected 2 or 3 dimensions"),
    "cost matrix, batched answer": (
        lambda: assignment(torch.rand(3, 4)),
        "costs[0] perm: given shape (1, 3), expected (3,)",
    ),
    "cost half": (lambda: assignment(torch.rand(1, 3, 4).half()), "costs[0]: given float16, expected float32"),
    "cost numpy strings": (lambda: assignment(np.array([[["a"]]])), "."),
    "perm dtype": (
        lambda: assignment(perm=torch.zeros(1, 3, dtype=torch.int32)),
        "costs[0] perm: given int32, expected int64",
    ),
    "duals shape": (lambda: assignment(v=zeros(1, 3)), "costs[0] col_duals: given shape (1, 3), expected (1, 4)"),
    "duals strides": (lambda: assignment(v=zeros(1, 8)[:, ::2]), "costs[0] col_duals: given strides"),
    "answer short": (lambda: assignment(answer=[zeros(1)]), "costs[0] answer: expected a sequence of 5 tensors"),
    "answer none": (lambda: assignment(answer=None, start=[None, None]), "given 1 costs, 2 starts and 1 answers"),
    "start short": (lambda: assignment(start=[[zeros(1, 3)]]), "costs[0] start: expected a sequence of 3 tensors"),
    "one cost, batched": (
        lambda: _cpu.assign_matrix(torch.rand(1, 3, 4), False, None, 1),
        "cost: given shape (1, 3, 4), expected 2 dimensions",
    ),
    "one start short": (
        lambda: _cpu.assign_matrix(torch.rand(3, 4), False, np.zeros(11), 1),
        "start: expected the 13 numbers of an answer for 3 rows",
    ),
    "one start dtype": (
        lambda: _cpu.assign_matrix(torch.rand(3, 4), False, [0.0] * 13, 1),
        "start: expected a contiguous array",
    ),
    "out overlaps": (lambda: blend(out=torch.zeros(6).expand(4, 6)), "out: given strides (0, 1)"),
    "out dtype": (lambda: blend(out=torch.zeros(4, 6, dtype=torch.int32)), "out: given int32, expected float32"),
    "tensor dtype": (
        lambda: blend(tensors=[torch.rand(4, 6).double()] * 2),
        "tensors[0]: given float64, expected float32",
    ),
    "tensor shape": (lambda: blend(tensors=[torch.rand(4, 5)] * 2), "tensors[0]: given shape (4, 5), expected (4, 6)"),
    "weights": (lambda: blend(weights=[1.0]), "given 2 tensors, 1 weights and 2 lists of perms"),
    "perms short": (lambda: blend(perms=[(None,), (None,)]), "perms[0]: expected a sequence of 2 entries"),
    "perm too large": (
        lambda: blend(perms=[(torch.tensor([4, 0, 1, 2]), None)] * 2),
        "perms[0][0]: given index 4, expected 0 to 3",
    ),
    "perm negative": (lambda: blend(perms=[(torch.tensor([-1, 0, 1, 2]), None)] * 2), "perms[0][0]: given index -1"),
    "perm twice": (lambda: blend(perms=[(torch.tensor([1, 0, 1, 2]), None)] * 2), "perms[0][0]: given index 1 twice"),
    "perm length": (lambda: blend(perms=[(None, torch.arange(4))] * 2), "perms[0][1]: given 4 indices"),
    "perm none of some": (lambda: blend(perms=[(None, torch.arange(0))] * 2), "perms[0][1]: given 0 indices"),
    "perm of floats": (
        lambda: blend(perms=[(torch.arange(4.0), None)] * 2),
        "perms[0][0]: given float32, expected int64",
    ),
    "path": (lambda: _cpu.use_simd("sse9"), "path: given 'sse9'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_inputs_raise(case):
    call, message = WRONG[case]
    pattern = "." if message == "." else re.escape(message)
    with pytest.raises((ValueError, TypeError, BufferError, RuntimeError), match=pattern):
        call()


def test_right_inputs_do_not_raise():
    assert moments() is True and assignment() is None and blend() is None


def test_arrays_that_are_not_taken():
    for other in ([[1.0]], np.ones(3), np.ones((2, 2), np.float16), np.array([["a"]]), np.full((2, 2), np.nan)):
        assert _cpu.assign_array(other, False, 1) is None
    rows, columns = _cpu.assign_array(np.eye(3), False, 1)
    assert rows.tolist() == [0, 1, 2] and sorted(columns.tolist()) == [0, 1, 2] and np.trace(np.eye(3)[:, columns]) == 0


def test_tensors_that_are_not_taken_as_small_ones():
    eye = torch.eye(3)
    for other in ([[1.0]], np.eye(3), eye[0], eye.half(), eye.to_sparse(), torch.rand(200, 200), eye.to("meta")):
        assert _cpu.assign_small(other, False, None) is None
    answer = _cpu.assign_small(eye, True, None)
    assert answer[:3].view(np.int64).tolist() == [0, 1, 2] and answer[-3:-1].tolist() == [0.0, 3.0]
    assert answer[-1:].view(np.int64).tolist() == [3] and len(answer) == 12
    assert _cpu.assign_small(torch.full((2, 2), torch.nan), False, None) == (1, 0, 0, 0, 0)


def test_a_capsule_is_used_once():
    capsule = torch.utils.dlpack.to_dlpack(torch.rand(5, 3))
    moments(x=capsule)
    with pytest.raises(TypeError, match="DLPack capsule that was not used before"):
        moments(x=capsule)


def test_freed_tensors_are_kept_alive():
    """The export owns a reference, so a tensor whose last name is gone is still there."""
    out = torch.zeros(1000, 100)
    capsule = torch.utils.dlpack.to_dlpack(torch.ones(1000, 100))
    torch.rand(1000, 100)
    blend(out=out, tensors=[capsule], weights=[2.0], perms=[(None, None)])
    assert bool((out == 2).all())


@pytest.fixture(params=_cpu.simd_paths())
def simd(request):
    best = _cpu.simd_paths()[-1]
    _cpu.use_simd(request.param)
    yield request.param
    _cpu.use_simd(best)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_every_simd_path(simd, dtype):
    """Each path gives moments and blends within tolerance."""
    assert _cpu.build()["simd"] == simd
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(3, n, 9, 13, generator=generator).to(dtype) + 3 for n in (21, 19))
    check_moments(cross_moments(x, y, full=True), true_moments(x, y, 1, 1))
    last = x.movedim(1, -1).contiguous(), y.movedim(1, -1).contiguous()
    check_moments(cross_moments(*last, axis=-1), true_moments(*last, 3, 3))
    perms = [None, torch.randperm(21, generator=generator), None, None]
    check_blend(permuted_lerp(x, x.flip(0), 0.3, perms), [x, x.flip(0)], [0.7, 0.3], [None, perms])
    assert torch.equal(permuted_lerp(x, x, 1.0, perms), permute(x, perms))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int32, torch.int64], ids=str)
def test_assignments_are_identical_on_every_simd_path(dtype):
    generator = torch.Generator().manual_seed(0)
    batches = [
        (torch.rand(4, n, m, generator=generator) * 7).to(dtype)
        for n, m in ((13, 13), (50, 50), (30, 41), (41, 30), (300, 300), (540, 530), (250, 700))
    ]
    answers = []
    for path in _cpu.simd_paths():
        _cpu.use_simd(path)
        answers.append([linear_assignment(cost, backend="cpu") for cost in batches])
    for other in answers[1:]:
        for mine, theirs in zip(answers[0], other, strict=True):
            for field in ("perm", "row_duals", "col_duals", "gap", "objective"):
                assert torch.equal(getattr(mine, field), getattr(theirs, field)), field


def test_python_threads_share_the_pool():
    cost = torch.rand(8, 60, 60, generator=torch.Generator().manual_seed(0))
    want = linear_assignment(cost).perm
    results = []

    def work():
        torch.set_num_threads(3)
        results.extend(torch.equal(linear_assignment(cost).perm, want) for _ in range(20))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 80 and all(results)


def test_the_gil_is_released():
    cost = torch.from_numpy(np.outer(np.arange(900), np.arange(900)).astype(np.float64))
    ticks, running = [], threading.Event()

    def tick():
        while not running.is_set():
            ticks.append(time.perf_counter())
            time.sleep(0.002)

    thread = threading.Thread(target=tick)
    thread.start()
    before = time.perf_counter()
    linear_assignment(cost, backend="cpu")
    after = time.perf_counter()
    running.set()
    thread.join()
    inside = sum(before < moment < after for moment in ticks)
    assert inside >= 3, f"another thread ran {inside} times in {after - before:.3f} s"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_after_fork():
    script = """
        import os, torch
        from pyalign.engine import linear_assignment
        torch.set_num_threads(2)
        cost = torch.rand(8, 30, 30)
        want = linear_assignment(cost).perm
        child = os.fork()
        if child == 0:
            os._exit(0 if torch.equal(linear_assignment(cost).perm, want) else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert torch.equal(linear_assignment(cost).perm, want)
    """
    run_script(script)


@pytest.mark.skipif(sys.platform == "win32", reason="signals differ")
@pytest.mark.parametrize("problems", [1, 6])
@pytest.mark.parametrize("threads", [1, 2])
def test_control_c_ends_a_long_assignment_within_a_second(threads, problems):
    script = f"""
        import signal, time, torch
        from pyalign.engine import linear_assignment
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job starts with it ignored
        torch.set_num_threads({threads})
        index = torch.arange(5000, dtype=torch.float32)
        cost = torch.outer(index, index).expand({problems}, -1, -1)
        linear_assignment(cost[:, :5, :5])
        print("go", flush=True)
        try:
            while True:  # however fast the solver is, the signal finds it at work
                linear_assignment(cost, backend="cpu")
        except KeyboardInterrupt:
            print(time.monotonic(), flush=True)
        assert linear_assignment(cost[:, :5, :5]).perm.shape == ({problems}, 5)
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, text=True, cwd=tempfile.gettempdir()
    )
    assert process.stdout.readline() == "go\n"
    time.sleep(0.3)
    sent = time.monotonic()  # one clock for every process
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0, out
    assert 0 <= float(out) - sent < (1 if "sanitizer" not in _cpu.build() else 10)  # watched code is slow


def test_assignment_certificate_of_a_direct_call():
    cost = torch.rand(1, 3, 4)
    answer = [zeros(1, 3, dtype=torch.int64), zeros(1, 3), zeros(1, 4), zeros(1), zeros(1)]
    assert assignment(cost, answer) is None
    check_assignment(cost[0], linear_assignment(cost[0]))
    assert answer[0][0].tolist() == linear_assignment(cost[0]).perm.tolist()
