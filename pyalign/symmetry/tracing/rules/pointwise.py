"""Pointwise operators: each entry is computed from the entries at the same place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pyalign.symmetry.calls import tensors_of
from pyalign.symmetry.kinds import Kind
from pyalign.symmetry.tracing.labels import Operand, Pending, Plane, as_array
from pyalign.symmetry.tracing.rules.base import Planes, Rule, combine, note_mixing, restrict
from pyalign.symmetry.tracing.rules.complex import turned
from pyalign.symmetry.tracing.rules.rotary import Half, half_of, half_turned, rotate

if TYPE_CHECKING:
    from pyalign.symmetry.tracing.tracer import Call, Trace

__all__ = ["RULES", "SIGHTS"]

_COMMUTES = {
    Kind.SCALED: ("neg", "positive"),
    Kind.POSITIVE: ("relu", "leaky_relu", "abs", "rrelu", "rrelu_with_noise"),
    Kind.SIGNED: (
        "tanh",
        "sin",
        "asin",
        "sinh",
        "asinh",
        "atan",
        "tan",
        "erf",
        "erfinv",
        "sign",
        "sgn",
        "softshrink",
        "hardshrink",
        "atanh",
        "trunc",
        "round",
    ),
}
"""Activations by the largest class they commute with; all other pointwise operators commute with permutations only."""

_UNTAGGED = (
    "hardswish",
    "hardsigmoid",
    "gelu",
    "silu",
    "elu",
    "selu",
    "celu",
    "mish",
    "softplus",
    "log_sigmoid_forward",
    "threshold",
    "sigmoid",
    "softshrink",
    "hardshrink",
    "maximum",
    "minimum",
    "pow",
    "square",
    "sqrt",
    "rsqrt",
    "reciprocal",
    "exp",
    "log",
    "log1p",
    "expm1",
    "clip",
    "lerp",
    "addcmul",
    "addcdiv",
    "fmod",
    "remainder",
    "floor_divide",
    "isnan",
    "isinf",
    "logical_not",
    "bitwise_not",
    "nan_to_num",
    "heaviside",
    "special_erf",
    "logit",
    "special_expit",
)
"""Pointwise operators that older or newer torch versions do not tag as such."""

_GATES = ("sigmoid", "hardsigmoid", "log_sigmoid_forward", "exp")
_ACTIVATIONS = (
    "relu",
    "leaky_relu",
    "rrelu",
    "rrelu_with_noise",
    "tanh",
    "gelu",
    "silu",
    "elu",
    "selu",
    "celu",
    "mish",
    "hardswish",
    "hardtanh",
    "softplus",
    "softshrink",
    "hardshrink",
    "_prelu_kernel",
    "prelu",
    "threshold",
    "sin",
    "erf",
    "relu6",
    "clamp",
    "clamp_min",
    "abs",
)


def unary(trace: Trace, call: Call) -> list[Planes]:
    """An activation: the class of its family."""
    kind = next((k for k, names in _COMMUTES.items() if call.name in names), Kind.PERMUTATION)
    return [restrict(trace, trace.planes(call.args[0]), kind, f"{call.name} commutes with {kind}s only")]


def clip(trace: Trace, call: Call) -> list[Planes] | None:
    """Clamp and hardtanh: positive scales pass [0, inf), signs pass symmetric bounds."""
    if any(isinstance(a, Tensor) for a in (*call.args[1:], *call.kwargs.values())):
        return pointwise(trace, call)
    low, high = call.get(1, "min", call.kwargs.get("min_val")), call.get(2, "max", call.kwargs.get("max_val"))
    if call.name == "hardtanh":
        low, high = (-1 if low is None else low), (1 if high is None else high)
    if call.name == "clamp_max":
        low, high = None, low
    kind = Kind.PERMUTATION
    if (low == 0 and high is None) or (high == 0 and low is None):
        kind = Kind.POSITIVE
    elif low is not None and high is not None and low == -high:
        kind = Kind.SIGNED
    return [restrict(trace, trace.planes(call.args[0]), kind, f"{call.name} commutes with {kind}s only")]


def pointwise(trace: Trace, call: Call) -> list[Planes] | None:
    """Any other pointwise operator: planes that meet are tied, scales are lost."""
    return _binary(trace, call, "pin")


def add(trace: Trace, call: Call) -> list[Planes] | None:
    """Sums: scales must agree. The sum that ends a rotary embedding rotates pairs."""
    if not isinstance(call.out, Tensor):
        return None
    pendings = [trace.pending(a) if isinstance(a, Tensor) else None for a in call.args[:2]]
    offset = _offset(trace, call) if trace.ties.rewritten else None
    if offset is not None:
        return [(offset,)]
    if not any(pendings):
        return _binary(trace, call, "add")
    rotated = call.name == "add" and call.kwargs.get("alpha", 1) == 1 and rotate(trace, *pendings)
    operands = [trace.broadcast(a, call.out.dim()) for a in call.args[:2]]
    half = None if rotated else _half(trace, call, pendings)
    if half is not None and half_turned(trace, half):
        operands = operands[::-1]
    if not rotated and half is None:
        for pending in pendings:
            trace.settle(pending)
    return [combine(trace, operands, "add", _reason(call), judged=rotated or half is not None)]


def _half(trace: Trace, call: Call, pendings: Sequence[Pending | None]) -> Half | None:
    """The sum as one half of a rotation whose parts are kept apart, if it may be one."""
    one, two = pendings
    if call.name not in ("add", "sub") or call.kwargs.get("alpha", 1) != 1 or one is None or two is None:
        return None
    operands = [trace.broadcast(a, call.out.dim()) for a in call.args[:2]]

    def settle() -> None:
        trace.settle(one)
        trace.settle(two)
        note_mixing(trace.ties.mixing, operands, "add", _reason(call), frozenset())

    return half_of(trace, one, two, -1 if call.name == "sub" else 1, settle)


def _offset(trace: Trace, call: Call) -> Plane | None:
    """A number added to a whole vector of parameters (the scale of a norm stored as its difference from one)."""
    numbers = [a for a in call.args[:2] if isinstance(a, (int, float))]
    tensors = [a for a in call.args[:2] if isinstance(a, Tensor)]
    planes = trace.planes(tensors[0]) if tensors else ()
    if call.name != "add" or len(numbers) != 1 or call.kwargs.get("alpha", 1) != 1 or len(planes) != 1:
        return None
    atoms, ties = as_array(planes[0].atoms).reshape(-1), trace.ties
    axis = next((a for a in ties.axes if a.start == atoms[0] and a.size == len(atoms) and not a.buffer), None)
    if axis is None or tensors[0].dim() != 1 or (atoms != np.arange(axis.start, axis.start + axis.size)).any():
        return None
    if axis.start not in ties.offsets:
        ties.limit_scale(planes[0], Kind.PERMUTATION, "a number is added to it")
        own = ties.new_copies(atoms)
        ties.tie(own, atoms)
        ties.offsets[axis.start] = (own, float(numbers[0]))
    return Plane(torch.from_numpy(ties.offsets[axis.start][0].copy()))


def mul(trace: Trace, call: Call) -> list[Planes] | None:
    """Products: one factor may carry a scale. What a product with constants does to mixtures is seen later."""
    if not isinstance(call.out, Tensor):
        return None
    if any(trace.crossed(t) for t in tensors_of(call.args[:2]) if t.is_complex()):
        return turned(trace, call)
    rank = call.out.dim()
    operands = [trace.broadcast(a, rank) for a in call.args[:2]]
    for operand in operands:
        trace.ties.multiplied(operand.planes)
    for x, (one, two) in zip(call.args[:2], (operands, operands[::-1]), strict=True):
        constant = isinstance(x, Tensor) and x.dim() == rank and bool(one.planes) and not two.planes
        if constant and any(p.along(set(two.fixed)) for p in one.planes):
            factor = call.args[1] if x is call.args[0] else call.args[0]
            trace.suspend(Pending(x, one.planes, factor, two.fixed))
            return [combine(trace, operands, "mul", _reason(call), judged=True)]
    return [combine(trace, operands, "mul", _reason(call))]


def power(trace: Trace, call: Call) -> list[Planes] | None:
    """Powers: a square is judged by what becomes of it."""
    if call.args[1:2] != (2,) and call.name != "square":
        return pointwise(trace, call)
    planes = trace.planes(call.args[0])
    trace.suspend(Pending(call.args[0], planes))
    kind = Kind.PERMUTATION if trace.ties.rewritten else Kind.SIGNED  # what rewrites follows scales of parameters alone
    kept = restrict(trace, planes, kind, "squared, which leaves no more than signs free", judged=True)
    trace.ties.signs_only(kept)
    return [tuple(Plane(p.atoms, scaled=False) for p in kept)]


def div(trace: Trace, call: Call) -> list[Planes]:
    """Quotients: the divisor keeps no scale."""
    rank = call.out.dim()
    x, y = (trace.broadcast(a, rank) for a in call.args[:2])
    restrict(trace, y.planes, Kind.PERMUTATION, "divided by")
    y = Operand(tuple(Plane(p.atoms, False) for p in y.planes), y.fixed)
    return [combine(trace, [x, y], "mul", _reason(call))]


def masked_fill(trace: Trace, call: Call) -> list[Planes]:
    """Entries replaced by a number: scales survive only zero."""
    rank = call.out.dim()
    value = call.args[2]
    zero = not bool(value.any()) if isinstance(value, Tensor) else value == 0
    operands = [trace.broadcast(a, rank) for a in call.args[:2]]
    return [combine(trace, operands, "mul" if zero else "pin", _reason(call))]


def glu(trace: Trace, call: Call) -> list[Planes]:
    """GLU: the first half of an axis times the sigmoid of the second."""
    x = call.args[0]
    dim = call.get(1, "dim", -1) % x.dim()
    whole = trace.operand(x, range(x.dim()), x.dim())
    halves = []
    for start in (0, x.shape[dim] // 2):
        planes = [
            Plane(p.atoms.narrow(dim, start, x.shape[dim] // 2) if p.along({dim}) else p.atoms, p.scaled)
            for p in whole.planes
        ]
        halves.append(Operand(tuple(planes), whole.fixed))
    gate = Operand(restrict(trace, halves[1].planes, Kind.PERMUTATION, "a gate has no scale"), halves[1].fixed)
    return [combine(trace, [halves[0], gate], "mul", _reason(call))]


def prelu(trace: Trace, call: Call) -> list[Planes]:
    """PReLU: a slope for each channel (axis 1), homogeneous for positive scales."""
    x, slope = call.args[:2]
    rank = x.dim()
    if call.name == "_prelu_kernel":
        operands = [trace.broadcast(x, rank), trace.broadcast(slope, rank)]
    else:
        operands = [trace.broadcast(x, rank), trace.operand(slope, [1 if rank > 1 else 0] * slope.dim(), rank)]
    restrict(trace, operands[1].planes, Kind.PERMUTATION, "a slope has no scale")
    flat = Operand(tuple(Plane(p.atoms, False) for p in operands[1].planes), operands[1].fixed)
    planes = combine(trace, [operands[0], flat], "mul", _reason(call))
    return [restrict(trace, planes, Kind.POSITIVE, "prelu commutes with positive-scaled permutations only")]


def _binary(trace: Trace, call: Call, mode: str) -> list[Planes] | None:
    if not isinstance(call.out, Tensor):
        return None
    rank = call.out.dim()
    arguments: list[Any] = [
        a
        for a in (*call.args, *call.kwargs.values())
        if isinstance(a, (Tensor, int, float)) and not isinstance(a, bool)
    ]
    if mode != "pin":
        arguments = list(call.args[:2])
    elif len(tensors_of(arguments)) == 1:
        return [
            restrict(
                trace,
                trace.planes(tensors_of(arguments)[0]),
                Kind.PERMUTATION,
                f"{call.name} commutes with permutations only",
            )
        ]
    return [combine(trace, [trace.broadcast(a, rank) for a in arguments], mode, _reason(call))]


def _reason(call: Call) -> str:
    place = call.place or "the model"
    return f"{call.name} with values that belong to no unit, in {place}"


RULES: dict[str, Rule] = {
    "pointwise": pointwise,
    **dict.fromkeys(_UNTAGGED, pointwise),
    **{name: unary for names in _COMMUTES.values() for name in names},
    **dict.fromkeys(("clamp", "clamp_min", "clamp_max", "hardtanh"), clip),
    **dict.fromkeys(("add", "sub", "rsub", "_add_relu"), add),
    **dict.fromkeys(("mul", "multiply", "_conj"), mul),
    **dict.fromkeys(("pow", "square"), power),
    **dict.fromkeys(("div", "true_divide", "divide"), div),
    "masked_fill": masked_fill,
    "prelu": prelu,
    "_prelu_kernel": prelu,
    "where": pointwise,
    "glu": glu,
}

SIGHTS = {**dict.fromkeys(_ACTIVATIONS, 0), **dict.fromkeys(_GATES, 1), "add": 2, "mul": 4}
