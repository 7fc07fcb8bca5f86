"""Networks drawn at random from the operators of convolutional nets: no hand wrote them, so no table knows them."""

from __future__ import annotations

import random

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTHS = (4, 6, 8, 12)
ACTIVATIONS = (F.relu, torch.tanh, F.gelu, F.silu, F.leaky_relu, torch.sigmoid, torch.abs)
KINDS = ["conv", "grouped", "depthwise", "norm", "act", "add", "mul", "cat", "cut", "shuffle", "excite", "pool"]
KINDS += ["turn", "scale", "repeat", "conv", "norm", "act"]


class RandomNet(nn.Module):
    """`steps` operations on a growing list of values (batch, width, time); the last ones are read by a classifier."""

    def __init__(self, seed: int, steps: int = 14) -> None:
        super().__init__()
        self.draw = random.Random(seed)
        self.layers, self.plan, self.widths = nn.ModuleList(), [], [3]
        self._layer("conv", 0, nn.Conv1d(3, 8, 3, padding=1), 8)
        for _ in range(steps):
            self._step()
        self.last = [len(self.widths) - k for k in (1, 2, 3)]
        self.head = nn.Linear(sum(self.widths[k] for k in self.last), 4)

    def _layer(self, kind: str, source: int, layer: nn.Module, width: int) -> None:
        self.plan.append((kind, source, len(self.layers)))
        self.layers.append(layer)
        self.widths.append(width)

    def _step(self) -> None:
        draw, source = self.draw, self.draw.randrange(max(1, len(self.widths) - 4), len(self.widths))
        width = self.widths[source]
        partners = [k for k in range(1, len(self.widths)) if self.widths[k] == width]
        kind = draw.choice(KINDS)
        if kind == "conv":
            out = draw.choice(WIDTHS)
            self._layer(kind, source, nn.Conv1d(width, out, 3, padding=1), out)
        elif kind == "grouped":
            groups = draw.choice([g for g in (2, 3, 4) if width % g == 0] or [1])
            out = groups * draw.choice((1, 2, 3))
            self._layer("conv", source, nn.Conv1d(width, out, 1, groups=groups), out)
        elif kind == "depthwise":
            self._layer("conv", source, nn.Conv1d(width, width, 3, padding=1, groups=width), width)
        elif kind == "norm":
            choices = [nn.BatchNorm1d(width), nn.GroupNorm(1, width), nn.InstanceNorm1d(width, affine=True)]
            choices += [nn.GroupNorm(2, width)] if width % 2 == 0 else []
            self._layer("norm", source, draw.choice(choices), width)
        elif kind == "excite":
            self._layer(kind, source, nn.Sequential(nn.Linear(width, 5), nn.ReLU(), nn.Linear(5, width)), width)
        elif kind == "scale":
            self._layer(kind, source, nn.ParameterList([torch.ones(width, 1)]), width)
        elif kind in ("add", "mul", "cat") or width == 1:
            kind = "add" if width == 1 else kind
            other = draw.choice(partners)
            self.plan.append((kind, source, other))
            self.widths.append(2 * width if kind == "cat" else width)
        elif kind == "cut":
            at = draw.randrange(1, width)
            self.plan.append((kind, source, at))
            self.widths.append(width - at)
        else:
            self.plan.append((kind, source, draw.randrange(len(ACTIVATIONS))))
            self.widths.append(2 * width if kind == "repeat" else width)

    def forward(self, x: Tensor) -> Tensor:
        values = [x]
        for kind, source, argument in self.plan:
            values.append(self._run(kind, values, values[source], argument))
        return self.head(torch.cat([values[k].mean(-1) for k in self.last], 1))

    def _run(self, kind: str, values: list[Tensor], x: Tensor, argument: int) -> Tensor:
        if kind in ("conv", "norm"):
            return self.layers[argument](x)
        if kind == "excite":
            return x * torch.sigmoid(self.layers[argument](x.mean(-1)))[..., None]
        if kind == "scale":
            return x * self.layers[argument][0]
        if kind == "act":
            return ACTIVATIONS[argument](x)
        if kind == "add":
            return x + values[argument]
        if kind == "mul":
            return x * values[argument]
        if kind == "cat":
            return torch.cat((x, values[argument]), 1)
        if kind == "cut":
            return x[:, argument:]
        if kind == "shuffle":
            groups = 2 if x.shape[1] % 2 == 0 else 1
            return x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)
        if kind == "pool":
            return F.max_pool1d(x, 3, 1, 1)
        if kind == "turn":
            return F.layer_norm(x.transpose(1, 2), x.shape[1:2]).transpose(1, 2)
        return x.repeat_interleave(2, dim=1)
