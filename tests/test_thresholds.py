"""Thresholds: every method against plain NumPy on the raw activations, and what bounds or replaces an estimate."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import numbers, parse
from networks import CALIBRATION, RELU, batches_of, digits, network_of, source_of

from ftbc_onnx import thresholds
from ftbc_onnx.config import ConvertConfig
from ftbc_onnx.data import open_data
from ftbc_onnx.errors import CalibrationError
from ftbc_onnx.graph.files import input_specs, load
from ftbc_onnx.runtime import CPU
from ftbc_onnx.thresholds import (
    BINS,
    FRACTIONS,
    ActivationStatistics,
    collect_statistics,
    estimate_thresholds,
    mse_threshold,
)

PLAIN = "g (float[N,3,4,5] x) => (float[N,3,4,5] y) { y = Relu(x) }"


def samples(count: int = 40, seed: int = 0) -> np.ndarray:
    """Inputs of `PLAIN` [N, 3, 4, 5], about half of them positive, each channel on a scale of its own."""
    scale = np.array([1.0, 0.02, 7.0], np.float32).reshape(3, 1, 1)
    return numbers(count, 3, 4, 5, seed=seed) * scale


def rectified(x: np.ndarray) -> np.ndarray:
    """Activations by channel, [C, values]."""
    return np.moveaxis(np.maximum(x, 0), 1, 0).reshape(x.shape[1], -1).astype(np.float64)


def statistics(x: np.ndarray, size: int = 16, text: str = PLAIN) -> dict[str, ActivationStatistics]:
    model = parse(text)
    return collect_statistics(network_of(model), source_of(model, x=x), len(x), batches_of(size), CPU)


def estimate(x: np.ndarray, size: int = 16, text: str = PLAIN, **options: object) -> np.ndarray:
    """Theta [C] of the only site."""
    network = network_of(parse(text))
    (theta,) = estimate_thresholds(network, statistics(x, size, text), ConvertConfig(**options)).values()
    assert theta.dtype == np.float32
    return theta


def quantised(x: np.ndarray, theta: float, levels: int) -> np.ndarray:
    """What T steps of a neuron make of a constant input."""
    return theta / levels * np.clip(np.floor(x * levels / theta + 0.5), 0, levels)


class TestMaximum:
    def test_per_channel_is_exact(self) -> None:
        x = samples()
        np.testing.assert_array_equal(estimate(x, threshold="max"), x.max(axis=(0, 2, 3)))

    def test_per_tensor_is_exact(self) -> None:
        x = samples()
        np.testing.assert_array_equal(estimate(x, threshold="max", per_channel=False), np.full(3, x.max()))


class TestPercentile:
    @pytest.mark.parametrize("percentile", [60, 90.0, 99, 99.9, 100])
    def test_per_channel_is_that_of_numpy_within_a_bin(self, percentile: float) -> None:
        x = samples(100)
        values = rectified(x)
        expected = np.percentile(values, percentile, axis=1, method="inverted_cdf")
        found = estimate(x, threshold="percentile", percentile=percentile)
        assert np.all(np.abs(found - expected) <= 1.001 * values.max(axis=1) / BINS)

    @pytest.mark.parametrize("percentile", [60, 95, 99.9, 100])
    def test_per_tensor_is_that_of_numpy_within_two_bins(self, percentile: float) -> None:
        x = samples(100)
        values = rectified(x)
        expected = np.percentile(values, percentile, method="inverted_cdf")
        found = estimate(x, threshold="percentile", percentile=percentile, per_channel=False)
        assert np.ptp(found) == 0
        assert abs(found[0] - expected) <= 2 * values.max() / BINS

    def test_zeros_count(self) -> None:
        """9 of 10 values are zero: the 95th percentile is the median of the others."""
        x = np.full((10, 3, 4, 5), -1, np.float32)
        x[0] = np.linspace(1, 2, 60, dtype=np.float32).reshape(3, 4, 5)
        found = estimate(x, threshold="percentile", percentile=95)
        np.testing.assert_allclose(found, np.median(x[0].reshape(3, 20), axis=1), atol=0.02)

    def test_of_a_channel_that_is_mostly_zero_is_its_maximum(self) -> None:
        x = np.full((10, 3, 4, 5), -1, np.float32)
        x[0] = 0.5
        np.testing.assert_array_equal(estimate(x, threshold="percentile", percentile=80), 0.5)


class TestLeastSquares:
    @pytest.mark.parametrize("steps", [1, 2, 4, 8, 32])
    @pytest.mark.parametrize("per_channel", [True, False])
    def test_no_candidate_is_better_on_the_raw_values(self, steps: int, per_channel: bool) -> None:
        x = samples(60, seed=steps)
        values = rectified(x) if per_channel else rectified(x).reshape(1, -1)
        found = estimate(x, threshold="mse", steps=steps, per_channel=per_channel)
        for row, theta in zip(values, found if per_channel else found[:1], strict=True):
            errors = [np.mean((quantised(row, f * row.max(), steps) - row) ** 2) for f in FRACTIONS]
            mine = np.mean((quantised(row, float(theta), steps) - row) ** 2)
            assert mine <= 1.02 * min(errors)
            assert np.min(np.abs(FRACTIONS * row.max() / theta - 1)) < 1e-6

    @pytest.mark.parametrize("levels", [1, 3, 15, 60, 480])
    def test_of_the_bins_it_is_the_least_to_the_last_bit(self, levels: int) -> None:
        """Channels of any scale, one of them dead, against the error of one channel and candidate at a time."""
        rng = np.random.default_rng(levels)
        top = np.array([3.0, 0.0, 1e-3, 700.0])
        counts = rng.poisson(30 * np.exp(-np.arange(BINS) / rng.uniform(20, 900, (4, 1)))) * (top > 0)[:, None]
        found = ActivationStatistics(top, counts.astype(np.float64), np.zeros(4))
        expected = []
        for row, times, maximum in zip(found.centres, found.counts, top, strict=True):
            errors = [(times * (quantised(row, f * maximum, levels) - row) ** 2).sum() for f in FRACTIONS if maximum]
            expected.append(maximum * FRACTIONS[np.argmin(errors)] if errors else 0.0)
        np.testing.assert_array_equal(mse_threshold(found, levels), expected)

    def test_more_steps_clip_less(self) -> None:
        x = samples(60)
        assert np.all(estimate(x, threshold="mse", steps=2) < estimate(x, threshold="mse", steps=32))

    def test_values_of_a_quantiser_give_its_threshold(self) -> None:
        x = quantised(samples(), 3.0, 4).astype(np.float32)
        x[:, :, 0, 0] = 3
        np.testing.assert_allclose(estimate(x, threshold="mse", steps=4), 3, rtol=1e-6)


class TestBounds:
    def test_ceiling_of_a_clip(self) -> None:
        text = "g (float[N,3,4,5] x) => (float[N,3,4,5] y) <float lo = {0.0}, float hi = {6.0}> { y = Clip(x, lo, hi) }"
        x = samples()
        assert x[:, 2].max() > 6
        for threshold in ("max", "percentile", "mse"):
            theta = estimate(x, text=text, threshold=threshold, steps=4)
            assert theta.max() <= 6
            assert theta[1] < 1  # the ceiling is a bound, no value
        np.testing.assert_array_equal(estimate(x, text=text, threshold="max", per_channel=False), 6)

    def test_ceiling_of_a_clip_where_more_would_fit_better(self) -> None:
        """Nearly all values are 3.3: two steps of a theta of 6.6 would meet them, above what the Clip lets through."""
        text = "g (float[N,3,4,5] x) => (float[N,3,4,5] y) <float lo = {0.0}, float hi = {6.0}> { y = Clip(x, lo, hi) }"
        x = np.full((40, 3, 4, 5), 3.3, np.float32)
        x[0, :, 0, 0] = 9
        np.testing.assert_array_equal(estimate(x, text=text, threshold="mse", steps=2), 6)
        x[0, :, 0, 0] = 6
        np.testing.assert_allclose(estimate(x, threshold="mse", steps=2), 6.6, rtol=1e-6)

    @pytest.mark.parametrize("threshold", ["max", "percentile", "mse"])
    def test_dead_channel_takes_the_mean_of_the_others(self, threshold: str) -> None:
        x = samples()
        x[:, 1] = -1
        theta = estimate(x, threshold=threshold)
        assert theta[1] == pytest.approx((theta[0] + theta[2]) / 2)
        (found,) = statistics(x).values()
        np.testing.assert_array_equal(found.dead, [False, True, False])

    @pytest.mark.parametrize("per_channel", [True, False])
    @pytest.mark.parametrize("threshold", ["max", "percentile", "mse"])
    def test_dead_tensor_takes_one(self, threshold: str, per_channel: bool) -> None:
        theta = estimate(-np.abs(samples()), threshold=threshold, per_channel=per_channel)
        np.testing.assert_array_equal(theta, 1)

    def test_qcfs_states_its_own(self) -> None:
        text = """g (float[N,3,4,5] x) => (float[N,3,4,5] y)
            <float L = {4.0}, float half = {0.5}, float zero = {0.0}>
            { a = Mul(x, L) b = Div(a, theta) c = Add(b, half) d = Floor(c) e = Clip(d, zero, L) y = Mul(e, step) }"""
        theta = np.array([1.5, 2, 0.5], np.float32).reshape(3, 1, 1)
        model = parse(text, theta=theta, step=theta / 4)
        network = network_of(model)
        assert collect_statistics(network, source_of(model, x=samples()), 40, batches_of(16), CPU) == {}
        (found,) = estimate_thresholds(network, {}, ConvertConfig(threshold="max")).values()
        np.testing.assert_array_equal(found, [1.5, 2, 0.5])

    @pytest.mark.parametrize("scale", [1e-36, 1e-40, 1e-44])
    @pytest.mark.parametrize("threshold", ["max", "percentile", "mse", "moments"])
    def test_channel_too_faint_for_float32_was_never_active(self, threshold: str, scale: float) -> None:
        x = samples()
        x[:, 1] *= np.float32(scale) / np.abs(x[:, 1]).max()
        assert 0 < x[:, 1].max() < 1e-35
        theta = estimate(x, threshold=threshold)
        np.testing.assert_allclose(theta[1], (theta[0] + theta[2]) / 2, rtol=1e-6)
        (found,) = statistics(x).values()
        assert found.dead.tolist() == [False, True, False]

    def test_infinite_activation_is_refused_with_its_name(self) -> None:
        text = "g (float[N,3,4,5] x) => (float[N,3,4,5] y) <float k = {3e38}> { z = Mul(x, k) y = Relu(z) }"
        with pytest.raises(CalibrationError, match="activation 'y' of the ANN is not finite"):
            statistics(samples(), text=text)

    @pytest.mark.parametrize("place", [(0, 0, 0, 0), (33, 2, 1, 3)])
    def test_an_activation_that_is_no_number_is_refused_wherever_it_is(self, place: tuple[int, ...]) -> None:
        """The maximum of onnxruntime may leave it out."""
        text = "g (float[N,3,4,5] x) => (float[N,3,4,5] y) { z = Sqrt(x) y = Relu(z) }"
        x = np.abs(samples())
        assert statistics(x, text=text)
        x[place] = -1
        with pytest.raises(CalibrationError, match="activation 'y' of the ANN is not finite"):
            statistics(x, text=text)

    @pytest.mark.parametrize(("ceiling", "theta"), [(0.5, 0.5), (6.0, 1.0)])
    def test_a_dead_tensor_keeps_to_its_ceiling(self, ceiling: float, theta: float) -> None:
        text = (
            "g (float[N,3,4,5] x) => (float[N,3,4,5] y) "
            f"<float lo = {{0.0}}, float hi = {{{ceiling}}}> {{ y = Clip(x, lo, hi) }}"
        )
        np.testing.assert_array_equal(estimate(-np.abs(samples()), text=text, threshold="mse"), theta)


class TestStatistics:
    def test_count_every_value_in_its_bin(self) -> None:
        x = samples()
        (found,) = statistics(x).values()
        values = rectified(x)
        np.testing.assert_array_equal(found.maximum, values.max(axis=1))
        np.testing.assert_array_equal(found.zeros, (values == 0).sum(axis=1))
        np.testing.assert_array_equal(found.counts.sum(axis=1) + found.zeros, values.shape[1])
        for row, counts, top in zip(values, found.counts, found.maximum, strict=True):
            expected, _ = np.histogram(row[row > 0], BINS, (0, top))
            assert np.abs(np.cumsum(counts) - np.cumsum(expected)).max() <= 3  # values on an edge may go either way

    @pytest.mark.parametrize("cached", [1, 150, 10**9])
    def test_do_not_depend_on_how_many_channels_are_counted_at_once(
        self, cached: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        x = samples(16)
        (whole,) = statistics(x, 3).values()
        monkeypatch.setattr(thresholds, "_CACHED", cached)  # of 60 values per channel and batch
        (found,) = statistics(x, 3).values()
        np.testing.assert_array_equal(found.counts, whole.counts)
        np.testing.assert_array_equal(found.zeros, whole.zeros)

    @pytest.mark.parametrize("size", [1, 7, 64])
    def test_do_not_depend_on_the_batch_size(self, size: int) -> None:
        x = samples(64)
        (whole,), (parts,) = statistics(x, 16).values(), statistics(x, size).values()
        np.testing.assert_array_equal(whole.maximum, parts.maximum)
        np.testing.assert_array_equal(whole.counts, parts.counts)
        np.testing.assert_array_equal(whole.zeros, parts.zeros)

    def test_of_a_real_network_do_not_depend_on_the_batch_size(self) -> None:
        source = load(RELU)
        network = network_of(source.model)
        data = open_data(CALIBRATION, input_specs(source.model))
        many, few = (collect_statistics(network, data, 64, batches_of(size), CPU) for size in (64, 16))
        for name, one in many.items():
            np.testing.assert_allclose(few[name].maximum, one.maximum, rtol=1e-6)
            np.testing.assert_array_equal(few[name].zeros, one.zeros)
            assert np.abs(few[name].counts - one.counts).sum() <= 1e-3 * one.counts.sum()

    def test_runs_are_no_larger_than_memory_allows(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """60 activations a sample, and room for 200: three samples a run in the second pass."""
        seen: list[int] = []
        count = thresholds._count

        def watch(a: np.ndarray, *rest: object) -> None:
            seen.append(len(a))
            count(a, *rest)

        monkeypatch.setattr(thresholds, "_count", watch)
        monkeypatch.setattr(thresholds, "_ELEMENTS", 200)
        x = samples(10)
        (bounded,) = statistics(x).values()
        assert seen == [3, 3, 3, 1]
        monkeypatch.undo()
        (free,) = statistics(x).values()
        np.testing.assert_array_equal(bounded.counts, free.counts)

    def test_channels_are_on_the_axis_of_the_site(self) -> None:
        """A MatMul makes channels on the last axis."""
        text = "g (float[N,5,2] x) => (float[N,5,3] y) { z = MatMul(x, w) y = Relu(z) }"
        w = numbers(2, 3, seed=5)
        model = parse(text, w=w)
        x = numbers(8, 5, 2)
        network = network_of(model)
        (found,) = collect_statistics(network, source_of(model, x=x), 8, batches_of(4), CPU).values()
        expected = np.maximum(x.astype(np.float64) @ w, 0)
        np.testing.assert_allclose(found.maximum, expected.max(axis=(0, 1)), rtol=1e-6)
        np.testing.assert_array_equal(found.zeros, (expected == 0).sum(axis=(0, 1)))

    def test_progress_reaches_twice_the_samples(self) -> None:
        done: list[int] = []
        model = parse(PLAIN)
        x = samples(10)
        collect_statistics(network_of(model), source_of(model, x=x), 10, batches_of(4), CPU, progress=done.append)
        assert done == sorted(done)
        assert done[-1] == 20


def test_digits_thresholds_are_sane() -> None:
    """Least squares for more steps come closer to the maximum, and never exceed 1.2 of it."""
    source = load(RELU)
    network = network_of(source.model)
    images, _ = digits("calibration", 64)
    found = collect_statistics(network, source_of(source.model, image=images), 64, batches_of(64), CPU)
    top = estimate_thresholds(network, found, ConvertConfig(threshold="max"))
    mse = estimate_thresholds(network, found, ConvertConfig(threshold="mse", steps=8))
    for name, theta in mse.items():
        assert np.all(theta[~found[name].dead] <= 1.2001 * top[name][~found[name].dead])
        assert np.all(theta > 0)
