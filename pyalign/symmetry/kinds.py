"""Transform classes of a group and the order between them (which one holds inside which)."""

from __future__ import annotations

from enum import Enum

__all__ = ["Kind"]


class Kind(str, Enum):
    """The largest class of transforms that leaves the function unchanged on a group's axis.

    `PERMUTATION < SIGNED < SCALED` and `PERMUTATION < POSITIVE < SCALED`; `SIGNED < ORTHOGONAL < INVERTIBLE` and
    `SCALED < INVERTIBLE`; `PERMUTATION < CENTRED < ORTHOGONAL`, where CENTRED are the orthogonal matrices that leave
    the vector of ones where it is (LayerNorm subtracts the mean); `ROTATION` (a positive factor and an angle for each
    pair of units, as rotary embeddings leave free) lies in `INVERTIBLE`; its part in `ORTHOGONAL` is `TURN`, an angle
    for each pair, and it meets the other classes in `IDENTITY` only. A group that nothing may move is `IDENTITY`.

    Example:
        >>> Kind.SIGNED & Kind.POSITIVE
        <Kind.PERMUTATION: 'permutation'>
        >>> Kind.ORTHOGONAL & Kind.SCALED
        <Kind.SIGNED: 'signed permutation'>
    """

    IDENTITY = "identity"
    PERMUTATION = "permutation"
    SIGNED = "signed permutation"
    POSITIVE = "positive-scaled permutation"
    SCALED = "scaled permutation"
    ROTATION = "scaled rotation of pairs"
    TURN = "rotation of pairs"
    CENTRED = "centred orthogonal"
    ORTHOGONAL = "orthogonal"
    INVERTIBLE = "invertible"

    @property
    def signs(self) -> bool:
        """Whether units may change sign."""
        return self in (Kind.SIGNED, Kind.SCALED, Kind.ORTHOGONAL, Kind.INVERTIBLE)

    @property
    def scales(self) -> bool:
        """Whether units may be multiplied by a positive factor."""
        return self in (Kind.POSITIVE, Kind.SCALED, Kind.INVERTIBLE)

    @property
    def mixes(self) -> bool:
        """Whether units become sums of units: an element is a matrix, not a reordering."""
        return self.isometric or self in (Kind.ROTATION, Kind.INVERTIBLE)

    @property
    def isometric(self) -> bool:
        """Whether its matrices are their own inverse transposes."""
        return self in (Kind.TURN, Kind.CENTRED, Kind.ORTHOGONAL)

    @property
    def paired(self) -> bool:
        """Whether its matrices multiply pairs of units by complex numbers."""
        return self in (Kind.TURN, Kind.ROTATION)

    def __and__(self, other: Kind) -> Kind:
        """The largest class inside both (their meet)."""
        for one, two in ((self, other), (other, self)):
            if one is two or two is Kind.INVERTIBLE or (one is Kind.CENTRED and two is Kind.ORTHOGONAL):
                return one
            if one.paired and two in (Kind.TURN, Kind.ORTHOGONAL):
                return Kind.TURN
        if Kind.IDENTITY in (self, other) or self.paired or other.paired:
            return Kind.IDENTITY
        return _from_freedoms(self.signs and other.signs, self.scales and other.scales)

    def __le__(self, other: str) -> bool:
        """Whether every transform of this class belongs to `other`."""
        return isinstance(other, Kind) and (self & other) == self

    def __str__(self) -> str:
        return self.value


def _from_freedoms(signs: bool, scales: bool) -> Kind:
    table = {(False, False): Kind.PERMUTATION, (True, False): Kind.SIGNED, (False, True): Kind.POSITIVE}
    return table.get((signs, scales), Kind.SCALED)
