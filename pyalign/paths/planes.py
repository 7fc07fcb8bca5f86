"""The plane through three models: coordinates and weights (Garipov et al. 2018, section 3.1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from pyalign.errors import InputError
from pyalign.paths.blend import BLENDED, Blend
from pyalign.symmetry.calls import state_of
from pyalign.symmetry.copies import copy_of

__all__ = ["Plane"]

CHUNK = 1 << 22
Coordinates = tuple[float, float]


class Plane:
    r"""The models \(\theta(x, y) = \theta_a + x\,u + y\,v\), u and v orthonormal, through three anchors.

    \(u = (\theta_b - \theta_a) / \|\theta_b - \theta_a\|\), and v is \(\theta_c - \theta_a\) made orthogonal to u and
    normalised, over all parameters. The anchors are the given models bit by bit. Buffers are blended like weights;
    BatchNorm statistics must be re-estimated.

    Args:
        a: The model at (0, 0).
        b: The model at (|b - a|, 0).
        c: Any third model off the line through the two, such as a point of a curve between them.

    Raises:
        MismatchError: The architectures differ; the tensors are named.
        NonFiniteError: A weight is NaN or infinite; tensor and model are named.
        InputError: The three lie on one line.

    Source:
        Garipov et al. 2018 (arXiv 1802.10026), section 3.1.

    Example:
        >>> models = [nn.Linear(2, 1) for _ in range(3)]
        >>> plane = Plane(*models)
        >>> torch.equal(plane.at(*plane.anchors[2]).weight, models[2].weight)
        True
    """

    def __init__(self, a: nn.Module, b: nn.Module, c: nn.Module) -> None:
        self._module = a
        states = [state_of(model) for model in (a, b, c)]
        self._blend = Blend(states, ("model a", "model b", "model c"))
        self._blend.check()
        parameters = {name for name, _ in a.named_parameters(remove_duplicate=False)}
        self._names = [
            name for name, tensor in states[0].items()
            if name in parameters and name not in self._blend.tied and (tensor.dtype in BLENDED or tensor.is_complex())
        ]  # fmt: skip
        self._states = states
        products = self._products(states[1]), self._products(states[2])
        self._width = products[0][0] ** 0.5
        across = products[1][0] / self._width if self._width else 0.0
        height = max(0.0, products[1][1] - across**2) ** 0.5
        if not (self._width and height > 1e-6 * products[1][1] ** 0.5):
            raise InputError(
                "the three models lie on one line and span no plane",
                given=f"distances {self._width:.3g} and {products[1][1] ** 0.5:.3g} from model a, height {height:.3g}",
                expected="three different models that are not on one line",
                do="take a point of a curve that was trained, such as curve.at(0.5), as the third",
            )
        self.anchors: tuple[Coordinates, Coordinates, Coordinates] = ((0.0, 0.0), (self._width, 0.0), (across, height))

    def weights(self, x: float, y: float) -> tuple[float, float, float]:
        """The weights of a, b and c at a point; they sum to 1."""
        corners = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
        if (x, y) in self.anchors:
            return corners[self.anchors.index((x, y))]
        third = y / self.anchors[2][1]
        second = (x - third * self.anchors[2][0]) / self._width
        return (1.0 - second - third, second, third)

    def coordinates(self, state: Mapping[str, Tensor]) -> Coordinates:
        """Where the point of the plane lies that is nearest to a state."""
        along, over = self._products(state)
        x = along / self._width
        return x, (over - x * self.anchors[2][0]) / self.anchors[2][1]

    def at(self, x: float, y: float) -> nn.Module:
        """A new module at a point."""
        model = copy_of(self._module)
        self.into(x, y, model)
        return model

    def into(self, x: float, y: float, model: nn.Module) -> None:
        """Write the weights and buffers at a point into `model`, in place."""
        self._blend.into(self.weights(x, y), model)

    def _products(self, state: Mapping[str, Tensor]) -> Coordinates:
        """Inner products of a state with b and with c, all seen from a."""
        total = torch.zeros(2, dtype=torch.float64)
        for name in self._names:
            parts = [_flat(tensors[name]) for tensors in (self._states[0], self._states[1], self._states[2], state)]
            for start in range(0, len(parts[0]), CHUNK):
                a, b, c, other = (part[start : start + CHUNK].to(parts[0].device).double() for part in parts)
                total += torch.stack((torch.dot(other - a, b - a), torch.dot(other - a, c - a))).cpu()
        return float(total[0]), float(total[1])


def _flat(tensor: Tensor) -> Tensor:
    return (torch.view_as_real(tensor) if tensor.is_complex() else tensor).reshape(-1)


def grid(anchors: Sequence[Coordinates], resolution: int, margin: float) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Equidistant columns and rows around the anchors, `margin` times their extent beyond them on every side."""
    axes = []
    for axis in (0, 1):
        low, high = min(p[axis] for p in anchors), max(p[axis] for p in anchors)
        first, span = low - margin * (high - low), (1.0 + 2.0 * margin) * (high - low)
        axes.append(tuple(first + span * i / (resolution - 1) for i in range(resolution)))
    return axes[0], axes[1]
