"""What a command answers: a text for people and a record for machines."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import torch

from pyalign._atomic import replacing
from pyalign.errors import InputError

__all__ = ["Answer", "UsageError", "check_file", "check_target", "plain", "write_text"]


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


def check_target(path: str | None, option: str) -> None:
    """Refuse, before any work is done, a path to which nothing could be written in the end.

    Args:
        path: Where a file or a folder is to be written; None is nothing to check.
        option: The command's option, for errors.

    Raises:
        InputError: It is there and is neither a file nor a folder, or its place cannot be written to.
    """
    if path is None:
        return
    target = Path(path)
    if target.exists() and not target.is_file() and not target.is_dir():
        raise InputError(
            f"{option}: {path} is no file that could be replaced", given="a device or the like", expected="a file",
            do="name a file; --json prints on stdout",
        )  # fmt: skip
    place = next(folder for folder in target.absolute().parents if folder.exists())
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise InputError(f"{option}: nothing can be written to {place}", given=path, do="choose another folder")


def check_file(path: str | None, option: str, suffixes: tuple[str, ...]) -> None:
    """Like `check_target`, for a file that must end in one of `suffixes`.

    Raises:
        UsageError: It has another suffix.
        InputError: As for `check_target`, and where the path is a folder.
    """
    if path is None:
        return
    if suffixes and Path(path).suffix not in suffixes:
        raise UsageError(f"{option}: {path!r} must end in {', '.join(suffixes)}")
    if Path(path).is_dir():
        raise InputError(f"{option}: {path} is a folder", expected="a file", do="name a file in it")
    check_target(path, option)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
