"""Alignment of neural networks: find the symmetry between trained models, prove it, interpolate, measure, merge."""

from importlib.metadata import PackageNotFoundError, version

from pyalign import engine, errors, io, matching, paths, statistics, symmetry, train
from pyalign.engine import linear_sum_assignment
from pyalign.matching import PAM, ActivationMatching, LearnedMatching, WeightMatching, align
from pyalign.merge import merge
from pyalign.paths import Barrier, Curve, barrier, curve, interpolate, plane
from pyalign.symmetry import Alignment, SymmetrySpec, declare, derive, verify

__all__ = [
    "PAM",
    "ActivationMatching",
    "Alignment",
    "Barrier",
    "Curve",
    "LearnedMatching",
    "SymmetrySpec",
    "WeightMatching",
    "align",
    "barrier",
    "curve",
    "declare",
    "derive",
    "engine",
    "errors",
    "interpolate",
    "io",
    "linear_sum_assignment",
    "matching",
    "merge",
    "paths",
    "plane",
    "statistics",
    "symmetry",
    "train",
    "verify",
]

try:
    __version__ = version("pyalign-nn")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0"
