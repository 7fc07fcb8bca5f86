"""The public entry: bring one trained network into another's coordinates, checked from end to end."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from pyalign.errors import DataError, InputError, PyalignWarning
from pyalign.matching.activation import ActivationMatching
from pyalign.matching.learned import LearnedMatching
from pyalign.matching.problem import Method, Problem, check_finite, check_model, check_same_architecture
from pyalign.matching.weight import WeightMatching
from pyalign.statistics.batches import checked, split
from pyalign.statistics.forward import evaluating, respond
from pyalign.symmetry import Alignment, Kind, SymmetrySpec, derive, map_tensors, sound, state_of, tensors_of

__all__ = ["align"]

EXAMPLES = 8
"""Samples of the first batch that are used to derive and verify the symmetry."""


def align(
    model_a: nn.Module,
    model_b: nn.Module,
    data: Iterable[Any] | None = None,
    *,
    method: str | Method = "activation",
    spec: SymmetrySpec | None = None,
    seed: int = 0,
    verify: bool = True,
    progress: bool | None = None,
    example_inputs: Any = None,
) -> Alignment:
    """Find the symmetry transformation that brings `model_b` into the coordinates of `model_a`.

    The symmetry is derived from the computation of model A, verified on model B (a random element must leave its
    outputs unchanged), and the best element is searched by `method`. Neither model is changed.

    Args:
        model_a: The model that stays.
        model_b: The model that is moved: same architecture, dtype and device.
        data: Iterable of batches: tensors, (inputs, targets) pairs or dicts. A one-pass iterator will do. Activation
            matching needs it; weight matching takes only the first batch, to derive and verify the symmetry; learned
            matching trains on it and needs targets.
        method: "activation", "weight", "learned" (`LearnedMatching`, which begins with weight matching), or an object
            such as `ActivationMatching(observe="before")`.
        spec: The symmetry, where it is known already; derived when None (in the classes that the method can use:
            weight matching also mixes units, as within attention heads).
        seed: Of every random choice; the same seed gives the same alignment.
        verify: Check the symmetry numerically first.
        progress: Show progress bars: True, False, or None for only on a terminal.
        example_inputs: What the model is called with to derive and verify, instead of the first batch of `data`.

    Returns:
        The alignment; `alignment.apply(model_b)` is a new module in the coordinates of model A.

    Raises:
        MismatchError: The models, or the model and the spec, are of different architecture.
        NonFiniteError: NaN or infinity in weights or activations; names the tensor or layer.
        DataError: No batch, or one that the models cannot take.
        InputError: Data, example inputs or a known method are missing.
        SymmetryError: A given spec does not hold for model B. (Of a derived one, groups that fail are held in place,
            with a warning.)

    Example:
        >>> import pyalign
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> x = torch.randn(64, 4)
        >>> shuffled = pyalign.derive(model, x).random(0, pyalign.symmetry.Kind.PERMUTATION).apply(model)
        >>> aligned = pyalign.align(model, shuffled, [x]).apply(shuffled)
        >>> bool((aligned[0].weight == model[0].weight).all())
        True
    """
    check_model(model_a, "A")
    check_model(model_b, "B")
    state_a, state_b = state_of(model_a), state_of(model_b)
    check_same_architecture(state_a, state_b)
    check_finite(state_a, "A")
    check_finite(state_b, "B")
    matcher = _method(method, data)
    data, inputs = _examples(data, example_inputs)
    if inputs is not None:
        inputs = _accepted(inputs, model_a, model_b)
    seconds: dict[str, float] = {}
    derived = spec is None
    spec = _spec(spec, model_a, inputs, seconds, getattr(matcher, "within", Kind.SCALED))
    notes: tuple[str, ...] = ("symmetry not verified: verify=False",)
    if verify:
        spec, notes = _verified(spec, derived, model_b, inputs, seed, seconds)
    answer = matcher.match(Problem(model_a, model_b, spec, data, seed, progress))
    return replace(answer, seconds={**seconds, **answer.seconds}, notes=(*answer.notes, *notes))


def _method(method: str | Method, data: Iterable[Any] | None) -> Method:
    if method == "activation":
        if data is None:
            raise InputError(
                "activation matching needs data",
                given="data=None",
                expected="an iterable of batches",
                do="pass data, or align by weights: method='weight'",
            )
        return ActivationMatching()
    if method == "weight":
        return WeightMatching()
    if method == "learned":
        return LearnedMatching()
    if isinstance(method, str) or not callable(getattr(method, "match", None)):
        raise InputError(
            "unknown method",
            given=repr(method),
            expected="'activation', 'weight', 'learned' or an object with match(problem)",
        )
    return method


def _examples(data: Iterable[Any] | None, example_inputs: Any) -> tuple[Iterable[Any] | None, Any]:
    """The data, still whole, and inputs to try the models with."""
    if data is None:
        return None, example_inputs
    batches = checked(data)
    first = next(batches)
    inputs = split(first)[0] if example_inputs is None else example_inputs
    return (chain([first], batches) if isinstance(data, Iterator) else data), inputs


def _accepted(inputs: Any, *models: nn.Module) -> Any:
    """The inputs cut to a few samples, or whole where the models take them only whole."""
    few = _few(inputs)
    with evaluating(*models), torch.random.fork_rng(_devices(*models)):
        try:
            respond(models[0], few, 0)
        except DataError:
            few = inputs
        for model in models:
            respond(model, few, 0)
    return few


def _few(inputs: Any) -> Any:
    sizes = {t.shape[0] if t.dim() else 0 for t in tensors_of(inputs)}
    if len(sizes) != 1 or min(sizes) <= EXAMPLES:
        return inputs

    def cut(tensor: Tensor) -> Tensor:
        return tensor[:EXAMPLES]

    return map_tensors(inputs, cut)


def _devices(*models: nn.Module) -> list[int]:
    return sorted({p.device.index or 0 for model in models for p in model.parameters() if p.is_cuda})


def _spec(
    spec: SymmetrySpec | None, model: nn.Module, inputs: Any, seconds: dict[str, float], within: Kind
) -> SymmetrySpec:
    if spec is None:
        if inputs is None:
            raise InputError(
                "nothing to derive the symmetry from",
                given="neither data, example_inputs nor spec",
                expected="one of them",
                do="pass example_inputs: what you would call the model with",
            )
        began = time.perf_counter()
        spec = derive(model, inputs, within=within)
        seconds["derive"] = time.perf_counter() - began
    spec.check_model(model)
    return spec


def _verified(
    spec: SymmetrySpec, derived: bool, model: nn.Module, inputs: Any, seed: int, seconds: dict[str, float]
) -> tuple[SymmetrySpec, tuple[str, ...]]:
    """The spec after the check: a given one must hold, of a derived one what does not hold is held in place."""
    if inputs is None:
        return spec, ("symmetry not verified: neither data nor example_inputs were given",)
    if not all(bool(torch.isfinite(t).all()) for t in tensors_of(inputs) if t.is_floating_point()):
        return spec, ("symmetry not verified: NaN or infinity in the inputs",)  # the matcher tells where they matter
    began = time.perf_counter()
    held: tuple[str, ...] = ()
    if derived:
        spec, held = sound(spec, model, inputs, seed=seed)
    else:
        spec.verify(model, inputs, seed=seed)
    seconds["verify"] = time.perf_counter() - began
    if held:
        note = f"held in place, because moving them changes the outputs: {', '.join(held)}"
        warnings.warn(note, PyalignWarning, stacklevel=3)
        return spec, (note,)
    return spec, ()
