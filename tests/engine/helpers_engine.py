"""What the engine's tests compare with: float64 truth, and checks that name the entry that is wrong."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import textwrap

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment as scipy_assignment

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
# Rounding of one stored element, relative.
EPSILON = {torch.float32: 2.0**-23, torch.float64: 2.0**-52, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}


GPU = pytest.param("cuda", marks=pytest.mark.gpu)
"""The backend of tests that run on a CUDA device too, where there is one."""


def placed(value, backend):
    """The tensor where a backend runs, in memory laid out as here; other values as they are."""
    if backend not in ("cuda", "triton") or not isinstance(value, torch.Tensor) or value.is_cuda:
        return value
    whole = torch.empty(0, dtype=value.dtype).set_(value.untyped_storage())
    return whole.cuda().as_strided(value.shape, value.stride(), value.storage_offset())


def true_moments(x, y, axis_x, axis_y, mask=None):
    """Count, means and full co-moments in float64, from all samples at once."""
    a = x.movedim(axis_x, -1).reshape(-1, x.shape[axis_x]).double()
    b = y.movedim(axis_y, -1).reshape(-1, y.shape[axis_y]).double()
    if mask is not None:
        a, b = a[mask.reshape(-1)], b[mask.reshape(-1)]
    mean_a, mean_b = a.mean(0), b.mean(0)
    p, q = a - mean_a, b - mean_b
    return a.shape[0], mean_a, mean_b, p.T @ q, p.T @ p, q.T @ q


def check_moments(record, truth, tolerance=1e-6):
    """Compare with the truth, relative to the spread of the two units of each entry."""
    count, mean_a, mean_b, comoment, square_a, square_b = truth
    record = type(record)(*(tensor.cpu() for tensor in record.tensors), backend=record.backend)
    assert record.count.item() == count
    spread_a, spread_b = square_a.diagonal().sqrt(), square_b.diagonal().sqrt()
    norm = max(count, 1) ** 0.5
    floor = 1e-290
    got_a, want_a = (record.square_a, square_a) if record.full else (record.square_a, square_a.diagonal())
    got_b, want_b = (record.square_b, square_b) if record.full else (record.square_b, square_b.diagonal())
    outer = {
        "comoment": (record.comoment, comoment, torch.outer(spread_a, spread_b)),
        "mean_a": (record.mean_a * norm, mean_a * norm, spread_a + 1e-9 * mean_a.abs() * norm),
        "mean_b": (record.mean_b * norm, mean_b * norm, spread_b + 1e-9 * mean_b.abs() * norm),
        "square_a": (got_a, want_a, torch.outer(spread_a, spread_a) if record.full else spread_a.square()),
        "square_b": (got_b, want_b, torch.outer(spread_b, spread_b) if record.full else spread_b.square()),
    }
    for name, (got, want, scale) in outer.items():
        assert got.shape == want.shape and got.dtype == torch.float64
        error = (got - want).abs() / scale.clamp_min(floor)
        assert bool((error <= tolerance).all()), f"{name} is off by {error.max().item():.2e} of its units' spread"


def check_assignment(cost, answer, maximize=False):
    """Check one solved problem: a matching, feasible duals, an honest and small gap, and scipy's objective."""
    c = cost.double().numpy()
    n, m = c.shape
    perm, u, v = answer.perm.numpy(), answer.row_duals.numpy(), answer.col_duals.numpy()
    assert perm.shape == (n,) and u.shape == (n,) and v.shape == (m,)
    rows = np.flatnonzero(perm >= 0)
    assert len(rows) == min(n, m) and len(set(perm[rows])) == len(rows) and (perm[perm < 0] == -1).all()
    sign = -1.0 if maximize else 1.0
    bound = u[:, None] + v
    assert (sign * bound <= sign * c).all(), "the duals are not feasible"
    free_columns = np.setdiff1d(np.arange(m), perm[rows])
    assert (v[free_columns] == 0).all() and (u[perm < 0] == 0).all(), "unassigned rows and columns need dual zero"
    if n < m:
        assert (sign * v <= 0).all()
    if n > m:
        assert (sign * u <= 0).all()
    size = float(np.abs(c[np.isfinite(c)]).max(initial=0.0)) * max(n, m, 1)
    slack = sign * (c[rows, perm[rows]] - bound[rows, perm[rows]]).sum()
    assert 0.0 <= answer.gap.item() <= 1e-12 * size, f"gap {answer.gap.item()}"
    assert abs(answer.gap.item() - slack) <= 1e-12 * size
    best_rows, best_columns = scipy_assignment(c, maximize)
    best = c[best_rows, best_columns].sum()
    assert abs(answer.objective.item() - c[rows, perm[rows]].sum()) <= 1e-12 * size
    assert abs(answer.objective.item() - best) <= 1e-12 * size, f"objective {answer.objective.item()}, scipy {best}"


def permute(tensor, perms):
    """Permute by plain indexing, one axis after another."""
    for axis, perm in enumerate(perms or []):
        if perm is not None and perm.numel():
            run = tensor.shape[axis] // perm.numel()
            index = (perm[:, None] * run + torch.arange(run)).flatten()
            tensor = tensor[(slice(None),) * axis + (index,)]
    return tensor


def check_blend(got, tensors, weights, perms):
    """Compare with the float64 sum, entry by entry, within the rounding of the terms and of the stored result."""
    terms = [w * permute(t.double(), p) for t, w, p in zip(tensors, weights, perms, strict=True)]
    want = sum(terms[1:], terms[0])
    scale = sum((term.abs() for term in terms), torch.zeros_like(want))
    compute = EPSILON[torch.float64] if got.dtype == torch.float64 else EPSILON[torch.float32]
    assert got.shape == want.shape
    tolerance = len(terms) * 2 * compute * scale + EPSILON[got.dtype] * want.abs()
    least = {torch.float16: 2.0**-24, torch.bfloat16: 2.0**-133}.get(got.dtype, 2.0**-149)
    error = (got.double() - want).abs()
    assert bool((error <= tolerance + least).all()), f"off by {(error - tolerance).max().item():.2e} more than rounding"


def run_script(script):
    """Run Python code in a process of its own, away from the sources; it must succeed. Gives what it printed."""
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tempfile.gettempdir(),
    )
    assert result.returncode == 0, result.stderr
    return result.stdout
