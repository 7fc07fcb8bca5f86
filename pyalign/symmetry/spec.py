"""The symmetry specification: which axis of which tensor moves with which group, what stays and why."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pyalign.errors import InputError, MismatchError
from pyalign.symmetry import encoding, printing
from pyalign.symmetry.actions import act
from pyalign.symmetry.calls import state_of
from pyalign.symmetry.elements import following, random_element
from pyalign.symmetry.groups import AxisBinding, FixedAxis, Group, Site, Wreath
from pyalign.symmetry.kinds import Kind
from pyalign.symmetry.transforms import Transform

if TYPE_CHECKING:
    from pyalign.symmetry.alignment import Alignment
    from pyalign.symmetry.verify import Verification

__all__ = ["SymmetrySpec"]


@dataclass(frozen=True, eq=False)
class SymmetrySpec:
    """The symmetry group of a model, tied to the names and shapes of its tensors.

    Args:
        groups: Groups by name.
        bindings: Every (tensor, axis, group).
        sites: Where each group's activations can be seen, in the order of the computation.
        fixed: Axes that were left alone, with the reason.
        shapes: Shape of every tensor of the model's state dict (canonical names).
        aliases: Tied names: name -> the canonical name of the same tensor.
        notes: What the user should know (operators without a rule, parameters never reached).
        constants: Parameters whose entries must all be equal for the symmetry to hold (folded scales).
        stacks: Tensors that change places with each other (of the experts in a list): the name under which they are
            bound -> their names, in order. They are bound as one tensor with a further axis 0 that counts them.
    """

    groups: dict[str, Group]
    bindings: tuple[AxisBinding, ...]
    sites: tuple[Site, ...] = ()
    fixed: tuple[FixedAxis, ...] = ()
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    constants: tuple[str, ...] = ()
    stacks: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def of(self, group: str) -> tuple[AxisBinding, ...]:
        """The bindings of one group."""
        return self._by_group.get(group, ())

    def on(self, tensor: str) -> tuple[AxisBinding, ...]:
        """The bindings of one tensor (canonical or tied name, or name of a stack).

        Raises:
            InputError: The tensor changes places with others: it has no bindings of its own.
        """
        if tensor in self.stack_of:
            raise InputError(
                "a part of a stack does not move by itself",
                given=repr(tensor),
                expected=repr(self.stack_of[tensor][0]),
                do="move whole states: spec.apply, or spec.stacked(state)",
            )
        return self._by_tensor.get(self.aliases.get(tensor, tensor), ())

    @cached_property
    def stack_of(self) -> dict[str, tuple[str, int]]:
        """The stack that a tensor is in, and its place there."""
        return {part: (name, i) for name, parts in self.stacks.items() for i, part in enumerate(parts)}

    def stacked(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The state with every stack as one tensor in place of its parts; all others are the same objects."""
        found = {name: tensor for name, tensor in state.items() if name not in self.stack_of}
        return found | {name: torch.stack([state[part] for part in parts]) for name, parts in self.stacks.items()}

    @cached_property
    def placed(self) -> frozenset[str]:
        """The groups that act after others have moved the blocks their units are in (see `AxisBinding.placed`)."""
        return frozenset(b.group for b in self.bindings if b.placed)

    def sites_of(self, group: str) -> tuple[Site, ...]:
        """Where one group can be seen, in the order of the computation."""
        return tuple(site for site in self.sites if site.group == group)

    @cached_property
    def _by_group(self) -> dict[str, tuple[AxisBinding, ...]]:
        return _collect((b.group, b) for b in self.bindings)

    @cached_property
    def _by_tensor(self) -> dict[str, tuple[AxisBinding, ...]]:
        return _collect((b.tensor, b) for b in self.bindings)

    @cached_property
    def fingerprint(self) -> str:
        """A digest of names, shapes, groups and bindings: equal exactly for interchangeable specs."""
        content = self.to_dict()
        kept = {key: content[key] for key in ("groups", "bindings", "shapes", "aliases", "constants")}
        if self.stacks:
            kept["stacks"] = content["stacks"]
        return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:32]

    def random(self, seed: int, kind: Kind | None = None) -> Alignment:
        """A random element of every group, of its own class or of `kind` where that is smaller.

        Args:
            seed: Same seed, same alignment.
            kind: The class to stay within, such as `Kind.PERMUTATION`.
        """
        from pyalign.symmetry.alignment import Alignment

        generator = torch.Generator().manual_seed(seed)
        elements: dict[str, Transform] = {}
        for group in self.outer_first():
            allowed = group.kind if kind is None else group.kind & kind
            elements[group.name] = random_element(group, elements, allowed, generator)
        return Alignment(self, elements, method=f"random (seed {seed})")

    def identity(self) -> Alignment:
        """The alignment that moves nothing."""
        from pyalign.symmetry.alignment import Alignment

        elements: dict[str, Transform] = {}
        for group in self.outer_first():
            elements[group.name] = following(group, elements)
        return Alignment(self, elements, "identity")

    def within(self, kind: Kind) -> SymmetrySpec:
        """The part of this symmetry that stays in a smaller class, such as `Kind.PERMUTATION`.

        Args:
            kind: The class that every group is restricted to; groups that then cannot move are left out, unless they
                are the blocks of groups that can.

        Example:
            >>> from pyalign import derive
            >>> spec = derive(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)), torch.randn(4, 2))
            >>> [str(g.kind) for g in spec.within(Kind.PERMUTATION).groups.values()]
            ['permutation']
        """
        kept: dict[str, Group] = {}
        blocks: set[str] = set()
        for group in reversed(self.outer_first()):
            allowed = group.kind & kind
            if group.name in blocks or not (allowed is Kind.IDENTITY is not group.kind):
                kept[group.name] = replace(group, kind=allowed)
                blocks |= {group.structure.outer} if isinstance(group.structure, Wreath) else set()
        kept = {name: kept[name] for name in self.groups if name in kept}
        return replace(
            self,
            groups=kept,
            bindings=tuple(b for b in self.bindings if b.group in kept),
            sites=tuple(s for s in self.sites if s.group in kept),
        )

    def outer_first(self) -> list[Group]:
        """The groups, those of blocks before those within them."""
        done: dict[str, Group] = {}
        pending = list(self.groups.values())
        while pending:
            ready = [g for g in pending if not isinstance(g.structure, Wreath) or g.structure.outer in done]
            done.update((g.name, g) for g in ready)
            pending = [g for g in pending if g.name not in done]
        return list(done.values())

    def apply(
        self, elements: Mapping[str, Transform], state: Mapping[str, Tensor], power: int = 1
    ) -> dict[str, Tensor]:
        """Group elements applied to a state dict; `state` is not changed.

        Args:
            elements: Elements by group name.
            state: Tensors by name, shapes as in `shapes`; names the spec does not know pass through.
            power: See `pyalign.symmetry.actions.act`.

        Returns:
            A new mapping in the order of `state`; tensors that do not move are the same objects, and tied
            names share one tensor.

        Raises:
            MismatchError: Names or shapes are not those of the spec.
        """
        moved: dict[str, Tensor] = {}
        for name, tensor in self.moving(elements, state, power):
            moved[name] = tensor if tensor is not None else moved[self.aliases[name]]
        return moved

    def moving(
        self, elements: Mapping[str, Transform], state: Mapping[str, Tensor], power: int = 1
    ) -> Iterator[tuple[str, Tensor | None]]:
        """What `apply` answers, one tensor at a time; None for another name of a tensor that came before.

        Raises:
            MismatchError: Names or shapes are not those of the spec.
        """
        self.check_state(state)
        done: set[str] = set()
        moved: dict[str, Tensor] = {}
        for name, tensor in state.items():
            if name in self.stack_of:
                stack, place = self.stack_of[name]
                if stack not in moved:
                    whole = torch.stack([state[part] for part in self.stacks[stack]])
                    moved[stack] = act(whole, self.on(stack), elements, power * variance_power(stack))
                yield name, moved[stack][place]
                continue
            canonical = self.aliases.get(name, name)
            shared = canonical in done and state[canonical].data_ptr() == tensor.data_ptr()
            done.add(name)
            if shared and name != canonical:
                yield name, None
            else:
                yield name, act(tensor, self.on(name), elements, power * variance_power(name))

    def check_state(self, state: Mapping[str, Tensor]) -> None:
        """Raise unless `state` has every bound tensor with the spec's shape.

        Raises:
            MismatchError: A tensor is missing or has another shape.
        """
        bound = [name for name in self._by_tensor if name not in self.stacks]
        missing = [name for name in (*bound, *self.stack_of) if name not in state]
        if missing:
            raise MismatchError(
                "the state dict is not of the model this spec describes",
                given=f"no tensor {missing[0]!r} ({len(missing)} missing)",
                expected="every tensor of the spec",
                do="derive a spec from this model",
            )
        for name, tensor in state.items():
            shape = self.shapes.get(self.aliases.get(name, name))
            if shape is not None and tuple(tensor.shape) != shape:
                raise MismatchError(
                    f"tensor {name!r} does not fit the spec",
                    given=f"shape {tuple(tensor.shape)}",
                    expected=f"shape {shape}",
                    do="use two models of one architecture and width",
                )

    def check_model(self, model: nn.Module) -> None:
        """Raise unless the spec was made for this architecture.

        Raises:
            MismatchError: Names or shapes differ.
        """
        state = state_of(model)
        unknown = [n for n in state if n not in self.shapes and n not in self.aliases]
        if unknown:
            raise MismatchError(
                "the spec is for another model",
                given=f"a model with a tensor {unknown[0]!r}",
                expected="the tensors the spec was derived from",
                do="derive a spec from this model",
            )
        self.check_state(state)
        for name in self.constants:
            value = state[name]
            if value.numel() and not bool((value == value.reshape(-1)[0]).all()):
                raise MismatchError(
                    f"the symmetry holds only where {name!r} is constant",
                    given="entries that differ",
                    expected="a folded model",
                    do="fold this model too: pyalign.symmetry.fold",
                )

    def verify(self, model: nn.Module, inputs: Any, *, seed: int = 0) -> Verification:
        """Check that random elements of every group leave the outputs unchanged; see `pyalign.symmetry.verify`."""
        from pyalign.symmetry.verify import verify

        return verify(self, model, inputs, seed=seed)

    def report(self) -> str:
        """The spec as a table: what is aligned, what is left alone, and why."""
        return printing.report(self)

    def __str__(self) -> str:
        return self.report()

    def to_dict(self) -> dict[str, Any]:
        """The spec as plain lists, numbers and strings (JSON)."""
        return encoding.to_dict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> SymmetrySpec:
        """The inverse of `to_dict`."""
        return cls(**encoding.fields_from(content))


def variance_power(name: str) -> int:
    """2 for running variances, which scale with the square of their units; 1 for everything else."""
    return 2 if name.rsplit(".", 1)[-1] == "running_var" else 1


def _collect(pairs: Iterable[tuple[str, AxisBinding]]) -> dict[str, tuple[AxisBinding, ...]]:
    found: dict[str, list[AxisBinding]] = {}
    for key, binding in pairs:
        found.setdefault(key, []).append(binding)
    return {key: tuple(values) for key, values in found.items()}
