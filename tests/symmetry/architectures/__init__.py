"""Small models nobody's library wrote, with the groups that must be derived from them, written out by hand."""

from __future__ import annotations

from . import concat, dense, mobile, residual, scans, sequences, signals
from .record import Architecture, Expected, Registry, generic

ARCHITECTURES: dict[str, Architecture] = {
    name: architecture
    for room in (dense, residual, concat, mobile, signals, sequences, scans)
    for name, architecture in room.ARCHITECTURES.items()
}

__all__ = ["ARCHITECTURES", "Architecture", "Expected", "Registry", "generic"]
