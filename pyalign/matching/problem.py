"""What a matching method is given: two models of one architecture, their symmetry, and perhaps data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pyalign.errors import MismatchError, NonFiniteError
from pyalign.symmetry import Alignment, SymmetrySpec

__all__ = ["Method", "Problem", "check_finite", "check_same_architecture", "check_start"]


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


def check_same_architecture(state_a: Mapping[str, Tensor], state_b: Mapping[str, Tensor]) -> None:
    """Raise unless the states of both models have the same tensors: names, shapes, dtypes, devices.

    Raises:
        MismatchError: Names the first tensors that differ.
    """
    only = {"A": [n for n in state_a if n not in state_b], "B": [n for n in state_b if n not in state_a]}
    if only["A"] or only["B"]:
        sides = [f"{len(v)} tensors only in model {k}: {_few(v)}" for k, v in only.items() if v]
        raise _mismatch("the models have different tensors", "; ".join(sides), "equal names")
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
    """Raise if a weight or buffer holds NaN or infinity.

    Args:
        state: Of the model.
        which: What it is called in the message, such as "A".

    Raises:
        NonFiniteError: Names the tensor and the model.
    """
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


def _mismatch(what: str, given: str, expected: str) -> MismatchError:
    do = "align two models of one architecture, dtype and device; widen a narrow one first: pyalign.symmetry.widen"
    return MismatchError(what, given=given, expected=expected, do=do)


def _few(names: list[str]) -> str:
    return ", ".join(repr(n) for n in names[:3]) + (", ..." if len(names) > 3 else "")
