"""Models with a parameter t in [0, 1]: lines and curves, their fitting, and barriers along them."""

from pyalign.paths.curve_record import CurveRecord, Summary
from pyalign.paths.curves import Curve
from pyalign.paths.fit import curve, garipov_schedule
from pyalign.paths.linear import LinearPath, interpolate
from pyalign.paths.measure import barrier, measure
from pyalign.paths.path import Path
from pyalign.paths.record import Barrier
from pyalign.paths.training import Step

__all__ = [
    "Barrier",
    "Curve",
    "CurveRecord",
    "LinearPath",
    "Path",
    "Step",
    "Summary",
    "barrier",
    "curve",
    "garipov_schedule",
    "interpolate",
    "measure",
]
