"""Correlation of units between two points of a path, layer by layer, over t (Tatro et al. 2020, figure 3)."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor
from tqdm.auto import tqdm

from pyalign._atomic import json_text
from pyalign.engine import linear_assignment
from pyalign.errors import InputError
from pyalign.paths.measure import warn_of_stale_statistics
from pyalign.paths.path import Path, checked_t
from pyalign.statistics.batches import checked, repeatable, split
from pyalign.statistics.batchnorm import reestimate_batchnorm
from pyalign.statistics.collect import collect
from pyalign.symmetry import Site, SymmetrySpec, derive

__all__ = ["Correlations", "correlations"]


@dataclass(frozen=True)
class Correlations:
    """Mean correlation of units between the point `reference` of a path and others.

    Args:
        reference: Position on the path that the others are compared with.
        t: The other positions.
        layers: Where units were observed, in the order of the computation.
        groups: The group of each layer.
        slots: For every layer its mean correlation at each t, unit by unit as they are stored.
        matched: The same with units in the best order: what is left to align.

    Example:
        >>> record = Correlations(0.0, (0.0, 1.0), ("a", "b"), ("a", "b"), ((1.0, 0.4), (1.0, 0.6)), ((1.0, 0.5),) * 2)
        >>> record.mean()
        (1.0, 0.5)
    """

    reference: float
    t: tuple[float, ...]
    layers: tuple[str, ...]
    groups: tuple[str, ...]
    slots: tuple[tuple[float, ...], ...]
    matched: tuple[tuple[float, ...], ...]

    def mean(self, matched: bool = False) -> tuple[float, ...]:
        """The mean over layers at each t."""
        rows = self.matched if matched else self.slots
        return tuple(sum(column) / len(rows) for column in zip(*rows, strict=True))

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain numbers and lists."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Correlations:
        """The record that `to_dict` made."""
        rows = {name: tuple(map(tuple, content[name])) for name in ("slots", "matched")}
        layers, groups = tuple(content["layers"]), tuple(content["groups"])
        t = tuple(map(float, content["t"]))
        return cls(float(content["reference"]), t, layers, groups, rows["slots"], rows["matched"])

    def to_json(self, path: str | os.PathLike[str] | None = None) -> str:
        """The record as JSON text, also written to `path` where one is given."""
        return json_text(self.to_dict(), path)


def correlations(
    path: Path,
    data: Iterable[Any],
    *,
    spec: SymmetrySpec | None = None,
    reference: float = 0.0,
    points: int = 11,
    t: Sequence[float] | None = None,
    sites: str | int = "all",
    observe: str = "after",
    recalibrate: Iterable[Any] | None = None,
    progress: bool | None = None,
) -> Correlations:
    """Correlate the activations at points of a path with those at one point, over the same batches.

    Where the points of a curve stay alike unit by unit, the curve joins aligned models; the best order of units tells
    how much alignment was still to be had. Dead units count as uncorrelated.

    Args:
        path: A path of modules, such as a `Curve` or a `LinearPath`.
        data: Batches; targets are not needed.
        spec: The symmetry, where it is known already; derived from the first batch when None.
        reference: The position that the others are compared with.
        points: Number of equidistant positions, ends included.
        t: Positions instead of `points`.
        sites: How many places of each group: "all", "last" or a number.
        observe: "after" or "before" the nonlinearity.
        recalibrate: Batches on which BatchNorm statistics are re-estimated at every position.
        progress: Show a progress bar; None: on a terminal.

    Returns:
        The record, one row a layer.

    Raises:
        InputError: A position outside the path, fewer than one point, or no group of units to be seen.
        DataError: As for `pyalign.statistics.collect`.

    Source:
        Tatro et al. 2020 (arXiv 2009.02439), section 5.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from pyalign.paths import LinearPath
        >>> a = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
        >>> record = correlations(LinearPath(a, a), [torch.randn(32, 3)], points=2)
        >>> [round(x, 6) for x in record.mean()]
        [1.0, 1.0]
    """
    positions = _positions(points, t)
    shared = recalibrate is data
    data = repeatable(data, len(positions) + 1)
    recalibrate = data if shared else None if recalibrate is None else repeatable(recalibrate, len(positions) + 1)
    fixed = path.at(checked_t(reference))
    if recalibrate is None:
        warn_of_stale_statistics(fixed)
    moving = path.at(reference)
    if spec is None:
        spec = derive(fixed, split(next(checked(data)))[0])
    if recalibrate is not None:
        reestimate_batchnorm(fixed, recalibrate)
    hidden = None if progress is None else not progress
    columns: list[dict[Site, tuple[float, float]]] = []
    for position in tqdm(positions, desc="correlations", unit="t", leave=False, disable=hidden):
        path.into(position, moving)
        if recalibrate is not None:
            reestimate_batchnorm(moving, recalibrate)
        seen = collect(fixed, moving, spec, data, observe=observe, sites=sites, progress=False)
        columns.append({site: _means(moments.correlation()) for site, moments in seen.items()})
    if not columns[0]:
        raise InputError(
            "no group of units can be seen", given=f"{len(spec.groups)} groups", do="look at spec.report()"
        )
    rows = list(columns[0])
    slots, matched = (tuple(tuple(c[site][which] for c in columns) for site in rows) for which in (0, 1))
    return Correlations(reference, positions, _labels(rows), tuple(s.group for s in rows), slots, matched)


def _positions(points: int, t: Sequence[float] | None) -> tuple[float, ...]:
    if t is not None and len(t):
        return tuple(checked_t(x) for x in t)
    if t is not None or isinstance(points, bool) or not isinstance(points, int) or points < 2:
        raise InputError("no positions to compare", given=f"points={points}, t={t}", expected="2 points or more")
    return tuple(i / (points - 1) for i in range(points))


def _means(correlation: Tensor) -> tuple[float, float]:
    best = linear_assignment(correlation, maximize=True).perm
    assert isinstance(best, Tensor)
    matched = correlation.gather(1, best.unsqueeze(1))
    return float(correlation.diagonal().mean()), float(matched.mean())


def _labels(sites: Sequence[Site]) -> tuple[str, ...]:
    """The group, and the module where a group is seen at several places; numbered where that is not enough."""
    groups = [site.group for site in sites]
    names = [s.group if groups.count(s.group) == 1 else f"{s.group} in {s.module or 'the model'}" for s in sites]
    found = []
    for index, name in enumerate(names):
        earlier = names[:index].count(name)
        found.append(f"{name} ({earlier + 1})" if names.count(name) > 1 else name)
    return tuple(found)
