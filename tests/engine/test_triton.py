"""The Triton kernels without a GPU: their results in Triton's interpreter, and their machine code for a device."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from engine.helpers_engine import run_script
from torch.utils._python_dispatch import TorchDispatchMode

from pyalign import errors
from pyalign.engine import dispatch, triton

FOLDER = Path(__file__).parent
needs_triton = pytest.mark.skipif(bool(triton.MISSING), reason=triton.MISSING or "Triton is there")


@needs_triton
def test_results_in_the_interpreter():
    """All tests of the CPU, in a process of their own: the variable counts when Triton is imported.

    Left out are those of sixteen-bit values: the interpreter rounds the least of them to zero.
    """
    # Not `-m pytest`, which would find the package's sources in this folder before the installed package.
    start = "import sys; sys.path.remove(''); import pytest; sys.exit(pytest.main(sys.argv[1:]))"
    options = ["-q", "-p", "no:cacheprovider", "-k", "triton and not every_value"]
    names = ("test_permuted_lerp.py", "test_operators.py", "test_triton_interpreted.py")
    files = [FOLDER / name for name in names]
    result = subprocess.run(
        [sys.executable, "-c", start, *options, *map(str, files)],
        capture_output=True,
        text=True,
        timeout=400,
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        cwd=FOLDER.parents[1],
    )
    assert result.returncode == 0, result.stdout[-4000:]
    assert int(re.search(r"(\d+) passed", result.stdout).group(1)) > 250, result.stdout[-400:]


COMPILED = """
import re, torch
import triton
from triton.backends.compiler import GPUTarget
from pyalign.kernels import permuted_lerp as kernels


class Absent:  # a driver of a machine without a device: what it is asked for before anything runs
    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)

    def get_device_interface(self):
        return torch.cuda


class Compiled:
    def __init__(self, kernel):
        self.kernel = kernel

    def __getitem__(self, grid):
        def launch(*given, **settings):
            codes.append(self.kernel.warmup(*given, grid=grid, **settings).asm["ptx"])

        return launch


codes = []
triton.runtime.driver.set_active(Absent())
kernels._sum, kernels._dots = Compiled(kernels._sum), Compiled(kernels._dots)


def order(n):
    return torch.arange(n, dtype=torch.int32)


def widths(shape, perms, dtype, weights=(0.3, 0.7), dots=False):
    "The width in bytes of every access, by kind."
    tensors = [torch.empty(shape, dtype=dtype) for _ in weights]
    axes = [[None] * len(shape)] * (len(weights) - 1) + [perms]
    codes.clear()
    if dots:
        kernels.permuted_dots(tensors[0], tensors, axes)
    else:
        kernels.permuted_sum(torch.empty(shape, dtype=dtype), tensors, weights, axes)
    found = {}
    access = r"((?:ld|st)[.](?:global|shared))[^ ]*?(?:[.]v([248]))?[.]b(8|16|32|64) "
    for kind, count, bits in re.findall(access, codes[0]):
        found.setdefault(kind, set()).add(int(count or 1) * int(bits) // 8)
    return found
"""


@needs_triton
def test_machine_code():
    """For a device of capability 9.0: every access to the tensors is of 16 bytes, and rows are shuffled on the chip."""
    script = """
        plain = widths((64, 4096), [None, None], torch.float32)
        assert plain == {"ld.global": {16}, "st.global": {16}}, plain
        rows = widths((64, 4096), [order(64), None], torch.bfloat16)
        assert rows == {"ld.global": {4, 16}, "st.global": {16}}, rows  # 4: the index of a row
        for dtype, item in ((torch.float32, 4), (torch.bfloat16, 2)):
            both = widths((64, 4096), [order(64), order(4096)], dtype)
            assert both["ld.global"] == {4, 16} and both["st.global"] == {16}, both
            assert item in both["ld.shared"] and "st.shared" in both, both
        convolution = widths((64, 64, 3, 3), [order(64), order(64), None, None], torch.float32)
        assert convolution["st.global"] == {16} and 16 in convolution["ld.global"] and 4 in convolution["ld.shared"]
        long = widths((8, 20_000), [None, order(20_000)], torch.float32)
        assert long["st.global"] == {16} and {4, 16} == long["ld.global"], long
        assert widths((64, 4096), [None, order(4096)], torch.float32, dots=True)["ld.global"] == {16}
        assert widths((2**16, 2**16), [None, None], torch.bfloat16)["st.global"] == {16}  # beyond 32-bit addresses
        """
    run_script(COMPILED + "\n".join(line[8:] for line in script.splitlines()))


X = torch.zeros(2, 2)


def test_says_what_is_missing(monkeypatch):
    able = dataclasses.replace(dispatch.OPERATIONS["permuted_lerp"][0], missing="")
    assert able.name == "triton" and "is on cpu" in able.why_not([X])[0]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "there is no CUDA device" in able.lacks()[0]


def test_refuses_old_devices(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (7, 5) if index == 1 else (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Old")
    with torch._subclasses.FakeTensorMode():
        new, old = (torch.empty(2, device=f"cuda:{k}") for k in (0, 1))
        assert triton.refusals([new]) == [] == triton.refusals(())
        assert triton.refusals([new, old]) == ["cuda:1 (Old) has compute capability 7.5, Triton's kernels need 8.0"]


@pytest.mark.parametrize("version", ["2.1.0", "3.5.1"])
def test_refuses_an_old_triton(monkeypatch, version):
    monkeypatch.setattr(triton, "_installed", lambda module: True)
    monkeypatch.setattr(triton.importlib.metadata, "version", lambda name: version)
    assert triton._missing() == f"triton {version} is installed, the kernels need 3.6 or newer"


def test_refuses_memory_that_is_written_twice():
    for out in (torch.zeros(1).expand(3), torch.zeros(9).as_strided((2, 3), (2, 1))):
        with pytest.raises(errors.InputError, match="entries of out share memory"):
            triton._check_written(out)
    for out in (torch.zeros(2, 3).T, torch.zeros(4, 1, 3).expand(4, 1, 3), torch.zeros(0), torch.zeros(())):
        triton._check_written(out)


def test_indices_are_written_before_the_device_is_waited_for(monkeypatch):
    """A later call may read them on another stream, which waits for nothing else."""
    perm, queued = torch.tensor([2, 0, 1]), []

    class Queue(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            queued.append(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    with Queue():
        triton._indices([[perm]])
    assert "_to_copy" in queued and "_local_scalar_dense" not in queued[: queued.index("_to_copy")], queued
    assert {"_local_scalar_dense", "is_nonzero"} & set(queued[queued.index("_to_copy") :]), queued


def test_indices_are_checked_once_and_again_after_a_change():
    perm = torch.tensor([2, 0, 1])
    (first,), (again,) = triton._indices([[perm]])[0], triton._indices([[perm]])[0]
    assert first is again and first.dtype == torch.int32 and first.tolist() == [2, 0, 1]
    perm[0] = 0
    with pytest.raises(errors.InputError, match="not a permutation"):
        triton._indices([[perm]])
    perm[1] = 2
    assert triton._indices([[perm]])[0][0].tolist() == [0, 2, 1]
    with torch.inference_mode():
        assert triton._indices([[torch.tensor([1, 0])]])[0][0].tolist() == [1, 0]
