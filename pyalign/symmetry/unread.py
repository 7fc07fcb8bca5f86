"""Units of one table that the outputs do not depend on: computed along, but not read, such as positions far apart.

Their order tells nothing here, and everything to the inputs that read them, so they stay. What the trace shows to be
only moved along is held already; here it takes numbers, since something was computed from every entry.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from pyalign.symmetry.calls import state_of
from pyalign.symmetry.derive import UNUSED
from pyalign.symmetry.groups import AxisBinding
from pyalign.symmetry.spec import SymmetrySpec
from pyalign.symmetry.tracing.absent import is_absent
from pyalign.symmetry.verify import _Probe, holding

__all__ = ["without_unread"]


def without_unread(spec: SymmetrySpec, model: nn.Module, inputs: Any) -> SymmetrySpec:
    """Hold the groups of one tensor whose entries may be changed without any change of the outputs.

    Args:
        spec: What was derived.
        model: The model; nothing is looked at where its weights are absent.
        inputs: What it was derived with.

    Returns:
        The spec, with fewer groups where some were not read.
    """
    lone = {name: bindings for name in spec.groups if len(bindings := spec.of(name)) == 1}
    outer = {getattr(group.structure, "outer", None) for group in spec.groups.values()}
    lone = {name: bindings for name, bindings in lone.items() if name not in outer}
    if not lone or any(is_absent(tensor) for tensor in state_of(model).values()):
        return spec
    probe = _Probe(model, inputs, 0, spec.constants)
    unread = [name for name, (binding,) in lone.items() if not _read(probe, binding)]
    return holding(spec, unread, UNUSED) if unread else spec


def _read(probe: _Probe, binding: AxisBinding) -> bool:
    """Whether any output depends on the units' entries."""
    changed = probe.state[binding.tensor].clone()
    places = binding.positions.reshape(-1).to(changed.device)
    rows = changed.index_select(binding.axis, places)
    changed.index_copy_(binding.axis, places, rows + probe.noise.of(rows).to(rows) * rows.abs().amax().clamp_min(1))
    return probe.changes({**probe.state, binding.tensor: changed})
