"""`package.module:name` and `path/to/file.py:name`: the user's own functions, imported when a command needs them."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from pyalign.cli.answers import UsageError
from pyalign.errors import InputError

__all__ = ["call_user", "is_target", "resolve"]

FORM = "package.module:name or path/to/file.py:name"


def is_target(text: str) -> bool:
    """Whether the text names something to import, rather than a file or folder.

    Example:
        >>> is_target("nets:digits"), is_target("./images"), is_target("C:/images")
        (True, False, False)
    """
    module, colon, name = text.rpartition(":")
    return bool(colon) and len(module) > 1 and all(part.isidentifier() for part in name.split("."))


def resolve(text: str, option: str) -> Callable[..., Any]:
    """Import what `text` names; the current folder is searched first, as by `python -m`.

    Args:
        text: `package.module:name` or `path/to/file.py:name`; the name may hold dots, for an
            attribute or an entry of a dict.
        option: The command's option, for errors.

    Returns:
        The function or class.

    Raises:
        UsageError: The text has another form.
        InputError: The module cannot be imported, has no such name, or the name is nothing that can be called.
    """
    if not is_target(text):
        raise UsageError(f"{option}: {text!r} is not of the form {FORM}")
    module_name, _, name = text.rpartition(":")
    found: Any = _import(module_name, option)
    for part in name.split("."):
        if isinstance(found, Mapping) and part in found:  # a table of factories
            found = found[part]
            continue
        if not hasattr(found, part):
            raise InputError(
                f"{option}: {module_name} has no {name!r}",
                given=text,
                expected=f"one of {', '.join(n for n in vars(found) if callable(getattr(found, n)))[:200]}"
                if isinstance(found, ModuleType)
                else FORM,
                do="look at the spelling",
            )
        found = getattr(found, part)
    if not callable(found):
        raise InputError(
            f"{option}: {text} cannot be called", given=type(found).__name__, expected="a function or class",
            do="name a function that makes it",
        )  # fmt: skip
    return found  # type: ignore[no-any-return]


def call_user(function: Callable[..., Any], text: str, option: str, **arguments: Any) -> Any:
    """Call the user's function; what it raises becomes one error that names it."""
    try:
        return function(**arguments)
    except Exception as failure:
        given = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
        raise InputError(
            f"{option}: {text}({given}) failed: {type(failure).__name__}: {failure}",
            expected="a function that can be called like this",
            do="run it in Python, or repeat the command with --debug to see the traceback",
        ) from failure


def _import(name: str, option: str) -> ModuleType:
    try:
        if name.endswith(".py"):
            return _import_file(Path(name), option)
        folder = os.getcwd()
        if folder not in sys.path:
            sys.path.insert(0, folder)
        return importlib.import_module(name)
    except InputError:
        raise
    except Exception as failure:
        raise InputError(
            f"{option}: {name} cannot be imported: {type(failure).__name__}: {failure}",
            expected=FORM,
            do="look at the spelling and the current folder, or repeat the command with --debug to see the traceback",
        ) from failure


def _import_file(path: Path, option: str) -> ModuleType:
    if not path.is_file():
        raise InputError(f"{option}: there is no file {path}", expected=FORM, do="look at the path")
    name = f"_pyalign_user_{abs(hash(str(path.resolve()))):x}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickles look their module up by name
    sys.path.insert(0, str(path.resolve().parent))
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    finally:
        sys.path.remove(str(path.resolve().parent))
    return module
