"""Where a folder in the Hugging Face layout keeps its weights: one file, or shards and an index."""

from __future__ import annotations

import json
import re
import warnings
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyalign.errors import CheckpointError, PyalignWarning
from pyalign.io.reader import StateReader, safetensors_reader
from pyalign.io.torchfiles import torch_reader

__all__ = ["TORCH_SUFFIXES", "file_reader", "folder_reader"]

TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
NAMES = ("model.safetensors", "diffusion_pytorch_model.safetensors", "pytorch_model.bin", "diffusion_pytorch_model.bin")
SHARD = re.compile(r"-\d+-of-\d+\.(safetensors|bin)$")


def file_reader(path: Path, device: str | torch.device = "cpu", *, mmap: bool = True) -> StateReader:
    """Open one checkpoint file; its suffix decides the format."""
    if not path.is_file():
        raise CheckpointError(f"there is no file {path}", do="look at the path; it is relative to the current folder")
    if path.suffix == ".safetensors":
        return safetensors_reader(path, device)
    if path.suffix in TORCH_SUFFIXES:
        return torch_reader(path, device, mmap=mmap)
    raise CheckpointError(
        f"{path} has an unknown suffix",
        given=path.suffix or "none",
        expected=f".safetensors, {', '.join(TORCH_SUFFIXES)}, or a folder",
        do="rename the file after its format, or convert it",
    )


def folder_reader(folder: Path, device: str | torch.device = "cpu", *, mmap: bool = True) -> StateReader:
    """Open the weights of a folder: the index with its shards, or the one file.

    Args:
        folder: A folder in the Hugging Face layout.
        device: Where tensors are put.
        mmap: Map PyTorch files into memory.

    Returns:
        One reader over all shards.

    Raises:
        CheckpointError: No weights; a shard or tensor missing; tensors that the index does not know; a corrupt file.
    """
    for name in NAMES:
        if (folder / f"{name}.index.json").is_file():
            return _sharded(folder, folder / f"{name}.index.json", device, mmap)
        if (folder / name).is_file():
            return file_reader(folder / name, device, mmap=mmap)
    candidates = sorted(folder.glob("*.safetensors")) or sorted(p for s in TORCH_SUFFIXES for p in folder.glob(f"*{s}"))
    if len(candidates) == 1 and not candidates[0].name.startswith("adapter_") and not SHARD.search(candidates[0].name):
        return file_reader(candidates[0], device, mmap=mmap)
    raise CheckpointError(
        f"{folder} does not show which file holds the weights",
        given=", ".join(path.name for path in candidates[:8]) or "no weights",
        expected=f"{NAMES[0]}, {NAMES[0]}.index.json with its shards, {NAMES[2]}, or one .safetensors file",
        do="name the file itself; merge an adapter into its base model first; shards need their index",
    )


def read_index(index: Path) -> dict[str, str]:
    """Tensor name -> file name, from an index; file names must lie in the index's own folder."""
    try:
        weight_map: Any = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        mapping = {str(name): str(file) for name, file in weight_map.items()}
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as failure:
        raise CheckpointError(
            f"{index} is no index of shards ({type(failure).__name__}: {failure})",
            expected='JSON with "weight_map": {tensor: file}',
            do="download the index again",
        ) from failure
    outside = sorted({file for file in mapping.values() if Path(file).name != file or file in ("", ".", "..")})
    if outside:
        raise CheckpointError(
            f"{index} names files outside its folder",
            given=", ".join(outside[:5]),
            expected="plain file names",
            do="do not use this checkpoint; it may be hostile",
        )
    return mapping


def _sharded(folder: Path, index: Path, device: str | torch.device, mmap: bool) -> StateReader:
    mapping = read_index(index)
    files = sorted(set(mapping.values()))
    missing = [file for file in files if not (folder / file).is_file()]
    if missing or not files:
        raise CheckpointError(
            f"{folder} lacks shards that {index.name} names",
            given=f"missing: {', '.join(missing)}",
            expected=f"{len(files)} shards",
            do="download the missing shards",
        )
    surplus = sorted(
        p.name
        for p in folder.iterdir()
        if SHARD.search(p.name) and p.suffix == Path(files[0]).suffix and p.name not in files
    )
    if surplus:
        warnings.warn(
            f"{folder} holds shards that {index.name} does not name and that are not read: {', '.join(surplus)}",
            PyalignWarning,
            stacklevel=4,
        )
    with ExitStack() as resources:
        shards = {file: resources.enter_context(file_reader(folder / file, device, mmap=mmap)) for file in files}
        _compare(mapping, shards, index)
        entries = {name: shards[file].entry(name) for name, file in mapping.items()}
        tied = {name: stored for shard in shards.values() for name, stored in shard.tied.items() if name not in mapping}

        def fetch(name: str) -> Tensor:
            return shards[mapping[name]][name]

        return StateReader(entries, fetch, tied=tied, resources=resources.pop_all())


def _compare(mapping: dict[str, str], shards: dict[str, StateReader], index: Path) -> None:
    """The index and the shards must name the same tensors in the same files."""
    absent = [name for name, file in mapping.items() if name not in shards[file]]
    unknown = [name for file, shard in shards.items() for name in shard.entries if mapping.get(name) != file]
    if absent or unknown:
        given = [f"missing from their shards: {', '.join(absent[:5])}"] if absent else []
        given += [f"in shards but not so in the index: {', '.join(unknown[:5])}"] if unknown else []
        raise CheckpointError(
            f"{index} does not fit its shards",
            given="; ".join(given),
            expected="each tensor in the shard that the index names",
            do="download index and shards again, from one revision",
        )
