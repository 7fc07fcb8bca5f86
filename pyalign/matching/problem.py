"""What a matching method is given: two models of one architecture, their symmetry, and perhaps data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from pyalign.errors import InputError, MismatchError, NonFiniteError
from pyalign.symmetry import Alignment, SymmetrySpec

__all__ = ["Method", "Problem", "check_finite", "check_model", "check_same_architecture", "check_start"]

_ALIKE = "align two models of one architecture, dtype and device; widen a narrow one first: pyalign.symmetry.widen"
_WRAPPERS = ("module.", "_orig_mod.")  # what DataParallel and torch.compile put before every name


@dataclass(frozen=True, eq=False)
class Problem:
    """Bring model B into the coordinates of model A.

    Args:
        model_a: The model that stays.
        model_b: The model that is moved; of the same architecture.
        spec: The symmetry of that architecture.
        data: Batches for methods that look at activations; read once.
        seed: Of every random choice of the method.
        progress: Show progress bars: True, False, or None for only on a terminal.
    """

    model_a: nn.Module
    model_b: nn.Module
    spec: SymmetrySpec
    data: Iterable[Any] | None = None
    seed: int = 0
    progress: bool | None = None

    def begun(self, start: Alignment | Method | None) -> Alignment:
        """Where a search begins: an alignment, what another method finds, or the identity.

        Raises:
            MismatchError: It is an alignment of another architecture.
        """
        if start is None:
            return self.spec.identity()
        found = start if isinstance(start, Alignment) else start.match(self)
        check_start(found, self.spec)
        return found


class Method(Protocol):
    """Anything that answers a problem with an alignment can be passed to `pyalign.align(method=...)`."""

    def match(self, problem: Problem) -> Alignment:
        """Search for the group elements that bring model B to model A."""
        ...


def check_model(model: object, which: str) -> None:
    """Raise unless this is a module whose weights have shapes.

    Args:
        model: What was given.
        which: What it is called in the message, such as "A".

    Raises:
        InputError: It is no module, or has lazy parameters.
    """
    if not isinstance(model, nn.Module):
        raise InputError(
            f"model {which} is no module",
            given=type(model).__name__,
            expected="a torch.nn.Module",
            do="build the model and load its state dict into it first",
        )
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(tensor):
            raise InputError(
                f"model {which} has a lazy parameter without a shape", given=repr(name), do="run the model once first"
            )


def check_same_architecture(state_a: Mapping[str, Tensor], state_b: Mapping[str, Tensor]) -> None:
    """Raise unless the states of both models have the same tensors: names, shapes, dtypes, devices.

    Raises:
        MismatchError: Names the first tensors that differ.
    """
    only = {"A": [n for n in state_a if n not in state_b], "B": [n for n in state_b if n not in state_a]}
    if only["A"] or only["B"]:
        sides = [f"{len(v)} tensors only in model {k}: {_few(v)}" for k, v in only.items() if v]
        inner = {k: {n.removeprefix(p) for n in s for p in _WRAPPERS if n.startswith(p)} for k, s in only.items()}
        wrapped = [k for k in only if inner[k] and inner[k] == set(only["A" if k == "B" else "B"])]
        do = f"model {wrapped[0]} is wrapped: pass the module within it" if wrapped else _ALIKE
        raise _mismatch("the models have different tensors", "; ".join(sides), "equal names", do)
    for what, of in (("shape", lambda t: tuple(t.shape)), ("dtype", lambda t: t.dtype), ("device", lambda t: t.device)):
        differ = [n for n in state_a if of(state_a[n]) != of(state_b[n])]
        if differ:
            name = differ[0]
            more = f" ({len(differ)} such tensors: {_few(differ)})" if len(differ) > 1 else ""
            given = f"tensor {name!r}: {of(state_a[name])} in model A, {of(state_b[name])} in model B{more}"
            raise _mismatch(f"the models have tensors of different {what}", given, f"equal {what}s")


def check_start(start: Alignment, spec: SymmetrySpec) -> None:
    """Raise unless an alignment to begin at is one of this symmetry.

    Raises:
        MismatchError: It is of another architecture.
    """
    if start.spec.fingerprint != spec.fingerprint:
        raise MismatchError(
            "the start is an alignment of another architecture",
            given=f"fingerprint {start.spec.fingerprint}",
            expected=spec.fingerprint,
        )


def check_finite(state: Mapping[str, Tensor], which: str) -> None:
    """Raise if a weight or buffer holds NaN or infinity, or no numbers at all.

    Args:
        state: Of the model.
        which: What it is called in the message, such as "A".

    Raises:
        NonFiniteError: Names the tensor and the model.
        InputError: The tensors are on the meta device.
    """
    # Subclasses of tensors may have their numbers elsewhere.
    plain = {name: tensor for name, tensor in state.items() if type(tensor) in (Tensor, nn.Parameter)}
    absent = next((name for name, tensor in plain.items() if tensor.is_meta), None)
    if absent is not None:
        raise InputError(
            f"model {which} has no weights",
            given=f"{absent!r} on the meta device",
            expected="numbers",
            do="load the weights first; pyalign.derive needs none of them",
        )
    sums = [tensor.sum().float() for tensor in state.values() if tensor.is_floating_point()]
    # Sums are finite only if every entry is, and looking at them together takes a third of the time of one by one.
    if not sums or (len({s.device for s in sums}) == 1 and bool(torch.stack(sums).isfinite().all())):
        return
    for name, tensor in state.items():
        bad = _count_bad(tensor)
        if bad:
            raise NonFiniteError(
                f"NaN or infinity in tensor {name!r} of model {which}",
                given=f"{bad} of {tensor.numel()} entries",
                expected="finite weights",
                do="load a checkpoint from before the training diverged",
            )


def _count_bad(tensor: Tensor) -> int:
    if not tensor.is_floating_point():
        return 0
    return int((~torch.isfinite(tensor)).sum())


def _mismatch(what: str, given: str, expected: str, do: str = _ALIKE) -> MismatchError:
    return MismatchError(what, given=given, expected=expected, do=do)


def _few(names: list[str]) -> str:
    return ", ".join(repr(n) for n in names[:3]) + (", ..." if len(names) > 3 else "")
