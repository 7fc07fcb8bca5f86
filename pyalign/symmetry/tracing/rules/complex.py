"""Complex numbers: pairs of real ones seen as one number, rotary embeddings written with them, Fourier transforms.

A complex tensor has the planes that its real and imaginary parts have in common. Planes that tell the two apart (pairs
of units) wait in `Label.crossed`, with an axis more than the tensor, until the pairs are real again; meanwhile they
may only be multiplied with constants, which turns them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from pyalign.symmetry.tracing.labels import Plane, as_array
from pyalign.symmetry.tracing.rules.base import Planes, Rule, combine, pin

if TYPE_CHECKING:
    from pyalign.symmetry.tracing.tracer import Call, Trace

__all__ = ["RULES", "turned"]


def paired(trace: Trace, call: Call) -> list[Planes]:
    """view_as_complex: the last axis, of length two, becomes the real and imaginary part."""
    last = call.args[0].dim() - 1
    planes = trace.planes(call.args[0])
    pin(trace, tuple(p for p in planes if p.dims == (last,)), "the real and imaginary part of complex numbers")
    trace.cross([p for p in planes if p.along({last}) and len(p.dims) > 1])
    return [tuple(Plane(p.atoms.squeeze(last), p.scaled) for p in planes if not p.along({last}))]


def parted(trace: Trace, call: Call) -> list[Planes]:
    """view_as_real: real and imaginary part on a last axis of their own."""
    planes = [Plane(p.atoms.unsqueeze(-1), p.scaled) for p in trace.planes(call.args[0])]
    return [(*planes, *trace.crossed(call.args[0]))]


def turned(trace: Trace, call: Call) -> list[Planes]:
    """Pairs of units as complex numbers times constants: they rotate, each with its constant."""
    one, two = call.args[:2]
    x, factor = (one, two) if isinstance(one, Tensor) and trace.crossed(one) else (two, one)
    belongs = isinstance(factor, Tensor) and (trace.planes(factor) or trace.crossed(factor))
    if belongs or trace.planes(x) or x.dim() != call.out.dim():
        pin(trace, trace.crossed(x), f"pairs multiplied with other values, in {call.place or 'the model'}")
        return [()]
    fixed = trace.broadcast(factor, x.dim()).fixed
    for plane in trace.crossed(x):
        _rotate(trace, plane, fixed, call.place)
    trace.cross(trace.crossed(x))
    return [()]


def _rotate(trace: Trace, plane: Plane, fixed: frozenset[int], place: str) -> None:
    ties, axis = trace.ties, plane.atoms.dim() - 2
    atoms = plane.atoms.reshape([*plane.atoms.shape[:-2], -1])
    here = np.arange(atoms.shape[axis])
    ties.mixing.rotate(Plane(atoms, plane.scaled), axis, here ^ 1, here % 2 == 0)
    ties.mixing.touch([plane], fixed)
    ties.distinguish(plane, {*fixed, axis + 1}, f"multiplied with complex constants, in {place or 'the model'}")
    real, imaginary = (as_array(part) for part in plane.atoms.unbind(-1))
    ties.tie(real, imaginary)
    if plane.scaled:
        ties.tie_scale(real, imaginary, 1)


def transformed(trace: Trace, call: Call) -> list[Planes]:
    """Fourier transforms: linear, with entries along the transformed axes in their order."""
    rank = call.args[0].dim()
    dims = {d % rank for d in call.args[1]}
    reason = f"a Fourier transform along its units, in {call.place or 'the model'}"
    kept = []
    for plane in trace.planes(call.args[0]):
        if plane.along(dims):
            trace.ties.collapse(plane, dims, reason)
        if not plane.along(dims):
            kept.append(plane)
        elif not set(plane.dims) <= dims:
            first = [slice(0, 1) if d in dims else slice(None) for d in range(rank)]
            kept.append(Plane(plane.atoms[tuple(first)], plane.scaled))
    return [tuple(kept)]


def made(trace: Trace, call: Call) -> list[Planes] | None:
    """complex: two tensors as real and imaginary part."""
    rank = call.out.dim()
    reason = f"joined with values that belong to no unit, in {call.place or 'the model'}"
    return [combine(trace, [trace.broadcast(part, rank) for part in call.args[:2]], "add", reason)]


RULES: dict[str, Rule] = {
    "view_as_complex": paired,
    "view_as_real": parted,
    "complex": made,
    **dict.fromkeys(("_fft_c2c", "_fft_r2c", "_fft_c2r"), transformed),
}
