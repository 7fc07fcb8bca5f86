"""Hugging Face folders written whole or not at all: shards, index, and every other file of the source."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor, nn

from pyalign._atomic import writing
from pyalign.errors import InputError, MismatchError, PyalignError
from pyalign.io.fit import differences
from pyalign.io.huggingface import bare_model
from pyalign.io.layout import TORCH_SUFFIXES, folder_reader
from pyalign.io.naming import entries_of, naming
from pyalign.io.reader import StateReader
from pyalign.io.states import untie, write_safetensors
from pyalign.symmetry.calls import state_of

__all__ = ["check_folder", "save_folder"]

WEIGHTS = (".safetensors", *TORCH_SUFFIXES, ".h5", ".msgpack", ".onnx", ".gguf", ".ot", ".tflite", ".npz")


def save_folder(
    state: Mapping[str, Tensor] | nn.Module,
    folder: str | os.PathLike[str],
    *,
    like: str | os.PathLike[str] | None = None,
    max_shard_bytes: int = 5_000_000_000,
    overwrite: bool = False,
    texts: Mapping[str, str] | None = None,
    further: Collection[str] = (),
) -> None:
    """Write a Hugging Face folder: `model.safetensors`, or shards of at most `max_shard_bytes` and an index.

    The folder is built beside its place and renamed into it: a full disk, an error or Ctrl-C leaves what was there.
    Of a `StateReader` only one shard is in memory at a time.

    Args:
        state: name -> tensor, or a module.
        folder: The folder to write.
        like: The folder this model came from; everything but its weights is copied (config.json, tokenizer, ...), and
            names and shapes must be those of its weights, or those of the module that transformers makes of them.
        max_shard_bytes: Upper limit of a shard, in bytes; a larger tensor has a shard of its own.
        overwrite: Replace `folder` as a whole where it already holds a model.
        texts: Further files by name; those of `like` that they replace are kept as `source.` + name.
        further: Names of tensors that `like` need not have (an output matrix that was untied).

    Raises:
        InputError: `folder` is not empty and `overwrite` is not given, or it holds no model that could be replaced.
        MismatchError: `state` does not fit the weights of `like`.
        CheckpointError: `like` cannot be read, or (`WriteError`) the disk is full.

    Example:
        >>> import torch
        >>> place = Path(tempfile.mkdtemp()) / "merged"
        >>> save_folder({"a": torch.ones(4), "b": torch.ones(4)}, place, max_shard_bytes=16)
        >>> sorted(file.name for file in place.iterdir())[:2]
        ['model-00001-of-00002.safetensors', 'model-00002-of-00002.safetensors']
    """
    target, source = Path(folder), None if like is None else Path(like)
    if max_shard_bytes < 1:
        raise InputError(
            "max_shard_bytes is too small",
            given=str(max_shard_bytes),
            expected="at least 1 byte",
            do="leave it at its default of 5 GB",
        )
    tensors = state_of(state) if isinstance(state, nn.Module) else state
    if source is not None:
        tensors = _in_names_of(source, tensors, state if isinstance(state, nn.Module) else None)
    unique, tied = (tensors, dict(tensors.tied)) if isinstance(tensors, StateReader) else untie(tensors)
    names = [name for name in unique if name not in tied]
    if source is not None:
        names, tied = _as_in(source, tensors, names, tied, further)
    sizes = {name: _nbytes(tensors, name) for name in names}
    with _replacing_folder(target, overwrite) as temporary:
        if source is not None:
            _copy_others(source, temporary)
        for name, text in (texts or {}).items():
            if (temporary / name).exists():
                (temporary / name).rename(temporary / f"source.{name}")
            (temporary / name).write_text(text, encoding="utf-8")
        _write_shards(tensors, sizes, tied, temporary, target, max_shard_bytes)


def _nbytes(state: Mapping[str, Tensor], name: str) -> int:
    return state.entry(name).nbytes if isinstance(state, StateReader) else state[name].nbytes


def _in_names_of(source: Path, state: Mapping[str, Tensor], model: nn.Module | None) -> Mapping[str, Tensor]:
    """A state under the names of a folder's weights, where it has those of the module that is made of them."""
    with folder_reader(source) as reader:
        entries = dict(reader.entries)
    if set(entries) <= set(state) or not (source / "config.json").is_file():
        return state
    try:
        names = naming(bare_model(source) if model is None else model, entries)
    except PyalignError:  # of another architecture: the names are compared next
        return state
    if names.plain or not all(name in state for part in names.parts for name in part.held):
        return state
    held = {name for part in names.parts for name in part.held}
    tied = state.tied if isinstance(state, StateReader) else untie(state)[1]
    kept = [name for name in state if name in held or tied.get(name) not in held]
    known = {name: entry for name, entry in entries_of(state).items() if name in kept}
    return names.stored(StateReader(known, state.__getitem__))


