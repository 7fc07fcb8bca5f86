"""Streaming moments: against float64 on all samples at once; merging, dead units, masks, state."""

from __future__ import annotations

import pickle

import pytest
import torch

from pyalign.errors import DataError, InputError, NonFiniteError
from pyalign.statistics import Moments


def streams(samples=60, n=5, m=4, seed=0, offset=0.0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, n, generator=generator) + offset
    y = torch.randn(samples, m, generator=generator) + 0.5 * x[:, :1]
    return x, y


def check(moments, x, y):
    """Every answer of `moments` against the plain formulas on all samples."""
    x, y = x.double(), y.double()
    a, b = x - x.mean(0), y - y.mean(0)
    close = {"rtol": 1e-6, "atol": 1e-6}  # what the engine promises for float32
    assert moments.count == len(x)
    torch.testing.assert_close(moments.mean_a, x.mean(0), **close)
    torch.testing.assert_close(moments.mean_b, y.mean(0), **close)
    torch.testing.assert_close(moments.covariance(), a.T @ b / len(x), **close)
    torch.testing.assert_close(moments.second_moment(), x.T @ y / len(x), **close)
    expected = torch.corrcoef(torch.cat([x, y], 1).T)[: x.shape[1], x.shape[1] :]
    torch.testing.assert_close(moments.correlation(), expected, **close)


def test_batches_give_the_moments_of_all_samples():
    x, y = streams()
    moments = Moments(5, 4)
    for start in range(0, 60, 7):
        moments.update(x[start : start + 7], y[start : start + 7])
    check(moments, x, y)


def test_the_check_rejects_other_samples():
    x, y = streams()
    with pytest.raises(AssertionError):
        check(Moments(5, 4).update(x, y), x, y.flip(0))


def test_units_on_any_axis():
    x, y = streams(samples=24)
    maps_x, maps_y = x.reshape(2, 3, 4, 5).permute(0, 3, 1, 2), y.reshape(2, 3, 4, 4).permute(0, 3, 1, 2)
    check(Moments(5, 4).update(maps_x, maps_y), x, y)
    check(Moments(5, 4).update(maps_x.movedim(1, -1), maps_y, axis=(-1, 1)), x, y)


def test_merging_is_the_whole_and_leaves_the_other():
    x, y = streams()
    whole, left, right = Moments(5, 4, True), Moments(5, 4, True), Moments(5, 4, True)
    whole.update(x, y)
    left.update(x[:13], y[:13])
    right.update(x[13:], y[13:])
    kept = {name: t.clone() for name, t in right.state_dict().items()}
    left.merge(right)
    check(left, x, y)
    torch.testing.assert_close(left.covariance_a(), whole.covariance_a())
    assert all(torch.equal(kept[name], t) for name, t in right.state_dict().items())
    check(left.merge(Moments(5, 4, True)), x, y)


def test_full_covariances_within_streams():
    x, y = streams()
    moments = Moments(5, 4, full=True).update(x, y)
    torch.testing.assert_close(moments.covariance_a(), torch.cov(x.double().T, correction=0), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(moments.covariance_b(), torch.cov(y.double().T, correction=0), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(moments.variance_a, moments.covariance_a().diagonal())
    with pytest.raises(InputError, match="full=True"):
        Moments(5, 4).update(x, y).covariance_a()


@pytest.mark.parametrize("constant", [0.0, 3.7, -1e4])
def test_constant_units_correlate_with_nothing(constant):
    x, y = streams()
    x[:, 2], y[:, 1] = constant, constant
    moments = Moments(5, 4)
    for start in range(0, 60, 7):
        moments.update(x[start : start + 7], y[start : start + 7])
    correlation = moments.correlation()
    assert bool(torch.isfinite(correlation).all())
    assert not correlation[2].any() and not correlation[:, 1].any() and bool(correlation[0, 0] != 0)
    assert moments.constant_a.tolist() == [False, False, True, False, False]
    assert moments.constant_b.tolist() == [False, True, False, False]


def test_small_variation_on_a_large_mean_is_not_constant():
    x, y = streams(samples=2000)
    moments = Moments(5, 4).update(x.double() + 1e4, y.double() - 1e4)
    assert not moments.constant_a.any()
    torch.testing.assert_close(moments.correlation(), Moments(5, 4).update(x, y).correlation(), rtol=1e-6, atol=1e-6)


def test_masked_samples_may_hold_anything():
    x, y = streams()
    keep = torch.arange(60) % 3 > 0
    spoiled = x.clone()
    spoiled[~keep] = float("nan")
    check(Moments(5, 4).update(spoiled, y, mask=keep), x[keep], y[keep])


def test_nan_is_an_error_and_changes_nothing():
    x, y = streams()
    moments = Moments(5, 4).update(x, y)
    bad = x.clone()
    bad[3, 2] = float("inf")
    with pytest.raises(NonFiniteError):
        moments.update(bad, y)
    check(moments, x, y)


def test_state_survives_pickle_and_state_dict():
    x, y = streams()
    first = Moments(5, 4).update(x[:30], y[:30])
    for copy in (pickle.loads(pickle.dumps(first)), Moments.from_state_dict(first.state_dict())):
        check(copy.update(x[30:], y[30:]), x, y)
    check(first, x[:30], y[:30])


def test_wrong_use_says_what_is_wrong():
    x, y = streams()
    with pytest.raises(InputError, match=r"\(5, 4\)"):
        Moments(4, 5).update(x, y)
    with pytest.raises(InputError, match="different streams"):
        Moments(5, 4).merge(Moments(5, 5))
    with pytest.raises(DataError, match="no samples"):
        Moments(5, 4).correlation()
    with pytest.raises(InputError, match="comoment"):
        Moments.from_state_dict({"count": torch.zeros(())})
