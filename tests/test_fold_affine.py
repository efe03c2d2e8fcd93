"""The pass `fold_affine`: each case of its docstring, and the places that it has to leave alone."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import OPSETS, assert_close, constant, numbers, parse, run
from pass_cases import Case, X, applied, cases

from ftbc_onnx.graph.normalise import normalise
from ftbc_onnx.graph.passes import fold_affine
from ftbc_onnx.inspection import inspect_model

OUT = "g (float[N,3,4,5] x) => (float[N,6,4,5] y)"
SIX = np.linspace(-2, 3.5, 6, dtype=np.float32)
CONSTANTS = {
    "w": numbers(6, 3, 3, 3, seed=1),
    "c": numbers(6, seed=2),
    "k": SIX.reshape(6, 1, 1),
    "one": np.float32(0.5),
    "zeros": (SIX > 0).astype(np.float32).reshape(6, 1, 1),
}
CONV = "a = Conv <pads = [1,1,1,1]> (x, w{})"


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("bias", ["", ", c"])
@pytest.mark.parametrize("body", ["Add(a, k)", "Add(k, a)", "Sub(a, k)"])
def test_fold_affine_1_a_sum_is_a_bias(opset, bias, body):
    text = f"{OUT} {{ {CONV.format(bias)} y = {body} }}"
    after = applied(fold_affine, Case("", text, 1, ["Conv"]), opset, X, **CONSTANTS)
    sign = -1 if "Sub" in body else 1
    np.testing.assert_array_equal(constant(after, "w"), CONSTANTS["w"])  # as it was, and not copied
    expected = sign * SIX + (CONSTANTS["c"] if bias else 0)
    np.testing.assert_allclose(constant(after, after.graph.node[0].input[2]), expected, rtol=1e-6)


@cases(
    ("1-from-a-constant", "y = Sub(k, a)", 1, ["Conv"]),
    ("2-product", "y = Mul(a, k)", 1, ["Conv"]),
    ("2-product-the-other-way", "y = Mul(k, a)", 1, ["Conv"]),
    ("2-quotient", "y = Div(a, k)", 1, ["Conv"]),
    ("both-a-normalisation-taken-apart", "m = Mul(a, k) y = Add(m, k)", 2, ["Conv"]),
    ("both-the-other-way", "s = Sub(a, k) y = Div(s, k)", 2, ["Conv"]),
)
@pytest.mark.parametrize("bias", ["", ", c"])
@pytest.mark.parametrize("shape", [(6, 1, 1), (1, 6, 1, 1)])
def test_fold_affine_2_a_product_scales_the_weights(case, bias, shape):
    text = f"{OUT} {{ {CONV.format(bias)} {case.text} }}"
    applied(fold_affine, case._replace(text=text), 17, X, **{**CONSTANTS, "k": SIX.reshape(shape)})


@pytest.mark.parametrize("groups", [1, 2, 3])
@pytest.mark.parametrize("bias", ["", ", c"])
@pytest.mark.parametrize("op", ["Add", "Mul"])
def test_fold_affine_into_conv_transpose(groups, bias, op):
    text = (
        f"g (float[N,6,4,5] x) => (float[N,12,8,10] y) {{ "
        f"a = ConvTranspose <strides = [2,2], group = {groups}> (x, w{bias}) y = {op}(a, k) }}"
    )
    constants = {"w": numbers(6, 12 // groups, 2, 2, seed=1), "c": numbers(12), "k": numbers(12, 1, 1, seed=3)}
    applied(fold_affine, Case("", text, 1, ["ConvTranspose"]), 17, {"x": numbers(2, 6, 4, 5)}, **constants)


@pytest.mark.parametrize("attributes", ["", "<transB = 1>", "<alpha = 0.5, beta = 2.0>", "<transB = 1, beta = 0.25>"])
@pytest.mark.parametrize("bias", [None, (), (1,), (4,), (1, 4), (2, 1), (2, 4)])
@pytest.mark.parametrize(("op", "shape"), [("Add", (4,)), ("Mul", (1, 4))])
def test_fold_affine_into_gemm(attributes, bias, op, shape):
    third = "" if bias is None else ", c"
    text = f"g (float[2,3] x) => (float[2,4] y) {{ a = Gemm {attributes} (x, w{third}) y = {op}(a, k) }}"
    weight = numbers(3, 4, seed=1)
    constants = {"w": weight.T.copy() if "transB" in attributes else weight, "k": numbers(*shape, seed=3)}
    if bias is not None:
        constants["c"] = numbers(*bias, seed=2)
    applied(fold_affine, Case("", text, 1, ["Gemm"]), 17, {"x": numbers(2, 3)}, **constants)


def test_fold_affine_into_a_convolution_of_one_axis():
    text = "g (float[N,3,9] x) => (float[N,6,9] y) { a = Conv <pads = [1,1]> (x, w) y = Add(a, k) }"
    constants = {"w": numbers(6, 3, 3), "k": SIX.reshape(6, 1)}
    applied(fold_affine, Case("", text, 1, ["Conv"]), 17, {"x": numbers(2, 3, 9)}, **constants)


@cases(
    ("one-number", "y = Add(a, one)", 0, ["Conv", "Add"]),
    ("another-axis", "y = Add(a, row)", 0, ["Conv", "Add"]),
    ("every-place", "y = Mul(a, full)", 0, ["Conv", "Mul"]),
    ("a-reciprocal", "y = Div(k, a)", 0, ["Conv", "Div"]),
    ("a-division-by-zero", "y = Div(a, zeros)", 0, ["Conv", "Div"]),
    ("read-twice", "b = Add(a, k) y = Mul(a, b)", 0, ["Conv", "Add", "Mul"]),
    ("no-layer", "b = Neg(a) y = Add(b, k)", 0, ["Conv", "Neg", "Add"]),
    ("a-power", "y = Pow(a, k)", 0, ["Conv", "Pow"]),
    ("computed", "b = ReduceMean <axes = [2,3]> (a) y = Add(a, b)", 0, ["Conv", "ReduceMean", "Add"]),
)
def test_fold_affine_leaves(case):
    constants = {**CONSTANTS, "row": numbers(5), "full": numbers(6, 4, 5)}
    applied(fold_affine, case._replace(text=f"{OUT} {{ {CONV.format('')} {case.text} }}"), 17, **constants)


def test_fold_affine_leaves_a_layer_of_one_channel_that_becomes_many():
    text = "g (float[N,3,4,5] x) => (float[N,6,4,5] y) { a = Conv(x, w) y = Add(a, k) }"
    constants = {"w": numbers(1, 3, 1, 1), "k": CONSTANTS["k"]}
    applied(fold_affine, Case("", text, 0, ["Conv", "Add"]), 17, X, **constants)


def test_fold_affine_leaves_an_output():
    text = f"{OUT[:-1]}, float[N,6,4,5] a) {{ {CONV.format('')} y = Add(a, k) }}"
    applied(fold_affine, Case("", text, 0, ["Conv", "Add"]), 17, X, **CONSTANTS)


def test_fold_affine_leaves_weights_that_are_computed():
    text = "g (float[N,3,4,5] x, float[6,3,1,1] w) => (float[N,6,4,5] y) { a = Conv(x, w) y = Add(a, k) }"
    feeds = {**X, "w": numbers(6, 3, 1, 1)}
    applied(fold_affine, Case("", text, 0, ["Conv", "Add"]), 17, feeds, k=CONSTANTS["k"])


@pytest.mark.parametrize(
    "before",
    [
        "u = Div(a, step) v = Add(u, one)",
        "u = Add(a, halves) v = Div(u, step)",
        "t = Relu(a) u = Div(t, step) v = Add(u, one)",
    ],
    ids=["scaled", "shifted", "rectified"],
)
def test_fold_affine_leaves_thresholds_per_channel_to_qcfs(before):
    """They are stated by the network, and stay so."""
    steps = np.linspace(0.1, 0.6, 6, dtype=np.float32).reshape(6, 1, 1)
    text = f"{OUT} {{ {CONV.format('')} {before} f = Floor(v) q = Clip(f, none, top) y = Mul(q, step) }}"
    constants = {"step": steps, "halves": steps / 2, "none": np.float32(0), "top": np.float32(4)}
    model = parse(text, **{**CONSTANTS, **constants})
    assert "fold_affine" not in normalise(model).changes
    (site,) = inspect_model(model)["sites"]
    assert site["levels"] == 4
    np.testing.assert_allclose(site["threshold"], 4 * steps.ravel(), rtol=1e-5)


def test_fold_affine_reaches_over_rounds():
    """A sum behind a BatchNormalization: the one is folded, then the other."""
    text = f"{OUT} {{ {CONV.format('')} b = BatchNormalization(a, v, c, c, v) d = Add(b, k) y = Relu(d) }}"
    model = parse(text, **CONSTANTS, v=np.abs(SIX) + 1)
    after = normalise(model)
    assert [node.op_type for node in after.model.graph.node] == ["Conv", "Relu"]
    assert_close(run(after.model, X)["y"], run(model, X)["y"])
