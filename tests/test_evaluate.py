"""Evaluation: every number it gives, counted directly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from helpers import make_plan, numbers, parse, run
from networks import (
    CALIBRATION,
    QCFS,
    RELU,
    TEST,
    THRESHOLDS,
    batches_of,
    digits,
    inputs,
    network_of,
    plan_of,
    residual,
)

from ftbc_onnx import Preprocessing, convert, planning
from ftbc_onnx.data import DataSource, open_data
from ftbc_onnx.errors import ConfigError, DataError, ModelError, VerificationError
from ftbc_onnx.evaluate import evaluate, evaluate_file, run_ann
from ftbc_onnx.graph import prepare
from ftbc_onnx.graph.emit.unrolled import emit_unrolled, spikes_name
from ftbc_onnx.graph.files import input_specs
from ftbc_onnx.graph.observe import expose_tensors
from ftbc_onnx.graph.sites import Network
from ftbc_onnx.plan import SpikingPlan
from ftbc_onnx.results import EvaluationResult
from ftbc_onnx.runtime import CPU

T = 4


def judge(
    network: Network, plan: SpikingPlan, source: DataSource, size: int, *, fixed: bool = False, **options: Any
) -> EvaluationResult:
    """Evaluate with the ANN's run over the same data."""
    emitted, batching = emit_unrolled(network, plan), batches_of(size, fixed)
    shared = {name: options[name] for name in ("samples", "label_offset") if name in options}
    ann = run_ann(network.view.model, network, emitted.readouts[0].output, source, batching, device=CPU, **shared)
    return evaluate(emitted.model, emitted.readouts, plan, source, batching, device=CPU, ann=ann, **options)


@pytest.fixture(scope="module")
def network() -> Network:
    return network_of(onnx.load(RELU))


@pytest.fixture(scope="module")
def plan(network: Network) -> SpikingPlan:
    return make_plan(network, T, threshold=1.1, bias=0.1)


@pytest.fixture(scope="module")
def data() -> tuple[np.ndarray, np.ndarray]:
    return digits("test", 50)


@pytest.fixture(scope="module")
def result(network: Network, plan: SpikingPlan, data: tuple[np.ndarray, np.ndarray]) -> EvaluationResult:
    source = open_data(data, input_specs(network.view.model))
    return judge(network, plan, source, 16)


