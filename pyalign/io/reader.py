"""A state dict on disk: names, shapes and sizes at once, each tensor when it is asked for."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pyalign.errors import CheckpointError

__all__ = ["Entry", "StateReader", "broken", "safetensors_reader"]


@dataclass(frozen=True)
class Entry:
    """What is known of a stored tensor without reading it: shape, size in bytes, the file that holds it, its dtype."""

    shape: tuple[int, ...]
    nbytes: int
    file: Path
    dtype: str = ""


_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "BOOL": "bool", "U8": "uint8"}
_DTYPES |= {f"I{bits}": f"int{bits}" for bits in (8, 16, 32, 64)}
"""What safetensors calls the dtypes of torch."""


class StateReader(Mapping[str, Tensor]):
    """Name -> tensor, read from disk on access; use it as a context manager, or `close` it.

    Args:
        entries: What is stored, by name.
        fetch: Reads one tensor.
        tied: Further names of stored tensors: name -> the name it is stored under.
        resources: Closed together with the reader.

    Example:
        >>> entry = Entry((2,), 8, Path("memory"))
        >>> reader = StateReader({"weight": entry}, lambda name: torch.ones(2), tied={"head": "weight"})
        >>> list(reader), reader["head"], reader.shapes()["head"]
        (['weight', 'head'], tensor([1., 1.]), (2,))
    """

    def __init__(
        self,
        entries: Mapping[str, Entry],
        fetch: Callable[[str], Tensor],
        *,
        tied: Mapping[str, str] | None = None,
        resources: ExitStack | None = None,
    ) -> None:
        self.entries = dict(entries)
        self.tied = dict(tied or {})
        self._fetch, self._resources = fetch, resources or ExitStack()

    def __getitem__(self, name: str) -> Tensor:
        stored = self.tied.get(name, name)
        if stored not in self.entries:
            raise KeyError(name)
        try:
            return self._fetch(stored)
        except (SafetensorError, OSError) as failure:
            raise broken(self.entries[stored].file, failure) from failure

    def __iter__(self) -> Iterator[str]:
        yield from self.entries
        yield from self.tied

    def __len__(self) -> int:
        return len(self.entries) + len(self.tied)

    def entry(self, name: str) -> Entry:
        """Shape, bytes and file of `name`, which may be a tied name."""
        return self.entries[self.tied.get(name, name)]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor, read from headers alone."""
        return {name: self.entry(name).shape for name in self}

    def load(self) -> dict[str, Tensor]:
        """All tensors in memory; tied names share one tensor."""
        state = {name: self[name] for name in self.entries}
        return state | {name: state[stored] for name, stored in self.tied.items()}

    def close(self) -> None:
        """Close the files; tensors that were read stay valid."""
        self._resources.close()

    def __enter__(self) -> StateReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def safetensors_reader(path: Path, device: str | torch.device = "cpu") -> StateReader:
    """Open one `.safetensors` file.

    Args:
        path: The file.
        device: Where tensors are put.

    Returns:
        The reader; tied names come back from the metadata that `save_state` or `safetensors.torch.save_model` wrote.

    Raises:
        CheckpointError: The file is missing, truncated, corrupt, or holds no tensor.
    """
    resources = ExitStack()
    try:
        # safe_open checks that the header is sound and that the tensors cover the file exactly
        handle: Any = resources.enter_context(safe_open(path, framework="pt", device=str(device)))
        entries, metadata = _header(path)
    except (SafetensorError, OSError, ValueError) as failure:
        resources.close()
        raise broken(path, failure) from failure
    if not entries:
        resources.close()
        raise CheckpointError(f"{path} holds no tensors", do="name the file that holds the model's weights")
    tied = {name: stored for name, stored in metadata.items() if name not in entries and stored in entries}
    return StateReader(entries, handle.get_tensor, tied=tied, resources=resources)


def _header(path: Path) -> tuple[dict[str, Entry], dict[str, str]]:
    with open(path, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    metadata = header.pop("__metadata__", None) or {}
    entries = {}
    for name, tensor in header.items():
        begin, end = tensor["data_offsets"]
        entries[name] = Entry(tuple(tensor["shape"]), end - begin, path, _DTYPES.get(tensor["dtype"], tensor["dtype"]))
    return entries, metadata


def broken(path: Path, failure: BaseException) -> CheckpointError:
    """The error for a file that cannot be read, with its size and the reason."""
    if not path.exists():
        return CheckpointError(f"there is no file {path}", do="look at the path; it is relative to the current folder")
    reason = f"{type(failure).__name__}: {failure}".strip().splitlines()[0].rstrip(": ")
    return CheckpointError(
        f"{path} cannot be read: it is corrupt, truncated or of another format ({reason})",
        given=f"{path.stat().st_size} bytes",
        do="copy or download the file again and compare its size",
    )
