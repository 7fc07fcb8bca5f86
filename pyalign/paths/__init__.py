"""Models with a parameter t in [0, 1]: lines, curves and planes, their fitting, and what is measured along them."""

from pyalign.paths.correlations import Correlations, correlations
from pyalign.paths.curve_record import CurveRecord, Summary
from pyalign.paths.curves import Curve
from pyalign.paths.experts import ExpertOverlap, expert_overlap
from pyalign.paths.fit import curve, garipov_schedule
from pyalign.paths.linear import LinearPath, interpolate
from pyalign.paths.measure import barrier, measure
from pyalign.paths.path import Path
from pyalign.paths.plane_record import PlaneRecord
from pyalign.paths.planes import Plane
from pyalign.paths.record import Barrier
from pyalign.paths.simplex import SimplexBarrier, simplex_barrier
from pyalign.paths.survey import plane
from pyalign.paths.training import Step

__all__ = [
    "Barrier",
    "Correlations",
    "Curve",
    "CurveRecord",
    "ExpertOverlap",
    "LinearPath",
    "Path",
    "Plane",
    "PlaneRecord",
    "SimplexBarrier",
    "Step",
    "Summary",
    "barrier",
    "correlations",
    "curve",
    "expert_overlap",
    "garipov_schedule",
    "interpolate",
    "measure",
    "plane",
    "simplex_barrier",
]