class TestNumbers:
    """One evaluation in batches of 16, 16, 16 and 2 against one run over everything."""

    def test_accuracy_after_every_step_is_that_of_the_prefix_model(self, result, network, plan, data) -> None:
        images, labels = data
        for t in range(T):
            model = emit_unrolled(network, plan.prefix(t + 1)).model
            scores = run(model, {"image": images})["logits"]
            assert result.accuracy[t] == pytest.approx(100 * np.mean(scores.argmax(1) == labels), abs=1e-9)
        assert len(set(result.accuracy)) > 1

    def test_ann_accuracy_agreement_and_output_gap(self, result, network, plan, data) -> None:
        images, labels = data
        ann = run(network.view.model, {"image": images})["logits"]
        assert result.ann_accuracy == pytest.approx(100 * np.mean(ann.argmax(1) == labels))
        for t in range(T):
            scores = run(emit_unrolled(network, plan.prefix(t + 1)).model, {"image": images})["logits"]
            assert result.agreement[t] == pytest.approx(100 * np.mean(scores.argmax(1) == ann.argmax(1)), abs=1e-9)
            assert result.output_gap[t] == pytest.approx(np.abs(scores - ann).sum() / np.abs(ann).sum(), rel=1e-5)

    def test_rates_and_gaps_are_those_of_the_spikes(self, result, network, plan, data) -> None:
        feeds = {"image": data[0]}
        names = [spikes_name(site.name, t) for site in plan.sites for t in range(T)]
        spikes = run(expose_tensors(emit_unrolled(network, plan).model, names), feeds)
        activations = run(expose_tensors(network.view.model, [site.spikes for site in plan.sites]), feeds)
        for activity in result.activity:
            site = activity.site
            s = np.stack([spikes[spikes_name(site.name, t)] for t in range(T)])  # [T, B, C, H, W]
            theta = plan.thresholds[site.name].reshape(-1, 1, 1)
            assert set(np.unique(s / theta)) == {0, 1}
            assert activity.rate == pytest.approx((s / theta).mean(), rel=1e-5)
            np.testing.assert_allclose(activity.mean_spikes, s.mean(axis=(1, 3, 4)), rtol=1e-5, atol=1e-6)
            mean = activations[site.spikes].mean(axis=(0, 2, 3))
            np.testing.assert_allclose(activity.mean_activation, mean, rtol=1e-5, atol=1e-6)
            running = np.cumsum(s.mean(axis=(1, 3, 4)), axis=0) / np.arange(1, T + 1)[:, None]
            np.testing.assert_allclose(activity.gap, np.abs(running - mean).mean(axis=1), rtol=1e-4, atol=1e-6)
            shares = np.abs(running - mean) / plan.thresholds[site.name]
            np.testing.assert_allclose(activity.gap_in_theta, shares.mean(axis=1), rtol=1e-4, atol=1e-6)
            np.testing.assert_allclose(activity.rates, (s / theta).mean(axis=(0, 1, 3, 4)), rtol=1e-5)
            assert activity.silent == np.sum((s == 0).all(axis=(0, 1, 3, 4)) & (mean != 0))

    def test_last_step_is_the_plain_output(self, result, network, plan, data) -> None:
        images, labels = data
        scores = run(emit_unrolled(network, plan).model, {"image": images})["logits"]
        assert result.accuracy[-1] == pytest.approx(100 * np.mean(scores.argmax(1) == labels), abs=1e-9)

    def test_counts(self, result) -> None:
        assert result.samples == 50
        assert result.output == "logits"
        assert len(result.accuracy) == len(result.agreement) == len(result.output_gap) == T
        assert result.seconds > 0
        assert result.ann_seconds > 0

    def test_plain_form_holds_the_same_numbers(self, result) -> None:
        record = result.as_dict()
        assert record["accuracy"] == list(result.accuracy)
        first = result.activity[0]
        assert record["sites"][first.site.name] == {
            "rate": first.rate,
            "rate_range": [first.rates.min(), first.rates.max()],
            "silent_channels": first.silent,
            "mean_activation": first.mean_activation.mean(),
            "gap": list(first.gap),
            "gap_in_theta": list(first.gap_in_theta),
            "events": list(first.events),
            "binary_spikes": list(first.binary_spikes),
        }
        assert record["counts"]["synops"] == list(result.counts.synops)

    def test_nothing_is_counted_if_not_wanted(self, result, network, plan, data) -> None:
        source = open_data(data, input_specs(network.view.model))
        plain = judge(network, plan, source, 16, counting=False)
        assert plain.counts is None
        assert plain.activity[0].events is None
        assert plain.accuracy == result.accuracy


