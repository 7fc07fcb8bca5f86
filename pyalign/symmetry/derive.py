"""Derive the symmetry of any model from one forward computation."""

from __future__ import annotations

import logging
import random
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily

from pyalign.errors import DataError, InputError, PyalignWarning
from pyalign.symmetry.calls import answers_of, call, map_tensors, returned_states, state_of, tensors_of
from pyalign.symmetry.groups import FixedAxis
from pyalign.symmetry.keeping import keeping_attributes, keeping_buffers
from pyalign.symmetry.kinds import Kind
from pyalign.symmetry.locate import ModuleScope, plain_operators
from pyalign.symmetry.spec import SymmetrySpec
from pyalign.symmetry.tracing.absent import is_absent, stand_in
from pyalign.symmetry.tracing.build import build_spec
from pyalign.symmetry.tracing.labels import Label
from pyalign.symmetry.tracing.mixing import Mixing
from pyalign.symmetry.tracing.solve import Units, solve_units
from pyalign.symmetry.tracing.ties import Ties
from pyalign.symmetry.tracing.tracer import Escapes, Sight, Trace, source_label

__all__ = ["UNUSED", "derive", "solved", "traced_spec", "untouched"]

logger = logging.getLogger("pyalign")
_EXTRA_TRACES = 4
UNUSED = "never used in the computation"
"""Why axes stay of which the computation showed nothing."""


def derive(
    model: nn.Module, example_inputs: Any, *, within: Kind = Kind.SCALED, constants: Sequence[str] = ()
) -> SymmetrySpec:
    """Find what may move in a model without changing its function, by watching one forward computation.

    Every position on an axis of a parameter is followed through the operators: sums of products tie the units that are
    summed over, elementwise operators tie units that meet, unknown operators hold them in place. Units that play the
    same part form a group. Experts of a mixture change places with their rows of the router, and each has units of its
    own, where random elements leave the outputs of float64 copies of the model unchanged (`pyalign.symmetry.experts`);
    without weights (on the meta device) those of a small model of the same architecture.

    The model runs once in evaluation mode (and once in training mode when some parameters are only
    used there) and is left exactly as it was: weights, buffers, modes, hooks, random state.

    Args:
        model: Any module on any device; it is run on `example_inputs` without gradients. Its weights may be absent
            (the meta device, `pyalign.symmetry.weightless`, fake tensors): then a large model takes little memory.
        example_inputs: One batch: a tensor, a tuple or list of positional arguments, or a mapping of keyword arguments.
            A small batch of real or random data will do; its values matter only where they steer control flow.
        within: The largest class that is looked for. By default units are reordered, with signs and scales;
            `Kind.INVERTIBLE` also finds where units may be mixed: orthogonal and invertible matrices (within
            attention heads, on a residual stream without scales) and rotations of rotary pairs.
        constants: Parameters whose entries are all equal and stay so, such as the scales that
            `pyalign.symmetry.fold` has set to one; they are in nobody's way.

    Returns:
        The spec: groups, bindings, observation sites, what is fixed and why.

    Raises:
        InputError: `model` is no module, or has parameters that have no shape yet, or a constant is none.
        DataError: The model cannot take `example_inputs`.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> [(g.name, g.size) for g in derive(model, torch.randn(2, 4)).groups.values()]
        [('0', 8)]
    """
    from pyalign.symmetry.experts import ordered_experts
    from pyalign.symmetry.unread import without_unread

    if not isinstance(model, nn.Module):
        raise InputError("cannot derive a symmetry", given=type(model).__name__, expected="a torch.nn.Module")
    if any(isinstance(p, nn.parameter.UninitializedParameter) for p in model.parameters()):
        raise InputError("the model has lazy parameters without a shape", do="run it once before deriving")
    spec, ties, sights = traced_spec(model, example_inputs, within, tuple(constants))
    spec = ordered_experts(spec, model, example_inputs, ties, sights)
    spec = without_unread(spec, model, example_inputs)
    held = tuple(FixedAxis(n, d, "a constant") for n in constants for d in range(len(spec.shapes[n])))
    spec = replace(spec, fixed=(*spec.fixed, *held))
    return spec.within(within)


