"""Gains: what is measured, what a neuron does with it, and what a conversion makes of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers import numbers, parse, run
from networks import (
    CALIBRATION,
    QCFS,
    RELU,
    TEST,
    THRESHOLDS,
    batches_of,
    inputs,
    network_of,
    plan_of,
    residual,
    source_of,
)

from ftbc_onnx import CalibrationError, ConfigError, DataError, convert
from ftbc_onnx.calibrate import calibrate
from ftbc_onnx.counting import count
from ftbc_onnx.evaluate import evaluate_file
from ftbc_onnx.gains import HIGHEST, LOWEST, find_gains, gain_of
from ftbc_onnx.graph.emit import emit
from ftbc_onnx.graph.emit.moments import emit_moments, moments_name
from ftbc_onnx.graph.emit.unrolled import emit_unrolled, spikes_name
from ftbc_onnx.graph.files import load_snn
from ftbc_onnx.graph.observe import expose_tensors
from ftbc_onnx.graph.provenance import read_plan
from ftbc_onnx.graph.synops import SYNOPS
from ftbc_onnx.neurons import NeuronSpec
from ftbc_onnx.plan import SpikingPlan
from ftbc_onnx.rules import SolveRule
from ftbc_onnx.runtime import CPU

T = 4


@pytest.fixture
def plan() -> SpikingPlan:
    network = network_of(residual())
    rng = np.random.default_rng(4)
    biases = {site.name: rng.normal(0, 0.1, (T, site.channels)) for site in network.sites}
    return plan_of(network, THRESHOLDS, T).with_biases(biases)


def spikes_and_activations(plan: SpikingPlan, x: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Mean spikes and activations of every site, [B, C, H, W]."""
    network = network_of(residual())
    names = [spikes_name(site.name, t) for site in plan.sites for t in range(T)]
    snn = run(expose_tensors(emit_unrolled(network, plan).model, names), {"x": x}, optimise=False)
    ann = run(expose_tensors(network.view.model, [site.spikes for site in plan.sites]), {"x": x}, optimise=False)
    return {
        site.name: (np.mean([snn[spikes_name(site.name, t)] for t in range(T)], axis=0), ann[site.spikes])
        for site in plan.sites
    }


def test_moments_are_those_of_the_emitted_network(plan: SpikingPlan) -> None:
    x = inputs(6)
    found = run(emit_moments(network_of(residual()), plan), {"x": x}, optimise=False)
    for name, (r, a) in spikes_and_activations(plan, x).items():
        expected = [value.mean((0, 2, 3)) for value in (a, r, a * a, r * r, a * r)]
        np.testing.assert_allclose(found[moments_name(name)], expected, rtol=1e-4, atol=1e-6)


def test_gains_are_ratios_of_standard_deviations_over_all_batches(plan: SpikingPlan) -> None:
    network, x = network_of(residual()), inputs(10)
    source = source_of(network.view.model, x=x)
    gains = find_gains(network, plan, source, batching=batches_of(4), samples=10, device=CPU)
    for name, (r, a) in spikes_and_activations(plan, x).items():
        ratio = a.std((0, 2, 3)) / np.maximum(r.std((0, 2, 3)), 1e-12)
        alive = (a.std((0, 2, 3)) > 1e-4) & (r.std((0, 2, 3)) > 1e-4)
        assert alive.any()
        np.testing.assert_allclose(gains[name][alive], np.clip(ratio, LOWEST, HIGHEST)[alive], rtol=1e-3)
        np.testing.assert_array_equal(gains[name][~alive], 1)


def test_silent_channels_and_limits() -> None:
    #            same, silent ANN, silent SNN, far too small, far too large
    a = np.array([1.0, 0.0, 1.0, 10.0, 0.1])
    r = np.array([1.0, 1.0, 0.0, 1.0, 1.0])
    zero = np.zeros(5)
    moments = np.stack([zero, zero, a * a, r * r, zero])
    np.testing.assert_allclose(gain_of(moments, np.ones(5)), [1, 1, 1, HIGHEST, LOWEST])


