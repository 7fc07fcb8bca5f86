"""Every error and warning of pyalign: each says what was given, what was expected and what to do."""

from __future__ import annotations

__all__ = [
    "BackendError",
    "CheckpointError",
    "DataError",
    "InfeasibleError",
    "InputError",
    "MismatchError",
    "NonFiniteError",
    "PyalignError",
    "PyalignWarning",
    "SymmetryError",
    "WorkspaceError",
    "WriteError",
]


class PyalignError(Exception):
    """Base of all errors that pyalign raises on purpose.

    Args:
        what: One sentence: what is wrong, naming the tensor, layer, file or option.
        given: What was given.
        expected: What was expected instead.
        do: What the user can do about it.

    Example:
        >>> print(InputError("t is outside the path", given="t=1.5", expected="0 <= t <= 1", do="clamp t"))
        t is outside the path. Given: t=1.5. Expected: 0 <= t <= 1. What to do: clamp t.
    """

    def __init__(self, what: str, *, given: str = "", expected: str = "", do: str = "") -> None:
        parts = (("", what), ("Given: ", given), ("Expected: ", expected), ("What to do: ", do))
        super().__init__(" ".join(f"{label}{text.rstrip('.')}." for label, text in parts if text))
        self.given, self.expected, self.do = given, expected, do


class InputError(PyalignError, ValueError):
    """An argument that cannot be used."""


class MismatchError(InputError):
    """Two things that must fit each other do not: models, specs, state dicts."""


class DataError(InputError):
    """Data that is empty or that a model cannot take."""


class NonFiniteError(InputError):
    """NaN or infinity where finite numbers are needed."""


class InfeasibleError(InputError):
    """A linear assignment problem without a finite solution."""


class CheckpointError(InputError):
    """A file that is corrupt, truncated, unsafe or of the wrong kind."""


class WriteError(CheckpointError, OSError):
    """A file that cannot be written, as on a full disk; what was there before is as it was."""


class SymmetryError(PyalignError, RuntimeError):
    """A symmetry specification that does not leave the function unchanged."""


class BackendError(PyalignError, RuntimeError):
    """A named backend cannot run these inputs on this machine."""


class WorkspaceError(PyalignError, MemoryError):
    """The memory that an operation works in does not fit into the device."""


class PyalignWarning(UserWarning):
    """Something the user should know that does not stop the work."""
