"""Normalisation: statistics over some axes, then a weight and a bias."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from pyalign.symmetry.kinds import Kind
from pyalign.symmetry.tracing.labels import Operand, as_array
from pyalign.symmetry.tracing.rules.base import Planes, Rule, combine, restrict

if TYPE_CHECKING:
    from pyalign.symmetry.tracing.tracer import Call, Trace

__all__ = ["RULES", "SIGHTS"]


def batch_norm(trace: Trace, call: Call) -> list[Planes]:
    """BatchNorm (and InstanceNorm, which is BatchNorm of a view): each channel, axis 1, by itself."""
    x, weight, bias, mean, variance = call.args[:5]
    if "no_stats" in call.func._schema.overload_name or isinstance(mean, bool):
        mean = variance = None
    if not isinstance(mean, Tensor):
        mean = variance = None
    rank = x.dim()
    for plane in trace.planes(x):
        others = set(range(rank)) - {1}
        if plane.along(others) and plane.along({1}):
            trace.ties.collapse(plane, others, "normalised over it")
    channel = [trace.operand(t, [1], rank) for t in (mean, variance) if t is not None]
    return [_affine(trace, call, trace.operand(x, range(rank), rank), channel, weight, bias, [1])]


def layer_norm(trace: Trace, call: Call) -> list[Planes]:
    """LayerNorm and RMSNorm over the last axes."""
    x, shape, weight = call.args[:3]
    bias = call.args[3] if "layer" in call.name else None
    rank = x.dim()
    dims = set(range(rank - len(shape), rank))
    for plane in trace.planes(x):
        if plane.along(dims) and not set(plane.dims) <= dims:
            trace.ties.collapse(plane, dims, "normalised over it", linear=True)
    plain = weight is None or _uniform(trace, weight)
    if plain:
        kind, reason = (
            (Kind.ORTHOGONAL, "normalised by its length")
            if "rms" in call.name
            else (Kind.CENTRED, "normalised by its mean and length")
        )
        _turned(trace, trace.operand(x, range(rank), rank), bias, sorted(dims), kind, reason)
    if isinstance(weight, Tensor):
        trace.ties.multiplied(trace.planes(weight))
        shift = trace.planes(bias) if isinstance(bias, Tensor) else ()
        trace.ties.shifts += [(as_array(p.atoms), as_array(q.atoms)) for p in trace.planes(weight) for q in shift]
    return [_affine(trace, call, trace.operand(x, range(rank), rank), [], weight, bias, sorted(dims), plain)]


def _turned(trace: Trace, x: Operand, bias: Tensor | None, dims: list[int], kind: Kind, reason: str) -> None:
    """Without scales of its own a norm commutes with rotations; its bias turns with what it is added to."""
    rank = len(x.planes[0].atoms.shape) if x.planes else 0
    shift = Operand(()) if bias is None or not rank else trace.operand(bias, dims, rank)
    mixing = trace.ties.mixing
    for p in x.planes:
        mixing.touch([p], {d for d in range(rank) if d not in dims}, kind, reason)
        if not p.along(set(dims)):
            continue
        twins = [q for q in shift.planes if set(q.dims) == set(p.dims)]
        if bias is not None and not twins:
            mixing.part([p], "shifted by a bias inside every block")
        for q in twins:
            mixing.touch([q])
            mixing.join(as_array(p.atoms), as_array(q.atoms))
    for q in shift.planes:
        if not any(set(q.dims) == set(p.dims) for p in x.planes):
            mixing.part([q], "added to something else")


def _uniform(trace: Trace, weight: Tensor) -> bool:
    """Whether a weight is a constant whose entries are all equal."""
    return not trace.planes(weight) and not trace.operand(weight, range(weight.dim()), weight.dim()).fixed


def group_norm(trace: Trace, call: Call) -> list[Planes]:
    """GroupNorm: channels stay in their block, blocks move as wholes."""
    x, weight, bias, groups = call.args[0], call.args[1], call.args[2], call.args[6]
    rank, width = x.dim(), x.shape[1] // call.args[6]
    for plane in trace.planes(x):
        others = set(range(rank)) - {1}
        if plane.along(others) and plane.along({1}):
            trace.ties.collapse(plane, others, "normalised over it")
        elif plane.along({1}) and groups > 1 and width > 1:
            blocks = trace.ties.new_group(groups)
            trace.ties.block(as_array(plane.atoms).reshape(-1), np.repeat(blocks, width))
    return [_affine(trace, call, trace.operand(x, range(rank), rank), [], weight, bias, [1])]


def weight_norm(trace: Trace, call: Call) -> list[Planes]:
    """Weight norm: g * v / |v|, the norm taken over all axes but one."""
    v, g, dim = call.args[0], call.args[1], call.get(2, "dim", 0)
    rank = v.dim()
    direction = restrict(trace, trace.planes(v), Kind.PERMUTATION, "normalised")
    operand = trace.operand(v, range(rank), rank)
    planes = combine(trace, [Operand(direction, operand.fixed), trace.broadcast(g, rank)], "mul", "weight norm")
    return [planes, tuple(p for p in planes if not p.along(set(range(rank)) - {dim % rank}))]


def _affine(
    trace: Trace,
    call: Call,
    x: Operand,
    statistics: list[Operand],
    weight: Tensor | None,
    bias: Tensor | None,
    dims: list[int],
    judged: bool = False,
) -> Planes:
    rank = call.args[0].dim()
    affine = [Operand(()) if t is None else trace.operand(t, dims, rank) for t in (weight, bias)]
    reason = f"{call.name} of values that belong to no unit"
    mode = "length" if "rms" in call.name else "norm"
    return combine(trace, [x, *statistics, *affine], mode, reason, judged=judged)


RULES: dict[str, Rule] = {
    **dict.fromkeys(
        (
            "native_batch_norm",
            "_native_batch_norm_legit",
            "_native_batch_norm_legit_no_training",
            "cudnn_batch_norm",
            "miopen_batch_norm",
            "_batch_norm_with_update",
            "_batch_norm_no_update",
        ),
        batch_norm,
    ),
    **dict.fromkeys(("native_layer_norm", "_fused_rms_norm", "rms_norm"), layer_norm),
    "native_group_norm": group_norm,
    "_weight_norm_interface": weight_norm,
}
SIGHTS = {name: 2 for name in RULES if name != "_weight_norm_interface"}
