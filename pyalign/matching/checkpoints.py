"""Whole checkpoints: Hugging Face folders aligned tensor by tensor, neither model ever in memory as a whole."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from pyalign.errors import InputError
from pyalign.io import bare_model, open_state, save_folder
from pyalign.io.folders import check_folder
from pyalign.io.huggingface import example_of
from pyalign.matching.card import card_of, folded_card_of
from pyalign.matching.classes import match_states
from pyalign.matching.problem import check_finite
from pyalign.matching.stored import (
    Checkpoint,
    apart,
    check_configurations,
    check_dtypes,
    checkpoint,
    untied_config,
)
from pyalign.matching.weight import WeightMatching
from pyalign.symmetry import Alignment, Transform, derive
from pyalign.symmetry.foldable import FoldPlan, plan_fold

__all__ = ["align_folders"]

Folder = str | os.PathLike[str]


def align_folders(
    folder_a: Folder,
    folder_b: Folder,
    out: Folder | None = None,
    *,
    fold: bool = False,
    out_a: Folder | None = None,
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

    The scales of norms differ between trained models, and then a residual stream can only be reordered, with signs.
    With `fold` they are moved into the weights that read them, tensor by tensor and in both models: no function
    changes, the stream may be turned as a whole, and what is written is of the same architecture with scales of one
    (an output matrix that was tied to the embedding then has weights of its own, and config.json says so). B is
    brought to the folded A, so that is written too, to `out_a`: weights of B are to be averaged with it, not with A.

    Args:
        folder_a: The checkpoint that stays.
        folder_b: The checkpoint that is moved: of the same architecture, shapes and dtypes.
        out: The folder to write; None only searches.
        fold: Move the scales of norms into the weights that read them (Theus et al., section 3).
        out_a: With `fold`, the folder in which the folded A is written.
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
    _check_outputs(out, out_a, fold, overwrite, place_a, place_b)
    began = time.perf_counter()
    model = bare_model(place_a)
    bare_model(place_b)
    check_configurations(place_a, place_b)
    inputs = example_of(model) if example_inputs is None else example_inputs
    with ExitStack() as opened:
        stored = [opened.enter_context(open_state(place)) for place in (place_a, place_b)]
        a, b = (checkpoint(model, *one) for one in zip(stored, (place_a, place_b), strict=True))
        check_dtypes(a, b)
        model, plan = plan_fold(model, inputs, [a.state, b.state]) if fold else (model, FoldPlan({}))
        spec = derive(model, inputs, within=search.within, constants=tuple(plan.scales))
        seconds = {"derive": time.perf_counter() - began}
        check_finite(a.state, "A")
        check_finite(b.state, "B")
        answer = match_states(
            spec, a.folded(plan), b.folded(plan), restarts=search.restarts, sweeps=search.sweeps, signs=search.signs,
            start=search.start, backend=search.backend, seed=seed, progress=progress,
        )  # fmt: skip
        notes = (*answer.notes, "symmetry derived without weights and not verified on them", *_folding_notes(plan))
        answer = replace(answer, seconds={**seconds, **answer.seconds}, notes=notes)
        card = card_of(answer, place_a.name, place_b.name, model)
        written = {"max_shard_bytes": max_shard_bytes, "overwrite": overwrite}
        if out is not None:
            _write(b, answer, answer.transforms, plan, Path(out), card, written)
        if out_a is not None:
            card = folded_card_of(answer, place_a.name, place_b.name, model)
            _write(a, answer, {}, plan, Path(out_a), card, written)
    return answer


def _check_outputs(out: Folder | None, out_a: Folder | None, fold: bool, overwrite: bool, *sources: Path) -> None:
    """Refuse outputs that may not be written, before any work."""
    if out_a is not None and not fold:
        raise InputError(
            "model A is only written where its scales are folded",
            given=f"out_a={str(out_a)!r} without fold",
            expected="fold=True",
            do="leave out_a away: A stays as it is",
        )
    taken = list(sources)
    for place in (Path(folder) for folder in (out, out_a) if folder is not None):
        check_folder(place, overwrite)
        apart(place, *taken)
        taken.append(place)


def _folding_notes(plan: FoldPlan) -> tuple[str, ...]:
    if not plan.scales:
        return plan.notes
    untied = (f"{', '.join(plan.untied)} has weights of its own now, which were tied",) if plan.untied else ()
    return (f"{len(plan.scales)} scales of norms were moved into the weights that read them", *untied, *plan.notes)


def _write(
    source: Checkpoint,
    answer: Alignment,
    elements: Mapping[str, Transform],
    plan: FoldPlan,
    out: Path,
    card: str,
    how: Mapping[str, Any],
) -> None:
    """A checkpoint, folded and moved, in the form of the one it came from."""
    texts = {"README.md": card}
    if plan.untied:
        texts["config.json"] = untied_config(source.folder)
    moved = source.moved(answer.spec, elements, plan)
    save_folder(moved, out, like=source.folder, texts=texts, further=plan.untied, **how)
