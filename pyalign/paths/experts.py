"""Which experts are chosen along a path: how far the choice is still that of the two ends (Tran et al. 2025)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn

from pyalign.paths.linear import LinearPath
from pyalign.paths.path import checked_t
from pyalign.statistics.batches import checked, repeatable, split
from pyalign.statistics.choices import expert_counts, selected_experts
from pyalign.symmetry import SymmetrySpec, derive

__all__ = ["ExpertOverlap", "expert_overlap"]

POSITIONS = tuple(i / 4 for i in range(5))


@dataclass(frozen=True)
class ExpertOverlap:
    """How many of the chosen experts are those that an end of the path chooses for the same token.

    Args:
        t: Positions on the path.
        layers: Groups that reorder the experts, one for each layer.
        with_a: For every layer the share of chosen experts that A chooses too, at each t.
        with_b: The same for B.
        dead_a: For every layer the experts that A never chooses on the data.
        dead_b: The same for B.

    Example:
        >>> record = ExpertOverlap((0.0, 0.5), ("gate",), ((1.0, 0.6),), ((0.4, 0.7),), ((3,),), ((),))
        >>> record.least
        0.7
    """

    t: tuple[float, ...]
    layers: tuple[str, ...]
    with_a: tuple[tuple[float, ...], ...]
    with_b: tuple[tuple[float, ...], ...]
    dead_a: tuple[tuple[int, ...], ...]
    dead_b: tuple[tuple[int, ...], ...]

    @property
    def least(self) -> float:
        """The smallest overlap with the nearer of the two ends, over layers and t."""
        pairs = zip(self.with_a, self.with_b, strict=True)
        return min((max(a, b) for one, two in pairs for a, b in zip(one, two, strict=True)), default=1.0)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain numbers and lists."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> ExpertOverlap:
        """The inverse of `to_dict`, also after JSON."""
        rows = {key: tuple(tuple(row) for row in content[key]) for key in ("with_a", "with_b", "dead_a", "dead_b")}
        return cls(tuple(content["t"]), tuple(content["layers"]), **rows)


def expert_overlap(
    model_a: nn.Module,
    model_b: nn.Module,
    data: Iterable[Any],
    *,
    t: Sequence[float] = POSITIONS,
    spec: SymmetrySpec | None = None,
) -> ExpertOverlap:
    r"""Share of the experts chosen at t that the ends choose: mean over tokens of \(|S_t \cap S_A| / |S_t|\).

    Where experts are in different orders in A and B, a router between them chooses experts that neither would: the
    overlap with both ends falls, and with it what the network computes.

    Args:
        model_a: The end at t = 0.
        model_b: The end at t = 1, aligned.
        data: Batches, the same for all t.
        t: Positions in [0, 1].
        spec: The symmetry; derived from model A and the first batch when None.

    Returns:
        The record; without layers where no token is ever sent to a part of the experts only.

    Raises:
        DataError: No data, or a batch that the models cannot take.

    Source:
        Tran et al. 2025 (On linear mode connectivity of mixture-of-experts architectures).
    """
    positions = tuple(checked_t(x) for x in t)
    data = repeatable(data, len(positions) + 2)
    if spec is None:
        spec = derive(model_a, split(next(checked(data)))[0])
    path = LinearPath(model_a, model_b)
    ends = [selected_experts(model, spec, data) for model in (model_a, model_b)]
    layers = tuple(name for name in ends[0] if name in ends[1])
    rows: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in layers}
    for x in positions:
        here = selected_experts(path.at(x), spec, data)
        for name in layers:
            for row, end in zip(rows[name], ends, strict=True):
                row.append(_shared(here[name], end[name]))
    dead = [[_dead(end[name], spec.groups[name].size) for name in layers] for end in ends]
    with_a, with_b = (tuple(tuple(rows[name][k]) for name in layers) for k in (0, 1))
    return ExpertOverlap(positions, layers, with_a, with_b, tuple(dead[0]), tuple(dead[1]))


def _shared(one: Tensor, two: Tensor) -> float:
    return float((one.unsqueeze(2) == two.unsqueeze(1)).any(2).double().mean())


def _dead(selected: Tensor, experts: int) -> tuple[int, ...]:
    return tuple((expert_counts(selected, experts) == 0).nonzero().flatten().tolist())
