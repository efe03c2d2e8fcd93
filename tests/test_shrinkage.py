"""Shrinkage: what calibration batches do not agree on is left out."""

from __future__ import annotations

import numpy as np
import pytest
from networks import THRESHOLDS, batches_of, inputs, network_of, plan_of, residual, source_of

from ftbc_onnx import ConfigError, DataError, convert
from ftbc_onnx.calibrate import calibrate
from ftbc_onnx.rules import SolveRule
from ftbc_onnx.runtime import CPU
from ftbc_onnx.shrinkage import shrink


def test_standard_error_of_batches_of_one_size() -> None:
    rng = np.random.default_rng(0)
    tables = rng.normal(rng.normal(0, 1, (1, 5, 7)), 1.0, (6, 5, 7))
    mean, error = tables.mean(0), tables.std(0, ddof=1) / np.sqrt(6)
    for times in (0.5, 2.0):
        bias, dropped = shrink(list(tables), [4] * 6, times)
        expected = np.where(np.abs(mean) > times * error, mean, 0)
        np.testing.assert_allclose(bias, expected, rtol=1e-6)
        assert dropped == (expected == 0).mean()
        assert 0 < dropped < 1


def test_batches_count_by_their_samples() -> None:
    tables = [np.full((1, 1), value, np.float32) for value in (1.0, 1.0, 1.0, 5.0)]
    bias, _ = shrink(tables, [8, 8, 8, 0], 2.0)
    np.testing.assert_allclose(bias, [[1.0]])


def test_what_is_zero_anyway_is_not_counted() -> None:
    tables = [np.array([[0.0, 1.0]], np.float32)] * 4
    bias, dropped = shrink(tables, [1] * 4, 2.0)
    np.testing.assert_array_equal(bias, [[0.0, 1.0]])
    assert dropped == 0


def test_noise_is_dropped_and_signal_is_kept() -> None:
    """Of biases that are nothing but noise about one in ten is kept at two errors of eight batches."""
    rng = np.random.default_rng(1)
    signal = np.where(np.arange(2000) < 1000, 3.0, 0.0)[None]
    bias, _ = shrink([signal + rng.normal(0, 1, signal.shape) for _ in range(8)], [16] * 8, 2.0)
    assert np.all(bias[0, :1000] != 0)
    assert 0.03 < (bias[0, 1000:] != 0).mean() < 0.15


def test_fewer_than_four_batches_are_refused() -> None:
    with pytest.raises(DataError, match="from 4 batches or more, and there are 3: give more"):
        shrink([np.zeros((1, 1))] * 3, [1] * 3, 2.0)


def test_calibration_takes_the_batches_apart() -> None:
    network = network_of(residual())
    plan = plan_of(network, THRESHOLDS, 4)
    x = inputs(32)
    source = source_of(network.view.model, x=x)
    options = {"batching": batches_of(4), "samples": 32, "device": CPU}
    whole = calibrate(network, plan, SolveRule(), source, **options)
    shrunk = calibrate(network, plan, SolveRule(), source, shrink=2.0, **options)
    assert whole.shrunk is None
    assert shrunk.shrunk is not None
    assert shrunk.shrunk > 0
    for name, bias in shrunk.biases.items():
        kept = bias != 0
        np.testing.assert_allclose(bias[kept], whole.biases[name][kept], rtol=0, atol=1e-6)


def test_a_conversion_with_it() -> None:
    report = convert(residual(), inputs(48), steps=3, neuron="if", threshold="mse", shrink=2.0).report
    assert report["calibration"]["batches"] == 8
    assert report["calibration"]["shrunk"] > 0
    assert report["options"]["shrink"] == 2.0


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf"), True, "2"])
def test_no_number_of_errors(value: object) -> None:
    with pytest.raises(ConfigError, match=r"shrink is .*: it must be a number of standard errors, at least 0"):
        convert(residual(), inputs(16), shrink=value)


def test_goes_with_solve() -> None:
    with pytest.raises(ConfigError, match="shrink goes with rule 'solve'"):
        convert(residual(), inputs(16), shrink=2.0, rule="paper")
