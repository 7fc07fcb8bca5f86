"""Tensors with texts in a `.safetensors` file of one format: how alignments, curves and trainings are kept."""

from __future__ import annotations

import os
from collections.abc import Mapping

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pyalign._atomic import replacing
from pyalign.errors import CheckpointError

__all__ = ["read_tensors", "write_tensors"]


def write_tensors(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write tensors with texts to a `.safetensors` file, whole or not at all."""
    apart = {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}
    with replacing(path) as temporary:
        save_file(apart, temporary, metadata=metadata)


def read_tensors(path: str | os.PathLike[str], kind: str, what: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and texts of a file of one format.

    Raises:
        CheckpointError: The file is missing, damaged, or of another format.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no iterator)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"cannot read {what} from {path}",
            given=str(error),
            expected="a file that pyalign wrote",
            do="look at the path",
        ) from error
    if metadata.get("format") != kind:
        raise CheckpointError(
            f"{path} is not {what}", given=f"format {metadata.get('format')!r}", expected=f"format {kind!r}"
        )
    return tensors, metadata
