"""Many tensors in few flat buffers, so that whole states are blended by one call; tensors come back as views."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Layout"]


class _Slot(NamedTuple):
    name: str
    shape: torch.Size
    complex: bool
    length: int


class Layout:
    """Where each tensor lies: one buffer for every dtype and device, complex tensors as pairs of numbers.

    Args:
        tensors: Name -> floating or complex tensor; only their kinds and shapes are kept.

    Example:
        >>> layout = Layout({"a": torch.zeros(2, 3), "b": torch.zeros(4)})
        >>> [buffer.shape for buffer in layout.pack({"a": torch.ones(2, 3), "b": torch.zeros(4)})]
        [torch.Size([10])]
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._groups: dict[tuple[torch.dtype, torch.device], list[_Slot]] = {}
        for name, tensor in tensors.items():
            kind = (tensor.real.dtype if tensor.is_complex() else tensor.dtype, tensor.device)
            length = tensor.numel() * (2 if tensor.is_complex() else 1)
            self._groups.setdefault(kind, []).append(_Slot(name, tensor.shape, tensor.is_complex(), length))

    @property
    def names(self) -> list[str]:
        """The tensors, in the order of the buffers."""
        return [slot.name for slots in self._groups.values() for slot in slots]

    def pack(self, tensors: Mapping[str, Tensor]) -> list[Tensor]:
        """Copies of the tensors in new buffers, one for every dtype and device."""
        packed = self.empty()
        for buffer, slots in zip(packed, self._groups.values(), strict=True):
            for slot, part in zip(slots, buffer.split([slot.length for slot in slots]), strict=True):
                part.copy_(_real(tensors[slot.name].detach()).reshape(-1))
        return packed

    def empty(self) -> list[Tensor]:
        """New buffers, one for every dtype and device, with nothing written to them."""
        return [
            torch.empty(sum(slot.length for slot in slots), dtype=dtype, device=device)
            for (dtype, device), slots in self._groups.items()
        ]

    def unpack(self, buffers: Sequence[Tensor]) -> dict[str, Tensor]:
        """The tensors as views of the buffers; gradients flow back through one operator per buffer."""
        found = {}
        for buffer, slots in zip(buffers, self._groups.values(), strict=True):
            # A split has one backward, which writes all gradients side by side; slices would each fill a buffer.
            for slot, part in zip(slots, buffer.split([slot.length for slot in slots]), strict=True):
                shape = (*slot.shape, 2) if slot.complex else slot.shape
                view = part.view(shape)
                found[slot.name] = torch.view_as_complex(view) if slot.complex else view
        return found


def _real(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
