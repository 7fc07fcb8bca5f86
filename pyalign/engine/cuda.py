"""The compiled CUDA implementations: tensors and workspaces in, tensors filled on the current stream."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib import import_module

import torch
from torch import Tensor

from pyalign import errors
from pyalign.engine.cpu import export

try:
    _cuda = import_module("pyalign._cuda")
except ImportError as failure:
    MISSING = (
        f"the compiled module pyalign._cuda cannot be imported ({failure}): it is built where a CUDA compiler (nvcc 12 "
        "or newer) is found at install time"
    )
else:
    MISSING = ""

__all__ = ["build", "exported", "missing", "refusals", "stream", "workspace"]


def missing(operation: str) -> str:
    """Say why there is no such compiled operation, or ""."""
    if MISSING or hasattr(_cuda, operation):
        return MISSING
    return f"this build of pyalign._cuda has no {operation}"


def exported(tensor: Tensor) -> object:
    """Export a tensor that is only read: with torch's pending negation done, at an address that its dtype may have."""
    if tensor.is_neg():
        tensor = tensor.resolve_neg()
    return export(tensor.clone() if tensor.data_ptr() % tensor.element_size() else tensor)


def build() -> dict[str, str]:
    """Describe the compiled module; empty where there is none."""
    return {} if MISSING else {f"cuda {key}": value for key, value in _cuda.build().items()}


@cache
def _why_not(device: int) -> str:
    return str(_cuda.why_not(device))


def refusals(tensors: Sequence[Tensor]) -> list[str]:
    """Say why the kernels cannot run on the tensors' devices, or, without tensors, on this machine's first one.

    Asked only for tensors that are on a CUDA device already, or by `pyalign doctor`: it wakes the driver.
    """
    if not tensors and torch.version.cuda is None:
        reason = _why_not(0)
        return [reason or f"torch {torch.__version__} is built without CUDA, so no tensor can be on the device"]
    devices = dict.fromkeys(tensor.device.index or 0 for tensor in tensors) or {0: None}
    return [reason for reason in map(_why_not, devices) if reason]


def stream(device: torch.device) -> int:
    """Give torch's current stream on the device as a number."""
    return int(torch.cuda.current_stream(device).cuda_stream)


def workspace(operation: str, size: int, device: torch.device, do: str) -> Tensor:
    """Allocate the memory that an operation works in; torch frees it, and reuses it only behind the work queued now.

    Args:
        operation: What the error names.
        size: Bytes, at least.
        device: Where.
        do: How the user can lower the size.

    Raises:
        WorkspaceError: The device has not that much memory left.
    """
    try:
        return torch.empty(max(size, 256), dtype=torch.uint8, device=device)
    except torch.OutOfMemoryError as failure:
        free, total = torch.cuda.mem_get_info(device)
        raise errors.WorkspaceError(
            f"{operation} does not fit into the memory of {device}",
            given=f"a workspace of {_mib(size)}; {_mib(free)} of {_mib(total)} are free",
            expected="room for the workspace beside what torch holds",
            do=do,
        ) from failure


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"