class TestLabels:
    def test_no_labels_no_accuracy(self, network, plan, data) -> None:
        result = judge(network, plan, open_data(data[0], input_specs(network.view.model)), 25)
        assert result.accuracy is None
        assert result.ann_accuracy is None
        assert len(result.agreement) == T

    @pytest.mark.parametrize(("bad", "offset", "shown"), [(10, 0, 10), (9, 1, 10), (0, -1, -1)])
    def test_out_of_range_is_named(self, plan: SpikingPlan, bad: int, offset: int, shown: int) -> None:
        network = network_of(onnx.load(RELU))
        labels = np.full(50, 5)
        labels[20] = bad
        source = open_data((digits("test", 50)[0], labels), input_specs(network.view.model))
        with pytest.raises(DataError, match=f"^label {shown} is no class of output 'logits', which has classes 0 to 9"):
            judge(network, plan, source, 16, label_offset=offset)

    def test_offset_is_added(self, result, network, plan, data) -> None:
        images, labels = data
        source = open_data((images, labels + 3), input_specs(network.view.model))
        shifted = judge(network, plan, source, 16, label_offset=-3)
        assert shifted.accuracy == result.accuracy
        assert shifted.ann_accuracy == result.ann_accuracy

    def test_outputs_that_are_no_scores_have_no_accuracy(self) -> None:
        """A map of numbers, class numbers, one number for the batch or for each sample, and truth values."""
        labels = np.zeros(6, np.int64)
        for text in (
            "g (float[N,2,3,3] x) => (float[N,2,3,3] y) { y = Relu(x) }",
            "g (float[N,2,3,3] x) => (int64[N,1,3,3] y) { r = Relu(x)  y = ArgMax<axis=1>(r) }",
            "g (float[N,2,3,3] x) => (float[N,1] y) { r = Relu(x)  f = Flatten(r)  y = ReduceMax<axes=[1]>(f) }",
            "g (float[N,2,3,3] x) => (float y) { r = Relu(x)  y = ReduceMean<keepdims=0>(r) }",
            "g (float[N,2,3,3] x) => (bool[N,2,3,3] y) <float c = {0.2}> { r = Relu(x)  y = Less(r, c) }",
        ):
            own = network_of(parse(text))
            source = open_data((numbers(6, 2, 3, 3), labels), input_specs(own.view.model))
            found = judge(own, make_plan(own, T, threshold=0.5), source, 4)
            assert found.accuracy is None
            assert found.ann_accuracy is None
            assert found.agreement is None
            assert len(found.output_gap) == T


class TestBatches:
    def test_a_fixed_batch_is_filled_up_and_the_filling_does_not_count(self) -> None:
        """10 samples in batches of exactly 4: outputs of all, rates over the 8 of whole batches."""
        x, labels = inputs(10), np.arange(10) % 3
        free = network_of(residual())
        model = residual()
        for value in (model.graph.input[0], model.graph.output[0]):
            value.type.tensor_type.shape.dim[0].dim_value = 4
        fixed = network_of(model)
        assert fixed.static_batch == 4
        ours = judge(fixed, plan_of(fixed, THRESHOLDS, T), _labelled(fixed, x, labels), 4, fixed=True)
        all_of_them = judge(free, plan_of(free, THRESHOLDS, T), _labelled(free, x, labels), 10)
        whole = judge(free, plan_of(free, THRESHOLDS, T), _labelled(free, x[:8], labels[:8]), 8)
        assert ours.samples == 10
        for field in ("accuracy", "agreement", "output_gap", "ann_accuracy"):
            np.testing.assert_allclose(getattr(ours, field), getattr(all_of_them, field), rtol=1e-6)
        for mine, other in zip(ours.activity, whole.activity, strict=True):
            np.testing.assert_allclose(mine.mean_spikes, other.mean_spikes, rtol=1e-6)
            np.testing.assert_allclose(mine.mean_activation, other.mean_activation, rtol=1e-6)

    def test_fewer_samples_than_a_fixed_batch_are_filled_up(self) -> None:
        model = residual()
        for value in (model.graph.input[0], model.graph.output[0]):
            value.type.tensor_type.shape.dim[0].dim_value = 4
        fixed = network_of(model)
        result = judge(fixed, plan_of(fixed, THRESHOLDS, T), _labelled(fixed, inputs(2), np.zeros(2)), 4, fixed=True)
        free = network_of(residual())
        same = judge(free, plan_of(free, THRESHOLDS, T), _labelled(free, inputs(2), np.zeros(2)), 2)
        assert result.samples == 2
        assert result.accuracy == same.accuracy
        np.testing.assert_allclose(result.activity[0].mean_spikes, same.activity[0].mean_spikes)

    def test_no_more_samples_than_asked_for(self, network, plan, data) -> None:
        source = open_data(data, input_specs(network.view.model))
        some = judge(network, plan, source, 16, samples=20)
        own = judge(network, plan, open_data((data[0][:20], data[1][:20]), input_specs(network.view.model)), 20)
        assert some.samples == 20
        assert some.accuracy == own.accuracy

    def test_progress(self, network, plan, data) -> None:
        done: list[int] = []
        judge(network, plan, open_data(data, input_specs(network.view.model)), 16, progress=done.append)
        assert done == [16, 32, 48, 50]


