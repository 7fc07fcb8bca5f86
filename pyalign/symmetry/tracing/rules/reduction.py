"""Reductions: sums, means, norms, softmax treat all entries alike; sorting and running sums do not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from pyalign.symmetry.calls import tensors_of
from pyalign.symmetry.kinds import Kind
from pyalign.symmetry.tracing.labels import Operand, Plane
from pyalign.symmetry.tracing.rules.base import Planes, Rule, combine, pin, reduce_symmetric, restrict

if TYPE_CHECKING:
    from pyalign.symmetry.tracing.tracer import Call, Trace

__all__ = ["RULES"]

_LINEAR = frozenset({"sum", "mean", "nansum"})
_EXTREME = frozenset({"amax", "amin", "max", "min", "aminmax"})


def reduced(trace: Trace, call: Call) -> list[Planes]:
    """sum, mean, var, norm, max, ...: units along reduced axes are counted alike and vanish."""
    source, dims, keepdim = _arguments(call)
    planes = trace.planes(source)
    reason = f"reduced by {call.name}"
    if call.name in _EXTREME:
        planes = restrict(trace, planes, Kind.POSITIVE, reason)
    pending = trace.pending(source)
    square = call.name in _LINEAR and pending is not None and pending.factor is None
    if pending is not None and not square:
        trace.settle(pending)
    if call.name in ("norm", "linalg_vector_norm") and call.get(1, "ord", 2) == 2:
        square = True
    result = reduce_symmetric(trace, planes, dims, keepdim, reason, call.name in _LINEAR | _EXTREME, square=square)
    if call.name in ("max", "min") and isinstance(call.out, tuple):
        trace.leaking["planes"] = tuple(p for p in planes if p.along(dims))
        return [result, ()]
    return [result] * len(tensors_of(call.out))


def positions(trace: Trace, call: Call) -> list[Planes]:
    """Argmax and the like: along the axis units become numbers, so they stay."""
    source, dims, keepdim = _arguments(call)
    pin(trace, tuple(p for p in trace.planes(source) if p.along(dims)), f"{call.name} turns units into numbers")
    return [reduce_symmetric(trace, trace.planes(source), dims, keepdim, f"reduced by {call.name}", linear=False)]


def ordered(trace: Trace, call: Call) -> list[Planes]:
    """sort, topk, cumsum, ...: along the axis the order of entries matters, so units stay."""
    position = {"topk": 2}.get(call.name, 1)
    dim = call.get(position, "dim", -1)
    dims = {(dim if isinstance(dim, int) else -1) % max(call.args[0].dim(), 1)}
    for plane in trace.planes(call.args[0]):
        if plane.along(dims) and call.name not in ("sort", "topk", "kthvalue", "mode"):
            trace.ties.collapse(plane, dims, f"{call.name} depends on the order of entries")
        elif plane.along(dims) and not set(plane.dims) <= dims:
            trace.ties.collapse(plane, dims, f"{call.name} within a unit")
    trace.leaking["planes"] = tuple(p for p in trace.planes(call.args[0]) if p.along(dims))
    kind = (
        Kind.SCALED if call.name == "cumsum" else Kind.POSITIVE if call.name in ("sort", "topk") else Kind.PERMUTATION
    )
    planes = tuple(p for p in trace.planes(call.args[0]) if not p.along(dims))
    restrict(
        trace,
        tuple(p for p in trace.planes(call.args[0]) if p.along(dims)),
        Kind.PERMUTATION,
        f"{call.name} across units",
    )
    planes = restrict(trace, planes, kind, f"{call.name} commutes with {kind}s only")
    return [planes] * len(tensors_of(call.out))


def found(trace: Trace, call: Call) -> list[Planes]:
    """nonzero: units along every axis become numbers, so they stay."""
    pin(trace, trace.planes(call.args[0]), "nonzero turns units into numbers")
    return [()]


def softmax(trace: Trace, call: Call) -> list[Planes]:
    """softmax: symmetric along its axis, which stays."""
    planes = trace.planes(call.args[0])
    dims = {call.args[1] % call.args[0].dim()}
    for plane in planes:
        if plane.along(dims) and not set(plane.dims) <= dims:
            trace.ties.collapse(plane, dims, f"{call.name} within a unit")
    return [restrict(trace, planes, Kind.PERMUTATION, f"{call.name} commutes with permutations only")]


def folded(trace: Trace, call: Call) -> list[Planes] | None:
    """col2im (`F.fold`): for every channel the entries of all kernel positions are added up where they overlap."""
    source, kernel = call.args[0], call.args[2]
    axis, rank, places = source.dim() - 2, call.out.dim(), kernel[0] * kernel[1]
    for plane in trace.planes(source):
        if plane.along({axis + 1}):
            trace.ties.collapse(plane, {axis + 1}, "patches are put in their places")
    seen = trace.operand(source, range(axis + 2), rank)
    terms = []
    for place in range(places):
        planes = []
        for plane in trace.planes(source):
            atoms = plane.atoms.narrow(axis + 1, 0, 1).unsqueeze(-1)
            if plane.along({axis}):
                atoms = atoms.unflatten(axis, (-1, places)).select(axis + 1, place)
            if any(size > 1 for size in atoms.shape):
                planes.append(Plane(atoms, plane.scaled))
        terms.append(Operand(tuple(planes), seen.fixed & {axis - 1, axis}))
    return [combine(trace, terms, "add", f"added to values that belong to no unit, in {call.place or 'the model'}")]


def _arguments(call: Call) -> tuple[Tensor, set[int], bool]:
    """Source, reduced axes and keepdim, read off the schema of the operator."""
    named: dict[str, Any] = {a.name: a.default_value for a in call.func._schema.arguments}
    named.update(zip([a.name for a in call.func._schema.arguments], call.args, strict=False))
    named.update(call.kwargs)
    source = call.args[0]
    dim = named.get("dim", named.get("dims"))
    listed = list(range(source.dim())) if dim is None or dim == [] else [dim] if isinstance(dim, int) else list(dim)
    return source, {d % max(source.dim(), 1) for d in listed}, bool(named.get("keepdim", False))


RULES: dict[str, Rule] = {
    **dict.fromkeys(
        (
            "sum",
            "mean",
            "nansum",
            "var",
            "std",
            "var_mean",
            "std_mean",
            "amax",
            "amin",
            "max",
            "min",
            "aminmax",
            "prod",
            "any",
            "all",
            "norm",
            "linalg_vector_norm",
            "logsumexp",
            "count_nonzero",
            "median",
            "nanmedian",
        ),
        reduced,
    ),
    "col2im": folded,
    **dict.fromkeys(("argmax", "argmin"), positions),
    "nonzero": found,
    **dict.fromkeys(
        ("sort", "topk", "cumsum", "cumprod", "logcumsumexp", "cummax", "cummin", "argsort", "kthvalue", "mode"),
        ordered,
    ),
    **dict.fromkeys(("_softmax", "softmax", "_log_softmax", "log_softmax", "_safe_softmax"), softmax),
}
