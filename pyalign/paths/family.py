"""Families of curves by their control points: Bezier curves and polygonal chains (Garipov et al. 2018, section 3.2)."""

from __future__ import annotations

from math import comb

from pyalign.errors import InputError

__all__ = ["KINDS", "check_family", "coefficients"]

KINDS = ("bezier", "polychain")


def coefficients(kind: str, count: int, t: float) -> list[float]:
    r"""The weight of every control point at t; they sum to 1, and at t = 0 and t = 1 all but one are exactly 0.

    Bezier: \(c_i(t) = \binom{n}{i} (1-t)^{n-i} t^i\); polygonal chain: \(c_i(t) = \max(0, 1 - |n t - i|)\), with
    \(n + 1\) control points. Control points spaced evenly on a line give that line at constant speed.

    Args:
        kind: "bezier" or "polychain".
        count: Number of control points, both ends included.
        t: Position in [0, 1].

    Returns:
        `count` weights.

    Example:
        >>> coefficients("bezier", 3, 0.5), coefficients("polychain", 3, 0.75)
        ([0.25, 0.5, 0.25], [0.0, 0.5, 0.5])
    """
    last = count - 1
    if kind == "bezier":
        return [comb(last, i) * (1.0 - t) ** (last - i) * t**i for i in range(count)]
    return [max(0.0, 1.0 - abs(t * last - i)) for i in range(count)]


def check_family(kind: str, bends: int) -> None:
    """Raise unless there is such a curve.

    Raises:
        InputError: Unknown kind, or no bend.
    """
    if kind not in KINDS:
        raise InputError("unknown kind of curve", given=repr(kind), expected=" or ".join(map(repr, KINDS)))
    if isinstance(bends, bool) or not isinstance(bends, int) or bends < 1:
        raise InputError(
            "a curve needs at least one bend",
            given=f"bends={bends!r}",
            expected="an integer of 1 or more: the number of inner control points",
            do="for the straight line use pyalign.interpolate and pyalign.barrier",
        )
