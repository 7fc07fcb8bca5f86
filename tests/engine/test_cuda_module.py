"""pyalign._cuda without a device: what it says, what it refuses, how large its workspaces are, what errors tell."""

from __future__ import annotations

import ctypes
import re
import sys

import pytest
import torch
from engine.helpers_cuda import ADA, H200, _cuda, empty_record, on_device
from engine.helpers_engine import run_script

from pyalign import engine, errors
from pyalign.engine import cuda, dispatch

NO_DEVICE = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")


def zeros(*shape, dtype=torch.float64):
    return torch.zeros(shape, dtype=dtype)


def memory(size, dtype=torch.uint8, offset=0):
    whole = torch.zeros(size + 512, dtype=dtype)
    return whole[-whole.data_ptr() % 256 + offset :][:size]


def moments(device=0, wrap=on_device, **changes):
    given = {
        "x": torch.rand(5, 3), "y": torch.rand(5, 4), "mask": None, "axis_x": 1, "axis_y": 1, "full": False,
        "record": [zeros(), zeros(3), zeros(4), zeros(3, 4), zeros(3), zeros(4)],
        "status": zeros(2, dtype=torch.int32), "step": "few", "allow_tf32": False, "processors": 1, "shared": 0,
        "most_partial": 0, "workspace": memory(1 << 18), "device": device, "stream": 0,
    }  # fmt: skip
    given = {**given, **changes}
    for name in ("x", "y", "mask", "status", "workspace"):
        if isinstance(given[name], torch.Tensor):
            given[name] = wrap(given[name])
    if isinstance(given["record"], list):
        given["record"] = [wrap(tensor) for tensor in given["record"]]
    return _cuda.cross_moments(**given)


def record(k, tensor):
    tensors = [zeros(), zeros(3), zeros(4), zeros(3, 4), zeros(3), zeros(4)]
    tensors[k] = tensor
    return tensors


