"""Which experts tokens are sent to: the numbers that come out of the router's choice, seen while a model runs."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pyalign.statistics.batches import checked, split
from pyalign.statistics.forward import evaluating, respond
from pyalign.statistics.padding import Mask, padding_of
from pyalign.symmetry import SymmetrySpec, Wreath
from pyalign.symmetry.locate import ModuleScope

__all__ = ["common_choices", "expert_counts", "expert_layers_of", "selected_experts"]

_CHOICES = {"topk": 1, "sort": 1, "argsort": 0, "max": 1, "argmax": 0}
"""Operators that choose along their axis, and which of their results holds numbers."""


def expert_layers_of(spec: SymmetrySpec) -> dict[str, str]:
    """The module around each layer of experts, by the group that reorders its experts."""
    found = {}
    for group in spec.groups.values():
        structure = group.structure
        own = all(b.blocks > 1 for b in spec.of(group.name)) and bool(spec.of(group.name))
        if isinstance(structure, Wreath) and own and structure.outer in spec.groups:
            paths = [b.tensor.partition("*")[0].split(".")[:-1] for b in spec.of(structure.outer)]
            shared = takewhile(lambda pieces: len(set(pieces)) == 1, zip(*paths, strict=False))
            found[structure.outer] = ".".join(pieces[0] for pieces in shared)
    return found


def selected_experts(
    model: nn.Module, spec: SymmetrySpec, data: Iterable[Any], mask: Mask = "attention_mask"
) -> dict[str, Tensor]:
    """The numbers of the experts that every token is sent to.

    Args:
        model: The model; runs in evaluation mode and is left as found.
        spec: Its symmetry, with the order of its experts.
        data: Batches, read once.
        mask: Where a batch carries its padding mask, see `padding_of`; tokens that are padding are left out.

    Returns:
        Per layer of experts the numbers, shape (tokens, chosen), int64, in the order of the data; layers in which every
        token goes to all experts are missing.
    """
    scope = ModuleScope(model)
    watch = _Watch(scope, {name: (place, spec.groups[name].size) for name, place in expert_layers_of(spec).items()})
    with evaluating(model):
        for number, batch in enumerate(checked(data)):
            watch.last.clear()
            inputs = split(batch)[0]
            padding = padding_of(inputs, mask)
            kept = None if padding is None else padding.reshape(-1).cpu()
            with scope, watch:
                respond(model, inputs, number)
            for name, chosen in watch.last.items():
                rows = chosen.reshape(-1, chosen.shape[-1]).cpu()
                tokens = slice(None) if kept is None or len(kept) != len(rows) else kept
                watch.seen.setdefault(name, []).append(rows[tokens])
    return {name: torch.cat(parts) for name, parts in watch.seen.items()}


def expert_counts(selected: Tensor, experts: int) -> Tensor:
    """How many tokens went to each expert, shape (experts,): zero for one that is dead on the data.

    Example:
        >>> expert_counts(torch.tensor([[0, 2], [2, 3]]), 4).tolist()
        [1, 0, 2, 1]
    """
    return torch.bincount(selected.reshape(-1), minlength=experts)


def common_choices(one: Tensor, two: Tensor, experts: int) -> Tensor:
    """How many tokens go to expert i in one model and to expert j in another, shape (experts, experts), int64.

    Args:
        one: What the first model chose, shape (tokens, chosen), int64.
        two: What the second model chose for the same tokens, shape (tokens, chosen), int64.
        experts: How many there are in either.

    Example:
        >>> common_choices(torch.tensor([[0], [1]]), torch.tensor([[1], [1]]), 2).tolist()
        [[0, 1], [0, 1]]
    """
    pairs = one.unsqueeze(2) * experts + two.unsqueeze(1)
    return torch.bincount(pairs.reshape(-1), minlength=experts * experts).reshape(experts, experts)


class _Watch(TorchDispatchMode):
    """Keeps the last choice among all experts of a layer: earlier ones may be among groups of experts."""

    def __init__(self, scope: ModuleScope, layers: dict[str, tuple[str, int]]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.scope, self.layers = scope, layers
        self.last: dict[str, Tensor] = {}
        self.seen: dict[str, list[Tensor]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operator, and look at what it chose."""
        out = func(*args, **(kwargs or {}))
        which = _CHOICES.get(func._schema.name.split("::")[1])
        result = out[which] if which is not None and isinstance(out, (tuple, list)) and which < len(out) else out
        if which is None or not isinstance(result, Tensor) or result.is_floating_point() or not args[0].dim():
            return out
        here = self.scope.current[0]
        for name, (place, size) in self.layers.items():
            inside = not place or here == place or here.startswith(f"{place}.")
            if inside and args[0].shape[-1] == size and args[0].is_floating_point():
                kept = result.shape[:-1] == args[0].shape[:-1]
                self.last[name] = result.detach() if kept else result.detach().unsqueeze(-1)
        return out
