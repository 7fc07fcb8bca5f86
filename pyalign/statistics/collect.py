"""Streaming moments of two models at the observation sites of a spec: same batches, nothing stored between them."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Mapping, Sized
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from pyalign.errors import DataError, MismatchError, NonFiniteError, PyalignError, PyalignWarning
from pyalign.statistics.batches import checked, split
from pyalign.statistics.forward import evaluating, respond
from pyalign.statistics.heap import keep_heap
from pyalign.statistics.home import home
from pyalign.statistics.moments import Moments
from pyalign.statistics.observe import Held, Key, observing
from pyalign.statistics.padding import MASKING, Mask, over_samples, padding_of, without_blocked
from pyalign.statistics.sites import SITES, UnitView, choose_sites
from pyalign.symmetry import Site, SymmetrySpec

__all__ = ["collect"]

OBSERVE = ("after", "before")


def collect(
    model_a: nn.Module,
    model_b: nn.Module,
    spec: SymmetrySpec,
    data: Iterable[Any],
    *,
    observe: str = "after",
    sites: str | int = SITES,
    full: bool = False,
    mask: Mask = "attention_mask",
    also: Collection[Site] = (),
    progress: bool | None = None,
    backend: str = "auto",
) -> dict[Site, Moments]:
    """Moments between the units of two models at every chosen site, over the same batches, in evaluation mode.

    Per batch model A runs first and the tensors at the sites are kept by reference (copied only if the model overwrites
    them); then model B runs, and each site's moments are updated the moment B computes it, which frees A's tensor.
    So memory holds the observed activations of one batch of one model, however many batches there are.
    The moments of a site live on the device of its activations, or on the host where three times their size is not free
    there: such activations are moved and counted on the CPU.
    Dropout is off; other random operators draw the same numbers in both models; the global random state is restored.

    Args:
        model_a: The first model; left as found.
        model_b: The second model, of the same architecture; left as found.
        spec: The symmetry of that architecture.
        data: Iterable of batches (see `pyalign.statistics.split`), read once.
        observe: "after" or "before" the nonlinearity.
        sites: How many sites of each group: a number, "last" or "all"; see `choose_sites`.
        full: Also the covariances within each model.
        mask: Where a batch carries its padding mask, see `padding_of`; it holds at every site with an axis of tokens.
        also: Further sites.
        progress: Show a bar: True, False, or None for only on a terminal.
        backend: Implementation of `pyalign.engine.cross_moments`.

    Returns:
        Moments (model A first) by site, in the order of the computation, without sites that evaluation never reaches.

    Raises:
        DataError: No data, a batch a model cannot take, or a computation that changes between batches or models.
        NonFiniteError: NaN or infinity in an activation; names model, module, operator and batch.
        MismatchError: A site is not as wide as the spec says.
    """
    if observe not in OBSERVE:
        raise DataError("unknown place of observation", given=repr(observe), expected=" or ".join(OBSERVE))
    chosen = {site for group in choose_sites(spec, sites).values() for site in group}
    ordered = [*(site for site in spec.sites if site in chosen), *also]
    collector = _Collector(ordered, observe, full, backend)
    total = len(data) if isinstance(data, Sized) else None
    hidden = None if progress is None else not progress
    with evaluating(model_a, model_b):
        for index, batch in enumerate(tqdm(checked(data), "activations", total, disable=hidden, leave=False)):
            inputs, _ = split(batch)
            collector.batch(model_a, model_b, inputs, padding_of(inputs, mask), index)
    moments = {site: m for site, m in collector.moments.items() if m.count}
    if collector.moments and not moments:
        raise DataError(
            "data is empty",
            given="batches without samples, or whose every sample is padding",
            expected="at least one sample",
            do="look at the first axis of the inputs, and at the padding mask",
        )
    _warn_of_few(moments)
    return moments


class _Collector:
    """The moments of all sites and the state of the batch at hand."""

    def __init__(self, sites: list[Site], observe: str, full: bool, backend: str) -> None:
        self.sites: dict[Key, list[Site]] = {}
        for site in sites:
            self.sites.setdefault(site.key, []).append(site)
        self.views = {site: UnitView(site) for site in sites}
        self.moments: dict[Site, Moments] = {}
        self.full, self.backend = full, backend
        self.before = {s.key for s in sites if observe == "before" and s.nonlinear}
        self.after = set(self.sites) - self.before
        self.expected: set[Key] | None = None
        self.heap: Tensor | None = None

    def batch(self, model_a: nn.Module, model_b: nn.Module, inputs: Any, mask: Tensor | None, index: int) -> None:
        """Run both models on one batch and add what is seen."""
        devices = sorted({p.device.index or 0 for m in (model_a, model_b) for p in m.parameters() if p.is_cuda})
        held, seen = Held(), set[Key]()
        with torch.random.fork_rng(devices), observing(model_a, self.after, self.before, held.keep, held.protect):
            respond(model_a, inputs, index)
        reached = set(held.keys)

        def take(key: Key, tensor: Tensor) -> None:
            seen.add(key)
            first = held.release(key)
            if first is None:
                raise _changed(key, f"model B reaches it in batch {index}, model A does not")
            for site in self.sites[key]:
                self._add(site, first, tensor, mask, index)

        with torch.random.fork_rng(devices), observing(model_b, self.after, self.before, take):
            respond(model_b, inputs, index)
        if held.keys:
            raise _changed(held.keys[0], f"model A reaches it in batch {index}, model B does not")
        if self.expected is None:
            self.expected = reached
            self.heap = keep_heap(2 * held.total + 4 * held.largest, held.largest)
        for key in sorted(self.expected ^ seen):
            raise _changed(key, f"batch {index} {'reaches' if key in seen else 'does not reach'} it, unlike batch 0")

    def _add(self, site: Site, x: Tensor, y: Tensor, mask: Tensor | None, index: int) -> None:
        view = self.views[site]
        for tensor in (x, y):
            if not view.fits(tensor):
                raise MismatchError(
                    f"the activations at {_name(site.key)} are not what the spec describes",
                    given=f"shape {tuple(tensor.shape)}",
                    expected=f"{site.width} entries on axis {site.axis}",
                    do="derive the spec from this model and this kind of input",
                )
        if x.shape != y.shape:
            raise _changed(site.key, f"in batch {index} it is {tuple(x.shape)} in model A, {tuple(y.shape)} in model B")
        units_x, units_y = view(x), view(y)
        if site not in self.moments:
            where = home(x.device, Moments.size(view.units, None, self.full))
            self.moments[site] = Moments(view.units, None, self.full, device=where, backend=self.backend)
        try:
            samples = [size for at, size in enumerate(units_x.shape) if at != site.axis % units_x.dim()]
            here = over_samples(mask, samples)
            if site.op.startswith(MASKING):
                here = without_blocked(units_x, units_y, site.axis, here)
            self.moments[site].update(units_x, units_y, site.axis, None if here is None else here.to(units_x.device))
        except NonFiniteError as error:
            raise _not_finite(site, units_x, index) from error


def _name(key: Key) -> str:
    module, call, operator, number = key
    again = f", call {call}" if call else ""
    return f"module {module or 'the model itself'!r}{again}, operator {operator} number {number}"


def _changed(key: Key, how: str) -> PyalignError:
    return DataError(
        "the models' computation depends on the data, so units cannot be compared",
        given=f"{_name(key)}: {how}",
        expected="the same operators on every batch, in both models",
        do="align by weights, or give batches that take the same branches",
    )


def _not_finite(site: Site, x: Tensor, index: int) -> NonFiniteError:
    model = "B" if bool(torch.isfinite(x).all()) else "A"
    return NonFiniteError(
        f"NaN or infinity in the activations of model {model} at {_name(site.key)}",
        given=f"batch {index}, group {site.group!r}",
        expected="finite activations",
        do="look at the weights before that layer, at the inputs, and at the dtype (float16 overflows at 65504)",
    )


def _warn_of_few(moments: Mapping[Site, Moments]) -> None:
    few = [(site, m.count) for site, m in moments.items() if m.count < site.positions.shape[0]]
    if few:
        site, count = few[0]
        warnings.warn(
            f"fewer samples than units in {len({s.group for s, _ in few})} groups (first: {count} samples for "
            f"{site.positions.shape[0]} units of {site.group!r}): correlations are unreliable; give more data",
            PyalignWarning,
            stacklevel=3,
        )