def test_constant_channels_have_no_gain() -> None:
    """Their variance is a difference of rounded means."""
    rng = np.random.default_rng(0)
    a, r = rng.uniform(1, 9, 64), rng.uniform(1, 9, 64)
    moments = np.float32([a, r, a * a * (1 + 2e-7), r * r * (1 + 1e-7), a * r])
    np.testing.assert_array_equal(gain_of(moments.astype(np.float64), np.ones(64)), 1)


def test_solve_reaches_means_up_to_gain_times_theta() -> None:
    network = network_of(parse("g (float[N,4] x) => (float[N,4] y) { y = Relu(x) }"))
    (site,) = network.sites
    plan = SpikingPlan("", network.sites, T, NeuronSpec("if"), {site.name: np.ones(site.channels)})
    plan = plan.with_gains({site.name: np.full(site.channels, 2.0)})
    x = np.abs(numbers(256, 4)) * 0.1 + 1.2
    source = source_of(network.view.model, x=x)
    found = calibrate(network, plan, SolveRule(), source, batching=batches_of(256), samples=256, device=CPU)
    emitted = emit_unrolled(network, plan.with_biases(found.biases)).model
    names = [spikes_name(site.name, t) for t in range(T)]
    spikes = run(expose_tensors(emitted, names), {"x": x}, optimise=False)
    total = np.mean([spikes[name] for name in names])
    assert abs(total - x.mean()) < 0.1 * x.mean()


def test_synops_count_what_is_read() -> None:
    """Two sites with the same spikes and different gains, subtracted: what cancels without gains does not with them."""
    text = (
        "g (float[N,6] x) => (float[N,3] y) { a = Relu(x) m = Mul(x, two) b = Relu(m) z = Sub(a, b) y = MatMul(z, w) }"
    )
    network = network_of(parse(text, two=np.float32(2), w=numbers(6, 3)))
    first, second = network.sites
    thresholds = {first.name: np.ones(first.channels), second.name: np.full(second.channels, 1.0)}
    plan = SpikingPlan("", network.sites, T, NeuronSpec("if"), thresholds)
    plan = plan.with_gains({second.name: np.full(second.channels, 1.5)})
    x = np.abs(numbers(5, 6)) + 0.3
    for form in ("unrolled", "loop"):
        model = count(emit(network, plan, form).model, plan)
        names = [f"z/t{t}" for t in range(T)]
        unrolled = run(expose_tensors(emit_unrolled(network, plan).model, names), {"x": x}, optimise=False)
        expected = [np.count_nonzero(unrolled[name]) * 3 / 5 for name in names]
        np.testing.assert_allclose(run(model, {"x": x}, optimise=False)[SYNOPS], expected)


@pytest.mark.parametrize("form", ["unrolled", "loop"])
def test_a_gain_is_a_scale_of_the_weights_behind(form: str) -> None:
    """Two layers: gain g between them, or the columns of the second one times g."""
    text = "g (float[N,6] x) => (float[N,3] y) { a = Gemm(x, w)  r = Relu(a)  y = Gemm(r, v) }"
    gain = np.float32([0.5, 1.0, 2.0, 1.0, 0.5, 2.0, 1.0, 0.5])
    weights = {"w": numbers(6, 8), "v": numbers(8, 3)}
    network = network_of(parse(text, **weights))
    scaled = network_of(parse(text, **{**weights, "v": weights["v"] * gain[:, None]}))
    (site,) = network.sites
    plan = SpikingPlan("", network.sites, T, NeuronSpec("signed-st"), {site.name: np.full(8, 0.8)})
    feeds = {"x": numbers(5, 6)}
    ours = run(emit(network, plan.with_gains({site.name: gain}), form).model, feeds, optimise=False)
    theirs = run(emit(scaled, plan, form).model, feeds, optimise=False)
    np.testing.assert_allclose(ours["y"], theirs["y"], rtol=1e-5, atol=1e-5)
    assert np.abs(ours["y"] - run(emit(network, plan, form).model, feeds, optimise=False)["y"]).max() > 0.1