def _as_in(
    source: Path, state: Mapping[str, Tensor], names: list[str], tied: dict[str, str], more: Collection[str]
) -> tuple[list[str], dict[str, str]]:
    """Keep each tied tensor under the name under which the source keeps it; refuse a state that does not fit it."""
    with folder_reader(source) as reader:
        expected = {name: reader.entry(name).shape for name in reader.entries}
    shapes = state.shapes() if isinstance(state, StateReader) else {n: tuple(t.shape) for n, t in state.items()}
    sharing: dict[str, list[str]] = {}
    for name in shapes:
        sharing.setdefault(tied.get(name, name), []).append(name)
    kept: list[str] = []
    further: dict[str, str] = {}
    for group in sharing.values():
        stored = [name for name in group if name in expected] or group[:1]
        kept += stored
        further |= {name: stored[0] for name in group if name not in stored}
    expected |= {name: shapes[name] for name in kept if name in more and name not in expected}
    found = differences({name: shapes[name] for name in kept}, expected)
    if found:
        raise MismatchError(
            f"the state does not fit the weights of {source}",
            given=found,
            expected=f"its {len(expected)} tensors",
            do="name the folder this architecture came from",
        )
    return kept, further


def _write_shards(
    state: Mapping[str, Tensor], sizes: dict[str, int], tied: dict[str, str], folder: Path, target: Path, limit: int
) -> None:
    shards = _plan(sizes, limit)
    files = {1: ["model.safetensors"]}.get(
        len(shards), [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    )
    for file, names in zip(files, shards, strict=True):
        tensors = {name: state[name].detach() for name in names}
        own = {name: t if _alone(t, tensors) else t.clone().contiguous() for name, t in tensors.items()}
        further = {name: stored for name, stored in tied.items() if stored in own}
        write_safetensors(own, folder / file, further, target / file)
        (folder / file).chmod(folder.stat().st_mode & 0o666)  # safetensors makes files that only their owner may read
    if len(shards) > 1:
        weight_map = {name: file for file, names in zip(files, shards, strict=True) for name in names}
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
        text = json.dumps(index, indent=2, sort_keys=True) + "\n"
        (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")


def _alone(tensor: Tensor, shard: Mapping[str, Tensor]) -> bool:
    """Whether a tensor is contiguous and shares its memory with none of its shard, as safetensors needs."""
    place = tensor.untyped_storage().data_ptr()
    return tensor.is_contiguous() and sum(t.untyped_storage().data_ptr() == place for t in shard.values()) == 1


def _plan(sizes: dict[str, int], limit: int) -> list[list[str]]:
    """Names in their order, cut before a shard would grow beyond `limit` bytes."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if shards[-1] and filled + size > limit:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards


def _copy_others(source: Path, folder: Path) -> None:
    """Copy every file of `source` that holds no weights, hidden ones aside."""
    for path in sorted(source.rglob("*")):
        relative = path.relative_to(source)
        hidden = any(part.startswith(".") for part in relative.parts)
        if path.is_file() and not hidden and path.suffix not in WEIGHTS and not path.name.endswith(".index.json"):
            (folder / relative).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, folder / relative)


def check_folder(target: Path, overwrite: bool) -> None:
    """Refuse a folder that may not be replaced.

    Raises:
        InputError: It is not empty, and `overwrite` is not given or it holds no model.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        models = target.is_dir() and any(p.suffix in WEIGHTS or p.name == "config.json" for p in target.iterdir())
        if not overwrite or not models:
            raise InputError(
                f"{target} exists already",
                given="a folder with files" if target.is_dir() else "a file",
                expected="a new or empty folder, or overwrite=True where it holds a model",
                do="choose another folder",
            )


@contextmanager
def _replacing_folder(target: Path, overwrite: bool) -> Iterator[Path]:
    """A temporary folder beside `target` that takes its place on success and vanishes on failure."""
    check_folder(target, overwrite)
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        # two folders deep, so that the inner one is made with the user's own rights and not mkdtemp's private ones
        room = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent))
    try:
        with writing(target):
            (room / "new").mkdir()
            yield room / "new"
            _swap(room / "new", target, room / "old")
    finally:
        shutil.rmtree(room, ignore_errors=True)


def _swap(new: Path, target: Path, old: Path) -> None:
    """Put `new` in the place of `target`; where that fails, `target` comes back."""
    replaced = target.exists()
    try:
        if replaced:
            os.rename(target, old)
        os.rename(new, target)
    except BaseException:
        if replaced and old.exists() and not target.exists():
            os.rename(old, target)
        raise
