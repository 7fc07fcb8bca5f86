"""BatchNorm statistics re-estimated on data: interpolated weights never fit interpolated statistics."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import is_lazy

from pyalign.errors import NonFiniteError
from pyalign.statistics.batches import checked, split
from pyalign.statistics.forward import evaluating, respond

__all__ = ["has_batchnorm", "reestimate_batchnorm", "reestimating", "running_statistics"]

logger = logging.getLogger("pyalign")


def has_batchnorm(model: nn.Module) -> bool:
    """Whether `model` normalises by running statistics (BatchNorm of any kind, InstanceNorm that tracks them).

    Example:
        >>> has_batchnorm(nn.BatchNorm1d(3)), has_batchnorm(nn.BatchNorm1d(3, track_running_stats=False))
        (True, False)
    """
    return bool(_tracking(model))


def running_statistics(model: nn.Module) -> set[str]:
    """Names of the buffers that hold running statistics, as in the state dict.

    Example:
        >>> sorted(running_statistics(nn.Sequential(nn.BatchNorm1d(3))))
        ['0.num_batches_tracked', '0.running_mean', '0.running_var']
    """
    return {
        f"{name}.{buffer}" if name else buffer for name, norm in _tracking(model).items() for buffer in norm._buffers
    }


def _tracking(model: nn.Module) -> dict[str, Any]:
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _NormBase) and module.running_mean is not None and not is_lazy(module.running_mean)
    }


def reestimate_batchnorm(model: nn.Module, data: Iterable[Any]) -> None:
    r"""Set the running statistics of every BatchNorm of `model`, in place, to their average over `data`.

    With \(n_b\) elements a unit has in batch b: \(\mu = \sum_b n_b \mu_b / \sum_b n_b\) and
    \(\sigma^2 = \sum_b n_b s_b^2 / \sum_b n_b\), \(s_b^2\) the unbiased variance within the batch. For batches of equal
    size this is the cumulative average of `momentum=None`; unequal batches, such as a short last one, weigh as they
    should.

    Only BatchNorm modules run in training mode: dropout, auxiliary heads and stochastic depth stay off, unlike in
    `torch.optim.swa_utils.update_bn`. Modes and momenta return to what they were. Layers that see no data, such as
    those of an auxiliary head, keep their statistics. On any failure all statistics are as before.

    Args:
        model: The module to change. Without running statistics nothing happens.
        data: Iterable of batches, read once. Batches of a hundred or more samples give good statistics.

    Raises:
        DataError: `data` is empty, or the model cannot take a batch (such as one sample per BatchNorm unit).
        NonFiniteError: The statistics of a layer come out as NaN or infinite.

    Source:
        Garipov et al. 2018 (arXiv 1802.10026) section 5; Jordan et al. 2023 (arXiv 2211.08403) section 4.

    Example:
        >>> norm = nn.BatchNorm1d(1)
        >>> reestimate_batchnorm(norm, [torch.tensor([[1.0], [3.0]])])
        >>> norm.running_mean, norm.running_var
        (tensor([2.]), tensor([2.]))
    """
    if not has_batchnorm(model):
        return
    with reestimating(model):
        for index, batch in enumerate(checked(data)):
            respond(model, split(batch)[0], index)


@contextmanager
def reestimating(model: nn.Module) -> Iterator[None]:
    """Inside the block each forward pass of `model` counts into fresh statistics, as in `reestimate_batchnorm`."""
    norms = _tracking(model)
    saved = {name: _statistics(module) for name, module in norms.items()}
    momenta = {name: module.momentum for name, module in norms.items()}
    counts = dict.fromkeys(norms, 0)
    handles = []
    try:
        with evaluating(model, keep=False):
            for name, module in norms.items():
                module.reset_running_stats()
                module.train()
                handles.append(module.register_forward_pre_hook(_weigh(name, counts)))
            yield
        _keep_unseen(norms, saved, counts)
    except BaseException:
        for name, module in norms.items():
            _restore(module, saved[name])
        raise
    finally:
        for handle in handles:
            handle.remove()
        for name, module in norms.items():
            module.momentum = momenta[name]


def _weigh(name: str, counts: dict[str, int]) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    """A hook that sets the momentum of a BatchNorm to the share of the coming batch in all elements so far."""

    def hook(module: Any, inputs: tuple[Any, ...]) -> None:
        elements = inputs[0].numel() // max(1, module.num_features)
        counts[name] += elements
        module.momentum = elements / max(1, counts[name])

    return hook


def _keep_unseen(norms: dict[str, Any], saved: dict[str, list[Tensor]], counts: dict[str, int]) -> None:
    for name, module in norms.items():
        if not counts[name]:
            logger.info("BatchNorm %r saw no data and keeps its statistics", name)
            _restore(module, saved[name])
        elif not all(bool(torch.isfinite(tensor).all()) for tensor in _buffers(module)):
            raise NonFiniteError(
                f"NaN or infinity in the activations that BatchNorm {name!r} sees",
                expected="finite activations",
                do="look at the inputs and at the weights before this layer",
            )


def _buffers(module: Any) -> list[Tensor]:
    return [t for t in (module.running_mean, module.running_var, module.num_batches_tracked) if t is not None]


def _statistics(module: Any) -> list[Tensor]:
    return [tensor.clone() for tensor in _buffers(module)]


def _restore(module: Any, saved: list[Tensor]) -> None:
    for tensor, earlier in zip(_buffers(module), saved, strict=True):
        tensor.copy_(earlier)
