"""What a command answers: a text for people and a record for machines."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from enum import Enum
from typing import Any

import torch

from pyalign._atomic import replacing

__all__ = ["Answer", "UsageError", "plain", "write_text"]


class UsageError(Exception):
    """Options that do not go together: told like argparse's own errors, exit code 2."""


@dataclasses.dataclass(frozen=True)
class Answer:
    """The answer of one command.

    Args:
        text: What a person reads.
        record: What `--json` prints; anything that `plain` takes.
    """

    text: str
    record: Mapping[str, Any]

    def json(self) -> str:
        """The record as JSON text; NaN and infinity, which JSON lacks, are null."""
        return json.dumps(plain(self.record), indent=2, allow_nan=False, ensure_ascii=False)


def plain(value: Any) -> Any:
    """A copy out of dicts, lists, texts, numbers and None only.

    Example:
        >>> plain({1: (torch.tensor([1.0, float("nan")]), torch.float32)})
        {'1': [[1.0, None], 'float32']}
    """
    if value is None or isinstance(value, (bool, int, str)):
        return value.value if isinstance(value, Enum) else value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, torch.Tensor):
        return plain(value.tolist())
    if isinstance(value, Mapping):
        return {str(key): plain(child) for key, child in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(child) for child in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return str(value).removeprefix("torch.")


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