def traced_spec(
    model: nn.Module, example_inputs: Any, within: Kind, constants: tuple[str, ...]
) -> tuple[SymmetrySpec, Ties, list[Sight]]:
    """What `derive` finds before it looks at experts: the spec, what the trace collected, possible sites."""
    ties, traces, aliases, notes = _traced(model, example_inputs, constants)
    shapes = {n: tuple(t.shape) for n, t in state_of(model).items() if n not in aliases}
    spec = build_spec(ties, solve_units(ties), traces[0].sights, shapes, aliases, notes, within)
    return replace(spec, constants=constants), ties, traces[0].sights


def solved(model: nn.Module, example_inputs: Any) -> tuple[Ties, Units]:
    """What a trace of a model collects, and its units (for rewrites that follow scales)."""
    ties = _traced(model, example_inputs, (), rewritten=True)[0]
    return ties, solve_units(ties)


def _traced(
    model: nn.Module, example_inputs: Any, constants: tuple[str, ...], rewritten: bool = False
) -> tuple[Ties, list[Trace], dict[str, str], list[str]]:
    """Ties, traces, tied names and notes of as many forward computations as it takes to use every parameter."""
    ties = Ties(mixing=Mixing(active=not rewritten), rewritten=rewritten)
    sources, aliases = _sources(model, ties, constants)
    example_inputs = map_tensors(example_inputs, stand_in)
    run = partial(_run, model, ties=ties, sources=sources, constants=constants)
    traces = [run(example_inputs)]
    notes: list[str] = []
    if _unreached(model, traces, constants):
        try:
            traces.append(run(example_inputs, training=True))
        except DataError as error:
            logger.info("the model does not run in training mode on these inputs: %s", error)
    for seed in range(_EXTRA_TRACES):
        if _unreached(model, traces, constants):
            traces.append(run(_noisy(example_inputs, seed), seed=seed + 1))
    unreached = _unreached(model, traces, constants)
    notes += [f"never used in the computation: {', '.join(unreached)}"] if unreached else []
    if unreached:
        warnings.warn(
            f"{len(unreached)} parameters were never used on these inputs and are left alone ({unreached[0]}, ...); "
            "if other inputs use them, derive with inputs that do",
            PyalignWarning,
            stacklevel=2,
        )
    used = set().union(*(trace.used for trace in traces))
    dead = {*unreached, *(name for name, b in model.named_buffers() if id(b) not in used)}
    for axis in ties.axes:
        atoms = np.arange(axis.start, axis.start + axis.size)
        # What other inputs may read, such as the positions behind these inputs' last one, has an order that they tell.
        unread = atoms[~ties.reached[atoms]] if axis.blocks == 1 else atoms[:0]
        ties.pin(atoms if axis.tensor in dead else unread, UNUSED)
    states = sorted({name for trace in traces for name in trace.states})
    notes += [f"not held in place, since the model takes it back: {', '.join(states)}"] if states else []
    notes += _unknown(traces)
    return ties, traces, aliases, notes


def _noisy(inputs: Any, seed: int) -> Any:
    """The same inputs with noise as large as they are, to reach branches that depend on values (routers)."""
    generator = torch.Generator().manual_seed(seed)

    def noise(x: Tensor) -> Tensor:
        if not x.is_floating_point():
            return x
        return x + torch.randn(x.shape, generator=generator).to(x.device, x.dtype) * (
            float(x.float().std()) if x.numel() > 1 else 1.0
        )

    return map_tensors(inputs, noise)


@contextmanager
def untouched(model: nn.Module, training: bool = False) -> Iterator[None]:
    """Run a model in a given mode and put back modes, buffers and every random state afterwards.

    Inside, the caller's own `torch.inference_mode` and `torch.autocast` are suspended: the first hides the operators
    that composite ones are made of, the second computes from copies of weights that it made earlier.
    """
    modes = [(module, module.training) for module in model.modules()]
    python, array = random.getstate(), np.random.get_state()
    cuda = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=cuda):
        try:
            for module, _ in modes:
                module.training = training
            with keeping_buffers(model), keeping_attributes(model), ExitStack() as suspended:
                if torch.is_inference_mode_enabled():
                    suspended.enter_context(torch.inference_mode(False))
                for kind in ("cpu", "cuda"):
                    if torch.is_autocast_enabled(kind):
                        suspended.enter_context(torch.autocast(kind, enabled=False, cache_enabled=False))
                yield
        finally:
            for module, mode in modes:
                module.training = mode
            random.setstate(python)
            np.random.set_state(array)


