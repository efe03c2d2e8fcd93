"""The whole conversion: what goes in, with and without data, the same bytes again, and its accuracy."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from helpers import assert_valid, numbers, parse, run
from networks import CALIBRATION, QCFS, RELU, TEST, digits, inputs, network_of, residual
from pipeline_cases import PLAIN, QUICK, quick, working

from ftbc_onnx import DataError, convert, pipeline
from ftbc_onnx.config import THRESHOLDS
from ftbc_onnx.errors import OutOfMemoryError
from ftbc_onnx.graph.provenance import read_plan, read_record
from ftbc_onnx.pipeline import ConversionResult
from ftbc_onnx.runtime import Session


class TestInputs:
    def test_path_bytes_and_proto_give_the_same_network(self) -> None:
        path, raw, proto = (
            convert(model, CALIBRATION, **QUICK) for model in (RELU, RELU.read_bytes(), onnx.load(RELU))
        )
        assert path.model.graph == raw.model.graph == proto.model.graph
        assert path.plan.source_digest == raw.plan.source_digest
        assert (path.report["source"], raw.report["source"]) == ("digits_relu.onnx", "model")

    def test_text_paths_too(self) -> None:
        assert convert(str(RELU), str(CALIBRATION), **QUICK).source.path == RELU

    def test_the_proto_given_is_left_alone(self) -> None:
        model = residual()
        before = model.SerializeToString(deterministic=True)
        quick(model)
        assert model.SerializeToString(deterministic=True) == before

    def test_an_endless_source_of_data_is_read_as_far_as_needed(self) -> None:
        def feeds() -> Iterator[dict[str, np.ndarray]]:
            for seed in itertools.count():
                assert seed < 10
                yield {"x": inputs(4, seed)}

        result = convert(residual(), feeds(), **QUICK)
        assert result.report["samples"] == 16
        assert result.plan == quick(data=np.concatenate([inputs(4, seed) for seed in range(4)])).plan

    def test_calibration_samples_are_taken_evenly_over_all_of_them(self) -> None:
        images, _ = digits("calibration")
        all_of_them = convert(RELU, images, **QUICK)
        some = convert(RELU, images[:: len(images) // 16], **QUICK)
        assert all_of_them.plan == some.plan
        assert all_of_them.report["samples"] == 16


class TestWithoutData:
    def test_qcfs_is_converted_without_biases(self) -> None:
        result = convert(QCFS, steps=4)
        assert all(not bias.any() for bias in result.plan.biases.values())
        assert [site.op_type for site in result.plan.sites] == ["QCFS"] * 4
        report = result.report
        assert report["rule"] == read_record(result.model)["rule"] == "none"
        assert report["data"] == "none"
        assert report["calibration"] is None
        assert report["threshold"] == "stated by the QCFS activations"
        assert report["verification"]["bitwise"]

    def test_plain_rectifiers_are_refused_with_the_command(self, monkeypatch: pytest.MonkeyPatch) -> None:
        begun = working(monkeypatch)
        with pytest.raises(DataError) as caught:
            convert(RELU)
        message = str(caught.value)
        assert "states no threshold for 4 of 4 activations ('node_relu' first)" in message
        assert f"ftbc-onnx convert {RELU} --calib-data" in message
        assert "--random-data" in message
        assert not begun

    def test_random_data_are_marked_everywhere(self) -> None:
        result = convert(RELU, random_data=True, seed=3, **QUICK)
        record = read_record(result.model)
        assert result.report["random_data"] is True
        assert record["random_data"] == "true"
        assert result.report["data"] == record["data"] == "random (seed 3)"
        assert result.report["samples"] == 16

    def test_data_given_are_not_random_whatever_their_name(self, tmp_path: Path) -> None:
        path = tmp_path / "random_images.npz"
        np.savez(path, x=inputs(16))
        result = quick(data=path, random_data=True)
        assert result.report["data"] == "random_images.npz"
        assert result.report["random_data"] is False


def fixed_batch(model: onnx.ModelProto, size: int) -> onnx.ModelProto:
    """The model with its batch fixed."""
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_value = size
    return model


class TestFixedBatch:
    @pytest.mark.parametrize("size", [1, 4])
    def test_calibrates_as_with_a_free_one_and_stays_fixed(self, size: int) -> None:
        labelled = (inputs(10, seed=2), np.arange(10) % 3)
        free = quick(eval_data=labelled)
        fixed = quick(fixed_batch(residual(), size), eval_data=labelled)
        for name, bias in free.plan.biases.items():
            np.testing.assert_array_equal(fixed.plan.biases[name], bias)
            np.testing.assert_array_equal(fixed.plan.thresholds[name], free.plan.thresholds[name])
        assert fixed.report["calibration"]["batches"] == 1
        assert fixed.evaluation.samples == 10
        assert fixed.evaluation.accuracy == free.evaluation.accuracy
        assert [d.dim_value for d in fixed.model.graph.input[0].type.tensor_type.shape.dim] == [size, 2, 4, 4]
        x = inputs(size)
        np.testing.assert_array_equal(run(fixed.model, {"x": x})["y"], run(free.model, {"x": x})["y"])

    def test_where_two_batches_take_too_much_memory_it_is_kept(self, monkeypatch: pytest.MonkeyPatch) -> None:
        run_once = Session.run

        def few(self: Session, feeds: dict[str, np.ndarray], outputs: Any = None) -> dict[str, np.ndarray]:
            if len(feeds.get("x", ())) > 4:
                raise OutOfMemoryError("out of memory")
            return run_once(self, feeds, outputs)

        monkeypatch.setattr(Session, "run", few)
        result = quick(fixed_batch(residual(), 4))
        assert result.report["calibration"]["batches"] == 3  # of 4 samples; 4 more are held back

    def test_that_is_needed_inside_gets_batches_of_its_size(self) -> None:
        """It subtracts the mean over the batch: two batches in one run are not two runs."""
        text = "g (float[4,6] x) => (float[4,6] y) { m = ReduceMean<axes=[0]>(x)  d = Sub(x, m)  y = Relu(d) }"
        result = convert(parse(text), numbers(15, 6), steps=2)
        assert (result.report["calibration"]["batches"], result.report["samples"]) == (3, 12)
        assert result.evaluation.samples == 15
        with pytest.raises(DataError, match=r"batches of exactly 4, and of the calibration data .* 3 samples are used"):
            convert(parse(text), numbers(3, 6), steps=2)


class TestSameAgain:
    @pytest.mark.parametrize("options", [{}, {"rule": "paper"}, {"threshold": "percentile"}, {"threshold": "max"}])
    def test_same_inputs_same_bytes(self, options: dict[str, Any]) -> None:
        once, again = (quick(**options).model.SerializeToString(deterministic=True) for _ in range(2))
        assert once == again

    def test_same_seed_same_bytes_and_another_seed_others(self) -> None:
        def made(seed: int) -> ConversionResult:
            return convert(RELU, random_data=True, seed=seed, **QUICK)

        assert made(1).model.SerializeToString(deterministic=True) == made(1).model.SerializeToString(
            deterministic=True
        )
        assert made(1).plan != made(2).plan


class TestAccuracy:
    """On the digits: 360 images, one is 0.28 %."""

    def test_qcfs_at_8_steps_is_within_a_point_of_its_ann(self) -> None:
        evaluation = convert(QCFS, CALIBRATION, eval_data=TEST, steps=8).evaluation
        assert abs(evaluation.ann_accuracy - 99.72) < 0.01
        assert evaluation.accuracy[-1] >= evaluation.ann_accuracy - 1

    def test_relu_at_8_steps_is_within_a_point_and_biases_help_at_the_first(self) -> None:
        result = convert(RELU, CALIBRATION, eval_data=TEST, steps=8, threshold="mse", **PLAIN)
        assert result.evaluation.ann_accuracy == 100
        assert result.evaluation.accuracy[-1] >= 99
        assert result.evaluation.accuracy[0] > result.report["evaluation_without_bias"]["accuracy"][0] + 10

    @pytest.mark.parametrize("threshold", THRESHOLDS)
    def test_every_threshold_works(self, threshold: str) -> None:
        result = convert(RELU, CALIBRATION, eval_data=TEST, steps=8, threshold=threshold)
        assert result.evaluation.accuracy[-1] >= 95


class TestRunningMean:
    def test_gives_the_output_after_every_step(self) -> None:
        result = quick(running_mean=True)
        assert_valid(result.model)
        found = run(result.model, {"x": inputs(5)}, optimise=False)
        assert found["y/running_mean"].shape == (3, 5, 3)
        np.testing.assert_array_equal(found["y/running_mean"][-1], found["y"])
        for t in (1, 2):
            shorter = run(pipeline.emit(network_of(residual()), result.plan.prefix(t)).model, {"x": inputs(5)}, False)
            np.testing.assert_array_equal(found["y/running_mean"][t - 1], shorter["y"])
        assert read_plan(result.model) == result.plan
