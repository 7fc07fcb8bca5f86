"""The compiled CUDA implementations of the engine. A tensor: anything with __dlpack__, or an unused capsule."""

from collections.abc import Sequence
from typing import Any

def build() -> dict[str, str]:
    """What the module was compiled with, and for which architectures."""

def device_count() -> int:
    """The number of CUDA devices; 0 without a driver."""

def why_not(device: int) -> str:
    """Why kernels cannot run on this device: no driver, no device, too low a compute capability; or an empty text."""

def limits(device: int) -> tuple[int, int]:
    """Multiprocessors of a device, and bytes of shared memory that one block may have there."""

def cross_moments_workspace(
    x: Any,
    y: Any,
    axis_x: int,
    axis_y: int,
    full: bool,
    device: int,
    processors: int,
    shared: int,
    most_partial: int,
) -> int:
    """Bytes of workspace that one call needs; device -1 stands for tensors on the CPU."""

def cross_moments(
    x: Any,
    y: Any,
    mask: Any,
    axis_x: int,
    axis_y: int,
    full: bool,
    record: Sequence[Any],
    status: Any,
    step: str,
    allow_tf32: bool,
    processors: int,
    shared: int,
    most_partial: int,
    workspace: Any,
    device: int,
    stream: int,
) -> None:
    """Queue one step: 'few' or 'every' sums into the workspace, 'commit' adds to the record."""

def emulate_cross_moments(
    x: Any,
    y: Any,
    mask: Any,
    axis_x: int,
    axis_y: int,
    full: bool,
    record: Sequence[Any],
    status: Any,
    step: str,
    allow_tf32: bool,
    processors: int,
    shared: int,
    most_partial: int,
    workspace: Any,
    backwards: bool,
) -> None:
    """Run the kernels of one step on the host, for tests."""

def linear_assignment(
    costs: list[Any],
    maximize: bool,
    exchanged: Sequence[bool],
    start: list[Any],
    answers: list[Any],
    status: Any,
    team: str,
    workspace: Any,
    device: int,
    stream: int,
) -> None:
    """Queue the solution of lists of costs with no more rows than columns; status takes the outcomes."""

def linear_assignment_bytes(shapes: Sequence[tuple[int, int, int]], team: str, device: int) -> int:
    """The size of the workspace for problems of these (b, n, m)."""

def linear_assignment_plan(
    shapes: Sequence[tuple[int, int, int]], team: str, multiprocessors: int, clusters: bool, shared: int
) -> dict[str, Any]:
    """The launches for problems of these (b, n, m) on a device with these properties, and the workspace."""
