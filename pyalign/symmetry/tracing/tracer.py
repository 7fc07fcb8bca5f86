"""One forward pass of a real model, operator by operator: labels flow, ties are collected."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from pyalign.symmetry.calls import tensors_of
from pyalign.symmetry.kinds import Kind
from pyalign.symmetry.locate import ModuleScope
from pyalign.symmetry.tracing.absent import Absent, storage_of
from pyalign.symmetry.tracing.labels import Label, Operand, Pending, Plane, as_array, place
from pyalign.symmetry.tracing.rules import CONSTANT, MOVING, RULES, SIGHTS, fallback, is_random
from pyalign.symmetry.tracing.rules.base import Rule
from pyalign.symmetry.tracing.rules.repeating import common_repeats, places_of
from pyalign.symmetry.tracing.rules.rotary import Half
from pyalign.symmetry.tracing.ties import Ties
from pyalign.symmetry.tracing.written import part_of, unwritten_in, write_part

__all__ = ["Call", "Escapes", "Sight", "Trace"]

logger = logging.getLogger("pyalign")


@dataclass(frozen=True)
class Call:
    """One call of an operator: its base name, arguments, result, place, and number among the like in that place."""

    name: str
    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: Any
    place: str
    index: int = 0

    def get(self, position: int, keyword: str, default: Any = None) -> Any:
        """An argument by position or keyword."""
        return self.args[position] if position < len(self.args) else self.kwargs.get(keyword, default)


@dataclass(frozen=True)
class Sight:
    """A value whose plane varies on one axis: a possible observation site."""

    key: tuple[str, int, str, int]
    axis: int
    plane: Plane
    rank: int


class Trace(TorchDispatchMode):
    """Labels every tensor of a forward pass with the units its elements belong to.

    Args:
        ties: Where the relations between atoms are collected.
        scope: Tells which module is running.
        sources: Parameters and buffers: tensor -> (label). Other tensors are constants until told otherwise.
        ones: Constants that are one everywhere, for those without numbers.
        seed: Of the numbers that are made up where weights are absent.
    """

    strict = False
    """Raise errors of rules instead of leaving alone what they touch (for the tests)."""

    def __init__(
        self,
        ties: Ties,
        scope: ModuleScope,
        sources: Sequence[tuple[Tensor, Label]],
        ones: Sequence[Tensor] = (),
        seed: int = 0,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.ties, self.scope = ties, scope
        self.absent = Absent(lambda t: self.label(t) is not None, ones, seed)
        self.labels = WeakTensorKeyDictionary()
        self.storages: dict[tuple[Any, ...], Label] = {}
        self.sights: list[Sight] = []
        self.unknown: Counter[tuple[str, str]] = Counter()
        self.used: set[int] = set()
        self.states: tuple[str, ...] = ()  # what the model returns to be given back
        self.leaking: dict[str, tuple[Plane, ...]] = {}
        self.halves: list[Half] = []
        self._suspended: Pending | None = None
        self._repeating: list[Tensor | None] = []
        self._crossing: tuple[Plane, ...] = ()
        self._counts: Counter[tuple[str, int, str]] = Counter()
        self._sources = {_geometry(tensor): id(tensor) for tensor, _ in sources}
        for tensor, label in sources:
            self.labels[tensor] = label
            self.storages[_geometry(tensor)] = label

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operator, then label what came out."""
        if func._schema.name.startswith("prim::"):  # fake tensors are asked for their device in this way
            return func(*args, **(kwargs or {}))
        args, kwargs = self.absent.constants(args), self.absent.constants(kwargs or {})
        name = func._schema.name.split("::")[1]
        in_place = func._schema.is_mutable and name.endswith("_") and not name.startswith("_")
        base = name[:-1] if in_place else name
        seen = self._before(base, args) if in_place and isinstance(args[0], Tensor) else args
        index = self._count(func, base)
        out = self.absent.run(func, base, args, kwargs)
        call = Call(base, func, seen, kwargs, out, self.scope.current[0], index)
        inputs = [t for t in tensors_of([args, kwargs]) if self.label(t) is not None]
        self.used.update(self._sources.get(_geometry(t), 0) for t in inputs)
        if base in CONSTANT:
            self._clear(out)
        elif is_random(base) or (inputs and all(self._is_random(t) for t in inputs) and base != "copy"):
            self._set(out, [Label(random=True)] * len(tensors_of(out)))
        elif inputs:
            self._label(call, in_place)
        return out

    def _before(self, name: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """The arguments of an operator in place as they are before it: values of constants, axes of all others."""
        label = self.label(args[0])
        if label is None:
            return (args[0].clone(), *args[1:])
        if name not in _RESHAPED:
            return args
        kept = args[0].detach()
        self.labels[kept] = label
        return (kept, *args[1:])

    def _count(self, func: Any, base: str) -> int:
        """How many calls of this operator came before in this call of the module, those on constants included."""
        if base not in SIGHTS:
            return 0
        key = (*self.scope.current, str(func))
        self._counts[key] += 1
        return self._counts[key] - 1

    def label(self, tensor: Tensor) -> Label | None:
        """The label of a tensor, or None for a constant."""
        found: Label | None = self.labels.get(tensor)
        if found is None and self.storages:
            found = self.storages.get(_geometry(tensor))
        if found is None and tensor._base is not None:
            whole = self.labels.get(tensor._base)
            found = None if whole is None else part_of(tensor._base, tensor, whole)
        return found

    def planes(self, tensor: Tensor) -> tuple[Plane, ...]:
        """The planes of a tensor, none for a constant."""
        label = self.label(tensor)
        return () if label is None else label.planes

    def pending(self, tensor: Tensor) -> Pending | None:
        """What was done to a tensor last, if that is to be judged by what follows."""
        label = self.label(tensor)
        return None if label is None else label.pending

    def repeats(self, tensor: Tensor) -> Tensor | None:
        """Which repetition of one value each entry of a tensor is, None where nothing was repeated."""
        label = self.label(tensor)
        return None if label is None else label.repeats

    def repeat(self, counts: Sequence[Tensor | None]) -> None:
        """What `repeats` answers for the results of the running rule."""
        self._repeating = list(counts)

    def crossed(self, tensor: Tensor) -> tuple[Plane, ...]:
        """Planes of a tensor whose axis was merged with that of others (see `Label.crossed`)."""
        label = self.label(tensor)
        return () if label is None else label.crossed

    def cross(self, planes: Sequence[Plane]) -> None:
        """What `crossed` answers for the result of the running rule."""
        self._crossing = tuple(planes)

    def suspend(self, pending: Pending) -> None:
        """The result of the running rule is to be judged by what follows."""
        self._suspended = pending

    def settle(self, pending: Pending | None) -> None:
        """What follows explains nothing: the entries were treated each in its own way."""
        if pending is not None and pending.factor is None:
            self.ties.mixing.part(pending.planes, "squared")
        elif pending is not None:
            self.ties.mixing.touch(pending.planes, pending.dims)

    def finish(self) -> None:
        """Halves of rotations whose other half never came are sums like others."""
        for half in self.halves:
            half.settle()
        self.halves.clear()

    def leak(self, tensor: Tensor, crossing: bool = False) -> None:
        """A tensor is used: units whose numbers it holds cannot move, nor those on an axis with others.

        Args:
            tensor: The tensor.
            crossing: Whether what uses it knows of axes with several planes.
        """
        label = self.label(tensor)
        for plane in label.leaks if label is not None else ():
            self.ties.pin(plane.atoms.unique().numpy(), "its number is used as a value")
        for plane in () if crossing else self.crossed(tensor):
            self.ties.pin(plane.atoms.unique().numpy(), "its axis was merged with that of finer units")

    def operand(self, tensor: Any, dims: Sequence[int], rank: int) -> Operand:
        """A tensor seen from an index space: its axis d is axis `dims[d]` of `rank` axes.

        Args:
            tensor: A tensor, or a Python number.
            dims: Axis of the index space for each axis of the tensor.
            rank: Number of axes of the index space.
        """
        if not isinstance(tensor, Tensor):
            return Operand((), zero=tensor == 0)
        label = self.label(tensor)
        planes = () if label is None else label.planes
        explained = {d for plane in planes for d in plane.dims}
        fixed = [d for d, size in enumerate(tensor.shape) if size > 1 and d not in explained and tensor.stride(d) != 0]
        if label is None:
            fixed = [d for d in fixed if not bool((tensor == tensor.narrow(d, 0, 1)).all())]
        if label is not None and label.random:
            fixed = []
        zero = label is None and not bool(tensor.any())
        places = {} if label is None or label.repeats is None else places_of(tensor, label.repeats, fixed)
        return Operand(
            tuple(place(plane, dims, rank) for plane in planes),
            frozenset(dims[d] for d in fixed if d not in places or places[d].any()),
            zero,
            {dims[d]: numbers for d, numbers in places.items()},
        )

    def broadcast(self, tensor: Any, rank: int) -> Operand:
        """A tensor aligned at the last axis, as in broadcasting."""
        offset = rank - tensor.dim() if isinstance(tensor, Tensor) else 0
        return self.operand(tensor, [] if not isinstance(tensor, Tensor) else range(offset, rank), rank)

    def _is_random(self, tensor: Tensor) -> bool:
        label = self.label(tensor)
        return label is not None and label.random

    def _clear(self, out: Any) -> None:
        for tensor in tensors_of(out):
            self.labels.pop(tensor, None)
            for plane in self.planes(tensor._base) if tensor._base is not None else ():
                self.ties.pin(plane.atoms.unique().numpy(), "overwritten in part")

    def _label(self, call: Call, in_place: bool) -> None:
        for tensor in tensors_of([call.args, call.kwargs]):
            self.leak(tensor, crossing=call.name in (_TURNING if tensor.is_complex() else _CROSSING))
            if call.name not in _JUDGES:
                self.settle(self.pending(tensor))
            for plane in () if call.name in MOVING else (*self.planes(tensor), *self.crossed(tensor)):
                self.ties.reach(as_array(plane.atoms).reshape(-1))
        if call.name in _PICKS and self.label(call.args[0]) is None and not bool(call.args[0].any()):
            self._clear(call.out)  # zeros, whichever are picked
            return
        rule = RULES.get(call.name)
        if rule is None and torch.Tag.pointwise in call.func.tags:
            rule = RULES["pointwise"]
        results = self._ruled(rule, call)
        if not self._repeating and torch.Tag.pointwise in call.func.tags:
            self._repeating = [common_repeats(self, call)]
        outputs = tensors_of(call.out)
        results = [*results, *[()] * (len(outputs) - len(results))]
        results = [tuple(p for p in planes if self._moves(p)) for planes in results]
        for planes in results:
            for plane in planes:
                self.ties.see(plane)
        before = self.label(call.args[0]) if in_place and isinstance(call.args[0], Tensor) else None
        leaks = self.leaking.pop("planes", ())
        pending, self._suspended = self._suspended, None
        repeats, self._repeating = [*self._repeating, *[None] * len(outputs)], []
        crossed, self._crossing = self._crossing, ()
        first: dict[str, Any] = {"pending": pending, "crossed": crossed}
        others: dict[str, Any] = {"leaks": leaks}
        blanks = unwritten_in(call, self.label(call.args[0]) if isinstance(call.args[0], Tensor) else None)
        labels = [
            Label(planes, **(others if n else first), repeats=repeats[n], unwritten=blanks[n] if blanks else None)
            for n, planes in enumerate(results)
        ]
        self._set(call.out, labels)
        if (
            in_place
            and call.name in ("copy", "fill", "zero", "add", "mul", "masked_fill")
            and (before is None or not before.planes)
        ):
            write_part(self, outputs[0], results[0], repeats[0])
        self._sight(call, outputs, results)

    def _moves(self, plane: Plane) -> bool:
        """Whether a plane is worth following; what is not followed cannot be mixed."""
        if self.ties.moves(plane) or self.ties.mixes(plane):
            return True
        self.ties.mixing.part([plane], "held in place")
        return False

    def _ruled(self, rule: Rule | None, call: Call) -> list[tuple[Plane, ...]]:
        try:
            results = rule(self, call) if rule is not None else None
        except Exception:
            if self.strict:
                raise
            logger.warning("the rule for %s failed; what it touches is left alone", call.func, exc_info=True)
            results = None
        return fallback(self, call) if results is None else results

    def _set(self, out: Any, labels: Sequence[Label]) -> None:
        for tensor, label in zip(tensors_of(out), labels, strict=False):
            if label.unwritten is not None and bool(label.unwritten.all()):
                self.labels.pop(tensor, None)  # still the constant that it was
            else:
                self.labels[tensor] = label

    def _sight(self, call: Call, outputs: list[Tensor], results: list[tuple[Plane, ...]]) -> None:
        rank = SIGHTS.get(call.name)
        if rank is None or not outputs:
            return
        key = (*self.scope.current, str(call.func))
        whole = [plane for plane in results[0] if not self.ties.summed[plane.atoms.numpy()].any()]
        axes = [(plane.dims[0], plane) for plane in whole if len(plane.dims) == 1]
        if outputs[0].is_floating_point():
            self.sights.extend(Sight((*key, call.index), axis, plane, rank) for axis, plane in axes)


class Escapes(TorchFunctionMode):
    """Notices values that leave torch (for Python numbers, lists or numpy), where no operator can be seen any more."""

    def __init__(self, trace: Trace) -> None:
        super().__init__()
        self.trace = trace

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Pin what leaves, then run the function."""
        if getattr(func, "__name__", "") in _LEAVES and args and isinstance(args[0], Tensor):
            self.trace.leak(args[0])
            for plane in self.trace.planes(args[0]):
                self.trace.ties.pin(plane.atoms.unique().numpy(), "its values leave torch")
        return func(*args, **(kwargs or {}))


_LEAVES = frozenset(
    {"tolist", "numpy", "__array__", "item", "__float__", "__int__", "__bool__", "__index__", "__dlpack__", "data_ptr"}
)


_PICKS = frozenset({"index", "index_select", "gather"})

_CROSSING = frozenset({"view", "_unsafe_view", "reshape", "_reshape_alias", "view_copy", "_reshape_copy", "bmm"})
_TURNING = frozenset({"view_as_real", "mul"})
"""Operators whose rules know of axes with several planes, of real and of complex tensors."""

_RESHAPED = frozenset({"unsqueeze", "squeeze", "transpose", "t", "swapaxes", "swapdims"})
"""Operators that in place give a tensor other axes."""

_JUDGES = frozenset({"add", "sub", "mean", "sum"})
"""Operators whose rules judge pending squares and products themselves."""


def _geometry(tensor: Tensor) -> tuple[Any, ...]:
    if tensor.layout != torch.strided:
        return (id(tensor),)
    return (storage_of(tensor), tensor.storage_offset(), tuple(tensor.shape), tensor.stride())


def source_label(ties: Ties, name: str, tensor: Tensor, buffer: bool) -> Label:
    """The label of a parameter or buffer: one plane for each of its axes."""
    planes = []
    for axis, size in enumerate(tensor.shape):
        if size > 1:
            shape = [1] * tensor.dim()
            shape[axis] = size
            atoms = torch.from_numpy(ties.new_axis(name, axis, size, buffer=buffer)).reshape(shape)
            planes.append(
                ties.limit_scale(Plane(atoms), Kind.PERMUTATION, "a buffer has no scale") if buffer else Plane(atoms)
            )
    return Label(tuple(planes))
