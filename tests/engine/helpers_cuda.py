"""The CUDA kernels run by the host, as the adapter runs them on a device; and tensors that say they are on one."""

from __future__ import annotations

import ctypes

import pytest
import torch

from pyalign.engine import cuda
from pyalign.engine.cross_moments import CrossMoments

_cuda = pytest.importorskip("pyalign._cuda", reason="pyalign._cuda is not built: no CUDA compiler at install time")
H200, ADA = (132, 227 * 1024), (128, 99 * 1024)
"""Multiprocessors and bytes of shared memory of two devices; the smaller has no room for second sums."""


def empty_record(n, m, full):
    """A record without samples; what need not be cleared is NaN."""

    def zeros(*shape):
        return torch.zeros(shape, dtype=torch.float64)

    squares = (zeros(n, n), zeros(m, m)) if full else (zeros(n), zeros(m))
    comoment = torch.full((n, m), float("nan"), dtype=torch.float64)
    return CrossMoments(zeros(), zeros(n), zeros(m), comoment, *squares, backend="emulated")


def emulated_moments(
    x, y, axis=1, mask=None, full=False, into=None, *, tf32=False, device=H200, most=0, backwards=False, steps=None
):
    """`cross_moments` by the CUDA kernels on the host; None where they leave it to the reference.

    `steps` is filled with what was run and the status after it. Workspace, status and shared memory begin as NaN or -1.
    """
    axis_x, axis_y = ((axis, axis) if isinstance(axis, int) else axis)[:2]
    axis_x, axis_y = axis_x % x.dim(), axis_y % y.dim()
    record = empty_record(x.shape[axis_x], y.shape[axis_y], full) if into is None else into
    size = _cuda.cross_moments_workspace(x, y, axis_x, axis_y, full, -1, *device, most)
    memory = torch.full((size + 256,), 255, dtype=torch.uint8)
    memory = memory[-memory.data_ptr() % 256 :][:size]
    status = torch.full((2,), -1, dtype=torch.int32)

    def run(step):
        options = (tf32, *device, most)
        inputs = (x, y, mask, axis_x, axis_y, full)
        _cuda.emulate_cross_moments(*inputs, list(record.tensors), status, step, *options, memory, backwards)
        if steps is not None:
            steps.append((step, status.tolist()))
        return [] if step == "commit" else status.tolist()

    return record if cuda.moments_in_steps(run) else None


class _Managed(ctypes.Structure):
    """DLPack's DLManagedTensor."""

    _fields_ = (
        ("data", ctypes.c_void_p), ("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32), ("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)), ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64), ("manager_ctx", ctypes.c_void_p), ("deleter", ctypes.c_void_p),
    )  # fmt: skip


CODES = {torch.float32: (2, 32), torch.float64: (2, 64), torch.bfloat16: (4, 16), torch.float16: (2, 16),
         torch.int32: (0, 32), torch.int64: (0, 64), torch.uint8: (1, 8), torch.bool: (6, 8)}  # fmt: skip
_kept = []


def on_device(tensor, device=0):
    """A capsule of the tensor that says it lies on a CUDA device: for checks that come before any memory is read."""
    numbers = ctypes.c_int64 * max(tensor.dim(), 1)
    shape, strides = numbers(*tensor.shape), numbers(*tensor.stride())
    managed = _Managed(
        tensor.data_ptr(), 2, device, tensor.dim(), *CODES[tensor.dtype], 1, shape, strides, 0, None, None
    )
    _kept.append((tensor, shape, strides, managed))
    make = ctypes.pythonapi.PyCapsule_New
    make.restype, make.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    return make(ctypes.addressof(managed), b"dltensor", None)