class TestConversion:
    def test_is_looked_for_with_neurons_of_one_level(self) -> None:
        for neuron, asked in (("signed-st", True), ("if", True), ("signed-group", False)):
            report = convert(RELU, CALIBRATION, steps=T, neuron=neuron, threshold="mse", calib_samples=64).report
            questions = [selection["question"] for selection in report["selections"]]
            assert ("gain" in questions) == asked
            assert report["verification"]["bitwise"]

    def test_the_file_remembers_it(self, tmp_path: Path) -> None:
        options = {"steps": T, "neuron": "signed-st", "threshold": "mse"}
        result = convert(RELU, CALIBRATION, eval_data=TEST, gain=True, **options)
        (selection,) = [s for s in result.report["selections"] if s["question"] == "gain"]
        errors = [trial["error"] for trial in selection["trials"]]
        assert selection["chosen"] == int(np.argmin(errors))
        assert bool(result.plan.gains) == (selection["chosen"] > 0)
        path = result.save(tmp_path / "snn.onnx")
        assert read_plan(load_snn(path)) == result.plan
        again, _ = evaluate_file(path, TEST, device="cpu")
        assert again.accuracy == result.evaluation.accuracy
        assert again.counts == result.evaluation.counts

    def test_is_not_dropped_in_silence(self) -> None:
        """Asked for, it is looked for without a gate and on few samples too; without data it is refused."""
        options = {"steps": T, "neuron": "if", "threshold": "mse", "gain": True}
        for samples, more in ((64, {"gate": False}), (8, {})):
            report = convert(residual(), inputs(samples), **options, **more).report
            assert "gain" in [selection["question"] for selection in report["selections"]]
        for option in ({"gain": True}, {"shrink": 2.0}, {"compress_bias": True}):
            with pytest.raises(DataError, match="are about biases, which take calibration data"):
                convert(QCFS, steps=2, neuron="if", **option)

    def test_can_be_left_out(self) -> None:
        result = convert(residual(), inputs(32), steps=T, neuron="if", threshold="mse", gain=False)
        assert not result.plan.gains

    @pytest.mark.parametrize("options", [{"rule": "paper"}, {"rule": "none"}, {"schedule": "synchronous"}])
    def test_needs_biases_to_follow_it(self, options: dict[str, str]) -> None:
        with pytest.raises(ConfigError, match="gain goes with rule solve and schedule asynchronous"):
            convert(residual(), inputs(16), neuron="if", gain=True, **options)

    @pytest.mark.parametrize("gain", [np.zeros(4), np.full(4, np.nan), np.ones(3)])
    def test_no_gain(self, plan: SpikingPlan, gain: np.ndarray) -> None:
        with pytest.raises(ConfigError, match=r"gain of site '.*' must be 4 positive numbers"):
            plan.with_gains({plan.sites[0].name: gain})


def test_the_largest_spike_is_theta_times_gain(plan: SpikingPlan) -> None:
    first, second, *_ = plan.sites
    scaled = plan.with_gains({first.name: np.array([1, 2, 0.5, 4], np.float32)})
    np.testing.assert_array_equal(scaled.height(first), THRESHOLDS[first.name] * [1, 2, 0.5, 4])
    np.testing.assert_array_equal(scaled.height(second), THRESHOLDS[second.name])


def test_activations_too_large_to_be_squared_are_refused_with_their_site(plan: SpikingPlan) -> None:
    name = plan.sites[0].name
    source = source_of(residual(), x=inputs(8) * np.float32(1e25))
    with pytest.raises(CalibrationError, match=f"activations of site '{name}' are too large to be squared in float32"):
        find_gains(network_of(residual()), plan, source, batching=batches_of(8), samples=8, device=CPU)
