"""Networks of float16, float64 or several types: computed in float32, with the inputs and outputs they had."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from helpers import numbers, parse, run
from networks import RELU, TEST, digits
from onnx import helper, numpy_helper
from onnxruntime.transformers.float16 import convert_float_to_float16
from rich.console import Console

from ftbc_onnx import ConvertConfig, ModelError, StepRunner, convert
from ftbc_onnx.graph.float32 import in_float32
from ftbc_onnx.graph.prepare import prepare
from ftbc_onnx.graph.view import all_nodes
from ftbc_onnx.report import print_conversion
from ftbc_onnx.runtime import Session

HALF, DOUBLE, FLOAT = onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT
MLP = "g (double[N,3] x) => (double[N,4] y) { a = Gemm(x, w, b) r = Relu(a) y = Gemm(r, m) }"
MIXED = """g (float[N,3,5,5] x) => (KIND[N,4] y) {
    a = Conv <pads = [1,1,1,1]> (x, w, b) r = Relu(a) p = GlobalAveragePool(r) f = Flatten(p) h = Cast <to = 10> (f)
    q = Gemm(h, m, c) TAIL }"""
WEIGHTS = {"w": numbers(4, 3, 3, 3), "b": numbers(4)}
IN_HALF = {"m": numbers(4, 4).astype(np.float16), "c": numbers(4).astype(np.float16)}


def half_digits(keep_ends: bool = False) -> onnx.ModelProto:
    """The digits network as onnxruntime's own tool writes it in float16."""
    model: onnx.ModelProto = convert_float_to_float16(onnx.load(RELU), keep_io_types=keep_ends)
    return model


def types_of(model: onnx.ModelProto) -> set[int]:
    """Element types of constants, and of what Casts make."""
    found = {tensor.data_type for tensor in model.graph.initializer}
    for node in all_nodes(model.graph.node):
        for attribute in node.attribute:
            found |= {attribute.i} if attribute.name == "to" else set()
            found |= {attribute.t.data_type} if attribute.HasField("t") else set()
    return found


class TestTheRewriting:
    def test_everything_between_the_ends(self) -> None:
        """Constants (in bits: 1, 2, 0.5, 3), Casts, and bodies that read what is around them."""
        text = """g (float16[N,3] x, bool go) => (float16[N,3] y, float16[N,3] z, float16[N,3] x2, float[N,3] kept)
            <float16[1] one = {15360}> {
            s = Shape(x) full = ConstantOfShape <value = float16[1] {16384}> (s) a = Add(x, full)
            half = Constant <value = float16[1] {14336}> () like = CastLike(half, a) b = Mul(a, like)
            y = If (go) <then_branch = g1 () => (float16[N,3] t) <float16[1] inside = {16896}> { t = Mul(b, inside) },
                         else_branch = g2 () => (float16[N,3] e) { e = Identity(b) }>
            wide = Cast <to = 1> (x) kept = Relu(wide) back = Cast <to = 10> (kept) z = Add(back, one)
            x2 = Identity(x) }"""
        model = parse(text)
        onnx.checker.check_model(model)
        single, counts = in_float32(model, {HALF})
        onnx.checker.check_model(single, full_check=True)
        assert counts == {"float16_to_float32": 4 + 1 + 4}  # constants, Casts, inputs and outputs
        casts = [node for node in single.graph.node if node.op_type == "Cast" and node.output[0] in ("y", "z", "x2")]
        assert [helper.get_attribute_value(node.attribute[0]) for node in casts] == [HALF] * 3
        for node in casts:
            single.graph.node.remove(node)
        assert HALF not in types_of(single)
        x = numbers(4, 3).astype(np.float16)
        for go in (True, False):
            expected = run(model, {"x": x, "go": np.array(go)})
            found = run(in_float32(model, {HALF})[0], {"x": x, "go": np.array(go)})
            for name, value in expected.items():
                assert found[name].dtype == value.dtype
                np.testing.assert_allclose(found[name], value, rtol=2e-3, atol=1e-3)

    def test_local_functions_and_constants_that_are_inputs(self) -> None:
        text = """g (float16[N,3] x, float16[3] w) => (float16[N,3] y) { y = custom.twice(x, w) }
            <domain: "custom", opset_import: ["" : 17]> twice (a, b) => (c) {
                k = Constant <value = float16[1] {16384}> () d = Mul(a, k) c = Add(d, b) }"""
        model = parse(text, domains='"custom" : 1', w=np.ones(3, np.float16))
        single, counts = in_float32(model, {HALF})
        onnx.checker.check_model(single, full_check=True)
        assert counts == {"float16_to_float32": 4}
        assert [value.type.tensor_type.elem_type for value in single.graph.input] == [HALF, FLOAT]
        x = numbers(2, 3).astype(np.float16)
        np.testing.assert_array_equal(run(single, {"x": x})["y"], 2 * x + 1)

    def test_an_input_that_is_an_output_and_names_that_are_taken(self) -> None:
        text = 'g (float16[N,3] x) => (float16[N,3] x, float16[N,3] y) { "x/float32" = Neg(x) y = Relu("x/float32") }'
        text = text.replace('"x/float32"', "taken")
        model = parse(text)
        model.graph.node[0].output[0] = model.graph.node[1].input[0] = "x/float32"
        single, _ = in_float32(model, {HALF})
        x = numbers(2, 3).astype(np.float16)
        found = run(single, {"x": x})
        np.testing.assert_array_equal(found["x"], x)
        np.testing.assert_array_equal(found["y"], np.maximum(-x, 0))

    def test_what_is_finite_stays_finite(self) -> None:
        values = np.array([-1.7e308, 1.7e308, 0.1, -np.inf, np.inf, np.nan])
        model = parse("g (double[6] x) => (double[6] y) { y = Add(x, c) }", c=values)
        single, _ = in_float32(model, {DOUBLE})
        limits = np.finfo(np.float32)
        expected = np.array([limits.min, limits.max, 0.1, -np.inf, np.inf, np.nan], np.float32)
        (tensor,) = single.graph.initializer
        np.testing.assert_array_equal(numpy_helper.to_array(tensor), expected)

    def test_other_types_stay(self) -> None:
        model = parse("g (double[N,3] x, float16[N,3] h) => (double[N,3] y, float16[N,3] z) { y = Neg(x) z = Neg(h) }")
        single, counts = in_float32(model, {DOUBLE})
        assert counts == {"double_to_float32": 2}
        assert [(node.op_type, node.output[0]) for node in single.graph.node] == [
            ("Cast", "x/float32"),
            ("Neg", "y/float32"),
            ("Neg", "z"),
            ("Cast", "y"),
        ]


