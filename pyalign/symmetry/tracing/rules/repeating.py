"""Values that are repeated: each repetition is a unit of its own, in a block that moves with what it repeats.

So it is with the keys and values of grouped-query attention. Repetitions of one value change places freely; which
operator makes them (expand, repeat, an index) is seen before their axis is merged with that of the units.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from pyalign.symmetry.calls import tensors_of
from pyalign.symmetry.kinds import Kind
from pyalign.symmetry.tracing.hashing import IntArray
from pyalign.symmetry.tracing.labels import FIXED, Plane, as_array, compact
from pyalign.symmetry.tracing.ties import Ties, rank

if TYPE_CHECKING:
    from pyalign.symmetry.tracing.tracer import Call, Trace

__all__ = ["common_repeats", "distinct", "merged", "places_of", "repeats_of", "served"]


def distinct(ties: Ties, plane: Plane, repeats: Tensor | None = None) -> Plane:
    """Copies of an atom get atoms of their own, so that later operators may treat each copy differently.

    Repetitions of whole blocks are units of their own; other copies (values of one unit at several places, or a single
    unit repeated, which keeps its scale this way) are tied.
    """
    if repeats is not None and len(plane.dims) > 1:
        plane = _repeated(ties, plane, repeats)
    atoms = as_array(plane.atoms).reshape(-1)
    first = np.zeros(len(atoms), bool)
    first[np.unique(atoms, return_index=True)[1]] = True
    again = ~first & (atoms != FIXED)
    if not again.any():
        return plane
    copies = atoms.copy()
    copies[again] = ties.new_copies(atoms[again])
    ties.tie(copies, atoms)
    ties.mixing.join(copies, atoms)
    if plane.scaled:
        ties.tie_scale(copies, atoms, 1)
    return Plane(torch.from_numpy(copies).reshape(plane.atoms.shape), plane.scaled)


def served(ties: Ties, narrow: Plane, wide: Plane) -> Plane:
    """Repetitions of a plane, one for each unit of another plane that an atom meets."""
    shape = np.broadcast_shapes(narrow.atoms.shape, wide.atoms.shape)
    key = torch.from_numpy(ties.origin)[wide.atoms].expand(shape)
    return distinct(ties, _repeated(ties, Plane(narrow.atoms.expand(shape), narrow.scaled), key))


def places_of(tensor: Tensor, repeats: Tensor, axes: Sequence[int]) -> dict[int, IntArray]:
    """For each of some axes along which a tensor's values are repeated, which places have the same value."""
    varying = [d for d, size in enumerate(repeats.shape) if size > 1]
    found = {d: rank(as_array(repeats.reshape(-1))) for d in axes if varying == [d]}
    return {d: places for d, places in found.items() if tensor.is_meta or _equal_at(tensor, d, places)}


def _equal_at(tensor: Tensor, axis: int, places: IntArray) -> bool:
    """Whether the values at places of equal number are equal indeed."""
    first = torch.from_numpy(np.unique(places, return_index=True)[1][places]).to(tensor.device)
    return torch.equal(tensor.index_select(axis, first), tensor)


def merged(ties: Ties, one: Plane, two: Plane) -> Plane | None:
    """Heads and the inside of a value that all heads read, on one axis: the value repeated for every head.

    None where the two planes are no such pair, or one of them does not move: then the other goes on without it.
    """
    if not (ties.moves(one) and ties.moves(two)):
        return None
    known = [bool(ties.served[as_array(p.atoms)].all()) for p in (one, two)]
    if known[0] == known[1] or one.dims != two.dims:
        return None
    heads, value = (one, two) if known[0] else (two, one)
    pairs = np.stack([ties.origin[as_array(p.atoms)].reshape(-1) for p in (heads, value)])
    if len(np.unique(pairs, axis=1)[0]) != pairs.shape[1]:
        return None
    both = served(ties, value, heads)
    ties.tie(as_array(both.atoms), as_array(heads.atoms))
    ties.limit_scale(heads, Kind.PERMUTATION, "multiplied with a value of finer units")
    return both


def _repeated(ties: Ties, plane: Plane, repeats: Tensor) -> Plane:
    """The plane with an atom for every repetition, where an atom has several."""
    here = repeats
    for d in range(here.dim()):
        if plane.atoms.shape[d] == 1:
            here = here.narrow(d, 0, 1)
    atoms, count = as_array(plane.atoms).reshape(-1), as_array(here.expand(plane.atoms.shape)).reshape(-1)
    pairs, place = np.unique(np.stack([ties.origin[atoms], count]), axis=1, return_inverse=True)
    several = np.isin(pairs[0], pairs[0][1:][pairs[0][1:] == pairs[0][:-1]]) & (pairs[0] != FIXED)
    if not several.any():
        return plane
    own = pairs[0].copy()
    own[several] = ties.new_repeats(pairs[0][several], plane.scaled)
    place = place.reshape(-1)
    result = np.where(several[place], own[place], atoms)
    return Plane(torch.from_numpy(result).reshape(plane.atoms.shape), plane.scaled)


