"""Activations against thresholds, and troubled channels: each against plain NumPy on the raw values."""

from __future__ import annotations

import numpy as np
import pytest
from networks import batches_of, network_of, source_of
from test_thresholds import PLAIN, parse, rectified, samples

from ftbc_onnx.distribution import BINS, SATURATED, SPAN, WIDTH, Distribution, distribution
from ftbc_onnx.runtime import CPU
from ftbc_onnx.thresholds import collect_statistics

ROUNDING = 2e-3
"""Of a value in a histogram of 2,048 bins."""


def found(x: np.ndarray, height: np.ndarray) -> Distribution:
    model = parse(PLAIN)
    (statistics,) = collect_statistics(network_of(model), source_of(model, x=x), len(x), batches_of(16), CPU).values()
    return distribution(statistics, height)


def raw(x: np.ndarray, height: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Activations [C, values], and in units of theta."""
    a = rectified(x)
    return a, a / height[:, None]


def test_shares_are_those_of_the_values() -> None:
    x, height = samples(), np.array([1.5, 0.01, 9.0])
    seen = found(x, height)
    _, ratio = raw(x, height)
    expected = np.histogram(np.minimum(ratio[ratio > 0], SPAN - WIDTH / 2), BINS, (0, SPAN))[0] / ratio.size
    np.testing.assert_allclose(np.cumsum(seen.shares), np.cumsum(expected), atol=0.01)
    assert seen.zeros == np.mean(ratio == 0)
    assert seen.shares.sum() + seen.zeros == pytest.approx(1)


def test_values_beyond_the_last_bin_are_in_it() -> None:
    x = samples()
    seen = found(x, np.full(3, 1e-6))
    assert seen.shares[-1] == pytest.approx(np.mean(rectified(x) > 0), abs=1e-6)
    assert seen.clipped == pytest.approx(1, abs=1e-3)
    assert seen.saturated == 3


def test_clipped_is_the_activation_above_theta() -> None:
    x, height = samples(), np.array([0.8, 0.05, 6.0])
    a, _ = raw(x, height)
    lost = np.maximum(a - height[:, None], 0)
    seen = found(x, height)
    assert seen.clipped == pytest.approx(lost.sum() / a.sum(), rel=0.01)
    shares = lost.sum(axis=1) / a.sum(axis=1)
    assert np.all(np.abs(shares - SATURATED) > ROUNDING), "a channel on the edge tests nothing"
    assert seen.saturated == np.sum(shares > SATURATED)
    assert 0 < seen.saturated < 3


def test_nothing_is_clipped_at_the_maximum() -> None:
    x = samples()
    seen = found(x, rectified(x).max(axis=1))
    assert (seen.clipped, seen.saturated) == (0, 0)


def test_a_dead_channel_loses_nothing() -> None:
    x = samples()
    x[:, 1] = -1
    seen = found(x, np.array([10.0, 1.0, 100.0]))
    assert (seen.clipped, seen.saturated) == (0, 0)
    assert found(np.full_like(x, -1), np.ones(3)).zeros == 1