@pytest.mark.parametrize("form", ["unrolled", "fused", "folded", "loop", "step"])
def test_a_network_in_float16(form: str) -> None:
    images, labels = digits("test", 60)
    options = {"steps": 4, "neuron": "signed-group", "form": form, "strict": True}
    calibration = digits("calibration", 64)[0]
    model = half_digits()
    result = convert(model, calibration.astype(np.float16), eval_data=(images.astype(np.float16), labels), **options)
    assert result.report["normalisation"]["float16_to_float32"] == 12
    assert result.report["verification"]["bitwise"]
    assert result.report["rate_exact"] == []
    found = result.report["evaluation"]
    whole = convert(RELU, calibration, eval_data=(images, labels), **options).report["evaluation"]
    assert found["ann_accuracy"] == whole["ann_accuracy"]
    np.testing.assert_allclose(found["accuracy"], whole["accuracy"], atol=100 * 2 / 60)
    np.testing.assert_allclose(found["output_gap"], whole["output_gap"], rtol=0.1, atol=5e-3)
    if form == "step":
        runner = StepRunner(result.model)
        scores = [runner.step(images.astype(np.float16))["logits"] for _ in range(4)][-1]
    else:
        scores = Session(result.model).run({"image": images.astype(np.float16)})["logits"]
    assert scores.dtype == np.float16
    assert (scores.argmax(1) == labels).mean() >= 0.95


def test_a_network_in_float16_with_ends_in_float32() -> None:
    """The tool puts the Casts behind the nodes that read them."""
    images, labels = digits("test", 60)
    calibration = digits("calibration", 64)[0]
    result = convert(half_digits(keep_ends=True), calibration, eval_data=(images, labels), steps=4, neuron="if")
    assert result.report["normalisation"]["float16_to_float32"] == 11
    assert result.report["verification"]["bitwise"]
    assert Session(result.model).run({"image": images})["logits"].dtype == np.float32
    assert HALF not in {value.type.tensor_type.elem_type for value in result.model.graph.value_info}


def test_layers_in_float16_again_on_demand() -> None:
    calibration = digits("calibration", 64)[0].astype(np.float16)
    result = convert(half_digits(), calibration, steps=2, neuron="if", float16=True)
    changes = result.report["normalisation"]
    assert (changes["float16_to_float32"], changes["float16"]) == (12, 5)
    assert result.report["verification"]["bitwise"]


