"""Write a file whole or not at all."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from pyalign.errors import InputError, PyalignError, WriteError

__all__ = ["json_text", "replacing", "unwritable", "writing"]


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path beside `path`; rename it over `path` on success, delete it on any failure.

    A link is followed. A full disk, an exception or Ctrl-C inside the block leaves an earlier file at `path` as it was.

    Args:
        path: The file to (re)place; its folder is created when missing.

    Yields:
        A path in the same folder to write to.

    Raises:
        InputError: `path` is a folder, a device or a pipe.
        WriteError: It cannot be written, as on a full disk.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "note.txt"
        >>> with replacing(target) as temporary:
        ...     _ = temporary.write_text("whole")
        >>> target.read_text()
        'whole'
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        kind = "a folder" if target.is_dir() else "a device or pipe"
        raise InputError(f"cannot write to {path}", given=kind, expected="a file, new or to be replaced")
    with writing(path):
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=f".part{target.suffix}", dir=target.parent)
        os.close(handle)
    temporary = Path(name)
    try:
        with writing(path):
            yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[None]:
    """Tell what goes wrong inside the block as a failure to write `path`."""
    try:
        yield
    except PyalignError:
        raise
    except (OSError, SafetensorError) as failure:
        raise unwritable(path, failure) from failure


def unwritable(path: str | os.PathLike[str], failure: Exception) -> WriteError:
    """The error for a file that could not be written."""
    return WriteError(
        f"{os.fspath(path)} cannot be written ({str(failure).splitlines()[0]})",
        given="an earlier file, if there was one, is as before",
        do="look at the free space and the rights of that folder",
    )


def json_text(content: Any, path: str | os.PathLike[str] | None = None, indent: int = 2) -> str:
    """A record's content as JSON text, also written to `path` where one is given, whole or not at all."""
    text = json.dumps(content, indent=indent)
    if path is not None:
        with replacing(path) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")
    return text
