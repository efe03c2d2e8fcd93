"""The pass `dense_layers`: each case of its docstring, and the places that it has to leave alone."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import assert_same_function, constant, node_of, numbers, parse
from networks import CALIBRATION
from pass_cases import Case, applied, cases

from ftbc_onnx import convert
from ftbc_onnx.graph.normalise import normalise
from ftbc_onnx.graph.passes import dense_layers
from ftbc_onnx.graph.sites import find_network

IN = "g (float[N,3] x) => (float[N,4] y)"
X = {"x": numbers(2, 3)}
W = {"w": numbers(3, 4, seed=1), "b": numbers(4, seed=2), "row": numbers(1, 4, seed=2), "one": numbers(1, seed=3)}


@cases(
    ("product", f"{IN} {{ y = MatMul(x, w) }}", 1, ["Gemm"]),
    ("bias", f"{IN} {{ m = MatMul(x, w) y = Add(m, b) }}", 2, ["Gemm"]),
    ("bias-first", f"{IN} {{ m = MatMul(x, w) y = Add(b, m) }}", 2, ["Gemm"]),
    ("bias-as-a-row", f"{IN} {{ m = MatMul(x, w) y = Add(m, row) }}", 2, ["Gemm"]),
    ("gemm-without-bias", f"{IN} {{ m = Gemm <alpha = 2.0, beta = 3.0> (x, w) y = Add(m, b) }}", 1, ["Gemm"]),
    ("then-something", f"{IN} {{ m = MatMul(x, w) a = Add(m, b) y = Relu(a) }}", 2, ["Gemm", "Relu"]),
)
def test_dense_layers_becomes_one_gemm(case):
    after = applied(dense_layers, case, feeds=X, **W)
    layer = node_of(after, "Gemm")
    if case.label != "product":
        assert constant(after, layer.input[2]).shape == (4,)


@cases(
    ("second-bias", f"{IN} {{ m = MatMul(x, w) a = Add(m, b) y = Add(a, one) }}", 2, ["Gemm", "Add"]),
    ("gemm-with-bias", f"{IN} {{ m = Gemm(x, w, b) y = Add(m, b) }}", 0, ["Gemm", "Add"]),
    ("one-number", f"{IN} {{ m = MatMul(x, w) y = Add(m, one) }}", 1, ["Gemm", "Add"]),
    ("no-axes", f"{IN} <float c = {{3}}> {{ m = MatMul(x, w) y = Add(m, c) }}", 1, ["Gemm", "Add"]),
    ("read-twice", f"{IN} {{ m = MatMul(x, w) a = Add(m, b) y = Mul(a, m) }}", 1, ["Gemm", "Add", "Mul"]),
    ("added-to-itself", f"{IN} {{ m = MatMul(x, w) y = Add(m, m) }}", 1, ["Gemm", "Add"]),
    (
        "sum-is-of-tensors",
        "g (float[N,3] x, float[N,4] z) => (float[N,4] y) { m = MatMul(x, w) y = Add(m, z) }",
        1,
        ["Gemm", "Add"],
    ),
    (
        "product-is-an-output",
        "g (float[N,3] x) => (float[N,4] m, float[N,4] y) { m = MatMul(x, w) y = Add(m, b) }",
        1,
        ["Gemm", "Add"],
    ),
    (
        "a-row-per-sample",
        "g (float[2,3] x) => (float[2,4] y) { m = MatMul(x, w) y = Add(m, rows) }",
        1,
        ["Gemm", "Add"],
    ),
    (
        "bias-adds-an-axis",
        "g (float[N,3] x) => (float[1,N,4] y) <float[1,1,4] r = {1, 2, 3, 4}> { m = MatMul(x, w) y = Add(m, r) }",
        1,
        ["Gemm", "Add"],
    ),
    (
        "one-output",
        "g (float[N,4] x) => (float[N,1] y) <float[1] half = {0.5}> { m = MatMul(x, wide) y = Add(m, half) }",
        1,
        ["Gemm", "Add"],
    ),
    ("three-axes", "g (float[N,2,3] x) => (float[N,2,4] y) { m = MatMul(x, w) y = Add(m, b) }", 0, ["MatMul", "Add"]),
    ("weights-first", "g (float[4,N] x) => (float[3,N] y) { y = MatMul(w, x) }", 0, ["MatMul"]),
    ("weights-are-an-input", "g (float[N,3] x, float[3,4] v) => (float[N,4] y) { y = MatMul(x, v) }", 0, ["MatMul"]),
    ("integers", "g (int32[N,3] x) => (int32[N,1] y) <int32[3,1] v = {1, 2, 3}> { y = MatMul(x, v) }", 0, ["MatMul"]),
)
def test_dense_layers_leaves_alone(case):
    applied(dense_layers, case, **W, rows=numbers(2, 4, seed=4), wide=numbers(4, 1, seed=5))


def test_dense_layers_leaves_an_add_in_a_body_alone():
    text = (
        f"{IN} <float zero = {{0}}> {{ k = ReduceMean <keepdims = 0> (x) c = Greater(k, zero) m = MatMul(x, w) "
        "n = MatMul(x, w) y = If (c) <"
        "then_branch = then () => (float[N,4] a) { a = Add(m, b) }, "
        "else_branch = else () => (float[N,4] s) { s = Mul(n, n) }> }"
    )
    case = Case("", text, 2, ["ReduceMean", "Gemm", "Gemm", "Greater", "If"])
    applied(dense_layers, case, feeds=X, **W)


def test_the_layer_is_called_as_the_add_was():
    """Where people cut: `--until` the node before the softmax."""
    text = f"{IN} {{ m = MatMul(x, w) a = Add(m, b) r = Relu(a) n = MatMul(r, v) y = Add(n, b) }}"
    model = parse(text, **W, v=numbers(4, 4, seed=6))
    for node, name in zip(model.graph.node, ("d1", "a1", "r1", "d2", "a2"), strict=True):
        node.name = name
    assert [node.name for node in normalise(model).model.graph.node] == ["a1", "r1", "a2"]
    assert convert(model, numbers(64, 3), until="a2", steps=2).report["sites"][0]["name"] == "r1"


def test_dense_layers_keeps_the_bias_that_others_read():
    text = f"{IN} {{ m = MatMul(x, w) a = Add(m, b) c = Mul(a, b) n = MatMul(x, w) d = Add(n, b) y = Add(c, d) }}"
    after = applied(dense_layers, Case("", text, 4, ["Gemm", "Gemm", "Mul", "Add"]), feeds=X, **W)
    assert sorted(tensor.name for tensor in after.graph.initializer) == ["b", "w"]


def test_the_half_of_a_qcfs_activation_is_no_bias():
    """Its scale may be in the weights of the layer, so that nothing stands between."""
    text = f"{IN} {{ m = MatMul(x, w) a = Add(m, half) f = Floor(a) c = Clip(f, zero, l) y = Mul(c, step) }}"
    numbers_of = {"half": 0.5, "zero": 0.0, "l": 4.0, "step": 0.25}
    model = parse(text, **W, **{name: np.float32(value) for name, value in numbers_of.items()})
    (site,) = find_network(normalise(model).model).sites
    assert (site.op_type, float(np.max(site.threshold))) == ("QCFS", 4.0)  # in the units of the sum


def test_batchnorm_after_a_dense_layer_is_folded():
    text = f"{IN} {{ m = MatMul(x, w) a = Add(m, b) y = BatchNormalization(a, g, h, e, v) }}"
    norm = {name: numbers(4, seed=seed) ** 2 + 0.5 for seed, name in enumerate("ghev", 5)}
    before = parse(text, **W, **norm)
    after = normalise(before).model
    assert [node.op_type for node in after.graph.node] == ["Gemm"]
    assert_same_function(before, after, X)


@pytest.mark.parametrize("options", [{"form": "fused"}, {"refit": True}], ids=["fused", "refit"])
def test_what_is_done_with_gemm_is_done_with_matmul(options):
    """A network of MatMul and Add is converted like the same network of Gemms, to the last bit."""
    rng = np.random.default_rng(0)
    layers = {"v": rng.normal(size=(64, 24)) / 5, "c": rng.normal(size=24) / 9}
    layers |= {"w": rng.normal(size=(24, 10)) / 5, "b": rng.normal(size=10) / 9}
    values = {name: value.astype(np.float32) for name, value in layers.items()}
    with np.load(CALIBRATION) as arrays:
        images = arrays["image"].reshape(-1, 64)
    head = "g (float[N,64] x) => (float[N,10] y)"
    gemms = parse(f"{head} {{ m = Gemm(x, v, c) r = Relu(m) y = Gemm(r, w, b) }}", **values)
    products = parse(
        f"{head} {{ m = MatMul(x, v) a = Add(m, c) r = Relu(a) n = MatMul(r, w) y = Add(n, b) }}", **values
    )
    asked = {"neuron": "if", "steps": 3, "eval_data": images[:64], **options}
    expected, found = (convert(model, images, **asked) for model in (gemms, products))
    assert found.report["verification"]["bitwise"]
    assert len(found.report["layers"]) == len(expected.report["layers"])
    evaluations = [result.report["evaluation"]["output_gap"] for result in (expected, found)]
    assert evaluations[0] == evaluations[1]
