"""Which layers of a model REPAIR may normalise: seen in one forward pass, with the reason for each that it may not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from pyalign.statistics.forward import evaluating, respond
from pyalign.symmetry.calls import tensors_of

__all__ = ["Layer", "rewrite", "survey", "unit_axis"]

Layer = nn.Linear | nn.Bilinear | _ConvNd
NORMALISATIONS = {"batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm"}
RESHAPES = {"view", "reshape", "flatten", "unflatten", "permute", "transpose", "movedim", "unsqueeze", "squeeze",
            "contiguous", "to", "float"}  # fmt: skip
OUTPUT, NORMALISED = "gives the model's output", "is followed by a normalisation"


def unit_axis(layer: nn.Module) -> int:
    """The axis of a layer's output that holds its units, from the end: with or without a batch axis."""
    return -1 - len(layer.kernel_size) if isinstance(layer, _ConvNd) else -1


def survey(model: nn.Module, inputs: Any) -> tuple[dict[str, Layer], dict[str, str]]:
    """Run `model` once and sort its linear and convolutional layers.

    Args:
        model: Stays as it is, but for the pass in evaluation mode.
        inputs: The inputs of one batch.

    Returns:
        The layers whose output statistics can be set by their weights, by name; and for all others the reason.
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, Layer)}
    watch = _Watch(layers)
    handles = [hook for name, layer in layers.items() for hook in watch.attach(name, layer)]
    try:
        with evaluating(model), watch:
            output = respond(model, inputs, 0)
    finally:
        for handle in handles:
            handle.remove()
    last = watch.sources_of(tensors_of(output))
    uses = Counter(id(p) for module in model.modules() for p in module._parameters.values() if p is not None)
    reasons = {name: _reason(name, layer, watch, last, uses) for name, layer in layers.items()}
    return (
        {name: layer for name, layer in layers.items() if not reasons[name]},
        {name: reason for name, reason in reasons.items() if reason},
    )


def _reason(name: str, layer: Layer, watch: _Watch, last: set[str], uses: Counter[int]) -> str:
    """Why a layer is left alone; '' where it is not."""
    if watch.calls[name] != 1:
        return "is not called" if not watch.calls[name] else f"is called {watch.calls[name]} times"
    if name in last:
        return OUTPUT
    if name in watch.normalised:
        return NORMALISED
    own = [p for p in (layer._parameters.get("weight"), layer._parameters.get("bias")) if p is not None]
    if any(uses[id(parameter)] > 1 for parameter in own) or name in watch.borrowed:
        return "shares its weights"
    return "" if _writable(layer) else "has weights that cannot be set (a parametrisation)"


class _Watch(TorchFunctionMode):
    """Follows which layers a tensor comes from, through every torch function of one forward pass."""

    def __init__(self, layers: dict[str, Layer]) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.normalised: set[str] = set()
        self.borrowed: set[str] = set()
        self._owners = {id(p): name for name, layer in layers.items() for p in layer.parameters()}
        self._sources: Any = WeakTensorKeyDictionary()  # tensor -> layers it comes from, up to the nearest ones
        self._direct: Any = WeakTensorKeyDictionary()  # tensor -> the layer whose output it is, and its version
        self._running: list[str] = []
        self._latest = ""

    def attach(self, name: str, layer: Layer) -> list[Any]:
        """Watch the calls of one layer."""

        def before(_module: nn.Module, _inputs: Any) -> None:
            self._running.append(name)

        def after(_module: nn.Module, _inputs: Any, output: Any) -> None:
            self._running.pop()
            self.calls[name] += 1
            self._latest = name
            for tensor in tensors_of(output):
                self._sources[tensor] = {name}
                self._direct[tensor] = (name, tensor._version)

        return [layer.register_forward_pre_hook(before), layer.register_forward_hook(after)]

    def sources_of(self, tensors: list[Tensor]) -> set[str]:
        """The layers that give these tensors without another layer in between; else the layer that ran last."""
        found = {name for tensor in tensors for name in self._sources.get(tensor, ())}
        return found or {self._latest}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        given, name = tensors_of([args, kwargs]), getattr(func, "__name__", "")
        if name in NORMALISATIONS and given:
            self._normalise(given[0])
        answers = (
            [result] if isinstance(result, Tensor) else tensors_of(result) if isinstance(result, (tuple, list)) else []
        )
        if name == "__setitem__":
            answers = given[:1]
        if answers:
            self._borrow(given)
            sources = {source for tensor in given for source in self._sources.get(tensor, ())}
            for answer in answers:
                self._sources[answer] = sources
                if name in RESHAPES and given and given[0] in self._direct:
                    self._direct[answer] = (self._direct[given[0]][0], answer._version)
        return result

    def _normalise(self, tensor: Tensor) -> None:
        layer, version = self._direct.get(tensor, ("", -1))
        if layer and version == tensor._version:  # no in-place nonlinearity came between
            self.normalised.add(layer)

    def _borrow(self, given: list[Tensor]) -> None:
        for tensor in given:
            owner = self._owners.get(id(tensor))
            if owner is not None and owner not in self._running:
                self.borrowed.add(owner)


def _writable(layer: Layer) -> bool:
    """Whether the weight can be scaled as a whole: a plain parameter, or a parametrisation that can be inverted."""
    if not parametrize.is_parametrized(layer):
        return isinstance(layer._parameters.get("weight"), nn.Parameter) and (
            layer.bias is None or isinstance(layer._parameters.get("bias"), nn.Parameter)
        )
    if parametrize.is_parametrized(layer, "bias") or not parametrize.is_parametrized(layer, "weight"):
        return False
    parameters = [parameter for name, parameter in layer.named_parameters() if name.startswith("parametrizations.")]
    originals = [parameter.detach().clone() for parameter in parameters]
    wanted = layer.weight.detach() * 1.5
    try:
        with torch.no_grad():
            layer.weight = wanted
            return torch.allclose(layer.weight, wanted, rtol=1e-3)
    except (NotImplementedError, RuntimeError, ValueError, TypeError, AttributeError):
        return False
    finally:
        with torch.no_grad():
            for parameter, original in zip(parameters, originals, strict=True):
                parameter.copy_(original)


def rewrite(layer: Layer, scale: Tensor, shift: Tensor) -> None:
    """Change the layer's output y to scale * y + shift, per unit, in its weight and bias.

    Args:
        layer: Changed in place.
        scale: (units,) float64.
        shift: (units,) float64; zero for a layer without bias.
    """
    with torch.no_grad():
        weight = layer.weight.detach().double()
        if isinstance(layer, _ConvTransposeNd):  # (inputs, outputs of a group, ...): the groups lie along the inputs
            grouped = weight.reshape(layer.groups, -1, *weight.shape[1:])
            factors = scale.reshape(layer.groups, 1, -1, *[1] * (weight.ndim - 2))
            scaled = (grouped * factors).flatten(0, 1)
        else:
            scaled = weight * scale.reshape(-1, *[1] * (weight.ndim - 1))
        scaled = scaled.to(layer.weight.dtype)
        if parametrize.is_parametrized(layer, "weight"):
            layer.weight = scaled
        else:
            layer.weight.copy_(scaled)
        if layer.bias is not None:
            layer.bias.copy_(layer.bias.double() * scale + shift)