@pytest.mark.parametrize("form", ["unrolled", "folded", "loop"])
@pytest.mark.parametrize(
    ("kind", "tail"),
    [
        ("float16", "y = Softmax(q)"),
        ("float", "s = Softmax(q) y = Cast <to = 1> (s)"),
        ("float", "y = Cast <to = 1> (q)"),
        ("float16", "y = Identity(q)"),
        ("float16", "z = Relu(q) t = Gemm(z, m) y = Tanh(t)"),
    ],
)
def test_mixed_precision(kind: str, tail: str, form: str) -> None:
    model = parse(MIXED.replace("KIND", kind).replace("TAIL", tail), **WEIGHTS, **IN_HALF)
    options = {"steps": 8, "neuron": "signed-group", "levels": 15}
    result = convert(model, numbers(64, 3, 5, 5), form=form, **options)
    assert result.report["verification"]["bitwise"]
    assert result.report["normalisation"]["float16_to_float32"] >= 3
    x = numbers(6, 3, 5, 5, seed=3)
    expected, found = (run(net, {"x": x})["y"] for net in (model, result.model))
    assert found.dtype == expected.dtype
    assert np.abs(found - expected).mean() < 0.02 * np.abs(expected).mean()


def test_a_network_in_float64() -> None:
    model = parse(MLP, w=numbers(3, 8).astype(float), b=numbers(8).astype(float), m=numbers(8, 4).astype(float))
    x = numbers(64, 3).astype(float)
    result = convert(model, x, steps=8, neuron="signed-group", levels=15)
    assert result.report["normalisation"]["double_to_float32"] == 5
    assert result.report["verification"]["bitwise"]
    expected, found = (run(net, {"x": x})["y"] for net in (model, result.model))
    assert found.dtype == np.float64
    assert np.abs(found - expected).mean() < 0.02 * np.abs(expected).mean()


def test_an_ann_that_onnxruntime_does_not_run() -> None:
    """It has no Conv of float64 on a CPU; the line says what to do."""
    text = MIXED.partition("h = ")[0].replace("float[", "double[").replace("KIND", "double") + "y = Neg(f) }"
    model = parse(text, **{name: value.astype(float) for name, value in WEIGHTS.items()})
    with pytest.raises(ModelError, match=r"Conv\(11\).*of these element types, perhaps: export the model in float32"):
        convert(model, numbers(64, 3, 5, 5).astype(float), steps=2)


def test_bfloat16_is_refused() -> None:
    """onnxruntime cannot be fed with it."""
    text = "g (bfloat16[N,3] x) => (bfloat16[N,3] y) { a = Neg(x) y = Relu(a) }"
    with pytest.raises(ModelError, match="its input is bfloat16, and neurons are float32: export the model in float32"):
        convert(parse(text, opset=18), random_data=True, steps=2)


def test_float64_between_means_stays() -> None:
    text = """g (float[N,3] x) => (float[N,4] y) { a = Gemm(x, w) r = Relu(a) d = Cast <to = 11> (r) e = Exp(d)
        f = Cast <to = 1> (e) y = Gemm(f, m) }"""
    model = parse(text, w=numbers(3, 4), m=numbers(4, 4))
    normalised, network = prepare(model, ConvertConfig(steps=2))
    assert "double_to_float32" not in normalised.changes
    assert DOUBLE in {network.view.elem_type(name) for name in network.temporal}


@pytest.mark.parametrize(
    ("kinds", "taken"), [("float16", True), ("double", False)], ids=["less precise", "more precise"]
)
def test_an_output_is_summed_before_it_is_cast(kinds: str, taken: bool) -> None:
    """In float16, a sum over T steps would lose what T float32 numbers have; a Cast to more is applied at once."""
    to = {"float16": 10, "double": 11}[kinds]
    text = (
        f"g (float[N,3] x) => ({kinds}[N,4] y) {{ a = Gemm(x, w) r = Relu(a) q = Gemm(r, m) y = Cast <to = {to}> (q) }}"
    )
    network = prepare(parse(text, w=numbers(3, 4), m=numbers(4, 4)), ConvertConfig(steps=2))[1]
    assert ("y" in network.mean_form) == taken
    assert network.not_spiking == []


def test_the_report_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "half.onnx"
    onnx.save(half_digits(), path)
    result = convert(path, TEST, steps=2, neuron="if", counting=False)
    print_conversion(Console(width=200), result.report)
    out = capsys.readouterr().out
    assert "computed in float32, where the ANN has float16; inputs and outputs keep their types\n" in out
