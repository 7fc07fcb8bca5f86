"""Whole checkpoints: Hugging Face folders aligned tensor by tensor, neither model ever in memory as a whole."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pyalign.errors import InputError, MismatchError
from pyalign.io import StateReader, bare_model, open_state, save_folder
from pyalign.io.fit import differences
from pyalign.io.folders import check_folder
from pyalign.io.huggingface import example_of
from pyalign.matching.card import card_of
from pyalign.matching.classes import match_states
from pyalign.matching.pair import moved_by
from pyalign.matching.problem import check_finite
from pyalign.matching.weight import WeightMatching
from pyalign.symmetry import Alignment, SymmetrySpec, Transform, derive, state_of
from pyalign.symmetry.spec import variance_power

__all__ = ["align_folders"]

Folder = str | os.PathLike[str]
_FLOATS = ("float64", "float32", "float16", "bfloat16")


def align_folders(
    folder_a: Folder,
    folder_b: Folder,
    out: Folder | None = None,
    *,
    method: WeightMatching | None = None,
    example_inputs: Any = None,
    seed: int = 0,
    max_shard_bytes: int = 1_000_000_000,
    overwrite: bool = False,
    progress: bool | None = None,
) -> Alignment:
    """Bring the checkpoint of one Hugging Face folder into the coordinates of another's, by weight matching.

    The symmetry is derived from config.json on the meta device, what does not fit is found in the headers of the files
    before any work, weights are read one tensor at a time, and `out` is written shard by shard, whole or not at all:
    weights with index, configuration, tokenizer and all other files of B, and a model card that says what was done.
    No code from a folder is run. (The symmetry is not verified, since that takes both models in memory.)

    Args:
        folder_a: The checkpoint that stays.
        folder_b: The checkpoint that is moved: of the same architecture, shapes and dtypes.
        out: The folder to write; None only searches.
        method: The search; the default is `WeightMatching()`, over all classes of transforms.
        example_inputs: What the model is called with to derive its symmetry, by keyword, where it takes neither
            `input_ids` nor `pixel_values`.
        seed: Of the order of the groups.
        max_shard_bytes: Upper limit of a written shard, which is in memory as a whole; a larger tensor has its own.
        overwrite: Replace `out` where it already holds a model.
        progress: Show progress bars: True, False, or None for only on a terminal.

    Returns:
        The alignment, whose elements apply to any state of the architecture.

    Raises:
        CheckpointError: A folder or file cannot be read, or is quantised.
        MismatchError: Tensors are missing or surplus, or differ in shape or dtype.
        NonFiniteError: NaN or infinity in weights.
        InputError: `out` may not be replaced, or the architecture is not known to transformers.

    Source:
        Ainsworth et al. 2022 (arXiv 2209.04836), algorithm 1; Theus et al. 2025 (arXiv 2506.22712), section 4.
    """
    search = WeightMatching() if method is None else method
    place_a, place_b = Path(folder_a), Path(folder_b)
    if out is not None:
        check_folder(Path(out), overwrite)
        _apart(Path(out), place_a, place_b)
    began = time.perf_counter()
    model = bare_model(place_a)
    bare_model(place_b)
    _check_configurations(place_a, place_b)
    inputs = example_of(model) if example_inputs is None else example_inputs
    with open_state(place_a) as stored_a, open_state(place_b) as stored_b:
        state_a, state_b = _named(model, stored_a, place_a), _named(model, stored_b, place_b)
        _check_dtypes(state_a, state_b)
        spec = derive(model, inputs, within=search.within)
        seconds = {"derive": time.perf_counter() - began}
        check_finite(state_a, "A")
        check_finite(state_b, "B")
        answer = match_states(
            spec, state_a, state_b, restarts=search.restarts, sweeps=search.sweeps, signs=search.signs,
            start=search.start, backend=search.backend, seed=seed, progress=progress,
        )  # fmt: skip
        notes = (*answer.notes, "symmetry derived without weights and not verified on them")
        answer = replace(answer, seconds={**seconds, **answer.seconds}, notes=notes)
        if out is not None:
            moved = _moved(spec, answer.transforms, stored_b)
            card = card_of(answer, place_a.name, place_b.name, model)
            save_folder(
                moved, out, like=place_b, max_shard_bytes=max_shard_bytes, overwrite=overwrite,
                texts={"README.md": card},
            )  # fmt: skip
    return answer


def _apart(out: Path, *sources: Path) -> None:
    if any(out.resolve() == source.resolve() for source in sources):
        raise InputError(
            "the output is one of the inputs", given=str(out), expected="another folder", do="choose a new folder"
        )


def _check_configurations(folder_a: Path, folder_b: Path) -> None:
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


def _check_dtypes(a: StateReader, b: StateReader) -> None:
    differ = [n for n in a if a.entry(n).dtype != b.entry(n).dtype]
    if differ:
        raise MismatchError(
            "the checkpoints have tensors of different dtypes",
            given=f"{differ[0]!r} is {b.entry(differ[0]).dtype} in B and {a.entry(differ[0]).dtype} in A "
            f"({len(differ)} such tensors)",
            expected="equal dtypes",
            do="save both checkpoints in one dtype",
        )


def _named(model: nn.Module, stored: StateReader, folder: Path) -> StateReader:
    """A checkpoint under the names of its architecture; a tied tensor may be stored under any of its names, or all."""
    state = state_of(model)
    sharing: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        sharing.setdefault(id(parameter), []).append(name)
    tied = {name: names for names in sharing.values() for name in names}
    where = {n: next((m for m in (n, *tied.get(n, ())) if m in stored.entries), n) for n in state}
    shapes = {n: stored.entry(m).shape for n, m in where.items() if m in stored}
    found = differences(
        shapes | {n: stored.entry(n).shape for n in stored.entries if n not in state},
        {n: tuple(t.shape) for n, t in state.items()},
    )
    if found:
        raise MismatchError(
            f"the weights of {folder} are not those of the architecture in its config.json",
            given=found,
            expected=f"the {len(state)} tensors of {type(model).__name__}",
            do="load the model with transformers and save it again, so that names and shapes are those of this version",
        )
    wrong = [n for n, t in state.items() if t.is_floating_point() and stored.entry(where[n]).dtype not in _FLOATS]
    if wrong:
        raise MismatchError(
            f"weights of {folder} are no floating numbers that could be compared",
            given=f"{wrong[0]!r} in {stored.entry(where[wrong[0]]).dtype} ({len(wrong)} such tensors)",
            expected=", ".join(_FLOATS),
            do="align the checkpoint before it was quantised",
        )
    for names in sharing.values():
        _check_tied([n for n in names if n in stored.entries], stored, folder)
    return StateReader({n: stored.entry(m) for n, m in where.items()}, lambda name: stored[where[name]])


def _check_tied(names: list[str], stored: StateReader, folder: Path) -> None:
    if any(not torch.equal(stored[names[0]], stored[n]) for n in names[1:]):
        raise MismatchError(
            f"{folder} holds two different tensors where its configuration ties them",
            given=" and ".join(repr(n) for n in names),
            expected="equal tensors, or tie_word_embeddings false",
            do="set tie_word_embeddings in config.json to what the model was trained with",
        )


def _moved(spec: SymmetrySpec, elements: Mapping[str, Transform], stored: StateReader) -> StateReader:
    """The checkpoint with every tensor moved when it is read, in its own dtype."""

    def fetch(name: str) -> Tensor:
        tensor = stored[name]
        return moved_by(elements, tensor, spec.on(name), variance_power(name)).to(tensor.dtype)

    return StateReader(stored.entries, fetch, tied=stored.tied)
