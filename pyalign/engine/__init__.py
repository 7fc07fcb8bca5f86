"""The engine: cross moments, linear assignment and permuted blends, each compiled and with a plain reference.

>>> import torch
>>> from pyalign.engine import cross_moments, linear_assignment
>>> x = torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
>>> moments = cross_moments(x, x.flip(1))
>>> linear_assignment(moments.comoment, maximize=True).perm
tensor([1, 0])
"""

from __future__ import annotations

from pyalign.engine.cross_moments import CrossMoments, cross_moments
from pyalign.engine.dispatch import backends, build
from pyalign.engine.linear_assignment import Assignment, linear_assignment, linear_sum_assignment
from pyalign.engine.permuted_lerp import permuted_lerp, permuted_sum

__all__ = [
    "Assignment",
    "CrossMoments",
    "backends",
    "build",
    "cross_moments",
    "linear_assignment",
    "linear_sum_assignment",
    "permuted_lerp",
    "permuted_sum",
]
