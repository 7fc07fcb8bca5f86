"""Curves in files: both ends, the bends, and how they were fitted, in one `.safetensors` file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from pyalign.errors import CheckpointError
from pyalign.symmetry.files import read_tensors, write_tensors

__all__ = ["CurveContent", "read", "write"]

FORMAT = "pyalign-curve-1"


class CurveContent(NamedTuple):
    """What a file holds: the ends and the inner control points by name, without tied names, and how to use them."""

    ends: list[dict[str, Tensor]]
    inner: list[dict[str, Tensor]]
    kind: str
    bends: int
    order: list[str]
    tied: dict[str, str]
    settings: dict[str, Any]


def write(
    path: str | os.PathLike[str],
    ends: Sequence[Mapping[str, Tensor]],
    inner: Sequence[Mapping[str, Tensor]],
    record: Mapping[str, Any],
) -> None:
    """Write a curve, whole or not at all."""
    named = [*zip(("a", "b"), ends, strict=True), *((f"bend{i}", point) for i, point in enumerate(inner))]
    tensors = {f"{which}|{name}": tensor.detach() for which, state in named for name, tensor in state.items()}
    write_tensors(path, tensors, {"format": FORMAT, "record": json.dumps(record)})


def read(path: str | os.PathLike[str]) -> CurveContent:
    """Read a curve.

    Raises:
        CheckpointError: The file is missing, damaged or no curve.
    """
    tensors, metadata = read_tensors(path, FORMAT, "a curve")
    record = json.loads(metadata["record"])
    parts: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        which, _, name = key.partition("|")
        parts.setdefault(which, {})[name] = tensor
    bends = record["bends"]
    missing = [name for name in ("a", "b", *(f"bend{i}" for i in range(bends))) if name not in parts]
    if missing:
        raise CheckpointError(f"{path} is damaged: it holds no {missing[0]}", do="fit and save the curve again")
    inner = [parts[f"bend{i}"] for i in range(bends)]
    return CurveContent([parts["a"], parts["b"]], inner, **{k: record[k] for k in CurveContent._fields[2:]})
