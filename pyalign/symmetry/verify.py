"""Prove a spec numerically: random elements of every group must leave the outputs of the model unchanged."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from pyalign.errors import SymmetryError
from pyalign.symmetry.calls import answers_of, call, map_tensors, state_of
from pyalign.symmetry.copies import copy_of, renewed
from pyalign.symmetry.derive import untouched
from pyalign.symmetry.elements import following
from pyalign.symmetry.groups import AxisBinding, FixedAxis, Role, Side
from pyalign.symmetry.linear import BlockLinear
from pyalign.symmetry.spec import SymmetrySpec
from pyalign.symmetry.transforms import ScaledPermutation, Transform
from pyalign.symmetry.wide import WideForms

__all__ = ["Verification", "holding", "sound", "verify"]


@dataclass(frozen=True)
class Verification:
    """What `verify` measured.

    Args:
        error: Largest difference of the outputs over the largest output, with random elements of all groups at once.
        tolerance: What rounding can explain: 30 times the effect of changing the weights by float32's precision, which
            is measured only where the error is above 1e-10 (1e-4 without float64).
        groups: How many groups were moved.
    """

    error: float
    tolerance: float
    groups: int

    @property
    def passed(self) -> bool:
        """Whether the error is within the tolerance."""
        return self.error <= self.tolerance


def verify(spec: SymmetrySpec, model: nn.Module, inputs: Any, *, seed: int = 0) -> Verification:
    """Check that random elements of every group leave the outputs of a model unchanged.

    It runs in float64 (in the model's own dtype where an operator has no float64 form) on weights near the model's own
    with noise added, so that biases of zero or scales of one cannot hide a wrong binding. The model is not changed.

    Args:
        spec: The symmetry to prove.
        model: The model it was derived from, or one of the same architecture.
        inputs: One batch, as for `derive`.
        seed: Of the random elements and the noise.

    Returns:
        The measured error and the tolerance.

    Raises:
        SymmetryError: The outputs change; names the group and the binding at fault.
        MismatchError: The spec is for another model.
    """
    spec.check_model(model)
    elements = spec.random(seed).transforms
    probe = _Probe(model, inputs, seed, spec.constants)
    if not probe.comparable:
        raise SymmetryError(
            "nothing can be proven: some of the model's outputs are no numbers near its weights",
            given="NaN among the outputs, in float64 and in the model's own dtype",
            expected="outputs that can be compared",
            do="verify with other inputs, or with weights of a trained model",
        )
    error = probe.error_once(spec, elements)
    if error <= probe.least:
        return Verification(error, probe.least, len(elements))
    probe = _Probe(model, inputs, seed, spec.constants)  # the other one was moved
    tolerance = probe.tolerance()
    if error <= tolerance:
        return Verification(error, tolerance, len(elements))
    raise SymmetryError(
        "the spec is not a symmetry of this model: " + _blame(spec, probe, elements, tolerance),
        given=f"outputs change by {error:.1e} of their size",
        expected=f"at most {tolerance:.1e}",
        do="correct the declared binding, or report the model if the spec was derived",
    )


def sound(spec: SymmetrySpec, model: nn.Module, inputs: Any, *, seed: int = 0) -> tuple[SymmetrySpec, tuple[str, ...]]:
    """The part of a derived spec that verification confirms: groups that change the outputs are held in place.

    Args:
        spec: What `derive` found.
        model: The model, or one of the same architecture.
        inputs: One batch, as for `derive`.
        seed: Of the random elements and the noise.

    Returns:
        A spec that passed `verify`, and the names of the groups it holds in place.

    Raises:
        SymmetryError: What is left does not hold either.
    """
    try:
        verify(spec, model, inputs, seed=seed)
        return spec, ()
    except SymmetryError:
        probe = _Probe(model, inputs, seed, spec.constants)
    elements, tolerance = spec.random(seed).transforms, probe.tolerance()
    families = _families(spec)
    wrong = [names for names in families if probe.error(spec, {n: elements[n] for n in names}) > tolerance]
    held = tuple(name for names in wrong for name in names)
    rest = holding(spec, held, "it changes the outputs when moved")
    verify(rest, model, inputs, seed=seed)
    return rest, held


def holding(spec: SymmetrySpec, names: Sequence[str], reason: str) -> SymmetrySpec:
    """The spec without these groups, whose axes stay for this reason."""
    kept = {name: g for name, g in spec.groups.items() if name not in names}
    fixed = tuple(FixedAxis(b.tensor, b.axis, reason) for b in spec.bindings if b.group in names)
    return replace(
        spec,
        groups=kept,
        bindings=tuple(b for b in spec.bindings if b.group in kept),
        sites=tuple(s for s in spec.sites if s.group in kept),
        fixed=(*spec.fixed, *fixed),
        notes=(*spec.notes, *(f"group {name!r} was derived but {reason}; it is held in place" for name in names)),
    )


def _families(spec: SymmetrySpec) -> list[list[str]]:
    """Groups that can only be moved together: blocks and what is within them."""
    found: dict[str, list[str]] = {}
    for group in spec.outer_first():
        outer = getattr(group.structure, "outer", None)
        root = next((key for key, names in found.items() if outer in names), group.name)
        found.setdefault(root, []).append(group.name)
    return list(found.values())


class _Noise:
    """Normal noise that costs one pass over a tensor: one drawn period, started at a random place in each tensor.

    Its length is a prime, so that no two rows, columns or channels of a tensor get the same numbers.
    """

    PERIOD = 65537

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        drawn = torch.randn(self.PERIOD, generator=self._generator, dtype=torch.float32)
        self._twice = torch.cat([drawn, drawn])

    def of(self, tensor: Tensor) -> Tensor:
        """Noise of a tensor's shape, float64."""
        return self.onto(torch.zeros(tensor.shape, dtype=torch.float64, device=tensor.device), 1.0)

    def onto(self, tensor: Tensor, size: float) -> Tensor:
        """Add noise of standard deviation `size` in place."""
        start = int(torch.randint(self.PERIOD, (), generator=self._generator))
        flat = tensor.view(-1) if tensor.is_contiguous() else tensor.flatten()
        stop = start + min(self.PERIOD, len(flat))
        period = (self._twice[start:stop].double() * size).to(tensor.device, tensor.dtype)
        whole = len(flat) - len(flat) % self.PERIOD
        if whole:
            flat[:whole].view(-1, self.PERIOD).add_(period)
        flat[whole:].add_(period[: len(flat) - whole])
        return tensor if tensor.is_contiguous() else tensor.copy_(flat.view(tensor.shape))


class _Probe:
    """A float64 copy of a model with noisy weights, and how far transformed weights move its outputs."""

    def __init__(self, model: nn.Module, inputs: Any, seed: int, constants: tuple[str, ...] = ()) -> None:
        self.constants = constants
        try:
            self._prepare(copy_of(model).double(), inputs, seed, torch.float64)
            known = self.comparable  # a number made for float32 (a mask of its least value) may be none in float64
        except (RuntimeError, TypeError, ValueError):  # an operator without a float64 form
            known = False
        if not known:
            self._prepare(copy_of(model), inputs, seed, None)

    def _prepare(self, model: nn.Module, inputs: Any, seed: int, dtype: torch.dtype | None) -> None:
        self.model, self.dtype, self.noise = model, dtype, _Noise(seed)
        self.inputs = map_tensors(inputs, self._input)
        noisy: set[int] = set()
        for name, tensor in state_of(model).items():
            varies = tensor.numel() and tensor.is_floating_point() and name not in self.constants
            if varies and tensor.data_ptr() not in noisy:
                noisy.add(tensor.data_ptr())
                self._disturb(name, tensor)
        renewed(model)
        self.base = self._outputs()
        self.scale = largest(self.base)

    @property
    def comparable(self) -> bool:
        """Whether no output is NaN, and some are finite."""
        return not any(bool(t.isnan().any()) for t in self.base) and self.scale < float("inf")

    @cached_property
    def state(self) -> dict[str, Tensor]:
        """The noisy weights, to be transformed more than once."""
        return {name: tensor.clone() for name, tensor in state_of(self.model).items()}

    def error_once(self, spec: SymmetrySpec, elements: Mapping[str, Transform]) -> float:
        """`error` for a probe of which nothing else will be asked: moves its weights, one tensor at a time."""
        state = state_of(self.model)
        with torch.no_grad():
            for name, moved in spec.moving(elements, state):
                if moved is not None and moved is not state[name]:
                    state[name].copy_(moved)
        return self._difference(self._outputs())

    def error(self, spec: SymmetrySpec, elements: Mapping[str, Transform]) -> float:
        """Largest relative change of the outputs."""
        return self._difference(self._installed(spec.apply(elements, self.state)))

    def changes(self, state: Mapping[str, Tensor]) -> bool:
        """Whether weights give other outputs, however little."""
        outputs = self._installed(state)
        return any(not torch.equal(x, y) for x, y in zip(outputs, self.base, strict=True))

    @property
    def least(self) -> float:
        """What the dtype itself may round."""
        return 1e-4 if self.dtype is None else 1e-10

    def tolerance(self) -> float:
        """30 times the effect of float32's rounding on the weights, and never below what the dtype itself rounds."""
        if self.dtype is not None:
            rounded = {n: t.float().double() if t.is_floating_point() else t for n, t in self.state.items()}
            return max(30 * self._difference(self._installed(rounded)), self.least)
        other = {n: t * (1 + torch.finfo(t.dtype).eps) if t.is_floating_point() else t for n, t in self.state.items()}
        return max(100 * self._difference(self._installed(other)), self.least)

    def _difference(self, outputs: list[Tensor]) -> float:
        """Largest difference to the untransformed outputs, over their size; infinite for NaN."""
        pairs = [(x, y) for x, y in zip(outputs, self.base, strict=True) if x.numel()]
        gaps = [float(torch.where(x == y, 0.0, (x - y).abs()).max()) for x, y in pairs]  # infinities may be equal
        worst = max(gaps, default=0.0) / self.scale
        return worst if worst == worst else float("inf")

    def _installed(self, state: Mapping[str, Tensor]) -> list[Tensor]:
        with torch.no_grad():
            for name, tensor in state_of(self.model).items():
                tensor.copy_(state[name])
        return self._outputs()

    def _outputs(self) -> list[Tensor]:
        """All floating-point outputs, in float64."""
        with untouched(self.model), torch.no_grad(), WideForms():
            result = call(self.model, self.inputs)
        return [t.double() for t in answers_of(self.model, result) if t.is_floating_point()]

    def _input(self, tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        return torch.add(tensor.detach().double(), self.noise.of(tensor), alpha=0.1).to(self.dtype or tensor.dtype)

    def _disturb(self, name: str, tensor: Tensor) -> None:
        if name.endswith("running_var"):
            tensor.mul_(torch.exp(0.2 * self.noise.of(tensor)))
            return
        size = float(tensor.norm()) / tensor.numel() ** 0.5
        self.noise.onto(tensor, 0.2 * (size if size > 1e-3 else 0.05))


def largest(outputs: list[Tensor]) -> float:
    """The size of the outputs, infinite ones (masked scores) aside; infinite where none is finite."""
    finite = [t[t.isfinite()] for t in outputs if t.numel()]
    if finite and not any(t.numel() for t in finite):
        return float("inf")
    return max((float(t.abs().max()) for t in finite if t.numel()), default=0.0) or 1.0


def _blame(spec: SymmetrySpec, probe: _Probe, elements: Mapping[str, Transform], tolerance: float) -> str:
    """Which group breaks the function, and which change of its bindings would mend it."""
    for members in _families(spec):
        alone = {name: elements[name] for name in members}
        if probe.error(spec, alone) <= tolerance:
            continue
        moved = {name: g if isinstance(g, BlockLinear) else ScaledPermutation(g.perm) for name, g in alone.items()}
        if probe.error(spec, moved) <= tolerance:
            kinds = ", ".join(f"{name!r} ({spec.groups[name].kind})" for name in members)
            return f"reordering is right, but signs or scales are not, in group {kinds} on {_bound(spec, members)}"
        mixing = [name for name in members if spec.groups[name].kind.mixes]
        if mixing and probe.error(spec, {**moved, **_unmixed(spec, mixing, moved)}) <= tolerance:
            kinds = ", ".join(f"{name!r} ({spec.groups[name].kind})" for name in mixing)
            return f"reordering is right, but mixing units is not, in group {kinds} on {_bound(spec, mixing)}"
        plain = [name for name in members if name not in mixing]
        return _mend(spec, probe, plain or members, moved, tolerance)
    return "every group holds by itself, but not all together"


def _unmixed(spec: SymmetrySpec, names: list[str], moved: Mapping[str, Transform]) -> dict[str, Transform]:
    """The elements of mixing groups that only follow their blocks."""
    return {name: following(spec.groups[name], moved) for name in names}


def _mend(
    spec: SymmetrySpec, probe: _Probe, members: list[str], moved: Mapping[str, Transform], tolerance: float
) -> str:
    """The one binding that is too much, misplaced or missing."""
    for binding in (b for m in members for b in spec.of(m)):
        rest = _with(spec, [b for b in spec.bindings if b is not binding])
        if probe.error(rest, moved) <= tolerance:
            return f"group {binding.group!r} must not be bound to axis {binding.axis} of {binding.tensor!r}"
        for other in _candidates(rest, binding.group, [binding.tensor]):
            if probe.error(_with(rest, [*rest.bindings, other]), moved) <= tolerance:
                return (
                    f"group {binding.group!r} is bound to axis {binding.axis} of {binding.tensor!r}, "
                    f"but belongs to its axis {other.axis}"
                )
    for name in members:
        for missing in _candidates(spec, name, spec.shapes):
            if probe.error(_with(spec, [*spec.bindings, missing]), moved) <= tolerance:
                return f"group {name!r} lacks a binding to axis {missing.axis} of {missing.tensor!r}"
    return (
        f"group {members[-1]!r}, bound to {_bound(spec, members)}, changes the outputs (more than one binding is wrong)"
    )


def _bound(spec: SymmetrySpec, members: Iterable[str]) -> str:
    return ", ".join(f"{b.tensor}[{b.axis}]" for m in members for b in spec.of(m))


def _candidates(spec: SymmetrySpec, name: str, tensors: Iterable[str]) -> list[AxisBinding]:
    """Bindings a group could have to stretches of axes that no group owns yet."""
    group = spec.groups[name]
    blocks = 1 if name in spec.placed else getattr(group.structure, "blocks", 1)
    found = []
    for tensor in tensors:
        shape = spec.shapes[tensor]
        for axis, length in enumerate(shape):
            for fold in {1, blocks if axis == 1 and shape[0] % blocks == 0 else 1}:
                for start, stop in _free(spec, tensor, axis, length * fold, fold):
                    if stop - start >= group.size and (stop - start) % group.size == 0:
                        positions = torch.arange(start, stop).reshape(group.size, -1)
                        found.append(AxisBinding(tensor, axis, name, Side.DIAGONAL, Role.MATCHED, positions, fold))
    return found


def _free(spec: SymmetrySpec, tensor: str, axis: int, length: int, blocks: int) -> list[tuple[int, int]]:
    """Maximal stretches of an axis that no binding covers."""
    taken = torch.zeros(length + 1, dtype=torch.bool)
    taken[length] = True
    for b in spec.on(tensor):
        if b.axis == axis and b.blocks == blocks:
            taken[b.positions] = True
    stretches, start = [], 0
    for place in torch.where(taken)[0].tolist():
        if place > start:
            stretches.append((start, place))
        start = place + 1
    return stretches


def _with(spec: SymmetrySpec, bindings: Iterable[AxisBinding]) -> SymmetrySpec:
    return replace(spec, bindings=tuple(bindings))
