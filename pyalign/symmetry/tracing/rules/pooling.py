"""Operators with windows on the last axes: pooling, upsampling, sampling grids. Units sit on the axes before them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyalign.symmetry.calls import tensors_of
from pyalign.symmetry.kinds import Kind
from pyalign.symmetry.tracing.labels import Plane
from pyalign.symmetry.tracing.rules.base import Planes, Rule, restrict

if TYPE_CHECKING:
    from pyalign.symmetry.tracing.tracer import Call, Trace

__all__ = ["RULES"]


def windowed(trace: Trace, call: Call) -> list[Planes] | None:
    """Windows move over the last axes, in each channel alike."""
    if any(trace.planes(t) for t in tensors_of([call.args[1:], call.kwargs])):
        return None
    source = call.args[0]
    count = next((k for k in (1, 2, 3) if f"{k}d" in call.name), 2)
    dims = set(range(source.dim() - count, source.dim()))
    planes = []
    for plane in trace.planes(source):
        if plane.along(dims):
            trace.ties.collapse(plane, dims, f"{call.name} mixes neighbouring entries")
        if not set(plane.dims) <= dims:
            atoms = plane.atoms
            for d in dims:
                atoms = atoms.narrow(d, 0, 1)
            planes.append(Plane(atoms, plane.scaled))
    linear = "max" not in call.name
    kept = (
        tuple(planes)
        if linear
        else restrict(trace, tuple(planes), Kind.POSITIVE, f"{call.name} commutes with positive scales only")
    )
    return [kept] * len(tensors_of(call.out))


_NAMES = [
    *(f"{kind}{k}d" for k in (1, 2, 3) for kind in (
        "max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool", "_adaptive_avg_pool", "upsample_nearest",
        "_upsample_nearest_exact", "fractional_max_pool", "lp_pool", "max_unpool")),
    "max_pool1d_with_indices", "max_pool2d_with_indices", "max_pool3d_with_indices", "upsample_linear1d",
    "upsample_bilinear2d",
    "upsample_bicubic2d", "upsample_trilinear3d", "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa",
    "grid_sampler_2d",
    "grid_sampler_3d", "mkldnn_max_pool2d",
]  # fmt: skip
RULES: dict[str, Rule] = dict.fromkeys(_NAMES, windowed)