def _sources(
    model: nn.Module, ties: Ties, constants: tuple[str, ...]
) -> tuple[list[tuple[Tensor, Label]], dict[str, str]]:
    """Labels of parameters, of persistent buffers (numbers and masks, not indices), and the tied names."""
    persistent = set(model.state_dict().keys())
    named: list[tuple[str, Tensor, bool]] = [(n, p, False) for n, p in model.named_parameters(remove_duplicate=False)]
    named += [
        (n, b, True)
        for n, b in model.named_buffers(remove_duplicate=False)
        if n in persistent and (b.is_floating_point() or b.dtype == torch.bool)
    ]
    for n in constants:
        value = dict(model.named_parameters()).get(n)
        known = value is not None and not is_absent(value)
        if value is None or (known and value.numel() and not bool((value == value.reshape(-1)[0]).all())):
            raise InputError(
                f"{n!r} is no constant",
                given="no such parameter" if value is None else "entries that differ",
                expected="a parameter whose entries are all equal",
                do="fold the model first: pyalign.symmetry.fold",
            )
    named = [entry for entry in named if entry[0] not in constants]
    first: dict[int, str] = {}
    sources: list[tuple[Tensor, Label]] = []
    aliases: dict[str, str] = {}
    for name, tensor, buffer in named:
        canonical = first.setdefault(id(tensor), name)
        if canonical != name:
            aliases[name] = canonical
        else:
            sources.append((tensor, source_label(ties, name, tensor, buffer)))
    return sources, aliases


def _run(
    model: nn.Module,
    inputs: Any,
    ties: Ties,
    sources: list[tuple[Tensor, Label]],
    constants: tuple[str, ...],
    training: bool = False,
    seed: int = 0,
) -> Trace:
    scope = ModuleScope(model)
    given = [(tensor, Label()) for tensor in tensors_of(inputs)]
    trace = Trace(ties, scope, [*sources, *given], [model.get_parameter(n) for n in constants], seed)
    with untouched(model, training), torch.no_grad(), plain_operators(model), unset_fake_temporarily(), scope:
        try:
            with trace, Escapes(trace):
                output = call(model, inputs)
        except Exception as error:
            if trace.absent.seen:
                raise _without_weights(model, error) from error
            shapes = [tuple(t.shape) for t in tensors_of(inputs)]
            raise DataError(
                f"the model {type(model).__name__} cannot take these inputs: {error}",
                given=f"tensors of shapes {shapes}",
                expected="what model(...) takes",
                do="pass a tensor, a tuple of positional or a mapping of keyword arguments",
            ) from error
    trace.finish()
    trace.states = returned_states(model, output)
    for tensor in answers_of(model, output):
        trace.leak(tensor)
        for plane in trace.planes(tensor):
            ties.pin(np.unique(plane.atoms.numpy()), "output of the model")
    return trace


def _without_weights(model: nn.Module, error: Exception) -> DataError:
    if isinstance(error, DataError):
        return error
    return DataError(
        f"the model {type(model).__name__} cannot be followed without its weights: {error}",
        given="weights without numbers (on the meta device, or fake tensors)",
        expected="control flow that does not depend on the numbers of weights, and inputs that the model takes",
        do="derive from the model with its weights, or from the same architecture in a smaller size",
    )


def _unreached(model: nn.Module, traces: list[Trace], constants: tuple[str, ...]) -> list[str]:
    used = set().union(*(trace.used for trace in traces))
    unused = [name for name, p in model.named_parameters() if id(p) not in used and p.dim() > 0]
    return [name for name in unused if name not in constants]


def _unknown(traces: list[Trace]) -> list[str]:
    found: dict[tuple[str, str], int] = {}
    for trace in traces:
        found.update(trace.unknown)
    for operator, place in found:
        warnings.warn(
            f"no rule for operator {operator} in {place or 'the model'}: what it touches is left alone",
            PyalignWarning,
            stacklevel=3,
        )
    return [
        f"no rule for operator {operator} in {place or 'the model'}: what it touches is left alone"
        for operator, place in found
    ]
