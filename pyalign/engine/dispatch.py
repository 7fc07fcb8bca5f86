"""Which implementation runs: for each operation a literal list in order of preference, each with declared limits.

`backend="auto"` takes the first implementation without reasons against it; naming one gives that one or a BackendError
with its reasons. The answer of every operation records which one ran.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling

from pyalign import errors
from pyalign.engine import cpu, cuda, cuda_assignment, triton
from pyalign.engine.reference import cross_moments as reference_moments
from pyalign.engine.reference import linear_assignment as reference_assignment
from pyalign.engine.reference import permuted_lerp as reference_lerp

__all__ = [
    "BACKENDS",
    "OPERATIONS",
    "BackendRow",
    "Implementation",
    "backends",
    "build",
    "choose",
    "direct",
    "function",
    "gradient",
    "implementation",
    "matrix_of_costs",
    "plain",
    "plain_cost",
]

BACKENDS = ("auto", "cuda", "triton", "cpu", "reference")
FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
COSTS = (torch.float32, torch.float64, torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64)


@dataclass(frozen=True)
class Implementation:
    """One implementation of an operation and its declared limits; `missing` says why it cannot run here, or "".

    `gradient` computes what the derivative needs beyond the operation itself, if anything. `refusals` says what the
    machine lacks: for tensors that fit otherwise, or for none.
    """

    name: str
    devices: tuple[str, ...]
    dtypes: tuple[torch.dtype, ...]
    missing: str
    run: Callable[..., Any] | None
    gradient: Callable[..., Any] | None = None
    refusals: Callable[[Sequence[Tensor]], list[str]] | None = None

    def why_not(self, tensors: Sequence[Tensor]) -> list[str]:
        """Give the reasons why this implementation cannot take these tensors; an empty list means that it can."""
        if self.missing:
            return [self.missing]
        reasons = []
        for tensor in tensors:
            if self.devices and tensor.device.type not in self.devices:
                reasons.append(
                    f"a tensor is on {tensor.device.type}, this implementation takes {', '.join(self.devices)}"
                )
            if tensor.dtype not in self.dtypes:
                reasons.append(f"a tensor is {tensor.dtype}, this implementation takes {_names(self.dtypes)}")
        if not reasons and self.refusals is not None:
            return self.refusals(tensors)
        return reasons

    def lacks(self) -> tuple[str, ...]:
        """Give the reasons why this implementation cannot run on this machine at all."""
        if self.missing:
            return (self.missing,)
        return () if self.refusals is None else tuple(self.refusals(()))


@dataclass(frozen=True)
class BackendRow:
    """One row of `pyalign doctor`: an operation, an implementation, whether it can run here, and why not."""

    operation: str
    implementation: str
    available: bool
    reasons: tuple[str, ...]


def _names(dtypes: Sequence[torch.dtype]) -> str:
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)


_TRITON = Implementation(
    "triton", triton.DEVICES, FLOATS, triton.MISSING, triton.permuted_sum, triton.permuted_dots, triton.refusals
)

# Order is preference. Nothing else in pyalign decides what runs.
OPERATIONS: MappingProxyType[str, tuple[Implementation, ...]] = MappingProxyType(
    {
        "cross_moments": (
            Implementation(
                "cuda", ("cuda",), FLOATS, cuda.missing("cross_moments"), cuda.cross_moments, refusals=cuda.refusals
            ),
            Implementation("cpu", ("cpu",), FLOATS, cpu.MISSING, cpu.cross_moments),
            Implementation("reference", (), FLOATS, "", reference_moments.cross_moments),
        ),
        "linear_assignment": (
            Implementation(
                "cuda",
                ("cuda",),
                COSTS,
                cuda.missing("linear_assignment"),
                cuda_assignment.linear_assignment,
                refusals=cuda.refusals,
            ),
            # Of a device whose own solver cannot run too: a copy of the costs takes less time than the reference.
            Implementation("cpu", ("cpu", "cuda"), COSTS, cpu.MISSING, cpu.linear_assignment),
            Implementation("reference", (), COSTS, "", reference_assignment.linear_assignment),
        ),
        "permuted_lerp": (
            *(() if triton.INTERPRETED else (_TRITON,)),
            Implementation("cpu", ("cpu",), FLOATS, cpu.MISSING, cpu.permuted_sum, cpu.permuted_dots),
            *((_TRITON,) if triton.INTERPRETED else ()),  # its interpreter is for tests, and taken only by name
            Implementation("reference", (), FLOATS, "", reference_lerp.permuted_sum, reference_lerp.permuted_dots),
        ),
    }
)

_warned = False
_PLAIN_COSTS = frozenset(COSTS)
_PLAIN_BACKENDS = () if cpu.MISSING else ("auto", "cpu")


def choose(operation: str, backend: str, tensors: Sequence[Tensor]) -> str:
    """Give the name of the implementation that will run these tensors.

    Args:
        operation: A key of OPERATIONS.
        backend: "auto" or the name of one implementation.
        tensors: The tensors that decide: their devices and dtypes are compared with the declared limits.

    Returns:
        The name of an implementation without reasons against it.

    Raises:
        InputError: `backend` is not a known name.
        BackendError: The named implementation, or every one, has reasons against it.
    """
    if backend not in BACKENDS:
        raise errors.InputError(
            f"{operation} does not know this backend", given=repr(backend), expected="one of " + ", ".join(BACKENDS)
        )
    listed = OPERATIONS[operation]
    if backend == "auto":
        for candidate in listed:
            if not candidate.why_not(tensors):
                if candidate.name == "reference" and cpu.MISSING:
                    _warn_once()
                return candidate.name
    else:
        for candidate in listed:
            if candidate.name == backend and not candidate.why_not(tensors):
                return backend
    raise _refusal(operation, backend, tensors)


def implementation(operation: str, name: str, tensors: Sequence[Tensor]) -> Callable[..., Any]:
    """Choose for an operator that was called directly, with any name."""
    return function(operation, choose(operation, name, tensors))


def function(operation: str, chosen: str) -> Callable[..., Any]:
    """Give the function behind a name that `choose` answered a moment ago for the same tensors."""
    run = next(candidate.run for candidate in OPERATIONS[operation] if candidate.name == chosen)
    assert run is not None
    return run


def gradient(operation: str, name: str, tensors: Sequence[Tensor]) -> Callable[..., Any]:
    """Give what the derivative of an operation needs, of the implementation that runs these tensors."""
    chosen = choose(operation, name, tensors)
    run = next(candidate.gradient for candidate in OPERATIONS[operation] if candidate.name == chosen)
    assert run is not None
    return run


def direct(tensors: Sequence[Tensor]) -> bool:
    """Whether an operation may skip its torch.library operator, which costs more than a small problem does.

    It may not while it is traced or compiled, for tensor subclasses (fake tensors), or where a gradient is to flow.
    """
    return plain(tensors) and not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors))


def plain(tensors: Sequence[Tensor]) -> bool:
    """Whether these are ordinary tensors in eager mode, which nothing traces."""
    if torch.compiler.is_compiling():
        return False
    return all(type(tensor) in (Tensor, torch.nn.Parameter) for tensor in tensors)


def plain_cost(tensor: object, backend: str) -> bool:
    """Whether this is an ordinary tensor for the "cpu" linear assignment, which then looks at all the rest itself."""
    return type(tensor) is Tensor and backend in _PLAIN_BACKENDS and not is_compiling()


def matrix_of_costs(tensor: Tensor) -> bool:
    """Whether an ordinary tensor is a matrix that the "cpu" linear assignment takes as it is."""
    if tensor.ndim != 2 or tensor.requires_grad or tensor.layout is not torch.strided:
        return False
    return tensor.is_cpu and tensor.dtype in _PLAIN_COSTS


def _refusal(operation: str, backend: str, tensors: Sequence[Tensor]) -> errors.BackendError:
    listed = [candidate for candidate in OPERATIONS[operation] if backend in ("auto", candidate.name)]
    reasons = [f"{c.name}: {'; '.join(dict.fromkeys(c.why_not(tensors)))}" for c in listed]
    return errors.BackendError(
        f"{operation} cannot run with backend={backend!r}",
        given=" | ".join(reasons) or f"{operation} has no such implementation",
        expected="one of " + ", ".join(c.name for c in OPERATIONS[operation]) + " without reasons against it",
        do='use backend="auto", or see `pyalign doctor`',
    )


def _warn_once() -> None:
    global _warned
    if not _warned and not torch.compiler.is_compiling():
        _warned = True
        warnings.warn(
            f"pyalign runs its slower reference implementations: {cpu.MISSING}", errors.PyalignWarning, stacklevel=2
        )


def backends() -> tuple[BackendRow, ...]:
    """List every implementation of every operation and whether it can run on this machine.

    Returns:
        One row per implementation, in order of preference.

    Example:
        >>> [row.implementation for row in backends() if row.operation == "linear_assignment"]
        ['cuda', 'cpu', 'reference']
    """
    return tuple(
        BackendRow(operation, candidate.name, not candidate.lacks(), candidate.lacks())
        for operation, listed in OPERATIONS.items()
        for candidate in listed
    )


def build() -> dict[str, str]:
    """Describe the compiled modules: compiler, SIMD path in use, threads, CUDA code; or why there is none.

    Example:
        >>> {"compiler", "simd"} <= set(build())
        True
    """
    return {**cpu.build(), **cuda.build()}
