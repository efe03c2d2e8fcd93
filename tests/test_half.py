"""Layers in float16: half the weights, neurons as before, calibrated and verified as what they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from helpers import assert_valid, numbers, parse, run
from networks import QCFS, RELU, digits

from ftbc_onnx import convert
from ftbc_onnx.graph.half import halve
from ftbc_onnx.graph.normalise import normalise
from ftbc_onnx.runtime import Session

TEXT = """g (float[N,3,5,5] x) => (float[N,4] y) {
    a = Conv <pads = [1,1,1,1]> (x, w, b) r = Relu(a) p = GlobalAveragePool(r) f = Flatten(p) y = Gemm(f, m, c) }"""
WEIGHTS = {"w": numbers(4, 3, 3, 3), "b": numbers(4), "m": numbers(4, 4), "c": numbers(4)}


def by_hand(x: np.ndarray) -> np.ndarray:
    """Every factor rounded to float16, summed in float64; the sums rounded again."""
    w, b, m, c = (WEIGHTS[name].astype(np.float16).astype(np.float64) for name in "wbmc")
    padded = np.pad(x.astype(np.float16).astype(np.float64), ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    a = (np.einsum("nchwij,ocij->nohw", windows, w) + b[:, None, None]).astype(np.float16).astype(np.float64)
    pooled = np.maximum(a, 0).mean((2, 3)).astype(np.float16).astype(np.float64)
    return pooled @ m + c


def test_computes_in_float16() -> None:
    model, count = halve(normalise(parse(TEXT, **WEIGHTS)).model)
    assert count == 2
    assert_valid(model)
    assert {t.data_type for t in model.graph.initializer if len(t.dims)} == {onnx.TensorProto.FLOAT16}
    x = numbers(6, 3, 5, 5)
    np.testing.assert_allclose(run(model, {"x": x})["y"], by_hand(x), rtol=2e-2, atol=2e-3)
    exact = run(parse(TEXT, **WEIGHTS), {"x": x})["y"]
    assert 0 < np.abs(run(model, {"x": x})["y"] - exact).max() < 0.02


def test_weights_beyond_its_range_stay() -> None:
    model, count = halve(normalise(parse(TEXT, **{**WEIGHTS, "m": WEIGHTS["m"] * 1e6})).model)
    assert count == 1
    kinds = {t.name: t.data_type for t in model.graph.initializer}
    assert kinds["m"] == onnx.TensorProto.FLOAT


@pytest.mark.parametrize("gate", ["s = Sigmoid(a) r = Mul(a, s)", "k = Relu(a) r = Softmax <axis = 1> (k)"])
def test_signed_spikes_before_a_layer_stand_before_its_cast(gate: str) -> None:
    """What smooth functions give is quantised in float32; the layer behind reads it in float16."""
    body = f"a = Conv <pads = [1,1,1,1]> (x, w, b) {gate} c = Conv(r, v) q = Relu(c)"
    text = f"g (float[N,3,5,5] x) => (float[N,4] y) {{ {body} p = GlobalAveragePool(q) f = Flatten(p) y = Gemm(f, m) }}"
    model = parse(text, w=WEIGHTS["w"], b=WEIGHTS["b"], m=WEIGHTS["m"], v=numbers(4, 4, 3, 3))
    options = {"steps": 8, "neuron": "signed-group", "levels": 15, "float16": True, "form": "unrolled"}
    result = convert(model, numbers(64, 3, 5, 5), **options)
    assert result.report["verification"]["bitwise"]
    assert any(site.signed for site in result.plan.sites)
    nodes = result.model.graph.node
    read = {name for node in nodes for name in node.input}
    assert all(node.output[0] in read for node in nodes if node.op_type == "Cast")  # the first one is gone
    x = numbers(6, 3, 5, 5, seed=3)
    expected, found = (run(net, {"x": x})["y"] for net in (model, result.model))
    assert np.abs(found - expected).mean() < 0.05 * np.abs(expected).mean()


@pytest.mark.parametrize("form", ["unrolled", "fused", "folded", "loop", "step"])
@pytest.mark.parametrize("source", [RELU, QCFS], ids=["relu", "qcfs"])
def test_converted(source: Path, form: str, tmp_path: Path) -> None:
    images, labels = digits("test", 24)
    options = {"steps": 4, "neuron": "signed-group", "form": form, "eval_data": (images, labels)}
    half, whole = (convert(source, digits("calibration", 64)[0], float16=on, **options) for on in (True, False))
    assert half.report["normalisation"]["float16"] == 5
    assert half.report["verification"]["bitwise"]
    assert half.report["evaluation"]["accuracy"][-1] >= 95
    counts = [result.report["evaluation"]["counts"]["synops"][-1] for result in (half, whole)]
    assert counts[0] == pytest.approx(counts[1], rel=0.05)
    assert half.save(tmp_path / "half.onnx").stat().st_size < 0.75 * whole.save(tmp_path / "whole.onnx").stat().st_size
    assert Session(half.model).output_names[0] == "logits"


def joined(depth: int) -> onnx.ModelProto:
    """Blocks y = relu(Q relu(P x) + S x): two layers read every x."""
    lines, weights = ["c = Gemm(x, w)  a0 = Relu(c)"], {"w": numbers(16, 16, scale=0.35)}
    for i in range(depth):
        lines.append(
            f"P{i} = Gemm(a{i}, p{i})  R{i} = Relu(P{i})  Q{i} = Gemm(R{i}, q{i})  S{i} = Gemm(a{i}, s{i})  "
            f"A{i} = Add(Q{i}, S{i})  a{i + 1} = Relu(A{i})"
        )
        weights |= {f"{letter}{i}": numbers(16, 16, seed=3 * i + k, scale=0.35) for k, letter in enumerate("pqs")}
    text = f"g (float[N,16] x) => (float[N,16] y) {{ {'  '.join(lines)}  y = Gemm(a{depth}, o) }}"
    return parse(text, **weights, o=numbers(16, 16, seed=99, scale=0.35))


@pytest.mark.parametrize("neuron", ["if", "signed-group"])
def test_two_layers_that_read_one_activation(neuron: str) -> None:
    options = {"steps": 8, "neuron": neuron, "rule": "none", "threshold": "max", "form": "unrolled", "threads": 1}
    result = convert(joined(4), numbers(32, 16, seed=5), float16=True, **options)
    assert result.report["verification"]["bitwise"]
    assert result.report["normalisation"]["float16"] == 14


@pytest.mark.parametrize("form", ["unrolled", "fused", "folded", "loop", "step"])
def test_a_network_of_float16(form: str) -> None:
    """Its inputs are float16 already; what it does is counted, too."""
    w, v = (numbers(n, 16, seed=n, scale=0.3).astype(np.float16) for n in (16, 4))
    text = """g (float16[N,16] x) => (float16[N,4] y) {
        a = Gemm <transB = 1> (x, w) r = Relu(a) y = Gemm <transB = 1> (r, v) }"""
    x = numbers(32, 16, seed=7).astype(np.float16)
    options = {"steps": 20, "readout_from": 8, "neuron": "signed-group", "form": form, "rule": "none", "threads": 1}
    result = convert(parse(text, w=w, v=v), x, float16=True, threshold="max", **options)
    assert result.report["verification"]["bitwise"]
    counted = result.report["evaluation"]
    assert counted is None or counted["counts"] is None or counted["counts"]["synops"][-1] > 0


@pytest.mark.parametrize("smooth", ["spiking", "rate-exact"])
def test_a_product_of_activations_stays_in_float32(smooth: str) -> None:
    """Its factors are sums over time."""
    text = """g (float[N,5,8] x) => (float[N,5,4] y) {
        a = MatMul(x, w) r = Relu(a) t = Transpose <perm = [0,2,1]> (r) p = MatMul(r, t) s = Softmax <axis = 2> (p)
        z = MatMul(s, r) y = MatMul(z, v) }"""
    model = parse(text, w=numbers(8, 8, scale=0.4), v=numbers(8, 4))
    result = convert(model, numbers(32, 5, 8), steps=4, neuron="signed-group", float16=True, smooth=smooth, threads=1)
    assert result.report["verification"]["bitwise"]
    assert result.report["normalisation"]["float16"] == 2
