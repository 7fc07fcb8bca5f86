"""Alignment of neural networks: find the symmetry between trained models, prove it, interpolate, measure, merge."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyalign.engine import linear_sum_assignment
    from pyalign.matching import ActivationMatching, WeightMatching, align
    from pyalign.merge import merge
    from pyalign.paths import Barrier, barrier, interpolate
    from pyalign.symmetry import Alignment, SymmetrySpec, declare, derive, verify

__all__ = [
    "ActivationMatching",
    "Alignment",
    "Barrier",
    "SymmetrySpec",
    "WeightMatching",
    "align",
    "barrier",
    "declare",
    "derive",
    "interpolate",
    "linear_sum_assignment",
    "merge",
    "verify",
]

try:
    __version__ = version("pyalign-nn")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0"

_HOME = {
    "engine": ("linear_sum_assignment",),
    "symmetry": ("Alignment", "SymmetrySpec", "declare", "derive", "verify"),
    "paths": ("Barrier", "barrier", "interpolate"),
    "matching": ("ActivationMatching", "WeightMatching", "align"),
    "merge": ("merge",),
    "statistics": (),
    "io": (),
}


def __getattr__(name: str) -> Any:
    """Load a room when it is first asked for."""
    if name in __all__:
        room = next(room for room, names in _HOME.items() if name in names)
        return getattr(import_module(f"pyalign.{room}"), name)
    if name in _HOME:
        return import_module(f"pyalign.{name}")
    raise AttributeError(f"module 'pyalign' has no attribute {name!r}")
