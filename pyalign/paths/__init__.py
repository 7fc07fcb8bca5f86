"""Models with a parameter t in [0, 1]: the straight line between two, and the barrier along a path."""

from pyalign.paths.linear import LinearPath, interpolate
from pyalign.paths.measure import barrier, measure
from pyalign.paths.path import Path
from pyalign.paths.record import Barrier

__all__ = ["Barrier", "LinearPath", "Path", "barrier", "interpolate", "measure"]
