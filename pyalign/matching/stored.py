"""Two checkpoints as states of one architecture: checked by their headers, tensors read one at a time."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pyalign.errors import InputError, MismatchError
from pyalign.io import StateReader
from pyalign.io.fit import differences
from pyalign.io.naming import Naming, naming
from pyalign.matching.pair import moved_by
from pyalign.symmetry import SymmetrySpec, Transform, state_of
from pyalign.symmetry.foldable import FoldPlan
from pyalign.symmetry.spec import variance_power

__all__ = ["Checkpoint", "apart", "check_configurations", "check_dtypes", "checkpoint", "untied_config"]

_FLOATS = ("float64", "float32", "float16", "bfloat16")
_HALF = ("float16", "bfloat16")


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """The weights of a folder.

    Args:
        folder: The folder.
        names: How its tensors become those of the architecture.
        state: The weights under the names of the architecture, tied ones under each of their names.
        kept: Names (of the architecture) under which something is stored.
    """

    folder: Path
    names: Naming
    state: StateReader
    kept: tuple[str, ...]

    def folded(self, plan: FoldPlan) -> StateReader:
        """The weights after folding, each tensor in its own dtype, when it is read."""
        state = self.state

        def fetch(name: str) -> Tensor:
            tensor = plan.folded(name, state, self._precision(name))
            return tensor.to(getattr(torch, state.entry(name).dtype)) if name in plan.touched else tensor

        return StateReader(state.entries, fetch) if plan.scales else state

    def moved(self, spec: SymmetrySpec, elements: Mapping[str, Transform], plan: FoldPlan) -> StateReader:
        """The weights as the folder stores them, folded and moved when they are read, and rounded once."""
        state = self.state
        stacks: dict[str, Tensor] = {}

        def fetch(name: str) -> Tensor:
            if name not in spec.stack_of:
                return moved(name, plan.folded(name, state, self._precision(name)))
            stack, place = spec.stack_of[name]
            if stack not in stacks:
                for other in [n for n in stacks if n.partition("*")[0] != stack.partition("*")[0]]:
                    del stacks[other]
                parts = [plan.folded(n, state, self._precision(n)) for n in spec.stacks[stack]]
                stacks[stack] = moved(stack, torch.stack(parts)).to(self._dtype(name))
            return stacks[stack][place]

        def moved(name: str, tensor: Tensor) -> Tensor:
            return moved_by(elements, tensor, spec.on(name), variance_power(name))

        names = dict.fromkeys((*self.kept, *plan.untied))
        entries = {name: state.entry(name) for name in names}
        return self.names.stored(StateReader(entries, lambda name: fetch(name).to(self._dtype(name))))

    def _dtype(self, name: str) -> torch.dtype:
        dtype: torch.dtype = getattr(torch, self.state.entry(name).dtype)
        return dtype

    def _precision(self, name: str) -> torch.dtype:
        return torch.float32 if self.state.entry(name).dtype in _HALF else torch.float64


def checkpoint(model: nn.Module, stored: StateReader, folder: Path) -> Checkpoint:
    """The weights of a folder, checked to be those of an architecture from the headers of its files.

    A tied tensor may be stored under any of its names, or all.

    Args:
        model: The architecture, without weights.
        stored: The folder's tensors.
        folder: For errors.

    Raises:
        MismatchError: Tensors are missing, surplus, of another shape or no floating numbers, or differ where the
            configuration ties them.
    """
    names, state = naming(model, stored.entries), state_of(model)
    held = names.held(stored)
    sharing: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        sharing.setdefault(id(parameter), []).append(name)
    tied = {name: group for group in sharing.values() for name in group}
    where = {n: next((m for m in (n, *tied.get(n, ())) if m in held.entries), n) for n in state}
    shapes = {n: held.entry(m).shape for n, m in where.items() if m in held}
    beside = [n for n in held.entries if n not in state and not _ignored(model, n)]
    found = differences(
        shapes | {n: held.entry(n).shape for n in beside}, {n: tuple(t.shape) for n, t in state.items()}
    )
    if found:
        raise MismatchError(
            f"the weights of {folder} are not those of the architecture in its config.json",
            given=found,
            expected=f"the {len(state)} tensors of {type(model).__name__}",
            do="load the model with transformers and save it again, so that names and shapes are those of this version",
        )
    wrong = [n for n, t in state.items() if t.is_floating_point() and held.entry(where[n]).dtype not in _FLOATS]
    if wrong:
        raise MismatchError(
            f"weights of {folder} are no floating numbers that could be compared",
            given=f"{wrong[0]!r} in {held.entry(where[wrong[0]]).dtype} ({len(wrong)} such tensors)",
            expected=", ".join(_FLOATS),
            do="align the checkpoint before it was quantised",
        )
    for group in sharing.values():
        _check_tied([n for n in group if n in held.entries], held, folder)
    entries = {n: held.entry(m) for n, m in where.items()}
    beside = [n for n in held.entries if n not in state]
    known = StateReader({**entries, **{n: held.entry(n) for n in beside}}, lambda n: held[where.get(n, n)])
    return Checkpoint(folder, names, known, tuple(held.entries))


def _ignored(model: nn.Module, name: str) -> bool:
    """Whether transformers ignores a tensor of this name (tables that older versions saved)."""
    patterns = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()
    return any(re.search(pattern, name) for pattern in (*patterns, r"rotary_emb\.inv_freq$"))


def _check_tied(names: list[str], stored: StateReader, folder: Path) -> None:
    if any(not torch.equal(stored[names[0]], stored[n]) for n in names[1:]):
        raise MismatchError(
            f"{folder} holds two different tensors where its configuration ties them",
            given=" and ".join(repr(n) for n in names),
            expected="equal tensors, or tie_word_embeddings false",
            do="set tie_word_embeddings in config.json to what the model was trained with",
        )


def check_dtypes(a: Checkpoint, b: Checkpoint) -> None:
    """Refuse two checkpoints with tensors of different dtypes."""
    names = [n for n in a.state if n in b.state]
    differ = [n for n in names if a.state.entry(n).dtype != b.state.entry(n).dtype]
    if differ:
        raise MismatchError(
            "the checkpoints have tensors of different dtypes",
            given=f"{differ[0]!r} is {b.state.entry(differ[0]).dtype} in B and {a.state.entry(differ[0]).dtype} in A "
            f"({len(differ)} such tensors)",
            expected="equal dtypes",
            do="save both checkpoints in one dtype",
        )


def check_configurations(folder_a: Path, folder_b: Path) -> None:
    """What of two configurations decides the symmetry and cannot be seen in shapes must agree."""
    a, b = (json.loads((folder / "config.json").read_text(encoding="utf-8")) for folder in (folder_a, folder_b))
    differ = [k for k in a if ("head" in k or k == "model_type") and a[k] != b.get(k, a[k])]
    if a["architectures"][0] != b["architectures"][0]:
        differ.insert(0, "architectures")
    if differ:
        raise MismatchError(
            "the checkpoints are of different architectures",
            given="; ".join(f"{k} is {b.get(k)} in B and {a[k]} in A" for k in differ[:3]),
            expected="equal configurations",
            do="align two checkpoints of one architecture and width",
        )


def apart(out: Path, *others: Path) -> None:
    """Refuse an output that is an input, or another output."""
    if any(out.resolve() == other.resolve() for other in others):
        raise InputError(
            "the output is one of the inputs, or both outputs are one",
            given=str(out),
            expected="another folder",
            do="choose a new folder",
        )


def untied_config(folder: Path) -> str:
    """The config.json of a folder, saying that the output matrix is not tied to the embedding."""
    content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    key = "tie_word_embeddings"

    def parted(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: False if k == key else parted(v) for k, v in value.items()}
        return [parted(v) for v in value] if isinstance(value, list) else value

    return json.dumps({**parted(content), key: False}, indent=2, sort_keys=True) + "\n"