def _labelled(network: Network, x: np.ndarray, labels: np.ndarray) -> DataSource:
    return open_data((x, labels.astype(np.int64)), input_specs(network.view.model))


def test_without_the_ann_there_is_accuracy_only(network, plan, data) -> None:
    emitted = emit_unrolled(network, plan)
    source = open_data(data, input_specs(network.view.model))
    result = evaluate(emitted.model, emitted.readouts, plan, source, batches_of(25), device=CPU)
    assert len(result.accuracy) == T
    assert (result.ann_accuracy, result.agreement, result.output_gap) == (None, None, None)
    assert all(activity.gap is None for activity in result.activity)


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, EvaluationResult]:
    result = convert(RELU, CALIBRATION, eval_data=TEST, steps=T, calib_samples=64)
    return result.save(tmp_path_factory.mktemp("files") / "snn.onnx"), result.evaluation


class TestFiles:
    def test_a_saved_file_gives_what_conversion_gave(self, converted: tuple[Path, EvaluationResult]) -> None:
        path, before = converted
        after, device = evaluate_file(path, TEST, ann=RELU, device="cpu")
        assert device == "cpu"
        for field in ("samples", "data", "output", "accuracy", "ann_accuracy", "agreement", "output_gap"):
            assert getattr(after, field) == getattr(before, field)
        for mine, other in zip(after.activity, before.activity, strict=True):
            np.testing.assert_array_equal(mine.mean_spikes, other.mean_spikes)
            np.testing.assert_array_equal(mine.gap, other.gap)
            assert mine.site == other.site
        assert before.ann_accuracy == 100

    def test_another_ann_is_refused(self, converted: tuple[Path, EvaluationResult]) -> None:
        with pytest.raises(ModelError, match=r"was not made from .*digits_qcfs4.onnx'.*digests differ"):
            evaluate_file(converted[0], TEST, ann=QCFS)

    def test_a_file_that_is_no_spiking_network_is_refused(self) -> None:
        with pytest.raises(ModelError, match=r"is no spiking network made by ftbc-onnx: convert the ANN first"):
            evaluate_file(RELU, TEST)

    def test_batch_size_does_not_change_the_decisions(self, converted: tuple[Path, EvaluationResult]) -> None:
        path, before = converted
        after, _ = evaluate_file(path, TEST, batch_size=50, samples=120, device="cpu")
        assert after.samples == 120
        images, labels = (part[::3] for part in digits("test"))  # spread over all of them
        scores = run(onnx.load(path), {"image": images})["logits"]
        assert after.accuracy[-1] == pytest.approx(100 * np.mean(scores.argmax(1) == labels))
        assert before.samples == 360

    @pytest.mark.parametrize("option", ["batch_size", "samples"])
    @pytest.mark.parametrize("value", [0, -5])
    def test_numbers_must_be_positive(self, converted: tuple[Path, EvaluationResult], option: str, value: int) -> None:
        with pytest.raises(ConfigError, match=rf"{option} is {value}: it must be a whole number, at least 1"):
            evaluate_file(converted[0], TEST, **{option: value})

    def test_preprocessing_is_that_of_the_calibration(self, tmp_path: Path) -> None:
        """Raw pixels 0..16 at conversion and evaluation; the file remembers how they were scaled."""
        images, labels = digits("test", 40)
        raw = (images * 16 + 3).astype(np.float32)
        scaling = Preprocessing(scale=1 / 16, mean=(3 / 16,))
        result = convert(RELU, raw, eval_data=(raw, labels), preprocessing=scaling, steps=2)
        path = result.save(tmp_path / "snn.onnx")
        after, _ = evaluate_file(path, (raw, labels), ann=RELU, device="cpu")
        assert after.ann_accuracy == result.evaluation.ann_accuracy > 95
        assert after.accuracy == result.evaluation.accuracy
        unscaled, _ = evaluate_file(path, (images, labels), preprocessing=Preprocessing(), ann=RELU, device="cpu")
        assert unscaled.ann_accuracy == after.ann_accuracy


