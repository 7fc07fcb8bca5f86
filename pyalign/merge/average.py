"""The weighted average of aligned models, with BatchNorm reset, RESCALE or REPAIR (Jordan et al. 2023)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, TypeVar, cast

from torch import Tensor, nn

from pyalign.errors import InputError, PyalignWarning
from pyalign.merge.repair import repair_statistics
from pyalign.paths.blend import Blend
from pyalign.statistics.batchnorm import has_batchnorm, reestimate_batchnorm
from pyalign.symmetry.calls import state_of
from pyalign.symmetry.copies import copy_of

__all__ = ["Repair", "merge"]

Model = TypeVar("Model", nn.Module, Mapping[str, Tensor])
Repair = Literal["bn_reset", "rescale", "repair"]
REPAIRS = ("bn_reset", "rescale", "repair")


def merge(
    models: Sequence[Model],
    weights: Sequence[float] | None = None,
    repair: Repair | None = None,
    data: Iterable[Any] | None = None,
) -> Model:
    r"""Average aligned models: \(\theta = \sum_k w_k \theta_k\), and repair the statistics of the result.

    Averaged units vary less than those of the models they come from (variance collapse), the more the deeper they lie.
    The repairs measure on `data` and change weights alone: the result has the modules of the first model, no more.

    - "bn_reset" re-estimates the running statistics of BatchNorm, which fit no averaged weights.
    - "repair" gives every unit of hidden linear and convolutional layers, before its nonlinearity, the mean
      \(\sum_k w_k \mu_k\) and the standard deviation \(\sum_k w_k \sigma_k\), and resets BatchNorm.
    - "rescale" restores the standard deviations alone, by scaling weights and biases.

    Args:
        models: Models of one architecture, aligned to one another: modules, or state dicts (also readers that
            `pyalign.io.open_state` gives) where `repair` is None. They stay as they are.
        weights: One number a model, of sum 1; None: all alike. REPAIR needs them not to be negative.
        repair: How statistics are restored; None: not at all.
        data: Batches for the repair, read once; a thousand samples in batches of a hundred or more are plenty.

    Returns:
        A new module, or a new state dict for state dicts.

    Raises:
        InputError: No models, wrong weights, a repair of state dicts, or a repair without data.
        MismatchError: The architectures differ; the tensors are named.
        NonFiniteError: Weights or activations are NaN or infinite; the tensor or layer is named.
        DataError: `data` is empty, or the model cannot take it.

    Source:
        Jordan et al., ICLR 2023 (arXiv 2211.08403), section 4; see `pyalign.merge.repair` for the details.

    Example:
        >>> import torch
        >>> merge([{"weight": torch.zeros(2)}, {"weight": torch.ones(2)}], weights=[0.25, 0.75])
        {'weight': tensor([0.7500, 0.7500])}
    """
    given = _checked_models(models)
    shares = _checked_weights(weights, len(given))
    _check_repair(given, shares, repair, data)
    states = [state_of(model) if isinstance(model, nn.Module) else model for model in given]
    blend = Blend(states, [f"model {index}" for index in range(len(given))])
    if not isinstance(given[0], nn.Module):
        _warn_of_statistics(any(name.endswith("running_var") for name in states[0]), shares)
        return cast(Model, blend.sum(shares))
    merged = copy_of(given[0])
    blend.into(shares, merged)
    if repair is None or data is None:
        _warn_of_statistics(has_batchnorm(merged), shares)
    elif repair == "bn_reset":
        if not has_batchnorm(merged):
            warnings.warn(
                "the models have no BatchNorm with running statistics: there is nothing to reset",
                PyalignWarning,
                stacklevel=2,
            )
        reestimate_batchnorm(merged, data)
    else:
        ends = [model for model in given if isinstance(model, nn.Module)]
        repair_statistics(merged, ends, shares, data, shift=repair == "repair")
    answer: Any = merged  # the type variable cannot be narrowed twice
    return cast(Model, answer)


def _checked_models(models: Any) -> list[Any]:
    given = list(models) if isinstance(models, Sequence) else []
    modules = [isinstance(model, nn.Module) for model in given]
    if not given or any(modules) != all(modules) or not all(isinstance(m, (nn.Module, Mapping)) for m in given):
        kinds = ", ".join(type(model).__name__ for model in given) or type(models).__name__
        raise InputError(
            "these models cannot be merged",
            given=kinds,
            expected="a list of modules, or of state dicts",
            do="put the models into a list; load state dicts into modules where both kinds occur",
        )
    return given


def _checked_weights(weights: Sequence[float] | None, count: int) -> list[float]:
    shares = [1.0 / count] * count if weights is None else [float(weight) for weight in weights]
    if len(shares) != count or not all(map(math.isfinite, shares)) or abs(math.fsum(shares) - 1.0) > 1e-6:
        raise InputError(
            "the weights do not fit the models",
            given=f"weights {shares} for {count} models",
            expected="one finite number a model, of sum 1",
            do="divide the weights by their sum",
        )
    return shares


def _check_repair(models: list[Any], weights: list[float], repair: Any, data: Any) -> None:
    if repair is None:
        return
    if repair not in REPAIRS:
        raise InputError(
            "this repair is unknown",
            given=repr(repair),
            expected=f"None or one of {', '.join(REPAIRS)}",
            do="choose 'bn_reset' for models with BatchNorm, 'repair' for others",
        )
    if not isinstance(models[0], nn.Module):
        raise InputError(
            "state dicts cannot be repaired, since nothing can be run",
            given=f"repair={repair!r}",
            expected="modules",
            do="load the state dicts into modules with pyalign.io.load_into",
        )
    if data is None:
        raise InputError(
            "a repair needs data",
            given=f"repair={repair!r}, data=None",
            expected="batches on which statistics are measured",
            do="pass data=, such as training batches",
        )
    if repair != "bn_reset" and min(weights) < 0.0:
        raise InputError(
            "REPAIR needs weights that are not negative",
            given=f"weights {weights}",
            expected="standard deviations whose weighted sum is not negative",
            do="use repair='bn_reset' or None beyond the ends",
        )


def _warn_of_statistics(normalised: bool, weights: list[float]) -> None:
    if normalised and weights.count(0.0) < len(weights) - 1:
        warnings.warn(
            "the models have BatchNorm, whose averaged statistics fit no averaged weights: pass "
            "repair='bn_reset' and data=",
            PyalignWarning,
            stacklevel=3,
        )
