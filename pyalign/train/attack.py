"""Adversarial examples by projected gradient descent (Madry et al. 2018, equation 2.3), for l-infinity and l2 balls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pyalign.errors import DataError, InputError
from pyalign.paths.losses import mean_loss
from pyalign.paths.point import Loss
from pyalign.statistics.batches import describe
from pyalign.symmetry import call

__all__ = ["PGD", "Normalised"]

NORMS = ("linf", "l2")


class Normalised(nn.Module):
    """A model that takes pixels in [0, 1] and normalises them itself, so that attacks work on pixels.

    Args:
        model: The model of normalised images.
        mean: One number a channel, subtracted.
        std: One number a channel, divided by.

    Raises:
        InputError: Different numbers of channels, or a deviation that is not positive.

    Example:
        >>> Normalised(nn.Identity(), [0.5], [0.25])(torch.ones(1, 1, 1, 1))
        tensor([[[[2.]]]])
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if len(mean) != len(std) or min(std, default=0.0) <= 0.0:
            raise InputError(
                "images cannot be normalised so",
                given=f"mean={tuple(mean)}, std={tuple(std)}",
                expected="one mean and one positive deviation a channel",
            )
        self.model = model
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(list(values)).reshape(-1, 1, 1), persistent=False)

    def forward(self, pixels: Tensor) -> Any:
        """Run the model on the normalised pixels."""
        return self.model((pixels - self.mean.to(pixels.dtype)) / self.std.to(pixels.dtype))


@dataclass(frozen=True)
class PGD:
    r"""Steps of gradient ascent on the loss by the inputs, each projected back into a ball around them.

    l-infinity: \(x \leftarrow \Pi(x + \alpha\,\mathrm{sign}\,\nabla L)\); l2: \(x \leftarrow \Pi(x + \alpha \nabla L /
    \|\nabla L\|_2)\), a ball for every sample; then the values are clamped to `bounds`. The model runs in the mode it
    is in, and neither its gradients nor its parameters are touched. An object of this class can be passed to
    `pyalign.curve(attack=...)`.

    Args:
        norm: "linf" or "l2".
        epsilon: Radius of the ball, in units of the inputs.
        step: Length of a step.
        steps: How many; 0 gives the (random) start.
        random_start: Begin at a random point of the ball, from torch's global generator; False: at the inputs.
        bounds: Smallest and largest value of an input, such as (0, 1) for pixels; None: any.
        loss: `loss(output, targets)`, the mean over a batch; None as for `pyalign.barrier`.

    Raises:
        InputError: An unknown norm, or lengths below 0.

    Source:
        Madry et al. 2018 (arXiv 1706.06083), section 2.1; the defaults are those of Tatro et al. 2020
        (arXiv 2009.02439), section 6.

    Example:
        >>> model = nn.Linear(2, 2)
        >>> x, y = torch.full((1, 2), 0.5), torch.tensor([0])
        >>> moved = PGD(epsilon=0.1, step=0.1)(model, x, y)
        >>> bool(((moved - x).abs() <= 0.1 + 1e-6).all())
        True
    """

    norm: str = "linf"
    epsilon: float = 8 / 255
    step: float = 2 / 255
    steps: int = 5
    random_start: bool = True
    bounds: tuple[float, float] | None = (0.0, 1.0)
    loss: Loss | None = None

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise InputError("unknown norm", given=repr(self.norm), expected=" or ".join(map(repr, NORMS)))
        if not (self.epsilon >= 0.0 and self.step >= 0.0 and self.steps >= 0):
            raise InputError(
                "an attack cannot go backwards",
                given=f"epsilon={self.epsilon}, step={self.step}, steps={self.steps}",
                expected="0 or more of each",
            )

    def __call__(self, model: nn.Module, inputs: Any, targets: Any) -> Any:
        """Inputs near the given ones on which the model's loss is high.

        Args:
            model: The model.
            inputs: A floating tensor (samples first), or a mapping with exactly one.
            targets: What `pyalign.statistics.split` gave.

        Returns:
            New inputs of the same form.

        Raises:
            DataError: There is no floating input, or several.
        """
        key, clean = _attackable(inputs)
        clean = clean.detach()
        moved = self._start(clean)
        for _ in range(self.steps):
            moved.requires_grad_()
            with torch.enable_grad():
                output = call(model, _replaced(inputs, key, moved))
                (gradient,) = torch.autograd.grad(mean_loss(output, targets, self.loss, 0), moved)
            with torch.no_grad():
                moved = self._project(moved.detach() + self.step * self._direction(gradient), clean)
        return _replaced(inputs, key, moved.detach())

    def _start(self, clean: Tensor) -> Tensor:
        if not self.random_start:
            return clean.clone()
        if self.norm == "linf":
            away = torch.empty_like(clean).uniform_(-self.epsilon, self.epsilon)
        else:
            # uniform in the ball: a normal direction, a radius whose n-th power is uniform
            away = torch.randn_like(clean)
            dimensions = max(1, clean[0].numel()) if len(clean) else 1
            radius = torch.rand(len(clean), device=clean.device, dtype=clean.dtype) ** (1.0 / dimensions)
            away = away / _lengths(away) * self.epsilon * radius.reshape(-1, *[1] * (clean.dim() - 1))
        return self._project(clean + away, clean)

    def _direction(self, gradient: Tensor) -> Tensor:
        return gradient.sign() if self.norm == "linf" else gradient / _lengths(gradient)

    def _project(self, moved: Tensor, clean: Tensor) -> Tensor:
        away = moved - clean
        if self.norm == "linf":
            away = away.clamp(-self.epsilon, self.epsilon)
        else:
            away = away * (self.epsilon / _lengths(away)).clamp(max=1.0)
        moved = clean + away
        return moved if self.bounds is None else moved.clamp(*self.bounds)


def _lengths(x: Tensor) -> Tensor:
    """The Euclidean length of every sample, at least the smallest normal number, in a shape that divides `x`."""
    lengths: Tensor = torch.linalg.vector_norm(x.flatten(1), dim=1).clamp(min=torch.finfo(x.dtype).tiny)
    return lengths.reshape(-1, *[1] * (x.dim() - 1))


def _attackable(inputs: Any) -> tuple[Any, Tensor]:
    if isinstance(inputs, Tensor) and inputs.is_floating_point():
        return None, inputs
    if isinstance(inputs, Mapping):
        floats = [(k, v) for k, v in inputs.items() if isinstance(v, Tensor) and v.is_floating_point()]
        if len(floats) == 1:
            return floats[0]
    raise DataError(
        "these inputs cannot be attacked",
        given=describe(inputs),
        expected="one floating tensor, or a dict with exactly one",
        do="wrap the model in a module that takes the tensor to be attacked",
    )


def _replaced(inputs: Any, key: Any, tensor: Tensor) -> Any:
    return tensor if key is None else {**inputs, key: tensor}
