"""Weighted sums of whole states: which tensors are summed, which are taken over, and what must fit."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from pyalign import engine
from pyalign.errors import MismatchError, NonFiniteError, PyalignWarning
from pyalign.io.fit import differences
from pyalign.io.reader import StateReader
from pyalign.statistics.spectral import settle_spectral_norms
from pyalign.symmetry.calls import state_of
from pyalign.symmetry.copies import renewed

__all__ = ["BLENDED", "Blend", "is_finite", "shapes_of", "sum_into"]

State = Mapping[str, Tensor]
BLENDED = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


class Blend:
    """States that fit each other, ready to be summed with any weights.

    Floating and complex tensors are summed. All others (such as `num_batches_tracked`), and tensors that hold
    infinity alike in all states (such as masks), are taken from the first state.

    Args:
        states: State dicts, or readers of checkpoints.
        labels: Their names in errors.

    Raises:
        MismatchError: Tensors are missing, surplus, of another shape, or tied in one state only.
    """

    def __init__(self, states: Sequence[State], labels: Sequence[str]) -> None:
        self.states = [state if isinstance(state, StateReader) else _tensors_only(state) for state in states]
        self.labels = list(labels)
        first = shapes_of(self.states[0])
        for state, label in zip(self.states[1:], labels[1:], strict=True):
            found = differences(shapes_of(state), first)
            if found:
                raise MismatchError(
                    f"{label} does not have the architecture of {labels[0]}",
                    given=found,
                    expected=f"the {len(first)} tensors of {labels[0]}",
                    do="give models of one architecture; look at the settings they were built with",
                )
        self.tied = _ties(self.states[0])
        for name, kept in self.tied.items():
            self._check_tie(name, kept)
        self._taken: set[str] = set()
        self._trusted = False

    def check(self) -> None:
        """Read every tensor once, so that later sums need not check them.

        Raises:
            MismatchError: A tensor has different dtypes or devices.
            NonFiniteError: A tensor holds NaN or infinity.
        """
        differing = []
        for name in self._stored():
            tensors = self._read(name)
            if not _continuous(tensors[0]) and any(not torch.equal(tensors[0], other) for other in tensors[1:]):
                differing.append(name)
        self._warn(differing)
        self._trusted = True

    def sum(self, weights: Sequence[float], out: State | None = None) -> dict[str, Tensor]:
        """The weighted sum of the states; a single weight of one gives that state bit by bit.

        Args:
            weights: One number a state.
            out: Tensors to write to, by name, such as those of a module; new ones without it.

        Returns:
            name -> tensor, tied where the first state is tied.

        Raises:
            MismatchError: As for `check`, unless that was called before.
            NonFiniteError: As for `check`, unless that was called before.
        """
        result: dict[str, Tensor] = {}
        for name in self._stored():
            tensors = self._read(name)
            target = torch.empty_like(tensors[0]) if out is None else out[name]
            taken = _only(weights)
            if taken is None and name in self._taken:
                taken = 0
            if taken is None:
                sum_into(target, tensors, weights)
            else:
                target.copy_(tensors[taken])
            result[name] = target
        return {name: result[self.tied.get(name, name)] for name in self.states[0]}

    def into(self, weights: Sequence[float], model: nn.Module) -> None:
        """Write the weighted sum of the states of modules into `model`, in place; raises as `sum` does."""
        self.sum(weights, out=state_of(model))
        renewed(model)
        if _only(weights) is None:
            settle_spectral_norms(model)

    def _stored(self) -> list[str]:
        return [name for name in self.states[0] if name not in self.tied]

    def _read(self, name: str) -> list[Tensor]:
        """The tensor `name` of every state; unless `check` was called, it must fit and be finite."""
        tensors = [state[name].detach() for state in self.states]
        if self._trusted:
            return tensors
        kinds = {f"{str(t.dtype).removeprefix('torch.')} on {t.device}" for t in tensors}
        if len(kinds) > 1:
            raise MismatchError(
                f"the models differ in dtype or device, first at {name!r}",
                given=", ".join(sorted(kinds)),
                expected="one dtype and device",
                do="convert one of them with .to(dtype) or .to(device)",
            )
        infinite = [label for tensor, label in zip(tensors, self.labels, strict=True) if not is_finite(tensor)]
        if infinite and not all(torch.equal(tensors[0], other) for other in tensors):
            raise NonFiniteError(
                f"NaN or infinity in {name!r} of {infinite[0]}",
                given=f"shape {tuple(tensors[0].shape)}",
                expected="finite weights",
                do="look at how this model was trained or stored; choose an earlier checkpoint",
            )
        if infinite or not _continuous(tensors[0]):
            self._taken.add(name)
        return tensors

    def _warn(self, differing: list[str]) -> None:
        unusual = [repr(name) for name in differing if not name.endswith("num_batches_tracked")]
        if unusual:
            warnings.warn(
                f"integer tensors differ between the models and are taken from {self.labels[0]}: "
                f"{', '.join(unusual[:5])}",
                PyalignWarning,
                stacklevel=5,
            )

    def _check_tie(self, name: str, kept: str) -> None:
        for state, label in zip(self.states, self.labels, strict=True):
            if not torch.equal(state[name], state[kept]):
                raise MismatchError(
                    f"{name!r} and {kept!r} are one tensor in {self.labels[0]} but not in {label}",
                    expected="models that tie the same tensors",
                    do="tie them in both models, or in none",
                )


def sum_into(out: Tensor, tensors: Sequence[Tensor], weights: Sequence[float]) -> None:
    """Write a weighted sum of tensors of one kind to `out`; a single weight of one copies that tensor bit by bit."""
    if out.is_complex():
        out, tensors = torch.view_as_real(out), [torch.view_as_real(tensor.resolve_conj()) for tensor in tensors]
    if out.dtype not in BLENDED:  # such as float8, which the engine does not add
        wide = torch.empty_like(out, dtype=torch.float32)
        sum_into(wide, [tensor.float() for tensor in tensors], weights)
        out.copy_(wide)
    elif len(tensors) == 2 and weights[0] == 1.0 - weights[1]:
        engine.permuted_lerp(tensors[0], tensors[1], weights[1], out=out)
    else:
        engine.permuted_sum(tensors, weights, out=out)


def _only(weights: Sequence[float]) -> int | None:
    """The index of the one weight that is 1 where all others are 0."""
    ones = [index for index, weight in enumerate(weights) if weight != 0.0]
    return ones[0] if len(ones) == 1 and weights[ones[0]] == 1.0 else None


def _continuous(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def is_finite(tensor: Tensor) -> bool:
    """Whether a tensor holds neither NaN nor infinity; one that is not floating or complex never does."""
    if not _continuous(tensor) or not tensor.numel() or tensor.is_meta:
        return True
    if tensor.dtype in BLENDED:
        low, high = torch.aminmax(tensor)  # carries NaN along, and needs no memory
        return bool(torch.isfinite(low)) and bool(torch.isfinite(high))
    return bool(torch.isfinite(tensor if tensor.is_complex() else tensor.float()).all())


def _tensors_only(state: State) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if isinstance(tensor, Tensor)}


def _ties(state: State) -> dict[str, str]:
    """Further names of tensors: name -> the first name of the same tensor."""
    if isinstance(state, StateReader):
        return dict(state.tied)
    first: dict[tuple[object, ...], str] = {}
    tied = {}
    for name, tensor in state.items():
        key = (tensor.device, tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())
        if tensor.data_ptr() and first.setdefault(key, name) != name:
            tied[name] = first[key]
    return tied


def shapes_of(state: State) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of a state, without reading it where it lies on disk."""
    if isinstance(state, StateReader):
        return state.shapes()
    return {name: tuple(tensor.shape) for name, tensor in state.items()}
