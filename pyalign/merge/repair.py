r"""REPAIR of an averaged network (Jordan et al., ICLR 2023, arXiv 2211.08403, section 4, equations 1 to 3).

Each unit's preactivation X of the averaged network becomes \((X - m) \sigma / s + \mu\), where m and s are its own
mean and standard deviation, and \(\mu = \sum_k w_k \mu_k\), \(\sigma = \sum_k w_k \sigma_k\) (standard deviations,
not variances) are weighted from the models it comes from. All layers are normalised together in one pass, and the
affine maps are then fused into the weights.

Where this goes beyond the paper's notebooks: the pass gives each batch the goal statistics of that same batch, measured
on the models themselves, instead of those of the whole data; and sums over batches are pooled exactly. Batches may then
be small or unlike, and weights (1, 0) leave the function as it is. As in the notebooks for the VGG and the MLP, hidden
layers are normalised and the layer that gives the output is not.
"""

from __future__ import annotations

import itertools
import logging
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from pyalign.errors import MismatchError, NonFiniteError, PyalignWarning
from pyalign.merge.layers import NORMALISED, OUTPUT, Layer, rewrite, survey, unit_axis
from pyalign.statistics.batches import checked, split
from pyalign.statistics.batchnorm import has_batchnorm, reestimating
from pyalign.statistics.forward import evaluating, respond
from pyalign.statistics.units import UnitMoments

__all__ = ["repair_statistics"]

logger = logging.getLogger("pyalign")

FLOOR = 1e-3
"""A unit's standard deviation counts as at least this share of its goal, so that no near-dead unit is blown up."""

Statistics = tuple[Tensor, Tensor]


def repair_statistics(
    merged: nn.Module, models: list[nn.Module], weights: list[float], data: Iterable[Any], *, shift: bool
) -> None:
    """Set the unit statistics of `merged`, in place, to those that `models` and `weights` ask for.

    Args:
        merged: The averaged model.
        models: The models it was averaged from; they run in evaluation mode and stay as they are.
        weights: Their weights, not negative.
        data: Batches, read once; each runs through every model.
        shift: Restore means as well (REPAIR), or scale alone (RESCALE). A layer without bias is scaled alone.
    """
    batches = checked(data)
    first = next(batches)
    layers, reasons = survey(merged, split(first)[0])
    _tell(layers, reasons, shift, has_batchnorm(merged))
    goals = [_Recorder(model, layers) for model in models]
    normaliser = _Normaliser(merged, layers, shift)
    handles: list[Any] = []
    try:
        for recorder in (*goals, normaliser):
            handles += recorder.attach()
        with evaluating(*models), reestimating(merged):
            for index, batch in enumerate(itertools.chain([first], batches)):
                inputs = split(batch)[0]
                for model in models:
                    respond(model, inputs, index)
                normaliser.goal = {name: _weighted([goal.batch[name] for goal in goals], weights) for name in layers}
                respond(merged, inputs, index)
    finally:
        for handle in handles:
            handle.remove()
    for name, layer in layers.items():
        goal = _weighted([recorder.pooled(name) for recorder in goals], weights)
        scale, offset = _affine(normaliser.pooled(name), goal, shift and layer.bias is not None)
        if not bool(torch.isfinite(scale).all()) or not bool(torch.isfinite(offset).all()):
            raise NonFiniteError(
                f"NaN or infinity in the activations of layer {name!r}",
                expected="finite activations",
                do="look at the weights of the models up to this layer",
            )
        rewrite(layer, scale, offset)


def _weighted(ends: list[Statistics], weights: list[float]) -> Statistics:
    """The goal: weighted means, and weighted standard deviations."""
    means = torch.stack([mean * weight for (mean, _), weight in zip(ends, weights, strict=True)])
    stds = torch.stack([variance.sqrt() * weight for (_, variance), weight in zip(ends, weights, strict=True)])
    return means.sum(0), stds.sum(0)


def _affine(own: Statistics, goal: Statistics, shift: bool) -> Statistics:
    """Scale and offset that bring a unit of mean and variance `own` to mean and standard deviation `goal`."""
    mean, std = goal
    present = own[1].sqrt()
    dead = present == 0.0
    scale = torch.where(dead, 1.0, std / torch.where(dead, 1.0, torch.maximum(present, FLOOR * std)))
    return scale, mean - own[0] * scale if shift else torch.zeros_like(scale)


class _Recorder:
    """Unit statistics of a model's layers: of the latest batch, and pooled over all."""

    def __init__(self, model: nn.Module, layers: dict[str, Layer]) -> None:
        self.model, self.layers = model, layers
        self.moments = {name: UnitMoments() for name in layers}
        self.batch: dict[str, Statistics] = {}

    def attach(self) -> list[Any]:
        """Hook the layers; the handles are for the caller to remove."""
        handles = []
        for name in self.layers:
            try:
                layer = self.model.get_submodule(name)
            except AttributeError as failure:
                raise MismatchError(
                    f"a model has no layer {name!r}",
                    given=type(self.model).__name__,
                    expected="models built from the same modules",
                    do="give models of one class",
                ) from failure
            handles.append(layer.register_forward_hook(self._hook(name)))
        return handles

    def pooled(self, name: str) -> Statistics:
        """Mean and variance of a layer's units over all batches."""
        return self.moments[name].mean, self.moments[name].variance()

    def _hook(self, name: str) -> Callable[..., Any]:
        axis = unit_axis(self.layers[name])

        def record(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor | None:
            self.batch[name] = self.moments[name].update(output, axis)
            return self._change(name, output, axis)

        return record

    def _change(self, name: str, output: Tensor, axis: int) -> Tensor | None:
        return None


class _Normaliser(_Recorder):
    """Records as well, and passes each output on with the goal statistics of its batch."""

    def __init__(self, model: nn.Module, layers: dict[str, Layer], shift: bool) -> None:
        super().__init__(model, layers)
        self.shift = shift
        self.goal: dict[str, Statistics] = {}

    def _change(self, name: str, output: Tensor, axis: int) -> Tensor | None:
        scale, offset = _affine(self.batch[name], self.goal[name], self.shift and self.layers[name].bias is not None)
        shape = [-1, *[1] * (-axis - 1)]
        return output * scale.to(output.dtype).reshape(shape) + offset.to(output.dtype).reshape(shape)


def _tell(layers: dict[str, Layer], reasons: dict[str, str], shift: bool, normalised: bool) -> None:
    """One warning for what the user may not expect; the log for the rest."""
    for name, reason in reasons.items():
        logger.info("REPAIR leaves layer %r alone: it %s", name, reason)
    notes = []
    left = [
        f"{name!r} {reason}" for name, reason in reasons.items() if reason not in (OUTPUT, NORMALISED, "is not called")
    ]
    if left:
        notes.append(f"layers stay as they are: {'; '.join(left[:5])}{' ...' if len(left) > 5 else ''}")
    without = [repr(name) for name, layer in layers.items() if layer.bias is None]
    if without and shift:
        more = " ..." if len(without) > 5 else ""
        notes.append(f"layers without bias are rescaled and not shifted: {', '.join(without[:5])}{more}")
    if not layers and not normalised:
        notes.append(
            "no hidden linear or convolutional layer without a normalisation behind it was found, "
            "and no BatchNorm: there is nothing to repair"
        )
    if notes:
        warnings.warn("REPAIR: " + ". ".join(notes), PyalignWarning, stacklevel=4)
