r"""Silent units take a share of a sounding one: semi-permutations (Theus et al. 2025, section 2, class S2).

Where \(f(\alpha x) = \alpha f(x)\) for \(\alpha > 0\), a unit may be split: \(\tilde P W_1\) with columns that sum to
one, and \(W_2 \, 1[\tilde P > 0]^T\), is the same function.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pyalign import engine
from pyalign.matching.problem import check_finite, check_same_architecture
from pyalign.symmetry import AxisBinding, Flat, Group, Role, Side, SymmetrySpec, derive, state_of
from pyalign.symmetry.copies import copy_of
from pyalign.symmetry.widen import difference

__all__ = ["Sharing", "share"]

_SAME = 1e-9
"""Largest relative change of the outputs, in float64, that rounding explains."""


@dataclass(frozen=True, eq=False)
class Sharing:
    """A model whose silent units sound.

    Args:
        model: A copy of the model, of the same function.
        filled: For every group with silent units how many of them got a share, and how many there were.
        before: Squared distance to model A, over the tensors that are matched.
        after: The same afterwards.
    """

    model: nn.Module
    filled: dict[str, tuple[int, int]]
    before: float
    after: float


@torch.no_grad()
def share(model_a: nn.Module, model_b: nn.Module, example_inputs: Any, *, spec: SymmetrySpec | None = None) -> Sharing:
    """Split units of a widened model into those of its slots that are silent, so that it comes nearer to model A.

    Only units behind positively homogeneous activations (ReLU, LeakyReLU) or none can be split. The slots of each group
    choose units by linear assignment, in rounds, as long as the distance falls; a unit in two slots keeps what it
    writes to either and divides what it reads by the share that is best for both.

    Args:
        model_a: The wide model.
        model_b: `pyalign.symmetry.widen(narrow, model_a).model`, aligned to `model_a`.
        example_inputs: One batch, as for `derive`.
        spec: The symmetry of the wide architecture; derived when None.

    Returns:
        The model, and how far it came.

    Raises:
        MismatchError: The models are of different architecture.

    Source:
        Theus et al. 2025 (arXiv 2506.22712), section 2 (semi-permutations) and appendix.

    Example:
        >>> from pyalign.symmetry import widen
        >>> torch.manual_seed(0)  # doctest: +ELLIPSIS
        <...>
        >>> small, large = (nn.Sequential(nn.Linear(2, n), nn.ReLU(), nn.Linear(n, 2)) for n in (3, 6))
        >>> found, x = share(large, widen(small, large, torch.randn(4, 2)).model, torch.randn(4, 2)), torch.randn(6, 2)
        >>> found.after < found.before, torch.allclose(found.model(x), small(x), atol=1e-5)
        (True, True)
    """
    state_a, state_b = state_of(model_a), state_of(model_b)
    check_same_architecture(state_a, state_b)
    check_finite(state_a, "A")
    check_finite(state_b, "B")
    spec = derive(model_a, example_inputs) if spec is None else spec
    stacked_a, matched = spec.stacked(state_a), dict.fromkeys(b.tensor for b in spec.bindings if b.role is Role.MATCHED)
    a = {n: stacked_a[n].double() for n in matched}
    model = copy_of(model_b).double()
    b = {spec.aliases.get(n, n): t for n, t in spec.stacked(state_of(model)).items()}

    def error() -> float:
        _unstack(spec, b, state_of(model))
        return difference(model_b, model, example_inputs)

    before, filled = _distance(a, b), {}
    for group in spec.groups.values():
        if group.kind.scales and isinstance(group.structure, Flat) and not _inside(spec, group):
            silent = _silent(spec, group, b)
            if silent.any():
                done = _share_group(spec, group, silent, a, b, error)
                filled[group.name] = (done, int(silent.sum()))
    _unstack(spec, b, state_of(model))
    after, answer, found = _distance(a, b), copy_of(model_b), state_of(model)
    for name, tensor in state_of(answer).items():
        tensor.copy_(found[name])
    return Sharing(answer, filled, before, after)


def _share_group(
    spec: SymmetrySpec,
    group: Group,
    silent: Tensor,
    a: Mapping[str, Tensor],
    b: Mapping[str, Tensor],
    error: Callable[[], float],
) -> int:
    """Fill the silent slots of one group, all or as many as help; none where the function does not allow it."""
    names = dict.fromkeys(x.tensor for x in spec.of(group.name))
    start, silent = {n: b[n].clone() for n in names}, silent.clone()
    count = 0
    while bool(silent.any()):
        slots, units, shares = _round(spec, group, silent, a, b)
        if not len(slots):
            break
        kept, least = {n: b[n].clone() for n in names}, _distance(a, b)
        for binding in spec.of(group.name):
            _split(binding, b[binding.tensor], slots, units, shares)
        if _distance(a, b) >= least:  # the same group on two axes of a tensor: the table saw only one at a time
            _restore(b, kept)
            break
        silent[slots] = False
        count += len(slots)
    if count and error() > _SAME:
        _restore(b, start)
        return 0
    return count


def _round(
    spec: SymmetrySpec, group: Group, silent: Tensor, a: Mapping[str, Tensor], b: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Silent slots, the unit that each takes a share of, and the share: at most one slot for every unit."""
    read, written = _products(spec, group, a, b, Side.COVARIANT), _products(spec, group, a, b, None)
    empty, units = (which.nonzero()[:, 0].to(read[0].device) for which in (silent, ~silent))
    cross, own = read[0][empty][:, units], read[0].diagonal()[units]
    size = read[1][units].clamp(min=1e-300)
    shares = ((cross - own + size) / (2 * size)).clamp(0.0, 1.0)
    # |u_i|^2 + |u_j - w|^2 before, |u_i - s w|^2 + |u_j - (1 - s) w|^2 after; what is written was 0 and becomes V_j.
    gain = 2 * shares * (cross - own) + size * (1 - shares**2 - (1 - shares) ** 2)
    gain += 2 * written[0][empty][:, units] - written[1][units]
    perm = engine.linear_assignment(gain, maximize=True).perm
    assert isinstance(perm, Tensor)
    chosen = (perm >= 0).nonzero()[:, 0]
    best = gain[chosen, perm[chosen]]
    share = shares[chosen, perm[chosen]]
    good = (best > 0) & (share > 0) & (share < 1)
    chosen = chosen[good]
    return empty[chosen].cpu(), units[perm[chosen]].cpu(), share[good].cpu()


