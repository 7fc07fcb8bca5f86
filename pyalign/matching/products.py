"""Products of the rows of A with those of B, summed over a group's tensors one after the other.

Products and their sums are made, and assigned, where the models are. Only what speaks for matrices comes to the host,
summed: these are group elements, which live there, and follow from many decompositions (singular values,
eigenvectors) of small float64 matrices with a decision after each.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from pyalign.matching.assign import Evidence, in_blocks
from pyalign.matching.nearest import Grams
from pyalign.matching.objective import summed
from pyalign.matching.pair import Elements, Pair
from pyalign.symmetry import AxisBinding, Group, Side, Wreath

__all__ = ["Products"]


class Products:
    """What one step of a descent compares, at one set of elements; sums are kept for the step, tensors are not.

    Args:
        pair: The tensors.
        elements: Where B stands.
        only: The tensors that count, None for all.
    """

    def __init__(self, pair: Pair, elements: Elements, only: frozenset[str] | None = None) -> None:
        self.pair, self.elements, self.only = pair, elements, only
        self._both: dict[str, tuple[Tensor, Tensor]] = {}
        self._own: dict[str, tuple[Tensor, Tensor]] = {}

    def evidence(self, group: Group, mixing: Sequence[Group], apart: frozenset[str] = frozenset()) -> Evidence | None:
        """Similarity of units, without the entries that a mixing group within them compares, and without `apart`."""
        rows = self.pair.rows(group.name, self.elements, self._uncovered(group, mixing) - apart)
        return summed((bool(b.side.power), one @ two.T) for b, one, two in rows if not self._covered(b, mixing))

    def both(self, group: Group) -> tuple[Tensor, Tensor]:
        """Rows of A times rows of B, produced and consumed, each (n, n), float64, where the models are."""
        if group.name not in self._both:
            shape = group.size, group.size
            found = ((_consumed(b), one @ two.T) for b, one, two in self._rows(group))
            self._both[group.name] = _two_sums(found, shape)
        return self._both[group.name]

    def own(self, group: Group) -> tuple[Tensor, Tensor]:
        """Rows of each block of B times themselves, produced and consumed, each (blocks, d, d), float64, host."""
        if group.name not in self._own:
            blocks, width = _blocks(group), group.size // _blocks(group)
            split = ((_consumed(b), two.reshape(blocks, width, -1)) for b, _, two in self._rows(group))
            sums = _two_sums(((consumed, rows @ rows.mT) for consumed, rows in split), (blocks, width, width))
            self._own[group.name] = sums[0].cpu(), sums[1].cpu()
        return self._own[group.name]

    def grams(self, group: Group) -> Grams:
        """What `nearest` needs when each block of A is compared with the same block of B."""
        blocks = _blocks(group)
        both = [
            in_blocks(m, blocks).diagonal(dim1=0, dim2=1).movedim(-1, 0).contiguous().cpu() for m in self.both(group)
        ]
        return Grams(both[0], both[1], *self.own(group))

    @property
    def names(self) -> frozenset[str]:
        """The tensors that count."""
        return frozenset(self.pair.names) if self.only is None else self.only

    @property
    def states(self) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
        """A, and B as it stands, as mappings that read a tensor whenever it is asked for."""
        return _Side(self, 0), _Side(self, 1)

    def by_unit(self, group: Group, perm: Tensor) -> Grams:
        """The same for units, each a block of its own: unit i of A is compared with unit perm[i] of B."""
        sums = torch.zeros(4, group.size, dtype=torch.float64)
        for b, one, two in self._rows(group):
            two = two.index_select(0, perm.to(two.device))
            sums[_consumed(b) :: 2] += torch.stack([(one * two).sum(1), two.square().sum(1)]).cpu()
        return Grams(*sums[:, :, None, None])

    def sizes(self, group: Group) -> Tensor:
        r"""What each pair of units of A and B would share if they were alike, up to factors; shape (n, n), float32.

        \(\min_s \tfrac12 (a^2 / s + s b^2 + s a'^2 + b'^2 / s) = \sqrt{(a^2 + b'^2) (b^2 + a'^2)}\), with the norms of
        what produces (a, b) and consumes (a', b') them: their products are never larger.
        """
        a, b = (squares.float() for squares in self._squares(group))
        return torch.as_tensor((a[0][:, None] + b[1]).mul_(a[1][:, None] + b[0]).sqrt_())

    def balance(self, group: Group, perm: Tensor) -> Tensor:
        r"""The factors at which `sizes` is reached if unit i of A is matched with unit perm[i] of B, shape (n,)."""
        a, b = (squares.cpu() for squares in self._squares(group))
        falls, rises = a[0] + b[1][perm], a[1] + b[0][perm]
        return torch.where((falls > 0) & (rises > 0), (falls / rises).sqrt(), 1.0)

    def _squares(self, group: Group) -> tuple[Tensor, Tensor]:
        """Squared norms of what produces and consumes each unit of A, and the same of B, each (2, n), float64."""
        rows = ((_consumed(b), torch.stack([x.square().sum(1) for x in sides])) for b, *sides in self._rows(group))
        produced, consumed = _two_sums(rows, (2, group.size))
        a, b = torch.stack([produced, consumed], 1)
        return a, b

    def _rows(self, group: Group) -> Iterator[tuple[AxisBinding, Tensor, Tensor]]:
        rows = self.pair.rows(group.name, self.elements, self.only, precise=True)
        return (entry for entry in rows if entry[0].side.power or group.kind.mixes)

    def _uncovered(self, group: Group, mixing: Sequence[Group]) -> frozenset[str]:
        """The tensors on which some entries of the group are not compared by a mixing group."""
        found = self.pair.of(group.name, self.only).items()
        return frozenset(name for name, on in found if not all(self._covered(b, mixing) for b in on))

    def _covered(self, binding: AxisBinding, mixing: Sequence[Group]) -> bool:
        """Whether groups that mix units within those of the binding own all of its entries."""
        inside = [
            c.positions.reshape(-1)
            for g in mixing
            for c in self.pair.spec.of(g.name)
            if (c.tensor, c.axis) == (binding.tensor, binding.axis)
        ]
        return bool(inside) and bool(torch.isin(binding.positions, torch.cat(inside)).all())


class _Side(Mapping[str, Tensor]):
    """The tensors of one of the two models, where they stand."""

    def __init__(self, products: Products, which: int) -> None:
        self._products, self._which = products, which

    def __getitem__(self, name: str) -> Tensor:
        return self._products.pair.both(name, self._products.elements, precise=True)[self._which]

    def __contains__(self, name: object) -> bool:
        return name in self._products.names

    def __iter__(self) -> Iterator[str]:
        return iter(self._products.names)

    def __len__(self) -> int:
        return len(self._products.names)


def _two_sums(parts: Iterable[tuple[int, Tensor]], shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Sums of what is produced (0) and consumed (1), float64, where the first part is; zeros where there is none."""
    sums: list[Tensor] = []
    for which, part in parts:
        sums = sums or [torch.zeros(shape, dtype=torch.float64, device=part.device) for _ in range(2)]
        sums[which] += part.to(sums[which].device)
    sums = sums or [torch.zeros(shape, dtype=torch.float64) for _ in range(2)]
    return sums[0], sums[1]


def _blocks(group: Group) -> int:
    return group.structure.blocks if isinstance(group.structure, Wreath) else 1


def _consumed(binding: AxisBinding) -> int:
    return 1 if binding.side is Side.CONTRAVARIANT else 0
