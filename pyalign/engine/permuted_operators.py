"""The torch.library operators of the permuted blends: what is traced, compiled and differentiated.

The gradient of a permuted sum by its tensors is again a permuted sum, with the inverse permutations; by its weights it
is a product of the gradient and each permuted tensor, whose own gradients are permuted sums. Two operators suffice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pyalign.engine import dispatch

__all__ = ["permuted_sum"]

Axes = Sequence[Sequence[Tensor | None]]


def permuted_sum(out: Tensor | None, tensors: Sequence[Tensor], weights: Tensor, axes: Axes, backend: str) -> Tensor:
    """Give the weighted sum of checked tensors: `out` when it is given, else a new tensor with gradients."""
    if out is None and dispatch.plain([*tensors, weights]):
        result: Tensor = _EagerSum.apply(weights, *_present(axes), backend, *tensors)  # type: ignore[no-untyped-call]
        return result
    if out is None:
        return _sum(tensors, weights, axes, backend)
    torch.ops.pyalign.permuted_sum_out(out, tensors, weights, *_present(axes), backend)
    return out


def _sum(tensors: Sequence[Tensor], weights: Tensor, axes: Axes, backend: str) -> Tensor:
    if dispatch.direct([*tensors, weights]):
        out = _like(tensors)
        dispatch.implementation("permuted_lerp", backend, tensors)(out, tensors, weights.tolist(), axes)
        return out
    result: Tensor = torch.ops.pyalign.permuted_sum(tensors, weights, *_present(axes), backend)
    return result


# The operators take the permutations that are there and their places, tensor * rank + axis, since torch.library treats
# a list with None in it differently from a list of tensors.


def _present(axes: Axes) -> tuple[list[Tensor], list[int]]:
    flat = [perm for moved in axes for perm in moved]
    return [perm for perm in flat if perm is not None], [place for place, perm in enumerate(flat) if perm is not None]


def _grouped(perms: Sequence[Tensor], places: Sequence[int], k: int, rank: int) -> list[list[Tensor | None]]:
    grouped: list[list[Tensor | None]] = [[None] * rank for _ in range(k)]
    for perm, place in zip(perms, places, strict=True):
        grouped[place // rank][place % rank] = perm
    return grouped


@torch.library.custom_op("pyalign::permuted_sum_out", mutates_args=("out",))
def _fill(
    out: Tensor,
    tensors: Sequence[Tensor],
    weights: Tensor,
    perms: Sequence[Tensor],
    places: Sequence[int],
    backend: str,
) -> None:
    run = dispatch.implementation("permuted_lerp", backend, tensors)
    run(out, tensors, weights.tolist(), _grouped(perms, places, len(tensors), out.dim()))


@torch.library.custom_op("pyalign::permuted_sum", mutates_args=())
def _new(
    tensors: Sequence[Tensor], weights: Tensor, perms: Sequence[Tensor], places: Sequence[int], backend: str
) -> Tensor:
    out = _like(tensors)
    torch.ops.pyalign.permuted_sum_out(out, tensors, weights, perms, places, backend)
    return out


@torch.library.custom_op("pyalign::permuted_dots", mutates_args=())
def _dots(
    factor: Tensor, tensors: Sequence[Tensor], perms: Sequence[Tensor], places: Sequence[int], backend: str
) -> Tensor:
    """Give the (k,) float64 sums over all entries of factor times each permuted tensor."""
    run = dispatch.gradient("permuted_lerp", backend, tensors)
    sums: Tensor = run(factor, tensors, _grouped(perms, places, len(tensors), factor.dim()))
    return sums


def _like(tensors: Sequence[Tensor], *_: object) -> Tensor:
    return torch.empty_like(tensors[0], memory_format=torch.contiguous_format)


_fill.register_fake(lambda *_: None)
_new.register_fake(_like)
_dots.register_fake(lambda factor, tensors, *_: factor.new_empty(len(tensors), dtype=torch.float64))


def _for_tensors(ctx: Any, gradient: Tensor, weights: Tensor, axes: Axes, needed: Sequence[bool]) -> list[Any]:
    """Bring the gradient back to where each tensor has its entries; nothing where none is needed."""
    back: list[Tensor | None] = [None] * len(axes)
    for k, moved in enumerate(axes):
        if needed[k]:
            inverse = [None if perm is None else _inverse(perm) for perm in moved]
            back[k] = _sum([gradient], weights[k : k + 1], [inverse], ctx.backend)
    return back


def _inverse(perm: Tensor) -> Tensor:
    return torch.empty_like(perm).scatter_(0, perm, torch.arange(perm.numel(), device=perm.device))


def _save_sum(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    tensors, weights, perms, ctx.places, ctx.backend = inputs
    ctx.k, ctx.moved = len(tensors), len(perms)
    # The gradient of the weights is the only one that needs the tensors themselves.
    ctx.save_for_backward(weights, *perms, *(tensors if weights.requires_grad else ()))


def _sum_backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    return *_sum_gradients(ctx, gradient, ctx.needs_input_grad[0]), *_not_differentiated(ctx)


def _sum_gradients(ctx: Any, gradient: Tensor, needed: Sequence[bool]) -> tuple[list[Any], Tensor | None]:
    weights, *saved = ctx.saved_tensors
    perms, tensors = saved[: ctx.moved], saved[ctx.moved :]
    axes = _grouped(perms, ctx.places, ctx.k, gradient.dim())
    for_weights = None
    if tensors and dispatch.direct([gradient, *tensors]):
        dots: Tensor = dispatch.gradient("permuted_lerp", ctx.backend, tensors)(gradient, tensors, axes)
        for_weights = dots.to(weights.device)
    elif tensors:
        dots = torch.ops.pyalign.permuted_dots(gradient, tensors, perms, ctx.places, ctx.backend)
        for_weights = dots.to(weights.device)
    return _for_tensors(ctx, gradient, weights, axes, needed), for_weights


class _EagerSum(torch.autograd.Function):
    """The operator for ordinary tensors: torch.library's own bookkeeping takes ten times as long as a small sum."""

    @staticmethod
    def forward(
        weights: Tensor, perms: Sequence[Tensor], places: Sequence[int], backend: str, *tensors: Tensor
    ) -> Tensor:
        return _sum(tensors, weights, _grouped(perms, places, len(tensors), tensors[0].dim()), backend)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        weights, perms, places, backend, *tensors = inputs
        _save_sum(ctx, (tensors, weights, perms, places, backend), output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        for_tensors, for_weights = _sum_gradients(ctx, gradient, ctx.needs_input_grad[4:])
        return for_weights, None, None, None, *for_tensors


def _save_dots(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    factor, tensors, perms, ctx.places, ctx.backend = inputs
    ctx.k, ctx.moved = len(tensors), len(perms)
    ctx.save_for_backward(factor, *perms, *tensors)


def _dots_backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    factor, *saved = ctx.saved_tensors
    axes = _grouped(saved[: ctx.moved], ctx.places, ctx.k, factor.dim())
    for_factor = None
    if ctx.needs_input_grad[0]:
        for_factor = _sum(saved[ctx.moved :], gradient, axes, ctx.backend)
    for_tensors = _for_tensors(ctx, factor, gradient, axes, ctx.needs_input_grad[1])
    return for_factor, for_tensors, *_not_differentiated(ctx)


def _not_differentiated(ctx: Any) -> tuple[Any, ...]:
    """Stand for perms, places and backend; torch.library takes an empty list of integers for one of no tensors."""
    return [None] * ctx.moved, None if ctx.places else [], None


_new.register_autograd(_sum_backward, setup_context=_save_sum)
_dots.register_autograd(_dots_backward, setup_context=_save_dots)
