"""Quantised operators become plain ones between pairs, and compute what onnxruntime computes with them."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from helpers import numbers, ops, parse, run

from ftbc_onnx.graph.dequantise import dequantise
from ftbc_onnx.graph.normalise import normalise
from ftbc_onnx.graph.qoperators import plain_operators

RANDOM = np.random.default_rng(0)
UNIT = np.float32(0.05)
WEIGHTS = 63
"""Seven bits: onnxruntime adds two products in 16 bits where a processor has AVX2 and no more, and 255 * 127 twice is
more than that holds (its documentation: `reduce_range`)."""
CONSTANTS = {
    "s": np.float32(0.02),
    "z": np.uint8(120),
    "s2": np.float32(0.03),
    "z2": np.uint8(10),
    "t": UNIT,
    "o": np.uint8(100),
    "zero": np.int8(0),
    "w": RANDOM.integers(-WEIGHTS, WEIGHTS + 1, (4, 3, 3, 3)).astype(np.int8),
    "per_row": np.linspace(0.004, 0.008, 4, dtype=np.float32),
    "zeros": np.zeros(4, np.int8),
    "bias": RANDOM.integers(-3000, 3000, 4).astype(np.int32),
    "m": RANDOM.integers(-WEIGHTS, WEIGHTS + 1, (8, 4)).astype(np.int8),
    "n": RANDOM.integers(-WEIGHTS, WEIGHTS + 1, (4, 8)).astype(np.int8),
    "narrow": np.float32(0.006),
    "one": np.array([0.02], np.float32),
    "none": np.array([3], np.int8),
    "target": np.array([0, -1]),
}
IMAGE, ROW = "float[N,3,6,6] x", "float[N,8] x"


def model_of(ends: str, made: str, body: str, opset: int = 17) -> onnx.ModelProto:
    """x, quantised to q, to y: a body makes r, in units of t and o, from q."""
    text = f"""g ({ends}) => ({made}) {{ q = QuantizeLinear(x, s, z) other = Abs(x) p = QuantizeLinear(other, s2, z2)
        {body} y = DequantizeLinear(r, t, o) }}"""
    used = {name: value for name, value in CONSTANTS.items() if name in text.replace("(", " ").replace(",", " ")}
    return parse(text, opset=opset, domains='"com.microsoft" : 1', **used)


BODIES = {
    "Conv": (IMAGE, "r = QLinearConv <pads = [1,1,1,1], strides = [2,2]> (q, s, z, w, per_row, zeros, t, o, bias)"),
    "Conv of one scale": (IMAGE, "r = QLinearConv(q, s, z, w, one, none, t, o)"),
    "Conv of zero points by channel": (IMAGE, "r = QLinearConv(q, s, z, w, narrow, zeros, t, o)"),
    "MatMul": (ROW, "r = QLinearMatMul(q, s, z, m, per_row, zeros, t, o)"),
    "Gemm": (ROW, "r = com.microsoft.QGemm <transB = 1> (q, s, z, n, per_row, zeros, bias, t, o)"),
    "Gemm of columns": (ROW, "r = com.microsoft.QGemm(q, s, z, m, per_row, zeros, bias, t, o)"),
    "Add": (IMAGE, "r = com.microsoft.QLinearAdd(q, s, z, p, s2, z2, t, o)"),
    "Mul": (IMAGE, "r = com.microsoft.QLinearMul(q, s, z, p, s2, z2, t, o)"),
    "AveragePool": (IMAGE, "r = com.microsoft.QLinearAveragePool <kernel_shape = [2,2]> (q, s, z, t, o)"),
    "GlobalAveragePool": (IMAGE, "r = com.microsoft.QLinearGlobalAveragePool <channels_last = 0> (q, s, z, t, o)"),
    "LeakyRelu": (IMAGE, "r = com.microsoft.QLinearLeakyRelu <alpha = 0.2> (q, s, z, t, o)"),
    "Sigmoid": (IMAGE, "r = com.microsoft.QLinearSigmoid(q, s, z, t, o)"),
    "Softmax": (ROW, "r = com.microsoft.QLinearSoftmax <axis = 1, opset = 17> (q, s, z, t, o)"),
    "Concat": (IMAGE, "r = com.microsoft.QLinearConcat <axis = 1> (t, o, q, s, z, p, s2, z2)"),
    "moved": (
        IMAGE,
        """k = MaxPool <kernel_shape = [2,2]> (q) f = Flatten(k) h = Reshape(f, target)
           r = com.microsoft.QLinearAdd(h, s, z, h, s, z, t, o)""",
    ),
}


@pytest.mark.parametrize("case", BODIES)
@pytest.mark.parametrize("opset", [12, 17])
def test_computes_the_same(case: str, opset: int) -> None:
    ends, body = BODIES[case]
    rank = 2 if ends == ROW or case == "moved" else 4
    model = model_of(ends, f"float[{','.join('NABC'[:rank])}] y", body, opset)
    x = np.clip(numbers(5, *((8,) if ends == ROW else (3, 6, 6))), -2.4, 2.7)  # what uint8 has in units of s
    normalised = normalise(model).model
    plain, count = plain_operators(normalised)
    assert count == (4 if case == "moved" else 1)
    assert not [node.op_type for node in plain.graph.node if node.domain]
    onnx.checker.check_model(plain, full_check=True)
    expected, found = (run(net, {"x": x})["y"] for net in (model, plain))
    gap = np.abs(found - expected)
    assert gap.max() <= UNIT * 1.01  # a rounding that goes the other way
    assert (gap > UNIT / 2).mean() < 0.02
    assert expected.std() > UNIT
    single = normalise(dequantise(normalise(plain).model)[0]).model
    assert "Linear" not in " ".join(ops(single))
    within = np.abs(expected - 1.375) < 6.3  # and in units of t
    assert within.mean() > 0.5
    np.testing.assert_allclose(run(single, {"x": x})["y"][within], expected[within], atol=4 * UNIT)


def test_a_gemm_that_gives_real_numbers() -> None:
    body = "q = QuantizeLinear(x, s, z) y = com.microsoft.QGemm(q, s, z, m, one, none, bias)"
    text = f"g ({ROW}) => (float[N,4] y) {{ {body} }}"
    used = {name: CONSTANTS[name] for name in ("s", "z", "m", "one", "none", "bias")}
    model = parse(text, domains='"com.microsoft" : 1', **used)
    plain, count = plain_operators(normalise(model).model)
    assert count == 1
    x = numbers(5, 8)
    np.testing.assert_allclose(run(plain, {"x": x})["y"], run(model, {"x": x})["y"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "body",
    [
        "r = com.microsoft.QLinearGlobalAveragePool <channels_last = 1> (q, s, z, t, o)",
        "r = com.microsoft.QLinearSoftmax <axis = 1, opset = 12> (q, s, z, t, o)",
        "l = ReduceMax <keepdims = 0> (x) r = com.microsoft.QLinearSigmoid(q, l, z, t, o)",
    ],
    ids=["channels last", "Softmax of old", "computed scale"],
)
def test_what_means_something_else_stays(body: str) -> None:
    model = normalise(model_of(IMAGE, "float[N,A,B,C] y", body)).model
    same, count = plain_operators(model)
    assert count == 0
    assert same is model
