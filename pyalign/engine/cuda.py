"""The compiled CUDA implementations: tensors and workspaces in, tensors filled on the current stream."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from importlib import import_module

import torch
from torch import Tensor

from pyalign import errors
from pyalign.engine.cpu import export
from pyalign.engine.reference import cross_moments as reference_moments

try:
    _cuda = import_module("pyalign._cuda")
except ImportError as failure:
    MISSING = (
        f"the compiled module pyalign._cuda cannot be imported ({failure}): it is built where a CUDA compiler (nvcc 12 "
        "or newer) is found at install time"
    )
else:
    MISSING = ""

__all__ = ["build", "cross_moments", "exported", "missing", "refusals", "stream", "tf32_allowed", "workspace"]


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


_MOST_AXES = 12  # that the kernels walk along


@cache
def _limits(device: int) -> tuple[int, int]:
    processors, shared = _cuda.limits(device)
    return processors, shared


def tf32_allowed() -> bool:
    """Whether torch's own flag lets float32 products have the precision of TF32."""
    try:
        return bool(torch.backends.cuda.matmul.allow_tf32)
    except RuntimeError:  # set by torch's newer interface
        return bool(torch.backends.cuda.matmul.fp32_precision == "tf32")


def cross_moments(
    record: Sequence[Tensor], x: Tensor, y: Tensor, axis_x: int, axis_y: int, mask: Tensor | None, full: bool
) -> None:
    """Add the samples of x and y to the record in place; the record is untouched when it raises.

    It waits for the device once, to learn whether the sums are finite.
    """
    if x.numel() and y.numel():
        x, y = (tensor.contiguous() if tensor.dim() > _MOST_AXES else tensor for tensor in (x, y))
        number = x.device.index or 0
        processors, shared = _limits(number)
        memory, most = _moments_memory(x, y, axis_x, axis_y, full, processors, shared)
        status = torch.empty(2, dtype=torch.int32, device=x.device)
        options = (tf32_allowed(), processors, shared, most)

        def run(step: str) -> list[int]:
            inputs = (exported(x), exported(y), None if mask is None else exported(mask), axis_x, axis_y, full)
            outputs = ([export(tensor) for tensor in record], export(status))
            _cuda.cross_moments(*inputs, *outputs, step, *options, export(memory), number, stream(x.device))
            return [] if step == "commit" else status.tolist()

        if moments_in_steps(run):
            return
    if record[0].item() == 0:
        record[3].zero_()  # without samples it may hold anything
    # Not finite, or finite but beyond what float32 squares can hold: the reference tells which, and sums in float64.
    reference_moments.cross_moments(record, x, y, axis_x, axis_y, mask, full)


def moments_in_steps(run: Callable[[str], list[int]]) -> bool:
    """Sum, with a look at few samples and, where they mislead, at every one; then add to the record, or give False."""
    for step in ("few", "every"):
        if not any(run(step)):
            run("commit")
            return True
    return False


def _moments_memory(
    x: Tensor, y: Tensor, axis_x: int, axis_y: int, full: bool, processors: int, shared: int
) -> tuple[Tensor, int]:
    """Allocate the workspace, for one slice of samples at a time where the usual number does not fit."""

    def size(most: int) -> int:
        given = (exported(x), exported(y), axis_x, axis_y, full, x.device.index or 0)
        return int(_cuda.cross_moments_workspace(*given, processors, shared, most))

    allocate = partial(
        workspace, "cross_moments", device=x.device, do="free memory of the device, or match fewer units"
    )
    try:
        return allocate(size(0)), 0
    except errors.WorkspaceError:
        return allocate(size(1)), 1
