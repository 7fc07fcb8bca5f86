"""What is known of a tensor while a model is traced: which of its entries belong to which unit.

Every position on an axis of a parameter is an *atom*, a number. A *plane* says, for each element of a tensor, which
atom it belongs to; it is stored with size 1 along the axes it does not vary on. Operators that move data move planes
in the same way; all others tie atoms to each other, or to the fixed atom 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from pyalign.symmetry.tracing.hashing import IntArray

__all__ = ["FIXED", "Label", "Operand", "Pending", "Plane", "as_array", "compact", "place"]

FIXED = 0


@dataclass(frozen=True, eq=False)
class Plane:
    """Atoms of a tensor's elements.

    Args:
        atoms: int64, as many axes as the tensor, size 1 along axes it does not vary on.
        scaled: Whether the tensor is multiplied by the scale of its atom (not where that was normalised away).
    """

    atoms: Tensor
    scaled: bool = True

    @property
    def dims(self) -> tuple[int, ...]:
        """The axes it varies on."""
        return tuple(d for d, size in enumerate(self.atoms.shape) if size > 1)

    def along(self, dims: set[int]) -> bool:
        """Whether it varies on any of `dims`."""
        return any(self.atoms.shape[d] > 1 for d in dims)


@dataclass(frozen=True, eq=False)
class Pending:
    """What was done to mixed units and can be judged only by what follows: a square, or a product with constants.

    Args:
        source: The tensor it was done to.
        planes: The planes of that tensor.
        factor: The constant it was multiplied with; None for a square.
        dims: The axes along which the factor varies.
    """

    source: Tensor
    planes: tuple[Plane, ...]
    factor: Tensor | None = None
    dims: frozenset[int] = frozenset()


@dataclass(frozen=True, eq=False)
class Label:
    """What is known of one tensor.

    Args:
        planes: Its planes, at most one per axis.
        random: It is noise, which knows no order of units.
        leaks: Planes of units whose numbers the tensor holds (argmax); using it pins them.
        pending: What was done last, where the next operator decides whether units may be mixed.
        repeats: Which repetition of one value each entry is, where values were repeated along an axis: int64, size 1
            along all other axes.
        crossed: Further planes on axes that `planes` explain: of two axes that were merged into one, to be taken apart
            again or not.
        unwritten: Which entries of a constant that is written into part by part were not written yet: bool, size 1
            along axes it does not vary on.
    """

    planes: tuple[Plane, ...] = ()
    random: bool = False
    leaks: tuple[Plane, ...] = ()
    pending: Pending | None = None
    repeats: Tensor | None = None
    crossed: tuple[Plane, ...] = ()
    unwritten: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Operand:
    """A tensor seen from the index space of an operator: its planes and along which axes it is free.

    Args:
        planes: Planes in the axes of the index space.
        fixed: Axes along which the values differ in a way no plane explains.
        zero: Whether all values are zero.
        places: For axes of `fixed` along which values are repeated, which places have the same value (numbers of shape
            (length of the axis,)); along others every place has its own.
    """

    planes: tuple[Plane, ...]
    fixed: frozenset[int] = frozenset()
    zero: bool = False
    places: Mapping[int, IntArray] = field(default_factory=dict)


def compact(atoms: Tensor) -> Tensor:
    """The same atoms with size 1 along every axis they do not vary on."""
    for d in range(atoms.dim()):  # expanded axes first, or the comparisons below would run over them
        if atoms.shape[d] > 1 and atoms.stride(d) == 0:
            atoms = atoms.narrow(d, 0, 1)
    for d in range(atoms.dim()):
        if atoms.shape[d] > 1 and bool((atoms == atoms.narrow(d, 0, 1)).all()):
            atoms = atoms.narrow(d, 0, 1)
    return atoms


def place(plane: Plane, dims: Sequence[int], rank: int) -> Plane:
    """A plane with its axis d moved to axis `dims[d]` of `rank` axes."""
    order = sorted(range(len(dims)), key=lambda d: dims[d])
    shape = [1] * rank
    for d in order:
        shape[dims[d]] = plane.atoms.shape[d]
    return Plane(plane.atoms.permute(order).reshape(shape), plane.scaled)


def as_array(atoms: Tensor) -> IntArray:
    """A plane's atoms as an array."""
    return atoms.numpy()