WRONG = {
    "on the CPU": (lambda: moments(wrap=lambda t: t), "x: given a tensor on cpu, expected cuda:0"),
    "on another device": (lambda: moments(device=1), "x: given a tensor on cuda:0, expected cuda:1"),
    "mixed": (lambda: moments(y=on_device(torch.rand(5, 4), 1)), "y: given a tensor on cuda:1, expected cuda:0"),
    "no tensor": (lambda: moments(x=[[1.0]]), "x: given <class 'list'>, expected a tensor"),
    "integers": (lambda: moments(x=zeros(5, 3, dtype=torch.int64)), "x: given int64, expected float32"),
    "misaligned": (
        lambda: moments(x=torch.frombuffer(bytearray(64), dtype=torch.float32, count=15, offset=1).view(5, 3)),
        "x: given memory that does not start at a multiple of 4 bytes",
    ),
    "no samples": (lambda: moments(x=zeros(0, 3), y=zeros(0, 4)), "expected at least one unit and one sample"),
    "no units": (lambda: moments(x=zeros(5, 0)), "x, y: given (5, 0) and (5, 4), expected at least one unit"),
    "axis": (lambda: moments(axis_x=2), "x: given unit axis 2 for shape (5, 3)"),
    "samples differ": (lambda: moments(y=torch.rand(6, 4)), "y: given sample shape (6,), expected (5,)"),
    "mask": (lambda: moments(mask=torch.ones(4, dtype=torch.bool)), "mask: given shape (4,), expected (5,)"),
    "mean": (lambda: moments(record=record(1, zeros(4))), "mean_a: given shape (4,), expected (3,)"),
    "not contiguous": (lambda: moments(record=record(3, zeros(4, 3).T)), "comoment: given strides (1, 3)"),
    "five tensors": (lambda: moments(record=record(0, zeros())[:5]), "record: given 5 tensors, expected 6"),
    "status": (lambda: moments(status=zeros(2)), "status: given float64, expected int32"),
    "step": (lambda: moments(step="all"), "step: given 'all', expected 'few', 'every' or 'commit'"),
    "processors": (lambda: moments(processors=0), "processors, shared, most_partial: given 0, 0, 0"),
    "small workspace": (lambda: moments(workspace=memory(100)), "workspace: given 100 bytes, expected "),
    "workspace of floats": (lambda: moments(workspace=zeros(9)), "workspace: given float64, expected uint8"),
    "misaligned workspace": (
        lambda: moments(workspace=memory(1 << 18, offset=8)),
        "workspace: given memory that does not start at a multiple of 256 bytes",
    ),
    "shared memory": (
        lambda: moments(record=record(1, (x := torch.rand(5, 3).double())[0]), x=x),
        "given memory that",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_wrong_inputs_raise_before_the_device_is_asked(case):
    call, message = WRONG[case]
    with pytest.raises((ValueError, TypeError), match=re.escape(message)):
        call()


def test_more_sample_axes_than_kernels_walk_along():
    shape = (*(2 for _ in range(13)), 3)
    y = torch.zeros(3**14).as_strided(shape, (*(3 ** (13 - d) for d in range(13)), 1))
    outputs = [zeros(), zeros(3), zeros(3), zeros(3, 3), zeros(3), zeros(3)]
    with pytest.raises(ValueError, match=r"x: given 13 sample axes .* pass x.contiguous\(\)"):
        moments(x=y, y=y, axis_x=13, axis_y=13, record=outputs)


@NO_DEVICE
def test_without_a_device_right_inputs_are_an_error_of_the_runtime():
    with pytest.raises(RuntimeError, match=r"cudaGetDevice: .*(driver|device)"):
        moments()
    with pytest.raises(RuntimeError, match="cudaDeviceGetAttribute"):
        _cuda.limits(0)


@NO_DEVICE
def test_the_reason_why_it_cannot_run():
    assert _cuda.device_count() == 0
    assert re.search("no CUDA (driver|device)|driver", _cuda.why_not(0))
    rows = {row.implementation: row for row in engine.backends() if row.operation == "cross_moments"}
    assert not rows["cuda"].available and rows["cuda"].reasons == (_cuda.why_not(0),)
    assert engine.build()["cuda compiler"].startswith("nvcc")


def test_importing_wakes_no_driver():
    """A process that has woken the driver cannot fork workers that use it: only tensors on a device may do that."""
    script = """
        import ctypes, sys
        import pyalign, pyalign.engine
        from pyalign import _cuda
        mapped = open("/proc/self/maps").read() if sys.platform == "linux" else ""
        assert "libcuda.so" not in mapped and "libcudart" not in mapped
    """
    run_script(script)


@pytest.mark.skipif(sys.platform != "linux", reason="how symbols are hidden differs from system to system")
def test_the_runtime_stays_inside():
    """Torch brings a CUDA runtime of its own, which must not be taken for the one linked into the module."""
    library = ctypes.CDLL(_cuda.__file__)
    assert library.PyInit__cuda
    assert not any(hasattr(library, name) for name in ("cudaMalloc", "cudaLaunchKernel", "__cudaRegisterFunction"))


def test_too_old_a_device_is_refused_and_auto_goes_on(monkeypatch):
    reason = "device 0 has compute capability 7.5, the kernels need 8.0"
    monkeypatch.setattr(cuda, "_why_not", lambda device: reason)

    class OnDevice(torch.Tensor):
        device = torch.device("cuda:0")

    tensor = torch.rand(3, 4).as_subclass(OnDevice)
    row = next(c for c in dispatch.OPERATIONS["cross_moments"] if c.name == "cuda")
    assert row.why_not([tensor]) == [reason]
    assert dispatch.choose("cross_moments", "auto", [tensor]) == "reference"
    with pytest.raises(errors.BackendError, match=re.escape(reason)):
        dispatch.choose("cross_moments", "cuda", [tensor])


def size(n, m, samples, full=False, dtype=torch.float32, device=H200, most=0):
    x, y = (torch.zeros(1, dtype=dtype).expand(samples, units) for units in (n, m))
    return _cuda.cross_moments_workspace(x, y, 1, 1, full, -1, *device, most)


def test_sizes_of_workspaces():
    partial = 4 * 128 * 128
    assert size(64, 64, 1000) >= partial
    assert partial <= size(64, 64, 1000) < 2 * partial  # one slice
    assert size(64, 64, 64 * 1024) > 60 * partial  # a slice for every 1024 samples
    assert size(64, 64, 64 * 1024, most=1) < 8 * partial  # one at a time, and their sum in doubles
    assert 3 * size(200, 200, 1000) > size(200, 200, 1000, full=True) > 2.5 * size(200, 200, 1000)
    assert size(300, 200, 9000, dtype=torch.float64) > 8 * 300 * 200
    assert size(8192, 8192, 10**6) < 2**28 + 8 * 8192**2 + 2**25  # a quarter of a GiB, beside the sums of earlier ones
    assert size(64, 64, 10**6, device=ADA) >= size(64, 64, 10**6)
    assert size(2**17, 2**17, 16) > 4 * 2**34  # beyond 32 bits


def test_a_workspace_without_room_names_its_size(monkeypatch):
    def refuse(*args, **options):
        raise torch.OutOfMemoryError("no")

    monkeypatch.setattr(torch, "empty", refuse)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2**20, 2**30))
    with pytest.raises(
        errors.WorkspaceError, match=r"a workspace of 5.0 MiB; 1.0 MiB of 1024.0 MiB .*sum less"
    ) as failure:
        cuda.workspace("an operation", 5 * 2**20, torch.device("cuda:0"), "sum less")
    assert isinstance(failure.value, MemoryError)


@pytest.mark.parametrize("full", [False, True])
def test_a_first_record_of_no_samples_is_zero(full):
    """No kernel runs then, and what need not be cleared for one is."""
    record = empty_record(3, 4, full)
    cuda.cross_moments(record.tensors, zeros(0, 3), zeros(0, 4), 1, 1, None, full)
    assert all(float(tensor.abs().sum()) == 0.0 for tensor in record.tensors)
