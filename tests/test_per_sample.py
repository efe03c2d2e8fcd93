"""Outputs whose samples are not on the first axis: told apart, verified and evaluated as others."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from helpers import numbers, parse
from networks import network_of

from ftbc_onnx import VerificationError, convert
from ftbc_onnx.errors import ModelError
from ftbc_onnx.evaluate import evaluate_file
from ftbc_onnx.graph.normalise import Normalised
from ftbc_onnx.per_sample import Axis, axis_of_samples, per_sample
from ftbc_onnx.verify import check_same_function

CONSTANTS = {
    "k": numbers(4, 4, 1, 1, seed=1, scale=0.5),
    "w": numbers(4, 3, seed=2),
    "rows": np.array([-1, 3], np.int64),
    "two": np.array([2], np.int64),
}
BODY = "c = Conv(x, k) r = Relu(c) q = ReduceMean<keepdims=0>(r, two)"
FIRST = f"{BODY} f = Transpose<perm=[0, 2, 1]>(q) y = MatMul(f, w)"
STEPS_FIRST = f"{BODY} f = Transpose<perm=[2, 0, 1]>(q) y = MatMul(f, w)"
ROWS = f"{BODY} f = Transpose<perm=[0, 2, 1]>(q) p = MatMul(f, w) y = Reshape(p, rows)"


def network(batch: int | str, output: str, body: str) -> onnx.ModelProto:
    """A convolution over an image 6 wide, and a layer on every column of it."""
    return parse(f"g (float[{batch},4,4,6] x) => (float[{output}] y) {{ {body} }}", opset=18, **CONSTANTS)


class TestAxis:
    @pytest.mark.parametrize(
        ("shape", "batch", "axis"),
        [
            (["N", 3], "N", 0),
            ([6, "N", 3], "N", 1),
            (["M", 3], "N", 0),
            ([24, 1, 37], 1, 1),
            ([1, 24, 37], 1, 0),
            (None, "N", 0),
            ([None, None], None, 0),
        ],
    )
    def test_is_the_one_that_has_the_batch(self, shape: list[Axis] | None, batch: Axis, axis: int) -> None:
        assert axis_of_samples(shape, batch) == axis

    def test_every_sample_gets_what_is_its_own(self) -> None:
        x = numbers(4, 6, 3)
        np.testing.assert_array_equal(per_sample(x, 4), x)
        np.testing.assert_array_equal(per_sample(x, 6), x.transpose(1, 0, 2))
        square = numbers(4, 4, 3)
        np.testing.assert_array_equal(per_sample(square, 4, axis=1), square.transpose(1, 0, 2))
        np.testing.assert_array_equal(per_sample(x.reshape(24, 3), 4), x)
        np.testing.assert_array_equal(per_sample(np.float32(2), 3), [2, 2, 2])
        np.testing.assert_array_equal(per_sample(x[:1, 0], 5), np.repeat(x[:1, 0], 5, axis=0))
        with pytest.raises(ModelError, match=r"output of shape \[4, 6, 3\] has no axis for the 5 samples of a batch"):
            per_sample(x, 5)


class TestConversion:
    @pytest.mark.parametrize(
        ("output", "body"), [("6,N,3", STEPS_FIRST), ("M,3", ROWS)], ids=["steps first", "several rows a sample"]
    )
    @pytest.mark.parametrize("batch_size", [5, 6])
    def test_errors_are_those_of_the_usual_order(self, output: str, body: str, batch_size: int) -> None:
        """16 samples, the last batch smaller; with 6 samples a batch is as long as an image is wide."""
        x = numbers(16, 4, 4, 6)
        options = {"steps": 3, "neuron": "if", "batch_size": batch_size, "threads": 1, "device": "cpu"}
        usual = convert(network("N", "N,6,3", FIRST), x, eval_data=x, **options)
        other = convert(network("N", output, body), x, eval_data=x, **options)
        assert other.report["verification"]["bitwise"]
        assert other.report["verification"]["batch_sizes"] == [1, 2]
        np.testing.assert_allclose(other.evaluation.output_gap, usual.evaluation.output_gap, rtol=1e-5)
        again, _ = evaluate_file(
            other.model.SerializeToString(),
            x,
            ann=network("N", output, body).SerializeToString(),
            batch_size=batch_size,
        )
        np.testing.assert_allclose(again.output_gap, usual.evaluation.output_gap, rtol=1e-5)

    def test_a_fixed_batch(self) -> None:
        """Of one sample all steps are compared, and not the first."""
        x = numbers(16, 4, 4, 6)
        options = {"steps": 3, "neuron": "if", "rule": "none", "threshold": "max"}
        usual = convert(network(1, "1,6,3", FIRST), x, eval_data=x, **options)
        other = convert(network(1, "6,1,3", STEPS_FIRST), x, eval_data=x, **options)
        np.testing.assert_allclose(other.evaluation.output_gap, usual.evaluation.output_gap, rtol=1e-5)

    def test_a_batch_that_is_fixed_inside_is_told_as_before(self) -> None:
        body = f"{BODY} f = Reshape(q, fixed) y = MatMul(f, wide)"
        constants = {**CONSTANTS, "fixed": np.array([1, -1], np.int64), "wide": numbers(24, 3)}
        model = parse(f"g (float[N,4,4,6] x) => (float[M,3] y) {{ {body} }}", opset=18, **constants)
        with pytest.raises((VerificationError, ModelError), match="batch"):
            convert(model, numbers(16, 4, 4, 6), steps=2, neuron="if")


def test_a_network_that_is_not_the_one_that_was_read_is_refused() -> None:
    """All else is compared with the normalised network."""
    model, other = network("N", "N,6,3", FIRST), network("N", "N,6,3", FIRST)
    (weights,) = [tensor for tensor in other.graph.initializer if tensor.name == "w"]
    weights.CopyFrom(onnx.numpy_helper.from_array(CONSTANTS["w"] * np.float32(1.2), "w"))
    same, feeds = Normalised(model, {}), {"x": numbers(2, 4, 4, 6)}
    check_same_function(model, same, network_of(model), feeds)
    with pytest.raises(VerificationError, match=r"output 'y' of the normalised ANN differs from .* by 16\.7%: please"):
        check_same_function(other, same, network_of(model), feeds)
    check_same_function(other, replace(same, changes={"dequantise": 2}), network_of(model), feeds)
