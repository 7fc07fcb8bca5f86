"""State dicts in and out of files: the suffix decides the format, and a file is written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pyalign._atomic import replacing, unwritable, writing
from pyalign.errors import InputError
from pyalign.io.layout import TORCH_SUFFIXES, file_reader, folder_reader
from pyalign.io.reader import StateReader
from pyalign.symmetry.calls import state_of

__all__ = ["load_state", "open_state", "save_state", "untie", "write_safetensors"]

FilePath = str | os.PathLike[str]


def open_state(path: FilePath, *, device: str | torch.device = "cpu") -> StateReader:
    """Open a checkpoint so that each tensor is read when it is asked for.

    Args:
        path: A `.safetensors`, `.pt`, `.pth`, `.bin` or `.ckpt` file, or a Hugging Face folder (sharded or not).
        device: Where tensors are put.

    Returns:
        A mapping name -> tensor; names, shapes and sizes come from headers alone (PyTorch files are memory-mapped).

    Raises:
        CheckpointError: As for `load_state`.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "model.safetensors"
        >>> save_state({"weight": torch.ones(2, 3)}, file)
        >>> with open_state(file) as reader:
        ...     print(reader.shapes(), reader["weight"].sum())
        {'weight': (2, 3)} tensor(6.)
    """
    place = Path(path)
    return folder_reader(place, device) if place.is_dir() else file_reader(place, device)


def load_state(path: FilePath, *, device: str | torch.device = "cpu") -> dict[str, Tensor]:
    """Read all tensors of a checkpoint.

    Args:
        path: As for `open_state`. A checkpoint with the state dict under a name such as `state_dict` is unwrapped.
        device: Where tensors are put.

    Returns:
        name -> tensor; tied names share one tensor.

    Raises:
        CheckpointError: The file is missing, corrupt, truncated, not weights-only, of an unknown format, or holds no
            model (such as an optimiser's state); the shards of a folder do not fit their index.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "model.pt"
        >>> torch.save({"epoch": 3, "state_dict": {"weight": torch.ones(2)}}, file)
        >>> load_state(file)
        {'weight': tensor([1., 1.])}
    """
    place = Path(path)
    opened = folder_reader(place, device, mmap=False) if place.is_dir() else file_reader(place, device, mmap=False)
    with opened as reader:
        return reader.load()


def save_state(
    state: Mapping[str, Tensor] | nn.Module, path: FilePath, *, metadata: Mapping[str, str] | None = None
) -> None:
    """Write a state dict to one file, whole or not at all: an earlier file survives any failure.

    Tied tensors are written once; in `.safetensors` the metadata notes the further names, as
    `safetensors.torch.save_model` does, and `load_state` restores them.

    Args:
        state: name -> tensor, or a module (its parameters and persistent buffers).
        path: Ends in `.safetensors`, or in `.pt`, `.pth`, `.bin` or `.ckpt` for `torch.save`.
        metadata: Texts for the header of a `.safetensors` file.

    Raises:
        InputError: The suffix is unknown, or a value is no tensor.
        WriteError: The file cannot be written, as on a full disk.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "linear.safetensors"
        >>> save_state(nn.Linear(2, 1), file)
        >>> sorted(load_state(file))
        ['bias', 'weight']
    """
    place = Path(path)
    unique, tied = untie(state_of(state) if isinstance(state, nn.Module) else state)
    if place.suffix == ".safetensors":
        with replacing(place) as temporary:
            write_safetensors(unique, temporary, {**(metadata or {}), **tied}, place)
    elif place.suffix in TORCH_SUFFIXES:
        whole = unique | {name: unique[stored] for name, stored in tied.items()}
        with replacing(place) as temporary:
            try:
                torch.save(whole, temporary)
            except RuntimeError as failure:  # what torch's zip writer makes of a full disk
                raise unwritable(place, failure) from failure
    else:
        raise InputError(
            f"{place} has an unknown suffix",
            given=place.suffix or "none",
            expected=f".safetensors, {', '.join(TORCH_SUFFIXES)}",
            do="choose a suffix, or save_folder for a Hugging Face folder",
        )


def write_safetensors(state: Mapping[str, Tensor], file: Path, metadata: Mapping[str, str], target: Path) -> None:
    """Write tensors without ties to `file`; an error names `target`."""
    with writing(target):
        save_file(dict(state), file, metadata={"format": "pt", **metadata})


def untie(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Part a state into tensors with memory of their own, and further names: name -> the name that is kept.

    Views that overlap without being the same tensor are copied.

    Example:
        >>> weight = torch.ones(2)
        >>> list(untie({"embedding": weight, "head": weight})[0]), untie({"embedding": weight, "head": weight})[1]
        (['embedding'], {'head': 'embedding'})
    """
    unique: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    first: dict[tuple[object, ...], str] = {}
    storages: set[tuple[object, int]] = set()
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor) or tensor.layout != torch.strided:
            raise InputError(
                f"{name!r} is no dense tensor",
                given=type(tensor).__name__,
                expected="name -> tensor",
                do="leave out what is no tensor; make a sparse tensor dense with to_dense()",
            )
        key = (tensor.device, tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())
        if tensor.data_ptr() and first.setdefault(key, name) != name:
            tied[name] = first[key]
            continue
        storage = tensor.untyped_storage()
        place = (tensor.device, storage.data_ptr())
        own = tensor.is_contiguous() and storage.nbytes() == tensor.nbytes and place not in storages
        storages.add(place)
        unique[name] = tensor.detach() if own else tensor.detach().clone(memory_format=torch.contiguous_format)
    return unique, tied