def repeats_of(trace: Trace, call: Call) -> Sequence[Tensor | None]:
    """Which repetition of one value each entry of the results is, None where nothing is known to be repeated."""
    source = call.args[0]
    known = trace.repeats(source)
    if known is not None and not _keeps(call, known):
        known = None
    if known is not None:
        moved = tensors_of(call.func(known.expand(source.shape), *call.args[1:], **call.kwargs))
    else:
        moved = [torch.zeros([1] * t.dim(), dtype=torch.int64) for t in tensors_of(call.out)]
    new = _new_repeats(call)
    if new is None:
        return [None if known is None else compact(count) for count in moved]
    return [compact(moved[0] * (int(new.max()) + 1) + new)]


_KEEPING = ("expand", "unsqueeze", "squeeze", "repeat", "squeeze_copy", "expand_copy")
_CUTTING = ("slice", "select", "narrow", "split", "split_with_sizes", "unbind", "chunk", "slice_copy")


def _keeps(call: Call, known: Tensor) -> bool:
    """Whether the repetitions of every value are still in one order after the operator."""
    if call.name in _CUTTING:
        position = 2 if call.name.startswith(("split", "chunk")) else 1
        axis: int = call.get(position, "dim", 0)
        return known.shape[axis % known.dim()] == 1
    return call.name in _KEEPING


def common_repeats(trace: Trace, call: Call) -> Tensor | None:
    """The repetitions in the result of a pointwise operator: those of its arguments, if they are the same in all."""
    if not isinstance(call.out, Tensor):
        return None
    rank, found = call.out.dim(), []
    for t in tensors_of([call.args, call.kwargs]):
        count = trace.repeats(t)
        if count is not None:
            found.append(count.reshape([1] * (rank - count.dim()) + list(count.shape)))
    if not found or any(f.shape != found[0].shape or not torch.equal(f, found[0]) for f in found):
        return None
    varying = {d - rank for d, size in enumerate(found[0].shape) if size > 1}
    for t in tensors_of([call.args, call.kwargs]):
        if trace.repeats(t) is None and any(-d <= t.dim() and t.shape[d] > 1 for d in varying):
            return None
    return found[0]


def _new_repeats(call: Call) -> Tensor | None:
    """The repetitions that an operator makes along axes other than the first (that of the batch)."""
    result = None
    for axis, order in enumerate(_orders(call)):
        if axis == 0 or order is None:
            continue
        shape = [1] * call.out.dim()
        shape[axis] = call.out.shape[axis]
        order = order.reshape(shape)
        result = order if result is None else result * (int(order.max()) + 1) + order
    return result


def _orders(call: Call) -> list[Tensor | None]:
    """For each axis of the result, the how many-th repetition every place is; None where nothing is repeated."""
    source = call.args[0]
    if call.name == "expand":
        new = call.out.dim() - source.dim()
        old = [1] * new + list(source.shape)
        return [torch.arange(n) if m == 1 < n else None for m, n in zip(old, call.out.shape, strict=True)]
    if call.name == "repeat":
        new = call.out.dim() - source.dim()
        old = [1] * new + list(source.shape)
        return [torch.arange(n) // m if m < n else None for m, n in zip(old, call.out.shape, strict=True)]
    found: list[Tensor | None] = [None] * (call.out.dim() if isinstance(call.out, Tensor) else 0)
    index = _index(call)
    if index is not None:
        axis, numbers = index
        counts = torch.bincount(numbers)
        counts = counts[counts > 0]
        if int(counts.min()) == int(counts.max()) > 1:
            same = numbers.unsqueeze(0) == numbers.unsqueeze(1)
            found[axis] = same.tril(-1).sum(1)
    return found


def _index(call: Call) -> tuple[int, Tensor] | None:
    """The axis that one list of numbers indexes, and the numbers."""
    source = call.args[0]
    if call.name == "index_select":
        axis, numbers = call.args[1] % source.dim(), call.args[2]
    elif call.name == "index" and sum(i is not None for i in call.args[1]) == 1:
        axis, numbers = next((d, i) for d, i in enumerate(call.args[1]) if i is not None)
    else:
        return None
    if numbers.dim() != 1 or numbers.dtype == torch.bool or not numbers.numel():
        return None
    return axis, numbers.cpu() % source.shape[axis]
