"""The answer of every matching: one group element per group, with what it cost and how good it is."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar, cast, overload

import torch
from torch import Tensor, nn

from pyalign.errors import CheckpointError, InputError, MismatchError
from pyalign.symmetry import optimizer_state
from pyalign.symmetry.calls import state_of
from pyalign.symmetry.copies import copy_of, renewed
from pyalign.symmetry.elements import composed
from pyalign.symmetry.files import read_tensors, write_tensors
from pyalign.symmetry.groups import Group
from pyalign.symmetry.linear import BlockLinear
from pyalign.symmetry.printing import table
from pyalign.symmetry.spec import SymmetrySpec
from pyalign.symmetry.transforms import ScaledPermutation, Transform

__all__ = ["Alignment"]

ModuleT = TypeVar("ModuleT", bound=nn.Module)
_FORMAT = "pyalign-alignment-1"


@dataclass(frozen=True, eq=False)
class Alignment:
    """Group elements that bring one network into another's coordinates, and how they were found.

    `alignment.apply(model_b)` computes the same function as `model_b`, with its units in the order (and signs and
    scales) of model A.

    Args:
        spec: The symmetry the elements belong to.
        transforms: One element per group of the spec.
        method: What found them.
        objective: Value the method maximised, or None.
        trace: The objective after each step, non-decreasing.
        worst_gap: Largest duality gap of the linear assignments (0 proves each of them optimal), or None.
        correlation_before: Mean correlation of the units of A and B, slot by slot, per group, before aligning.
        correlation_after: The same after aligning.
        backends: Which implementation ran each operation of the engine.
        seconds: Wall-clock time by phase, in seconds.
        notes: What the user should know, such as dead units.

    Example:
        >>> import pyalign
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
        >>> spec = pyalign.derive(model, torch.randn(4, 2))
        >>> moved = spec.random(0).apply(model)
        >>> x = torch.randn(5, 2)
        >>> torch.allclose(moved(x), model(x), atol=1e-6)
        True
    """

    spec: SymmetrySpec
    transforms: dict[str, Transform]
    method: str = "given"
    objective: float | None = None
    trace: tuple[float, ...] = ()
    worst_gap: float | None = None
    correlation_before: dict[str, float] = field(default_factory=dict)
    correlation_after: dict[str, float] = field(default_factory=dict)
    backends: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        sizes = {name: g.size for name, g in self.spec.groups.items()}
        given = {name: t.size for name, t in self.transforms.items()}
        if sizes != given:
            wrong = sorted(set(sizes.items()) ^ set(given.items()))
            raise MismatchError(
                "the elements do not fit the groups of the spec",
                given=f"{wrong[:4]}",
                expected="one element of the right size for every group",
            )

    @overload
    def apply(self, model: ModuleT) -> ModuleT: ...

    @overload
    def apply(
        self,
        model: Mapping[str, Any] | torch.optim.Optimizer,
        *,
        parameters: nn.Module | Sequence[str] | None = ...,
    ) -> dict[str, Any]: ...

    def apply(
        self,
        model: nn.Module | Mapping[str, Any] | torch.optim.Optimizer,
        *,
        parameters: nn.Module | Sequence[str] | None = None,
    ) -> Any:
        """The aligned copy of a module, of a state dict, or of an optimiser's state dict.

        Args:
            model: A module (a new module is returned), a state dict, or SGD or Adam (with its relatives): the
                optimiser or its `state_dict()`. What is given is never changed.
            parameters: For an optimiser, the model it optimises. For its state dict the names of the parameters in its
                order; or the model, where the optimiser has one group; or nothing, where the state holds names.

        Returns:
            The same kind of thing as was given; for an optimiser its new state dict.

        Raises:
            MismatchError: It is not of the architecture that was aligned.
            InputError: It is none of these, or the parameters of an optimiser's state cannot be named.
        """
        if isinstance(model, nn.Module):
            self.spec.check_model(model)
            moved = self.spec.apply(self.transforms, state_of(model))
            aligned = copy_of(model)
            _overwrite(aligned, moved)
            renewed(aligned)
            return aligned
        if isinstance(model, torch.optim.Optimizer):
            names = optimizer_state.names_of(model, parameters)
            return optimizer_state.apply(self.spec, self.transforms, model.state_dict(), names)
        if not isinstance(model, Mapping):
            raise InputError(
                "cannot apply an alignment to this",
                given=type(model).__name__,
                expected="a module, a state dict, an optimiser or its state dict",
            )
        if {"state", "param_groups"} <= set(model):
            return optimizer_state.apply(self.spec, self.transforms, model, parameters)
        return self.spec.apply(self.transforms, cast(Mapping[str, Tensor], model))

    def inverse(self) -> Alignment:
        """The alignment that undoes this one."""
        back = {name: g.inverse() for name, g in self.transforms.items()}
        return Alignment(self.spec, back, method=f"inverse of {self.method}")

    def compose(self, first: Alignment) -> Alignment:
        """The alignment that acts as `first` and then as this one.

        Raises:
            MismatchError: The two belong to different specs.
        """
        if first.spec.fingerprint != self.spec.fingerprint:
            raise MismatchError(
                "alignments of different specs",
                given=f"{first.spec.fingerprint}",
                expected=self.spec.fingerprint,
                do="compose alignments of one architecture",
            )
        both = {name: composed(g, first.transforms[name]) for name, g in self.transforms.items()}
        return Alignment(self.spec, both, method=f"{first.method}, then {self.method}")

    @property
    def is_identity(self) -> bool:
        """Whether nothing moves."""
        return all(g.is_identity for g in self.transforms.values())

    @property
    def moved(self) -> dict[str, float]:
        """Fraction of the units that change place (of blocks, where units are mixed), per group."""
        return {n: _moved(g) for n, g in self.transforms.items() if g.size}

    @property
    def reorderings(self) -> dict[str, ScaledPermutation]:
        """The elements, where none mixes units.

        Raises:
            InputError: A group mixes units.
        """
        found = {n: g for n, g in self.transforms.items() if isinstance(g, ScaledPermutation)}
        if len(found) != len(self.transforms):
            raise InputError(
                "not all groups only reorder units",
                given=f"{next(n for n in self.transforms if n not in found)!r} mixes them",
                expected="permutations, signs and scales",
                do="restrict the spec: spec.within(Kind.SCALED)",
            )
        return found

    def report(self) -> str:
        """The alignment as a table: per group, how much moved and how well it matches."""
        rows = []
        for name, g in self.spec.groups.items():
            before, after = self.correlation_before.get(name), self.correlation_after.get(name)
            rows.append(
                [name, str(g.size), f"{100 * self.moved.get(name, 0.0):.0f} %", _number(before), _number(after)]
            )
        head = [f"method: {self.method}"]
        head += [f"objective: {self.objective:.6g}"] if self.objective is not None else []
        head += [f"worst duality gap: {self.worst_gap:.3g}"] if self.worst_gap is not None else []
        head += ["time: " + ", ".join(f"{k} {v:.2f} s" for k, v in self.seconds.items())] if self.seconds else []
        head += ["backends: " + ", ".join(f"{k} {v}" for k, v in self.backends.items())] if self.backends else []
        body = table(["group", "units", "moved", "correlation before", "after"], rows)
        return "\n".join([*head, "", body, *(f"note: {n}" for n in self.notes)])

    def __str__(self) -> str:
        return self.report()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the alignment with its spec to a `.safetensors` file, whole or not at all.

        Args:
            path: Where to; an earlier file is replaced.
        """
        tensors: dict[str, Tensor] = {}
        for name, g in self.transforms.items():
            if isinstance(g, BlockLinear):
                tensors |= {f"{name}|matrices": g.matrices.contiguous(), f"{name}|blocks": g.order}
                continue
            tensors[f"{name}|perm"] = g.perm
            if g.scale is not None:
                tensors[f"{name}|scale"] = g.scale
        record = {f: getattr(self, f) for f in _RECORDED}
        metadata = {
            "format": _FORMAT,
            "fingerprint": self.spec.fingerprint,
            "record": json.dumps(record),
            "spec": json.dumps(self.spec.to_dict()),
        }
        write_tensors(path, tensors or {"empty": torch.zeros(1)}, metadata)

    @classmethod
    def load(cls, path: str | os.PathLike[str], spec: SymmetrySpec | nn.Module | None = None) -> Alignment:
        """Read what `save` wrote.

        Args:
            path: The file.
            spec: Optionally the spec, or the model, it must belong to.

        Raises:
            CheckpointError: The file is missing, damaged or no alignment.
            MismatchError: It belongs to another architecture.
        """
        tensors, metadata = read_tensors(path, _FORMAT, "an alignment")
        own = SymmetrySpec.from_dict(json.loads(metadata["spec"]))
        if own.fingerprint != metadata["fingerprint"]:
            raise CheckpointError(f"{path} is damaged: its spec does not match its fingerprint", do="align again")
        if isinstance(spec, SymmetrySpec) and spec.fingerprint != own.fingerprint:
            raise MismatchError(
                f"{path} was made for another architecture",
                given=f"fingerprint {own.fingerprint}",
                expected=spec.fingerprint,
                do="align the models of this architecture",
            )
        if isinstance(spec, nn.Module):
            own.check_model(spec)
        elements = {name: _element(group, tensors) for name, group in own.groups.items()}
        record = json.loads(metadata["record"])
        return cls(own, elements, **{**record, "trace": tuple(record["trace"]), "notes": tuple(record["notes"])})

    def with_transforms(self, transforms: dict[str, Transform], **changes: Any) -> Alignment:
        """A copy with other elements (and other fields)."""
        return replace(self, transforms=transforms, **changes)


_RECORDED = (
    "method",
    "objective",
    "trace",
    "worst_gap",
    "correlation_before",
    "correlation_after",
    "backends",
    "seconds",
    "notes",
)


def _moved(element: Transform) -> float:
    order = element.order if isinstance(element, BlockLinear) else element.perm
    return float((order != torch.arange(len(order))).double().mean())


def _element(group: Group, tensors: Mapping[str, Tensor]) -> Transform:
    name = group.name
    if group.kind.mixes:
        return BlockLinear(tensors[f"{name}|matrices"], group.kind, tensors[f"{name}|blocks"])
    return ScaledPermutation(tensors[f"{name}|perm"], tensors.get(f"{name}|scale"))


def _overwrite(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, tensor in state_of(model).items():
            tensor.copy_(state[name])


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
