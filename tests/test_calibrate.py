"""Calibration: what goes in, what is used of it, and what the biases found are good for."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from helpers import parse
from networks import QCFS, RELU, THRESHOLDS, batches_of, digits, inputs, network_of, plan_of, residual, source_of

from ftbc_onnx.calibrate import calibrate
from ftbc_onnx.config import ConvertConfig
from ftbc_onnx.data import open_data
from ftbc_onnx.errors import CalibrationError
from ftbc_onnx.evaluate import evaluate, run_ann
from ftbc_onnx.graph.emit.unrolled import emit_unrolled
from ftbc_onnx.graph.files import input_specs
from ftbc_onnx.plan import SpikingPlan
from ftbc_onnx.results import CalibrationResult
from ftbc_onnx.rules import PaperRule, SolveRule
from ftbc_onnx.runtime import CPU
from ftbc_onnx.thresholds import collect_statistics, estimate_thresholds

T = 5


def found(plan: SpikingPlan, x: np.ndarray, size: int, rule: object, fixed: bool = False) -> CalibrationResult:
    """Calibrate `residual` in batches of a size."""
    network = network_of(residual())
    batching = batches_of(size, fixed)
    source = source_of(network.view.model, x=x)
    return calibrate(network, plan, rule, source, batching=batching, samples=len(x), device=CPU)


@pytest.fixture
def plan() -> SpikingPlan:
    return plan_of(network_of(residual()), THRESHOLDS, T)


def test_paper_goes_on_from_the_biases_of_the_plan(plan: SpikingPlan) -> None:
    x = inputs(8)
    both = found(plan, x, 4, PaperRule(0.4))
    first = found(plan, x[:4], 4, PaperRule(0.4))
    second = found(plan.with_biases(first.biases), x[4:], 4, PaperRule(0.4))
    for name in both.biases:
        np.testing.assert_array_equal(both.biases[name], second.biases[name])


def test_solve_does_not_depend_on_the_biases_of_the_plan(plan: SpikingPlan) -> None:
    biased = plan.with_biases({name: bias + 0.3 for name, bias in plan.biases.items()})
    once, again = found(plan, inputs(8), 4, SolveRule()), found(biased, inputs(8), 4, SolveRule())
    for name in once.biases:
        np.testing.assert_array_equal(once.biases[name], again.biases[name])


def test_with_a_fixed_batch_the_rest_is_left_out(plan: SpikingPlan) -> None:
    x = inputs(10)
    result = found(plan, x, 4, SolveRule(), fixed=True)
    whole = found(plan, x[:8], 4, SolveRule())
    assert (result.samples, result.batches) == (8, 2)
    for name in whole.biases:
        np.testing.assert_array_equal(result.biases[name], whole.biases[name])


def test_progress_counts_samples(plan: SpikingPlan) -> None:
    done: list[int] = []
    network = network_of(residual())
    source = source_of(network.view.model, x=inputs(10))
    calibrate(network, plan, SolveRule(), source, batching=batches_of(4), samples=9, device=CPU, progress=done.append)
    assert done == [4, 8, 9]


def test_biases_that_are_not_finite_are_refused(plan: SpikingPlan) -> None:
    with pytest.raises(CalibrationError, match=r"biases of site 'r1' are not finite.*smaller --alpha"):
        found(plan, inputs(64), 4, PaperRule(3e38))


def test_plain_form_tells_the_largest_bias(plan: SpikingPlan) -> None:
    result = found(plan, inputs(8), 4, SolveRule())
    record = result.as_dict()
    assert record["rule"] == "solve"
    assert (record["samples"], record["batches"]) == (8, 2)
    for name, bias in result.biases.items():
        assert record["largest_bias"][name] == np.abs(bias).max() > 0


@pytest.mark.parametrize("path", [RELU, QCFS], ids=lambda path: path.stem)
def test_solve_closes_the_gap_on_real_networks(path) -> None:
    """On the batch of the calibration, the gap of every site but the first is under 1/20 of what it was, at every step.

    At the first site the current is constant and many neurons of a channel have the very same one (the margin of the
    image is black): they fire together, so a mean is met only as closely as their number allows.
    """
    network = network_of(onnx.load(path))
    source = open_data(digits("calibration", 128), input_specs(network.view.model))
    statistics = collect_statistics(network, source, 128, batches_of(128), CPU)
    thresholds = estimate_thresholds(network, statistics, ConvertConfig(threshold="max"))
    plan = SpikingPlan("", network.sites, 6, "if", thresholds)
    result = calibrate(network, plan, SolveRule(), source, batching=batches_of(128), samples=128, device=CPU)

    def gaps(judged: SpikingPlan) -> dict[str, np.ndarray]:
        emitted = emit_unrolled(network, judged)
        ann = run_ann(network.view.model, network, "logits", source, batches_of(128), device=CPU)
        evaluation = evaluate(emitted.model, emitted.readouts, judged, source, batches_of(128), device=CPU, ann=ann)
        return {activity.site.name: activity.gap for activity in evaluation.activity}

    before, after = gaps(plan), gaps(plan.with_biases(result.biases))
    first, *others = (site.name for site in plan.sites)
    assert after[first].mean() < 0.5 * before[first].mean()
    for name in others:
        assert np.all(after[name] < before[name] / 20)


def test_a_network_without_channels_is_calibrated_as_one(plan: SpikingPlan) -> None:
    """One axis only: one threshold and one bias per step for all of it."""
    network = network_of(parse("g (float[N] x) => (float[N] y) { y = Relu(x) }"))
    (site,) = network.sites
    assert (site.channels, site.channel_axis) == (1, None)
    plan = SpikingPlan("", network.sites, 4, "if", {site.name: np.ones(1)})
    x = np.linspace(-0.4, 0.6, 16, dtype=np.float32)
    source = source_of(network.view.model, x=x)
    result = calibrate(network, plan, SolveRule(), source, batching=batches_of(16), samples=16, device=CPU)
    bias = result.biases[site.name]
    v, sent = np.full(16, 0.5, np.float32), 0.0
    for t in range(4):
        u = v + x + bias[t]
        s = (u >= 1).astype(np.float32)
        v, sent = u - s, sent + s.mean()
        assert abs(sent - (t + 1) * np.maximum(x, 0).mean()) <= 1 / 16
