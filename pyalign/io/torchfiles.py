"""PyTorch files: read with weights_only=True alone, so that no code of a stranger runs."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyalign.errors import CheckpointError
from pyalign.io.reader import Entry, StateReader, broken

__all__ = ["torch_reader"]

WRAPPERS = ("state_dict", "model_state_dict", "model", "module", "net", "network", "weights", "params")


def torch_reader(path: Path, device: str | torch.device = "cpu", *, mmap: bool = False) -> StateReader:
    """Open a `.pt`, `.pth`, `.bin` or `.ckpt` file and find the model's tensors in it.

    Args:
        path: The file, as `torch.save(model.state_dict(), path)` writes it; a checkpoint that holds the state dict
            under `state_dict`, `model_state_dict`, `model` or a similar name is unwrapped.
        device: Where tensors are put.
        mmap: Map the file into memory, so that tensors are read when they are used.

    Returns:
        The reader.

    Raises:
        CheckpointError: The file is missing, corrupt, truncated, not weights-only, or holds no model's tensors.
    """
    state = _unwrap(_read(path, device, mmap), path)
    entries = {n: Entry(tuple(t.shape), t.nbytes, path, str(t.dtype).removeprefix("torch.")) for n, t in state.items()}
    return StateReader(entries, state.__getitem__)


def _read(path: Path, device: str | torch.device, mmap: bool) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of pickle protocols and TorchScript before it fails
            try:
                return torch.load(path, map_location=device, weights_only=True, mmap=mmap)
            except RuntimeError as failure:
                if not mmap or "mmap can only be used" not in str(failure):
                    raise
                return torch.load(path, map_location=device, weights_only=True)
    except pickle.UnpicklingError as failure:
        raise _unsafe(path, failure) from failure
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError, TypeError, IndexError) as failure:
        if "TorchScript" in str(failure):
            raise _unsafe(path, failure) from failure
        raise broken(path, failure) from failure


def _unsafe(path: Path, failure: Exception) -> CheckpointError:
    """Tell a pickle that would run code from a file that is no pickle at all."""
    with open(path, "rb") as file:
        head = file.read(2)
    if head not in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
        return broken(path, ValueError("it is neither a zip archive nor a pickle"))
    reason = next((line.strip() for line in str(failure).splitlines() if "GLOBAL" in line or "TorchScript" in line), "")
    return CheckpointError(
        f"{path} is not a weights-only file: reading it could run code that it carries",
        given=reason or "a pickle of objects other than tensors, numbers, strings, lists and dicts",
        expected="a state dict saved by torch.save(model.state_dict(), path), or a .safetensors file",
        do="where you trust its origin, load it with its own code and save model.state_dict() again",
    )


def _unwrap(content: Any, path: Path) -> dict[str, Tensor]:
    for _ in range(3):
        if not isinstance(content, Mapping):
            break
        if "param_groups" in content and "state" in content:
            raise CheckpointError(
                f"{path} holds the state of an optimiser and no model",
                given=", ".join(content),
                expected="a model's state dict",
                do="name the model's checkpoint",
            )
        inner = next((content[key] for key in WRAPPERS if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            break
        content = inner
    named = content if isinstance(content, Mapping) else {}
    tensors = {str(name): value for name, value in named.items() if isinstance(value, Tensor)}
    if not tensors:
        keys = ", ".join(map(str, list(named)[:8])) if named is content else type(content).__name__
        raise CheckpointError(
            f"{path} holds no model's tensors",
            given=keys or "an empty dict",
            expected=f"a state dict, or one under {', '.join(WRAPPERS[:4])}",
            do="save model.state_dict() with torch.save",
        )
    return tensors
