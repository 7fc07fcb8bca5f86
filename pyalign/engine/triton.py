"""The Triton implementation of permuted blends: what it needs, what it is given, what is checked before it runs."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from pyalign import errors
from pyalign.engine import outcomes

__all__ = ["DEVICES", "INTERPRETED", "MISSING", "permuted_dots", "permuted_sum", "refusals"]

INTERPRETED = os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "y", "yes")
"""Whether Triton runs its kernels in its interpreter, which takes tensors in host memory too, and long."""

DEVICES = ("cuda", "cpu") if INTERPRETED else ("cuda",)
LEAST_CAPABILITY = (8, 0)
LEAST_TRITON = (3, 6)

Axes = Sequence[Tensor | None]
Term = tuple[Tensor, float, Axes]


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _missing() -> str:
    if not _installed("pyalign.kernels.permuted_lerp"):
        return "pyalign.kernels.permuted_lerp is not part of this build"
    if not _installed("triton"):
        return "the package triton is not installed: pip install 'pyalign-nn[gpu]' on Linux"
    version = importlib.metadata.version("triton")
    if tuple(map(int, version.split(".")[:2])) < LEAST_TRITON:
        return f"triton {version} is installed, the kernels need {'.'.join(map(str, LEAST_TRITON))} or newer"
    return ""


MISSING = _missing()


def refusals(tensors: Sequence[Tensor]) -> list[str]:
    """Say why the kernels cannot run on the tensors' devices, or, without tensors, on this machine's first one."""
    if INTERPRETED:
        return []
    if not torch.cuda.is_available():
        built = "torch sees none" if torch.version.cuda else f"torch {torch.__version__} is built without CUDA"
        return [f"there is no CUDA device: {built}"]
    devices = dict.fromkeys(tensor.device.index or 0 for tensor in tensors) or {0: None}
    return [reason for reason in map(_too_old, devices) if reason]


def _too_old(index: int) -> str:
    capability = torch.cuda.get_device_capability(index)
    if capability >= LEAST_CAPABILITY:
        return ""
    given, least = (".".join(map(str, version)) for version in (capability, LEAST_CAPABILITY))
    name = torch.cuda.get_device_name(index)
    return f"cuda:{index} ({name}) has compute capability {given}, Triton's kernels need {least}"


def permuted_sum(out: Tensor, tensors: Sequence[Tensor], weights: Sequence[float], perms: Sequence[Axes]) -> None:
    """Write the weighted sum of the permuted tensors to out, on the current stream of its device."""
    indices = _indices(perms)
    _check_written(out)
    kept = [k for k, weight in enumerate(weights) if weight != 0.0]
    if out.numel() == 0 or not kept:
        out.zero_()
        return
    kernels, out = _kernels(), out.detach()
    terms = [(_input(tensors[k]), weights[k], indices[k]) for k in kept]
    with _on(out.device):
        kernels.permuted_sum(out, *_columns(_shortened(terms, kernels)))


def permuted_dots(factor: Tensor, tensors: Sequence[Tensor], perms: Sequence[Axes]) -> Tensor:
    """Give the (k,) float64 sums over all entries of factor times each permuted tensor."""
    indices = _indices(perms)
    if factor.numel() == 0:
        return factor.new_zeros(len(tensors), dtype=torch.float64)
    kernels, factor = _kernels(), _input(factor)
    inputs = [_input(tensor) for tensor in tensors]
    with _on(factor.device):
        parts = [slice(first, first + kernels.MOST) for first in range(0, len(inputs), kernels.MOST)]
        return torch.cat([kernels.permuted_dots(factor, inputs[part], indices[part]) for part in parts])


def _shortened(terms: Sequence[Term], kernels: Any) -> list[Term]:
    """Terms as few as one kernel adds: the first ones are added up, unrounded, as far as that takes."""
    first, rest = list(terms[: kernels.MOST]), list(terms[kernels.MOST :])
    if not rest:
        return first
    like = first[0][0]
    wide = torch.float64 if like.dtype == torch.float64 else torch.float32
    total = torch.empty(like.shape, dtype=wide, device=like.device)
    while rest:
        kernels.permuted_sum(total, *_columns(first))
        first, rest = [(total, 1.0, [None] * like.dim()), *rest[: kernels.MOST - 1]], rest[kernels.MOST - 1 :]
    return first


def _columns(terms: Sequence[Term]) -> list[list[Any]]:
    return [list(column) for column in zip(*terms, strict=True)]


@lru_cache(maxsize=1)
def _kernels() -> Any:
    """Import the kernels when they are first needed: Triton takes a second."""
    return import_module("pyalign.kernels.permuted_lerp")


def _on(device: torch.device) -> AbstractContextManager[Any]:
    """Triton launches on the current device, whatever the tensors are on."""
    if device.type != "cuda" or device.index == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(device)


def _input(tensor: Tensor) -> Tensor:
    """A tensor that is only read: with torch's pending negation done, at an address that its dtype may have."""
    tensor = tensor.detach()
    if tensor.is_neg():
        tensor = tensor.resolve_neg()
    return tensor.clone() if tensor.data_ptr() % tensor.element_size() else tensor


_known: Any = WeakIdKeyDictionary()


def _indices(perms: Sequence[Axes]) -> list[list[Tensor | None]]:
    """The permutations as the kernels read them, in 32 bits; what is none is refused, since it would be read beyond.

    The answer must be waited for, so a tensor of indices is looked at once, and again only when it was changed.
    """
    return [[None if perm is None else _short(perm) for perm in axes] for axes in perms]


def _short(perm: Tensor) -> Tensor:
    state = None if perm.is_inference() else (perm._version, perm.data_ptr(), perm.numel())
    known: tuple[Any, Tensor] | None = _known.get(perm)
    if known is not None and known[0] == state:
        return known[1]
    # Before the check, which waits for the device: a later call on another stream then finds it written.
    short = perm.to(torch.int32) if perm.numel() < 2**31 else perm.contiguous()
    outcomes.check_permutations([perm])
    if state is not None:
        _known[perm] = state, short
    return short


def _check_written(out: Tensor) -> None:
    """Refuse memory in which one place would be written twice."""
    reach = 0
    for stride, extent in sorted(zip(out.stride(), out.shape, strict=True)):
        if extent > 1 and stride <= reach:
            raise errors.InputError(
                "permuted blend: entries of out share memory",
                given=f"strides {tuple(out.stride())} for shape {tuple(out.shape)}",
                expected="entries that do not overlap, since they are written",
                do="pass a tensor that was not expanded, or leave out= away",
            )
        reach += stride * max(extent - 1, 0)
