"""Where sums over samples live: on the device of the activations, or on the host where they would not fit."""

from __future__ import annotations

import torch

__all__ = ["ROOM", "free_memory", "home"]

ROOM = 3
"""How many times its size a record needs: itself, the similarity made of it, and the sum of those of several sites."""


def home(device: torch.device, size: int) -> torch.device:
    """The device itself, or the host where `ROOM` times `size` bytes are not free on it.

    Example:
        >>> home(torch.device("cpu"), 1 << 60)
        device(type='cpu')
    """
    free = free_memory(device)
    return device if free is None or ROOM * size <= free else torch.device("cpu")


def free_memory(device: torch.device) -> int | None:
    """Bytes that can be allocated on a CUDA device, those included that torch has reserved; None for other devices."""
    if device.type != "cuda":
        return None
    reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + reserved
