"""A Hugging Face folder as a module: the architecture that its config.json names, with the folder's weights."""

from __future__ import annotations

import json
import os
from pathlib import Path

from torch import nn

from pyalign.errors import CheckpointError, InputError

__all__ = ["load_model"]


def load_model(folder: str | os.PathLike[str]) -> nn.Module:
    """Build the transformers model of a local folder; no download, and no code from the folder.

    Args:
        folder: Holds config.json with `architectures`, and the weights.

    Returns:
        The module, in evaluation mode.

    Raises:
        CheckpointError: config.json is missing, corrupt or names no architecture; the weights cannot be read.
        InputError: transformers is not installed, or does not have the architecture.
    """
    place = Path(folder)
    try:
        config = json.loads((place / "config.json").read_text(encoding="utf-8"))
        name = str(config["architectures"][0])
    except (OSError, ValueError, KeyError, TypeError, IndexError) as failure:
        raise CheckpointError(
            f"{place / 'config.json'} does not name the architecture of a model ({type(failure).__name__}: {failure})",
            expected='"architectures": ["..."]',
            do="name a folder that model.save_pretrained wrote",
        ) from failure
    try:
        import transformers
    except ImportError as failure:
        raise InputError(
            "a Hugging Face folder needs the package transformers",
            given=f"{name} in {place}",
            do="pip install 'pyalign-nn[hf]'",
        ) from failure
    architecture = getattr(transformers, name, None)
    if architecture is None:
        raise InputError(
            f"transformers {transformers.__version__} does not know the architecture of {place}",
            given=name,
            expected="an architecture of the installed transformers",
            do="upgrade transformers, or build the model yourself and use load_into",
        )
    try:
        model: nn.Module = architecture.from_pretrained(place, local_files_only=True, trust_remote_code=False)
    except Exception as failure:  # transformers and the formats below it raise many kinds for one bad file
        reason = str(failure).strip().splitlines() or [""]
        raise CheckpointError(
            f"{place} cannot be loaded as {name} ({type(failure).__name__}: {reason[0]})",
            do="try load_state(folder), which names the file and tensor that is wrong",
        ) from failure
    return model.eval()
