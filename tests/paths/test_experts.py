"""The choice of experts along a path: whole where experts stand in one order, broken where they do not."""

from __future__ import annotations

import torch

import pyalign
from pyalign.paths import ExpertOverlap, expert_overlap
from pyalign.statistics import expert_counts, selected_experts
from pyalign.symmetry import Kind
from tests.symmetry.mixtures import EXPERTS, TOP, Mixture, after, masked


def test_overlap_falls_where_experts_stand_in_another_order() -> None:
    torch.manual_seed(0)
    model, x = Mixture(after, masked).eval(), torch.randn(3, 16, 3)
    with torch.no_grad():
        model.gate.bias[-1] = -100.0  # no token goes to the last expert
        for p in model.experts.parameters():
            p.add_(torch.randn_like(p))
    spec = pyalign.derive(model, x)
    twin = spec.random(2, Kind.PERMUTATION).apply(model)
    chosen = selected_experts(model, spec, [x, x])["gate"]
    logits = model.gate(model.write(x.flatten(0, 1)))
    assert chosen.shape == (2 * 48, TOP) and torch.equal(chosen[:48], logits.topk(TOP, -1).indices)
    assert expert_counts(chosen, EXPERTS).tolist()[-1] == 0
    found = pyalign.align(model, twin, method="weight", spec=spec, verify=False).apply(twin)
    aligned = expert_overlap(model, found, [x], spec=spec)
    naive = expert_overlap(model, twin, [x], spec=spec)
    assert aligned.least == 1.0 and aligned.dead_a == ((EXPERTS - 1,),) == aligned.dead_b
    assert naive.with_a[0][0] == 1.0 and naive.with_a[0][-1] < 0.9 and naive.dead_b != naive.dead_a
    assert ExpertOverlap.from_dict(naive.to_dict()) == naive
    seen = pyalign.align(model, twin, [x], method="activation", spec=spec)
    assert "A never chooses: [3]" in seen.report()
