"""New weights out of aligned ones: the weighted average, and the repair of its statistics."""

from pyalign.merge.average import merge

__all__ = ["merge"]
