"""The pass `sink_transposes`: each case of its docstring, and where nothing is gained."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from helpers import apply, assert_same_function, assert_valid, numbers, parse
from pass_cases import Case, applied, cases, named

from ftbc_onnx.graph.normalise import normalise
from ftbc_onnx.graph.passes import sink_transposes
from ftbc_onnx.inspection import inspect_model

TO_NHWC, TO_NCHW = "Transpose <perm = [0,2,3,1]>", "Transpose <perm = [0,3,1,2]>"
X = {"x": numbers(2, 3, 4, 5)}
IN = "g (float[N,3,4,5] x) => (float[N,3,4,5] y)"
CONSTANTS = {
    "c": numbers(3, seed=1),
    "rows": numbers(5, 1, seed=2),
    "whole": numbers(1, 4, 5, 3, seed=3),
    "one": np.float32(0.5),
    "single": np.full((1, 1), 0.25, np.float32),
    "big": numbers(1, 1, 1, 1, 3, seed=4),
    "positive": np.abs(numbers(3, seed=5)) + np.float32(0.5),
    "low": np.float32(-0.5),
    "high": np.float32(0.5),
}


def in_nhwc(body: str, head: str = IN) -> str:
    """x to a in [N, H, W, C], and what a body makes of a, b, back to y in [N, C, H, W]."""
    return f"{head} {{ a = {TO_NHWC}(x) {body} y = {TO_NCHW}(b) }}"


@cases(
    ("1-inverses", "b = Identity(a)", 2, ["Identity"]),
    ("1-over-two", "r = Relu(a) b = Neg(r)", 2, ["Relu", "Neg"]),
    ("2-constant-per-channel", "b = Mul(a, c)", 2, ["Mul"]),
    ("2-constant-first", "b = Sub(c, a)", 2, ["Sub"]),
    ("2-constant-of-two-axes", "b = Add(a, rows)", 2, ["Add"]),
    ("2-constant-of-all-axes", "b = Add(a, whole)", 2, ["Add"]),
    ("2-number", "b = Div(a, one)", 2, ["Div"]),
    ("2-number-with-axes", "b = Max(a, single)", 2, ["Max"]),
    ("2-several-of-the-same", "r = Relu(a) s = Sigmoid(a) b = Sum(a, r, s, c)", 2, ["Relu", "Sigmoid", "Sum"]),
    ("2-with-itself", "b = Mul(a, a)", 2, ["Mul"]),
    ("2-clip", "b = Clip(a, low, high)", 2, ["Clip"]),
    ("2-clip-from-above", "b = Clip(a, , high)", 2, ["Clip"]),
    ("2-prelu", "b = PRelu(a, c)", 2, ["PRelu"]),
    ("2-where", "d = Greater(a, c) b = Where(d, a, one)", 2, ["Greater", "Where"]),
    ("2-leaky", "b = LeakyRelu <alpha = 0.2> (a)", 2, ["LeakyRelu"]),
    ("3-softmax", "b = Softmax(a)", 2, ["Softmax"]),
    ("3-softmax-of-rows", "b = LogSoftmax <axis = 1> (a)", 2, ["LogSoftmax"]),
    ("3-mean-of-channels", "m = ReduceMean <axes = [3]> (a) b = Sub(a, m)", 2, ["ReduceMean", "Sub"]),
    ("3-mean-counted-from-the-end", "m = ReduceMax <axes = [-1,-2]> (a) b = Sub(a, m)", 2, ["ReduceMax", "Sub"]),
)
def test_sink_transposes(case):
    """Two Transposes are fewer; the order of nodes is as it was."""
    after = applied(sink_transposes, case._replace(text=in_nhwc(case.text)), 17, X, **CONSTANTS)
    assert after.graph.output[0].name == "y"


@cases(
    ("3-concat", "r = Relu(a) b = Concat <axis = 3> (a, r)", 2, ["Relu", "Concat"]),
    ("3-concat-with-a-constant", "b = Concat <axis = -1> (a, more)", 2, ["Concat"]),
    ("3-concat-with-nothing", "b = Concat <axis = -1> (a, none, more)", 2, ["Concat"]),
)
def test_sink_transposes_3_concat(case):
    text = in_nhwc(case.text, IN.replace("N,3,4,5] y", "N,6,4,5] y")).replace("float[N,3,4,5] x", "float[2,3,4,5] x")
    applied(sink_transposes, case._replace(text=text), 17, X, more=numbers(2, 4, 5, 3), none=numbers(2, 4, 5, 0))


@pytest.mark.parametrize("opset", [12, 13, 18])
@pytest.mark.parametrize("keep", [0, 1])
@pytest.mark.parametrize("axes", [[1, 2], [3], [2, 3], [1], [-2]])
def test_sink_transposes_3_reductions(opset, keep, axes):
    """Axes as an attribute or an input; without the axes taken away, what is left may be in another order."""
    given = f"<axes = {axes}, keepdims = {keep}> (r)" if opset < 18 else f"<keepdims = {keep}> (r, axes)"
    text = f"g (float[N,3,4,5] x) => (float[a,b,c,d] y, float[N,3,4,5] z) {{ a = {TO_NHWC}(x) r = Relu(a) "
    text += f"y = ReduceMean {given} z = {TO_NCHW}(r) }}"
    if not keep:
        text = text.replace("float[a,b,c,d]", "float[a,b]" if len(axes) == 2 else "float[a,b,c]")
    model = parse(text, opset=opset, **({"axes": np.array(axes)} if opset >= 18 else {}))
    after, count = apply(sink_transposes, model)
    assert count == sum(n.op_type == "Transpose" for n in model.graph.node) - _transposes(after)
    assert count >= 1
    assert_same_function(model, after, X)
    assert_valid(named(after))


@pytest.mark.parametrize("opset", [12, 17])
def test_sink_transposes_3_squeeze(opset):
    text = f"g (float[N,3,4,5] x) => (float[N,3] y) {{ r = Relu(x) p = GlobalAveragePool(r) t = {TO_NHWC}(p) "
    squeeze = "Squeeze <axes = [1,2]> (s)" if opset < 13 else "Squeeze(s, axes)"
    text += f"u = {TO_NCHW}(t) v = {TO_NHWC}(u) s = Neg(v) y = {squeeze} }}"
    constants = {} if opset < 13 else {"axes": np.array([1, 2])}
    expected = ["Relu", "GlobalAveragePool", "Neg", "Squeeze"]
    applied(sink_transposes, Case("", text, 3, expected), opset, X, **constants)


def test_sink_transposes_3_split_pad_and_slice():
    text = f"""g (float[N,3,4,5] x) => (float[N,1,3,3] y, float[N,2,4,5] z) {{ a = {TO_NHWC}(x)
        u, v = Split <axis = 3> (a, parts) z = {TO_NCHW}(v) p = Pad(u, pads, one) s = Slice(p, start, end, axes, step)
        y = {TO_NCHW}(s) }}"""
    constants = {
        "parts": np.array([1, 2]),
        "pads": np.array([0, 1, 0, 0, 0, 0, 1, 0]),
        "one": np.float32(0.5),
        "start": np.array([0, 1]),
        "end": np.array([6, 4]),
        "axes": np.array([2, 1]),
        "step": np.array([2, 1]),
    }
    applied(sink_transposes, Case("", text, 3, ["Split", "Pad", "Slice"]), 17, X, **constants)


@pytest.mark.parametrize("kind", [np.int64, np.int32])
def test_sink_transposes_3_slice_without_axes(kind):
    """Axes have the type that the ranges have."""
    text = in_nhwc("b = Slice(a, start, end)", "g (float[N,3,4,5] x) => (float[N,3,2,5] y)")
    constants = {"start": np.array([0, 1], kind), "end": np.array([9, 3], kind)}
    applied(sink_transposes, Case("", text, 2, ["Slice"]), 17, X, **constants)


@pytest.mark.parametrize("end", ["y = Reshape(r, rows)", "y = Flatten(r)"])
def test_sink_transposes_4_before_a_reshape(end):
    """Of what a pool has left one number for each channel, the order is the same."""
    text = f"""g (float[N,3,4,5] x) => (float[N,3] y) {{ a = {TO_NHWC}(x) s = Neg(a) t = {TO_NCHW}(s)
        p = GlobalAveragePool(t) u = {TO_NHWC}(p) r = Relu(u) {end} }}"""
    expected = ["Neg", "GlobalAveragePool", "Relu", end.split("(")[0].split()[-1]]
    applied(sink_transposes, Case("", text, 3, expected), 17, X, rows=np.array([0, -1]))


def test_sink_transposes_4_behind_a_reshape():
    """As before the layers of Squeeze-and-Excite: [N, C] to [N, 1, 1, C] to [N, C, 1, 1]."""
    text = f"""g (float[N,3,4,5] x) => (float[N,3,4,5] y) {{ a = {TO_NHWC}(x)
        m = ReduceMean <axes = [1,2], keepdims = 0> (a) r = Reshape(m, wide) t = {TO_NCHW}(r) e = Conv(t, w)
        u = {TO_NHWC}(e) s = Sigmoid(u) b = Mul(a, s) y = {TO_NCHW}(b) }}"""
    expected = ["ReduceMean", "Reshape", "Conv", "Sigmoid", "Mul"]
    constants = {"wide": np.array([0, 1, 1, -1]), "w": numbers(3, 3, 1, 1)}
    after = applied(sink_transposes, Case("", text, 4, expected), 17, X, **constants)
    assert [value.name for value in after.graph.output] == ["y"]


@cases(
    ("alone", "a = T(x) y = Relu(a)", 0, ["Transpose", "Relu"]),
    ("another-behind", "a = T(x) r = Relu(a) y = Transpose <perm = [0,2,1,3]> (r)", 1, ["Relu", "Transpose"]),
    ("twice-the-same", "a = T(x) b = T(x) y = Add(a, b)", 1, ["Add", "Transpose"]),
)
def test_sink_transposes_where_one_is_left(case):
    text = f"g (float[N,3,4,5] x) => (float[a,b,c,d] y) {{ {case.text.replace('T(', TO_NHWC + '(')} }}"
    applied(sink_transposes, case._replace(text=text), 17, X)


@pytest.mark.parametrize(
    "body",
    [
        "b = Add(a, z)",  # not transposed
        "d = Transpose <perm = [0,2,1,3]> (z) b = Add(a, d)",  # in another order
        "b = MatMul(a, w)",
        "d = Reshape(a, flat) b = Reshape(d, back)",
        "b = CumSum(a, last)",
        "m = ReduceMean(a) b = Sub(a, m)",  # over all axes
    ],
)
def test_sink_transposes_leaves_what_needs_the_order(body):
    """Not one fewer would be left, so nothing is changed, whatever could be moved."""
    text = (
        f"g (float[2,3,4,5] x, float[2,4,5,3] z) => (float[2,3,4,5] y) {{ a = {TO_NHWC}(x) {body} y = {TO_NCHW}(b) }}"
    )
    if "perm = [0,2,1,3]" in body:
        text = text.replace("float[2,4,5,3] z", "float[2,5,4,3] z")
    constants = {"w": numbers(3, 3), "flat": np.array([2, -1]), "back": np.array([2, 4, 5, 3]), "last": np.array(3)}
    model = parse(text, **constants)
    after, count = apply(sink_transposes, model)
    assert count == 0
    assert [n.op_type for n in after.graph.node] == [n.op_type for n in model.graph.node]


def test_sink_transposes_leaves_a_constant_with_more_axes():
    text = f"""g (float[N,3,4,5] x) => (float[1,N,4,5,3] y, float[N,3,4,5] z) {{ a = {TO_NHWC}(x) r = Relu(a)
        y = Add(r, big) z = {TO_NCHW}(r) }}"""
    model = parse(text, **CONSTANTS)
    after, count = apply(sink_transposes, model)
    assert count == 1
    assert [n.op_type for n in after.graph.node] == ["Relu", "Transpose", "Add"]
    assert_same_function(model, after, X)


def test_sink_transposes_keeps_outputs_and_what_bodies_read():
    text = f"""g (float[N,3,4,5] x, bool k) => (float[N,4,5,3] r, float[N,3,4,5] y, float[N,4,5,3] z) {{
        a = {TO_NHWC}(x) r = Relu(a) b = Neg(r) y = {TO_NCHW}(b)
        z = If (k) <then_branch = t () => (float[N,4,5,3] p) {{ p = Abs(b) }},
                    else_branch = e () => (float[N,4,5,3] q) {{ q = Neg(b) }}> }}"""
    model = parse(text)
    after, _ = apply(sink_transposes, model)
    assert [value.name for value in after.graph.output] == ["r", "y", "z"]
    for choice in (True, False):
        assert_same_function(model, after, {**X, "k": np.array(choice)})


def test_sink_transposes_pairs_of_quantisation():
    """With one scale they are elementwise; per channel they name their axis, and stay."""
    pair = "q = QuantizeLinear{0}(a, s, z) b = DequantizeLinear{0}(q, s, z)"
    one = {"s": np.float32(0.1), "z": np.uint8(128)}
    expected = ["QuantizeLinear", "DequantizeLinear"]
    applied(sink_transposes, Case("", in_nhwc(pair.format("")), 2, expected), 17, X, **one)
    many = {"s": np.float32([0.1, 0.2, 0.3]), "z": np.uint8([128] * 3)}
    expected = ["Transpose", *expected, "Transpose"]
    applied(sink_transposes, Case("", in_nhwc(pair.format(" <axis = 3> ")), 0, expected), 17, X, **many)


def keras_block(end: str) -> str:
    """Two convolutions with a bias, a BatchNormalization and a shortcut, all in [N, H, W, C]."""
    return f"""g (float[N,8,8,3] x) => (float[N,4] y) {{ t = {TO_NCHW}(x) c = Conv <pads = [1,1,1,1]> (t, w)
        d = {TO_NHWC}(c) e = Add(d, k) f = Relu(e) h = {TO_NCHW}(f) i = Conv <pads = [1,1,1,1]> (h, v) j = {TO_NHWC}(i)
        l = Sub(j, k) m = Mul(l, positive) n = Add(m, f) o = Relu(n) {end} }}"""


KERAS = {
    "w": numbers(4, 3, 3, 3),
    "v": numbers(4, 4, 3, 3, seed=1),
    "k": numbers(4, seed=2),
    "positive": np.abs(numbers(4, seed=3)) + np.float32(0.5),
    "m3": numbers(4, 4, seed=4),
}


def test_sink_transposes_makes_an_ordinary_network_of_a_keras_one():
    """One Transpose is left, of the image; biases and the BatchNormalization are in the layers, the pool is first."""
    end = f"""p = {TO_NCHW}(o) q = MaxPool <kernel_shape = [2,2], strides = [2,2]> (p) r = {TO_NHWC}(q)
        s = ReduceMean <axes = [1,2], keepdims = 0> (r) y = MatMul(s, m3)"""
    model = parse(keras_block(end), **KERAS)
    after = normalise(model)
    found = [node.op_type for node in after.model.graph.node]
    assert found == ["Transpose", "Conv", "Relu", "Conv", "Add", "MaxPool", "Relu", "ReduceMean", "Gemm"]
    assert_same_function(model, after.model, {"x": numbers(2, 8, 8, 3)})
    assert [(site["channel_axis"], site["channels"]) for site in inspect_model(model)["sites"]] == [(1, 4), (1, 4)]


def _transposes(model: onnx.ModelProto) -> int:
    return sum(node.op_type == "Transpose" for node in model.graph.node)
