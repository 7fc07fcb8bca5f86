"""Strategies for tensors in memory: sizes, values of every magnitude, and layouts with strides, gaps and offsets."""

from __future__ import annotations

import math

import torch
from hypothesis import strategies as st

# What one unit of scale is multiplied by; the widest range lies within one tensor.
MAGNITUDES = ("plain", "ties", "offset", "tiny", "huge", "wide", "denormal", "constant")


def values(shape, magnitude, seed):
    """Float64 numbers of one kind; all of them fit into float32 and bfloat16."""
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(shape, generator=generator, dtype=torch.float64)
    exponents = torch.randint(-30, 31, shape, generator=generator)
    return {
        "plain": normal,
        "ties": (2 * normal).round(),
        "offset": 1e4 + normal,
        "tiny": 1e-30 * normal,
        "huge": 1e30 * normal,
        "wide": normal * 10.0**exponents,
        "denormal": 1e-42 * normal,
        "constant": torch.full(shape, 0.1, dtype=torch.float64),
    }[magnitude]


@st.composite
def laid_out(draw, tensor):
    """The same tensor in other memory: axes in any order, steps, an offset, and NaN (or an extreme) in the gaps."""
    rank = tensor.dim()
    order = draw(st.permutations(range(rank)))
    steps = draw(st.lists(st.sampled_from([1, 1, 2, 3]), min_size=rank, max_size=rank))
    offset = draw(st.sampled_from([0, 0, 1, 7]))
    sizes = [tensor.shape[axis] * step for axis, step in zip(order, steps, strict=True)]
    whole = tensor.new_empty(offset + math.prod(sizes))
    whole.fill_(math.nan if tensor.dtype.is_floating_point else fill_of(tensor.dtype))
    view = whole[offset:].view(sizes)[tuple(slice(None, None, step) for step in steps)]
    view = view.permute([order.index(axis) for axis in range(rank)])
    return view.copy_(tensor)


def fill_of(dtype):
    return True if dtype == torch.bool else torch.iinfo(dtype).min


@st.composite
def repeated(draw, tensor, among=None):
    """The tensor, or one whose entries along one axis (of `among`) are one entry in memory (stride 0)."""
    axes = [axis for axis, size in enumerate(tensor.shape) if size > 1 and (among is None or axis in among)]
    axis = draw(st.sampled_from([None, None, *axes]))
    return tensor if axis is None else tensor.narrow(axis, 0, 1).expand(tensor.shape)