def _products(
    spec: SymmetrySpec, group: Group, a: Mapping[str, Tensor], b: Mapping[str, Tensor], side: Side | None
) -> tuple[Tensor, Tensor]:
    """Slots of A times units of B (n, n), squares of the units (n,): of what they read, or (None) of all the rest."""
    device = b[spec.of(group.name)[0].tensor].device
    table = torch.zeros(group.size, group.size, dtype=torch.float64, device=device)
    squares = torch.zeros(group.size, dtype=torch.float64, device=device)
    for binding in spec.of(group.name):
        if binding.tensor in a and (binding.side is side or (side is None and binding.side is not Side.COVARIANT)):
            rows = binding.unfold(b[binding.tensor])
            table += binding.unfold(a[binding.tensor]) @ rows.T
            squares += rows.square().sum(1)
    return table, squares


def _split(binding: AxisBinding, tensor: Tensor, slots: Tensor, units: Tensor, shares: Tensor) -> None:
    """Copy units into slots along one axis; what they read is divided between the two."""
    here = binding.positions.to(tensor.device)
    part = tensor.index_select(binding.axis, here[units].reshape(-1))
    if binding.side is Side.COVARIANT:
        factors = shares.to(tensor).repeat_interleave(here.shape[1])
        factors = factors.reshape([-1 if d == binding.axis else 1 for d in range(tensor.dim())])
        tensor.index_copy_(binding.axis, here[units].reshape(-1), part * (1 - factors))
        part = part * factors
    tensor.index_copy_(binding.axis, here[slots].reshape(-1), part)


def _silent(spec: SymmetrySpec, group: Group, b: Mapping[str, Tensor]) -> Tensor:
    """The units that read nothing and write nothing."""
    sound = torch.zeros(group.size).double()
    for binding in spec.of(group.name):
        if binding.side.power:
            sound += binding.unfold(b[binding.tensor]).abs().sum(1).cpu()
    return sound == 0


def _inside(spec: SymmetrySpec, group: Group) -> bool:
    """Whether other groups lie within the units of a group, or a grouped convolution needs its blocks equal."""
    outer = {getattr(g.structure, "outer", None) for g in spec.groups.values()}
    return group.name in outer or any(binding.blocks > 1 for binding in spec.of(group.name))


def _distance(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    return sum(float((tensor - b[name]).square().sum()) for name, tensor in a.items())


def _unstack(spec: SymmetrySpec, b: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Write the tensors of experts in lists back to where they came from."""
    for name, parts in spec.stacks.items():
        for part, tensor in zip(parts, b[name], strict=True):
            state[part].copy_(tensor)


def _restore(b: Mapping[str, Tensor], kept: Mapping[str, Tensor]) -> None:
    for name, tensor in kept.items():
        b[name].copy_(tensor)
