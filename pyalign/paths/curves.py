"""Curves between two models through control points: Bezier and polygonal chain (Garipov et al. 2018, section 3.2)."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pyalign.errors import InputError, MismatchError
from pyalign.io.fit import differences
from pyalign.paths import curvefile, geometry
from pyalign.paths.blend import BLENDED, Blend, shapes_of, sum_into
from pyalign.paths.curve_record import CurveRecord
from pyalign.paths.family import check_family, coefficients
from pyalign.paths.flat import Layout
from pyalign.paths.measure import measure
from pyalign.paths.path import checked_t
from pyalign.statistics.spectral import settle_spectral_norms
from pyalign.symmetry.calls import state_of
from pyalign.symmetry.copies import copy_of, renewed

__all__ = ["Curve"]

State = Mapping[str, Tensor]
LABELS = ("model a", "model b")


class Curve:
    r"""The path \(\phi(t) = \sum_i c_i(t)\,\theta_i\) through A, `bends` inner control points and B.

    A new one is the straight line with evenly spaced bends; `pyalign.curve` trains them. Parameters of A that require
    gradients, BatchNorm's scale and shift among them, follow the curve. Everything else stays on the
    straight line: frozen parameters, buffers, and BatchNorm statistics, which fit no model between the ends and must be
    re-estimated (`evaluate(recalibrate=...)`). The ends are A and B bit by bit; the curve holds copies.

    Args:
        a: Model A; a parametrised module is taken by its original tensors, shared tensors count once.
        b: Model B, brought to A before (see `pyalign.align`), of the same architecture.
        kind: "bezier" or "polychain" (straight segments from bend to bend).
        bends: Number of inner control points, 1 or more.

    Attributes:
        settings: How the curve was fitted, as plain values; saved with it.
        history: t and loss of every step of the fit.

    Raises:
        MismatchError: The architectures differ; the tensors are named.
        NonFiniteError: A weight is NaN or infinite; tensor and model are named.
        InputError: No bends, an unknown kind, or no parameter of A requires gradients.

    Source:
        Garipov et al. 2018 (arXiv 1802.10026), equations 2 to 4; Tatro et al. 2020 (arXiv 2009.02439), section 2.

    Example:
        >>> a, b = nn.Linear(1, 1), nn.Linear(1, 1)
        >>> path = Curve(a, b)
        >>> torch.equal(path.at(1).weight, b.weight), torch.allclose(path.at(0.5).weight, (a.weight + b.weight) / 2)
        (True, True)
    """

    ends: list[dict[str, Tensor]]
    _same: dict[str, Tensor]

    def __init__(self, a: nn.Module, b: nn.Module, *, kind: str = "bezier", bends: int = 1) -> None:
        self._join(a, b, kind, bends)
        self.own()

    @classmethod
    def borrowing(cls, a: nn.Module, b: nn.Module, *, kind: str = "bezier", bends: int = 1) -> Curve:
        """The same curve with the weights of A and B themselves for its ends, until `own` is called: no copies."""
        curve = cls.__new__(cls)
        curve._join(a, b, kind, bends)
        return curve

    def own(self) -> None:
        """Copy the ends, so that the curve stays what it is when A or B are trained further."""
        self.ends = [_copied(end) for end in self.ends]
        self._same = _copied(self._same)
        self._straight([_copied(state) for state in self.line.states])

    def _join(self, a: nn.Module, b: nn.Module, kind: str, bends: int) -> None:
        check_family(kind, bends)
        for which, model in zip(LABELS, (a, b), strict=True):
            if not isinstance(model, nn.Module):
                raise InputError(
                    f"{which} is no module",
                    given=type(model).__name__,
                    expected="a torch.nn.Module",
                    do="load the state dict into a module",
                )
        states = state_of(a), state_of(b)
        Blend(states, LABELS).check()
        self._build(states, trained_names(a), kind, bends, a, {})

    def _build(
        self, states: Sequence[State], trained: Collection[str], kind: str, bends: int, module: nn.Module | None,
        settings: Mapping[str, Any],
    ) -> None:  # fmt: skip
        self.kind, self.bends, self.settings = kind, bends, dict(settings)
        self.history: list[tuple[float, float]] = []
        self._module = module
        self._order = list(states[0])
        self.tied = Blend(states, LABELS).tied
        kept = [name for name in self._order if name not in self.tied]
        self.layout = Layout({name: states[0][name] for name in kept if name in trained})
        self.ends = [{n: state[n].detach() for n in self.layout.names} for state in states]
        self.inner = [self.between((1.0 - i / (bends + 1), i / (bends + 1))) for i in range(1, bends + 1)]
        rest = [name for name in kept if name not in set(self.layout.names)]
        # A tensor that is the same at both ends is taken as it is: blending would round it.
        self._same = {n: states[0][n] for n in rest if torch.equal(states[0][n], states[1][n])}
        self._straight([{name: state[name] for name in rest if name not in self._same} for state in states])

    def _straight(self, states: Sequence[State]) -> None:
        self.line = Blend(states, LABELS)
        if states[0]:
            self.line.check()

    def weights(self, t: float) -> list[float]:
        """The weight of every control point at t, ends included; they sum to 1."""
        return coefficients(self.kind, self.bends + 2, checked_t(t))

    def control_point(self, index: int) -> dict[str, Tensor]:
        """The trained tensors of a control point by name, 0 for A and `bends + 1` for B: views, not copies."""
        if index in (0, self.bends + 1):
            return dict(self.ends[0 if index == 0 else 1])
        return self.layout.unpack(self.inner[index - 1])

    def frozen(self, index: int) -> dict[str, Tensor]:
        """The parameters of an end, 0 for A and 1 for B, that stay on the straight line."""
        rest = {**self._same, **self.line.states[index]}
        parameters = self._parameters()
        return {name: tensor for name, tensor in rest.items() if name in parameters}

    @torch.no_grad()
    def between(self, weights: Sequence[float]) -> list[Tensor]:
        """What the ends add to a point: their trained tensors times two weights, in new buffers of `layout`."""
        buffers = self.layout.empty()
        for name, out in self.layout.unpack(buffers).items():
            sum_into(out, [end[name] for end in self.ends], weights)
        return buffers

    def state(self, t: float) -> dict[str, Tensor]:
        """New tensors at t, by name; tied where those of A are tied."""
        reference = {**self.control_point(0), **self._same, **self.line.states[0]}
        found = {name: torch.empty_like(reference[name]) for name in self._order if name not in self.tied}
        self._write(t, found)
        return {name: found[self.tied.get(name, name)] for name in self._order}

    def at(self, t: float) -> nn.Module:
        """A new module at t: a copy of A (its hooks, modes and structure) with the weights of the curve."""
        t = checked_t(t)
        if self._module is None:
            raise InputError(
                "this curve was loaded without a model, so it has no modules",
                given="Curve.load(path)",
                expected="Curve.load(path, model)",
                do="use state(t), or load it with a model of the architecture",
            )
        model = copy_of(self._module)
        self.into(t, model)
        return model

    def into(self, t: float, model: nn.Module) -> None:
        """Write the weights and buffers at t into `model`, in place."""
        self._write(t, state_of(model))
        renewed(model)
        if 0.0 < t < 1.0:
            settle_spectral_norms(model)

    @torch.no_grad()
    def _write(self, t: float, out: State) -> None:
        t = checked_t(t)
        scales = self.weights(t)
        points = [self.control_point(index) for index in range(self.bends + 2)]
        for name in self.layout.names:
            sum_into(out[name], [point[name] for point in points], scales)
        for name, tensor in self._same.items():
            out[name].copy_(tensor)
        if self.line.states[0]:
            self.line.sum((1.0 - t, t), out=out)

    def evaluate(
        self,
        data: Iterable[Any],
        *,
        points: int = 61,
        t: Sequence[float] | None = None,
        loss: Callable[[Any, Any], Any] | None = None,
        recalibrate: Iterable[Any] | None = None,
        progress: bool | None = None,
    ) -> CurveRecord:
        """Measure loss and accuracy along the curve; see `pyalign.barrier` for data, losses and barriers.

        Args:
            data: Batches with targets, read once per position.
            points: Number of equidistant positions, ends included.
            t: Positions instead of `points`; 0 and 1 are added where they are missing.
            loss: `loss(output, targets)`, the mean over a batch; None as for `pyalign.barrier`.
            recalibrate: Batches on which BatchNorm statistics are re-estimated at every position, the ends too.
            progress: Show a progress bar; None: on a terminal.

        Returns:
            The record: a `Barrier` with arc lengths, and with minimum, maximum and means over the curve.
        """
        if t is None and (isinstance(points, bool) or not isinstance(points, int) or points < 2):
            raise InputError("points is too small", given=f"points={points}", expected="an integer of at least 2")
        positions = [i / (points - 1) for i in range(points)] if t is None else [checked_t(x) for x in t]
        record = measure(self, data, t=positions, loss=loss, recalibrate=recalibrate, progress=progress)
        return CurveRecord.of(record, geometry.arc(self.gram(), self.kind, record.t))

    def gram(self) -> Tensor:
        """Inner products of the control points over all parameters, seen from A, (bends + 2, bends + 2), float64."""
        states = [dict(self.line.states[0]), dict(self.line.states[1])]
        frozen = [name for name in states[0] if name in self._parameters()]
        points = [list(self.control_point(index).values()) for index in range(self.bends + 2)]
        return geometry.gram(points, [[state[name] for name in frozen] for state in states])

    def _parameters(self) -> set[str]:
        if self._module is None:
            return set(self.settings.get("parameters", ()))
        return {name for name, _ in self._module.named_parameters(remove_duplicate=False)}

    @property
    def length(self) -> float:
        """Euclidean length of the curve in the space of all parameters."""
        return geometry.arc(self.gram(), self.kind, geometry.FINE)[-1]

    @property
    def planarity(self) -> float:
        """Share of the curve's spread that lies in its best plane: 1 for a single bend."""
        return geometry.planarity(self.gram(), self.kind)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write bends, both ends and how the curve was fitted to a `.safetensors` file, whole or not at all."""
        first, last = self.control_point(0), self.control_point(self.bends + 1)
        ends = [{**p, **self._same, **line} for p, line in zip((first, last), self.line.states, strict=True)]
        inner = [self.control_point(index) for index in range(1, self.bends + 1)]
        record = {"kind": self.kind, "bends": self.bends, "order": self._order, "tied": self.tied}
        settings = {**self.settings, "parameters": sorted(self._parameters())}
        curvefile.write(path, ends, inner, {**record, "settings": settings})

    @classmethod
    def load(cls, path: str | os.PathLike[str], model: nn.Module | None = None) -> Curve:
        """Read what `save` wrote.

        Args:
            path: The file.
            model: A module of the architecture, for `at` and `evaluate`; its weights are not used. None: `state` alone.

        Raises:
            CheckpointError: The file is missing, damaged or no curve.
            MismatchError: It belongs to another architecture.
        """
        found = curvefile.read(path)
        states = [{name: end[found.tied.get(name, name)] for name in found.order} for end in found.ends]
        if model is not None:
            states = [_placed(state, model, path) for state in states]
        curve = cls.__new__(cls)
        curve._build(states, set(found.inner[0]), found.kind, found.bends, model, found.settings)
        curve.inner = [curve.layout.pack(point) for point in found.inner]
        return curve

    def __repr__(self) -> str:
        return f"Curve(kind={self.kind!r}, bends={self.bends}, parameters={sum(b.numel() for b in self.inner[0])})"


def trained_names(model: nn.Module) -> set[str]:
    """Names of the parameters that follow the curve: those that require gradients, in a dtype that is blended.

    Raises:
        InputError: There is none.
    """
    parameters = list(model.named_parameters(remove_duplicate=False))
    found = {n for n, p in parameters if p.requires_grad and (p.dtype in BLENDED or p.is_complex())}
    if not found:
        raise InputError(
            "no parameter can follow a curve",
            given=f"{len(parameters)} parameters of {type(model).__name__}, none of which requires gradients",
            expected="parameters with requires_grad=True in model a",
            do="call model_a.requires_grad_(True), and freeze only what is to stay on the straight line",
        )
    return found


def _placed(state: State, model: nn.Module, path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """A state from a file on the devices of `model`, tied as it is there."""
    own = state_of(model)
    found = differences(shapes_of(state), shapes_of(own))
    if found:
        raise MismatchError(
            f"{path} was made for another architecture",
            given=found,
            expected=f"the {len(own)} tensors of {type(model).__name__}",
            do="load it with a model of the architecture that the curve joins",
        )
    moved = {id(tensor): tensor.to(own[name].device) for name, tensor in state.items()}
    return {name: moved[id(tensor)] for name, tensor in state.items()}


def _copied(state: State) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in state.items()}
