"""Tensors under the names of a file and under those of a module, where one is not simply the other.

Files of transformers keep names from older versions, and parts that a module holds as one tensor (every expert's
weights by itself, gates apart from ups). transformers says how a file becomes a module by a list of renamings and of
conversions for each architecture; they are taken from there. A conversion is only trusted on the way back if what it
gives is again converted to exactly what was to be written.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pyalign.errors import MismatchError
from pyalign.io.reader import Entry, StateReader
from pyalign.symmetry.calls import state_of

__all__ = ["Naming", "entries_of", "naming"]

Read = Callable[[str], Tensor]


@dataclass(frozen=True)
class Part:
    """Tensors of a file that together make up tensors of a module.

    Args:
        stored: Their names in the file, in the order in which the conversion takes them.
        held: Names in the module.
        converter: What transformers converts them with; None where one tensor only has two names.
        patterns: For each name of `stored` the pattern by which the converter knows it.
    """

    stored: tuple[str, ...]
    held: tuple[str, ...]
    converter: Any = None
    patterns: tuple[str, ...] = ()


class Naming:
    """Which tensors of a file make up which tensors of a module; made by `naming`.

    Args:
        model: The module.
        parts: Everything that is stored.
        stored: What is known of the tensors in the file.
    """

    def __init__(self, model: nn.Module, parts: tuple[Part, ...], stored: Mapping[str, Entry]) -> None:
        self.model, self.parts, self._stored = model, parts, dict(stored)
        self._in_file = {name: part for part in parts for name in part.stored}
        self._in_module = {name: part for part in parts for name in part.held}

    @property
    def plain(self) -> bool:
        """Whether every tensor has one name."""
        return all(part.converter is None and part.stored == part.held for part in self.parts)

    def held(self, reader: StateReader) -> StateReader:
        """A file's tensors under the names of the module, each put together when it is asked for.

        Raises:
            MismatchError: Parts of a tensor do not fit each other (from the headers).
        """
        entries = {name: entry for part in self.parts for name, entry in self._entries(part).items()}
        fetch = _by_part(self._in_module, lambda part: self._converted(part, reader.__getitem__))
        tied = {name: stored for name, stored in reader.tied.items() if stored in entries}
        return StateReader(entries, fetch, tied=tied)

    def stored(self, state: Mapping[str, Tensor]) -> StateReader:
        """A module's tensors under the names of the file; tensors that the file does not know keep theirs.

        Names that belong together follow each other, so that nothing has to be taken apart more than once.
        """
        fetch = _by_part(self._in_file, lambda part: self._reverted(part, state))
        entries = {name: self._stored[name] for part in self.parts for name in part.stored}
        entries |= {n: e for n, e in entries_of(state).items() if n not in self._in_module}
        return StateReader(entries, lambda name: fetch(name) if name in self._in_file else state[name])

    def _entries(self, part: Part) -> dict[str, Entry]:
        known = [self._stored[name] for name in part.stored]
        if part.converter is None:
            return dict.fromkeys(part.held, known[0])
        found = self._converted(part, lambda name: _blank(self._stored[name]))
        dtypes = sorted({entry.dtype for entry in known})
        made: dict[str, Entry] = {}
        for name, tensor in found.items():
            size = math.prod(tensor.shape) * sum(e.nbytes for e in known) // max(sum(map(_count, known)), 1)
            made[name] = Entry(tuple(tensor.shape), size, known[0].file, " and ".join(dtypes))
        return made

    def _converted(self, part: Part, read: Read) -> dict[str, Tensor]:
        """The tensors of the module that a part makes up."""
        if part.converter is None:
            return dict.fromkeys(part.held, read(part.stored[0]))
        converter = copy.deepcopy(part.converter)
        for name, pattern in zip(part.stored, part.patterns, strict=True):
            converter.add_tensor(part.held[0], name, pattern, _later(read, name))
        with _failing(part):
            return _only(converter.convert(part.held[0], model=self.model, config=_config(self.model)))

    def _reverted(self, part: Part, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of the file that a part is made of, out of those of the module."""
        if part.converter is None:
            return {part.stored[0]: state[part.held[0]]}
        wanted = {name: state[name] for name in part.held}
        with _failing(part):
            back = part.converter.reverse_transform()
            renamed = part.held[0]
            for number, name in enumerate(wanted):
                key, pattern = back.rename_source_key(name)
                renamed = key if number == 0 else renamed
                back.add_tensor(renamed, name, pattern, _later(wanted.__getitem__, name))
            found = _only(back.convert(renamed, model=self.model, config=_config(self.model)))
        if len(found) == len(part.stored):
            result = dict(zip(part.stored, found.values(), strict=True))  # both are in the order of the patterns
            again = self._converted(part, result.__getitem__)
            if all(torch.equal(again[name], tensor) for name, tensor in wanted.items()):
                return result
        raise MismatchError(
            f"{part.held[0]!r} cannot be taken apart again as it is stored",
            given=f"{len(found)} tensors that do not make it up",
            expected=", ".join(part.stored[:4]),
            do="load the model with transformers and save it again, so that names are those of this version",
        )


