"""Relaxed permutations: doubly stochastic matrices on the axes of a model, and the curve loss as their function."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pyalign.matching.birkhoff import project
from pyalign.paths.family import coefficients
from pyalign.paths.losses import mean_loss
from pyalign.paths.point import Loss, Point, digest, runnable
from pyalign.statistics.batches import split
from pyalign.statistics.batchnorm import running_statistics
from pyalign.statistics.forward import respond
from pyalign.statistics.spectral import power_vectors
from pyalign.symmetry import AxisBinding, Kind, SymmetrySpec, Wreath, state_of

__all__ = ["RelaxedObjective", "mixed", "movable"]


def movable(spec: SymmetrySpec) -> tuple[list[str], dict[str, str]]:
    """The groups whose permutations can be relaxed, and why the others cannot."""
    outer = {g.structure.outer for g in spec.groups.values() if isinstance(g.structure, Wreath)}
    free, held = [], {}
    for name, group in spec.groups.items():
        if group.kind is Kind.IDENTITY:
            held[name] = "nothing of it may move"
        elif group.kind.mixes:
            held[name] = "its units mix"
        elif isinstance(group.structure, Wreath) or name in outer:
            held[name] = "its units move in blocks"
        elif any(binding.blocks > 1 for binding in spec.of(name)):
            held[name] = "it is an axis of a grouped convolution"
        else:
            free.append(name)
    return free, held


def mixed(tensor: Tensor, bindings: Sequence[AxisBinding], matrices: Mapping[str, Tensor]) -> Tensor:
    r"""Apply matrices to the axes of a tensor: \(x'_i = \sum_j P_{ij} x_j\) on every axis that a group moves.

    For a permutation matrix this is what the permutation does, on producing and on consuming axes alike.
    """
    for binding in bindings:
        if binding.group not in matrices:
            continue
        matrix = matrices[binding.group].to(tensor.dtype)
        index = binding.positions.reshape(-1).to(tensor.device)
        rows = tensor.index_select(binding.axis, index).movedim(binding.axis, 0)
        blended = (matrix @ rows.reshape(len(matrix), -1)).reshape(rows.shape).movedim(0, binding.axis)
        tensor = tensor.index_copy(binding.axis, index, blended)
    return tensor


class RelaxedObjective:
    r"""The expected loss on the curve \((1 - t) A + t\,P B + \sum_i c_i(t)\,\varphi_i\) over matrices P, one per group.

    This is the curve whose bends lie evenly on the line between its ends, each plus an offset: a change of P moves the
    bends along and does not destroy what was learnt. With one bend of a Bezier curve \(c(t) = 2 t (1 - t)\).

    Args:
        spec: The symmetry.
        model_a: The model that stays.
        model_b: The model that is moved.
        offsets: For every bend \(\varphi_i\) by tensor, in the coordinates of A.
        groups: The groups whose matrices are free.
        kind: "bezier" or "polychain": what the weights \(c_i(t)\) are.
        loss: As for `pyalign.curve`.
        proximity: \(\nu\): the pull towards the identity, where the matrices begin, is \(\|P - I\|^2 / 2 \nu\).
        precision: torch.bfloat16 or torch.float16 for mixed precision; weights and matrices stay as they are.
        seed: Of the draws of t.
    """

    def __init__(
        self, spec: SymmetrySpec, model_a: nn.Module, model_b: nn.Module, offsets: Sequence[Mapping[str, Tensor]],
        groups: Sequence[str], *, kind: str = "bezier", loss: Loss | None = None, proximity: float = 1e3,
        precision: torch.dtype | None = None, seed: int = 0,
    ) -> None:  # fmt: skip
        self.spec, self.offsets, self.groups, self.custom = spec, list(offsets), list(groups), loss
        self.kind, self.precision = kind, precision
        self.a, self.b = state_of(model_a), state_of(model_b)
        self.module = runnable(model_a, {})
        skipped = running_statistics(self.module) | power_vectors(self.module) | set(spec.aliases)
        self._names = [n for n, tensor in self.a.items() if tensor.is_floating_point() and n not in skipped]
        device = next(iter(self.a.values())).device
        self.matrices = {
            name: torch.eye(spec.groups[name].size, device=device, requires_grad=True) for name in self.groups
        }
        self.anchors = {name: matrix.detach().clone() for name, matrix in self.matrices.items()}
        self.proximity = proximity
        self.generator = torch.Generator().manual_seed(seed)
        self.t: float | None = None

    @property
    def parameters(self) -> list[Tensor]:
        """The matrices."""
        return list(self.matrices.values())

    def loss(self, batch: Any, index: int, scale: float) -> Tensor:
        """The loss of a batch at a new t."""
        inputs, targets = split(batch)
        t = self.t = float(torch.rand((), generator=self.generator, dtype=torch.float64))
        return self.at(t, inputs, targets, index, self.matrices)

    def at(self, t: float, inputs: Any, targets: Any, index: int, matrices: Mapping[str, Tensor]) -> Tensor:
        """The loss of inputs at t with these matrices."""
        values = {}
        bends = coefficients(self.kind, len(self.offsets) + 2, t)[1:-1]
        parts = self.spec.stack_of
        stacks = {
            name: mixed(torch.stack([self.b[part] for part in self.spec.stacks[name]]), self.spec.on(name), matrices)
            for name in {parts[n][0]: None for n in self._names if n in parts}
        }
        for name in self._names:
            stack, place = parts.get(name, ("", 0))
            moved = stacks[stack][place] if stack else mixed(self.b[name], self.spec.on(name), matrices)
            point = (1.0 - t) * self.a[name] + t * moved
            for weight, offset in zip(bends, self.offsets, strict=True):
                point = point + weight * offset[name] if name in offset else point
            values[name] = point
        with torch.autocast(next(iter(values.values())).device.type, self.precision, self.precision is not None):
            return mean_loss(respond(Point(self.module, values), inputs, index), targets, self.custom, index)

    @torch.no_grad()
    def stepped(self, lr: float) -> None:
        """The proximal pull, then the projection onto the Birkhoff polytope."""
        share = lr / self.proximity
        for name, matrix in self.matrices.items():
            matrix.add_(self.anchors[name], alpha=share).div_(1.0 + share)
            matrix.copy_(project(matrix))

    def tensors(self) -> dict[str, Tensor]:
        """The matrices, and the module's buffers, which some layers change as they run."""
        buffers = {f"buffer.{name}": buffer for name, buffer in self.module.named_buffers()}
        return {**{f"matrix.{name}": matrix for name, matrix in self.matrices.items()}, **buffers}

    def record(self) -> dict[str, Any]:
        """What identifies the objective."""
        states = [digest([state[name] for name in self._names]) for state in (self.a, self.b)]
        curve = {"kind": self.kind, "bends": len(self.offsets)}
        return {"groups": self.groups, "proximity": self.proximity, "ends": states, **curve}