def test_labels_of_calibration_data_do_not_count(tmp_path: Path) -> None:
    arrays = np.load(CALIBRATION)
    np.savez(tmp_path / "one_based.npz", image=arrays["image"][:64], label=arrays["label"][:64] + 1)
    report = convert(RELU, tmp_path / "one_based.npz", steps=2).report
    assert report["evaluated_on"] == "calibration data"
    assert report["evaluation"]["accuracy"] is None
    assert report["evaluation"]["agreement"] is not None


def test_labels_of_evaluation_data_are_checked_before_calibration(monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = np.load(CALIBRATION)

    def never(*_: object, **__: object) -> None:
        raise AssertionError("long work was begun")

    monkeypatch.setattr(planning, "collect_statistics", never)
    images = arrays["image"][:16]
    with pytest.raises(DataError, match="label 10 is no class of output 'logits', which has classes 0 to 9"):
        convert(RELU, images, eval_data=(images, np.full(16, 10)), steps=2)


def test_arrays_for_a_network_that_was_calibrated_on_images(tmp_path: Path) -> None:
    from PIL import Image

    arrays = np.load(TEST)
    for number, image in enumerate(arrays["image"][:16]):
        Image.fromarray((image[0] * 255).astype(np.uint8)).save(tmp_path / f"{number:02}.png")
    result = convert(RELU, tmp_path, preprocessing=Preprocessing(color="gray"), steps=2)
    snn = result.save(tmp_path / "snn.onnx")
    expected, _ = evaluate_file(snn, TEST, ann=RELU, preprocessing=Preprocessing())
    judged, _ = evaluate_file(snn, TEST, ann=RELU)
    assert judged.ann_accuracy == expected.ann_accuracy > 95
    assert judged.accuracy == expected.accuracy
    with pytest.raises(ConfigError, match="resize, crop and color work on image files, not on arrays"):
        evaluate_file(snn, TEST, preprocessing=Preprocessing(crop=8))


def test_outputs_of_the_ann_may_be_more_than_memory_should_hold(
    network: Network, plan: SpikingPlan, data: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_data(data, input_specs(network.view.model))
    before = judge(network, plan, source, 16)
    monkeypatch.setattr("ftbc_onnx.evaluate.KEPT", 100)
    after = judge(network, plan, source, 16)
    assert after.ann_accuracy == before.ann_accuracy
    assert after.output_gap == before.output_gap


def test_the_ann_is_judged_as_it_was_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not as it was normalised: a mistake there shows in the agreement, and is not taken for the ANN's."""
    normalised = prepare.normalise

    def spoilt(model: onnx.ModelProto, opset: int | None) -> Any:
        result = normalised(model, opset)
        weight = next(w for w in result.model.graph.initializer if w.name == result.model.graph.node[-1].input[1])
        weight.CopyFrom(onnx.numpy_helper.from_array(-onnx.numpy_helper.to_array(weight), weight.name))
        return result

    monkeypatch.setattr(prepare, "normalise", spoilt)
    with pytest.raises(VerificationError, match=r"'logits' of the normalised ANN differs from .* by 199\.5%: "):
        convert(RELU, CALIBRATION, eval_data=TEST, steps=2)
    found = convert(RELU, CALIBRATION, eval_data=TEST, steps=2, verify=False).report["evaluation"]
    assert found["ann_accuracy"] == 100
    assert found["agreement"][-1] < 20