def naming(model: nn.Module, stored: Mapping[str, Entry]) -> Naming:
    """How the tensors of a file become those of a module.

    Args:
        model: The module, of transformers or any other; its weights may be absent.
        stored: What is known of the tensors in the file, such as `StateReader.entries`.

    Returns:
        The mapping; tensors of which nothing is known keep their names.

    Example:
        >>> naming(nn.Linear(2, 1), {"weight": Entry((1, 2), 8, Path("memory"), "float32")}).plain
        True
    """
    names = _names(model, list(stored))
    grouped: dict[str, list[tuple[str, str | None, Any]]] = {}
    for name, (held, pattern, converter) in names.items():
        grouped.setdefault(held, []).append((name, pattern, converter))
    parts = []
    for held, members in grouped.items():
        converter = members[0][2]
        if converter is None:
            parts += [Part((name,), (held if number == 0 else name,)) for number, (name, _, _) in enumerate(members)]
            continue
        place = {pattern: number for number, pattern in enumerate(converter.source_patterns)}
        members.sort(key=lambda member: place[member[1] or ""])  # stable: numbers within a pattern stay in order
        part = Part(tuple(m[0] for m in members), (held,), converter, tuple(m[1] or "" for m in members))
        shapes = {name: stored[name] for name in part.stored}
        made = Naming(model, (part,), shapes)._converted(part, lambda name: _blank(stored[name]))
        parts.append(Part(part.stored, tuple(made), converter, part.patterns))
    return Naming(model, tuple(parts), stored)


def _names(model: nn.Module, stored: list[str]) -> dict[str, tuple[str, str | None, Any]]:
    """For each name in a file the (first) name in the module, and the conversion with its pattern, in natural order."""
    known = state_of(model)
    plain: dict[str, tuple[str, str | None, Any]] = {name: (name, None, None) for name in stored}
    try:
        from transformers import PreTrainedModel
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, dot_natural_key, rename_source_key
    except ImportError:  # before version 5, files had the names of the modules
        return plain
    if not isinstance(model, PreTrainedModel):
        return plain
    transforms = get_model_conversion_mapping(model)
    converters = [t for t in transforms if isinstance(t, WeightConverter)]
    renamings: list[Any] = [t for t in transforms if not isinstance(t, WeightConverter)]
    by_pattern = {pattern: c for c in converters for pattern in c.source_patterns}
    found: dict[str, tuple[str, str | None, Any]] = {}
    for name in sorted(stored, key=dot_natural_key):
        held, pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, known)
        if held not in known and name in known:
            held, pattern = rename_source_key(name, [], [], model.base_model_prefix, known)
        converter = None if pattern is None else by_pattern[pattern]
        found[name] = (held, pattern, converter) if held in known else plain[name]
    return found


def _by_part(parts: Mapping[str, Part], make: Callable[[Part], dict[str, Tensor]]) -> Read:
    """Reads a tensor of a part; the part that was made last is kept, for the others of its tensors."""
    last: list[tuple[Part, dict[str, Tensor]]] = []

    def fetch(name: str) -> Tensor:
        part = parts[name]
        if part.converter is None:
            last.clear()
            return make(part)[name]
        if not last or last[0][0] is not part:
            last.clear()
            last.append((part, make(part)))
        made = last[0][1]
        if len(made) == 1:
            last.clear()
        return made[name]

    return fetch


def _later(read: Read, name: str) -> Callable[[], Tensor]:
    return lambda: read(name)


def _only(found: Mapping[str, Any]) -> dict[str, Tensor]:
    return {name: value[0] if isinstance(value, list) else value for name, value in found.items()}


def _config(model: nn.Module) -> Any:
    return getattr(model, "config", None)


def _count(entry: Entry) -> int:
    return math.prod(entry.shape)


def _blank(entry: Entry) -> Tensor:
    dtype = getattr(torch, entry.dtype, None)
    return torch.empty(entry.shape, dtype=dtype if isinstance(dtype, torch.dtype) else torch.float32, device="meta")


def entries_of(state: Mapping[str, Tensor]) -> dict[str, Entry]:
    """What is known of the tensors of a state, in memory or on disk."""
    if isinstance(state, StateReader):
        return {name: state.entry(name) for name in state}
    here = Path("memory")
    return {n: Entry(tuple(t.shape), t.nbytes, here, str(t.dtype).removeprefix("torch.")) for n, t in state.items()}


@contextmanager
def _failing(part: Part) -> Iterator[None]:
    """An error within transformers becomes one that names what was converted."""
    try:
        yield
    except Exception as failure:
        raise MismatchError(
            f"the tensors that make up {part.held[0]!r} cannot be converted ({type(failure).__name__}: {failure})",
            given=", ".join(part.stored[:4]),
            expected="tensors as transformers stores them",
            do="load the model with transformers and save it again, so that names are those of this version",
        ) from failure
