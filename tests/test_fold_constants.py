"""The pass `fold_constants`: each case of its docstring, and the places that it has to leave alone."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import OPSETS, apply, constant, numbers, ops, parse, run
from pass_cases import Case, applied, cases

from ftbc_onnx.graph.passes import (
    fold_constants,
)


@pytest.mark.parametrize(
    ("attribute", "value"),
    [
        ("value = float[2] {1.5, -2}", np.array([1.5, -2], np.float32)),
        ("value_float = 2.5", np.array(2.5, np.float32)),
        ("value_floats = [1.0, 2.5]", np.array([1, 2.5], np.float32)),
        ("value_int = 7", np.array(7, np.int64)),
        ("value_ints = [7, 8]", np.array([7, 8], np.int64)),
    ],
)
@pytest.mark.parametrize("opset", OPSETS)
def test_fold_constants_constant_nodes(attribute, value, opset):
    kind = "float" if value.dtype == np.float32 else "int64"
    text = f"g ({kind}[2] x) => ({kind}[2] y) {{ c = Constant <{attribute}> () y = Add(x, c) }}"
    feeds = {"x": np.array([3, 4], value.dtype)}
    after = applied(fold_constants, Case("", text, 1, ["Add"]), opset, feeds)
    folded = constant(after, "c")
    assert folded.dtype == value.dtype
    np.testing.assert_array_equal(folded, value)


@cases(
    (
        "chain",
        "g (float[N,2] x) => (float[N,2] y) <float[2] c = {1, 4}> { a = Sqrt(c) b = Neg(a) y = Add(x, b) }",
        2,
        ["Add"],
    ),
    (
        "several-outputs",
        "g (float[N,2] x) => (float[N,2] y) <float[4] c = {1, 2, 3, 4}> { a, b = Split(c) "
        "d = Add(x, a) y = Mul(d, b) }",
        1,
        ["Add", "Mul"],
    ),
    ("shape", "g (float[2,3] x) => (int64[2] y) { a = Shape(x) y = Neg(a) }", 1, ["Neg"]),
    (
        "shape-then-more",
        "g (float[2,3] x) => (float[6] y) { a = Shape(x) b = ReduceProd(a) y = Reshape(x, b) }",
        2,
        ["Reshape"],
    ),
    (
        "gather-of-the-known-part",
        "g (float[N,3,4] x) => (float[N,3,4] y) <int64[2] i = {1, -1}> "
        "{ s = Shape(x) g = Gather(s, i) f = Cast <to = 1> (g) p = ReduceSum <keepdims = 0> (f) y = Div(x, p) }",
        3,
        ["Div"],
    ),
    (
        "slice-of-the-known-part",
        "g (float[N,3,4] x) => (float[N,3,4] y) <int64[1] a = {-2}, int64[1] b = {9223372036854775807}> "
        "{ s = Shape(x) g = Slice(s, a, b) f = Cast <to = 1> (g) p = ReduceSum <keepdims = 0> (f) y = Div(x, p) }",
        3,
        ["Div"],
    ),
    (
        "slice-with-steps-and-no-axes",
        "g (float[2,3,4] x) => (float[2] y) <int64[1] a = {2}, int64[1] b = {-4}, int64[1] d = {-2}> "
        "{ s = Shape(x) g = Slice(s, a, b, , d) f = Cast <to = 1> (g) r = ReduceSum <keepdims = 0> (x) y = Add(f, r) }",
        3,
        ["ReduceSum", "Add"],
    ),
    (
        "slice-with-steps-of-the-known-part",
        "g (float[N,3,4,5] x) => (float[N,3,4,5] y) <int64[1] a = {1}, int64[1] b = {4}, int64[1] d = {2}> "
        "{ s = Shape(x) g = Slice(s, a, b, , d) f = Cast <to = 1> (g) p = ReduceSum <keepdims = 0> (f) y = Div(x, p) }",
        3,
        ["Div"],
    ),
    (
        "constant-of-shape",
        "g (float[N,2] x) => (float[N,2] y) <int64[1] s = {2}> { a = ConstantOfShape(s) y = Add(x, a) }",
        1,
        ["Add"],
    ),
)
def test_fold_constants_folds(case):
    shape = next(dims for key, dims in SHAPES.items() if f"({key} x)" in case.text)
    applied(fold_constants, case, feeds={"x": numbers(*shape)})


SHAPES = {
    "float[N,2]": (5, 2),
    "float[2,3]": (2, 3),
    "float[N,3,4]": (2, 3, 4),
    "float[2,3,4]": (2, 3, 4),
    "float[N,3,4,5]": (2, 3, 4, 5),
}


@cases(
    ("dynamic-shape", "g (float[N,3] x) => (int64[2] y) { a = Shape(x) y = Neg(a) }", 0, ["Shape", "Neg"]),
    (
        "gather-of-the-dynamic-axis",
        "g (float[N,3] x) => (int64 y) <int64 i = {0}> { s = Shape(x) a = Gather(s, i) y = Neg(a) }",
        0,
        ["Shape", "Gather", "Neg"],
    ),
    (
        "slice-with-the-dynamic-axis",
        "g (float[N,3] x) => (int64[2] y) <int64[1] a = {0}, int64[1] b = {2}> { s = Shape(x) "
        "g = Slice(s, a, b) y = Neg(g) }",
        0,
        ["Shape", "Slice", "Neg"],
    ),
    (
        "random",
        "g (float[2] x) => (float[2] y) { r = RandomNormal <shape = [2]> () y = Add(x, r) }",
        0,
        ["RandomNormal", "Add"],
    ),
    (
        "random-like-a-constant",
        "g (float[2] x) => (float[2] y) <float[2] c = {1, 2}> { r = RandomUniformLike(c) y = Add(x, r) }",
        0,
        ["RandomUniformLike", "Add"],
    ),
    (
        "much-larger-than-its-inputs",
        "g (float[N,1000,1000] x) => (float[N,1000,1000] y) <float c = {1}, int64[2] s = {1000, 1000}> "
        "{ a = Expand(c, s) y = Add(x, a) }",
        0,
        ["Expand", "Add"],
    ),
    (
        "an-output-of-the-graph",
        "g (float[2] x) => (float[2] y, float[2] c) { c = Constant <value = float[2] {1, 2}> () y = Add(x, c) }",
        0,
        ["Constant", "Add"],
    ),
    (
        "one-of-its-outputs-is-the-graph's",
        "g (float[2] x) => (float[2] y, float[2] a) <float[4] c = {1, 2, 3, 4}> { a, b = Split(c) y = Add(x, b) }",
        0,
        ["Split", "Add"],
    ),
)
def test_fold_constants_leaves(case):
    applied(fold_constants, case)


@pytest.mark.parametrize("window", ["start = 1", "start = 1, end = 3", "start = -2", "start = -3, end = -1"])
def test_fold_constants_windows_of_shape(window):
    text = f"g (float[N,3,4] x) => (int64[k] y) {{ a = Shape <{window}> (x) y = Neg(a) }}"
    known = window != "start = -3, end = -1"
    after = ["Neg"] if known else ["Shape", "Neg"]
    applied(fold_constants, Case("", text, int(known), after), opset=15, feeds={"x": numbers(2, 3, 4)})


@pytest.mark.parametrize(("start", "end", "step"), [(-9, 9, 1), (-9, -99, -1), (2, -99, -1), (9, 0, -2), (-2, 9, 1)])
def test_fold_constants_slices_of_shape(start, end, step):
    """From before the first entry backwards there is the first one, as for onnxruntime, and unlike Python's slices."""
    text = "g (float[3,4,5] x) => (int64[n] y) { s = Shape(x) c = Slice(s, a, b, zero, d) y = Neg(c) }"
    constants = {name: np.array([v], np.int64) for name, v in zip("abd", (start, end, step), strict=True)}
    before = parse(text, zero=np.zeros(1, np.int64), **constants)
    after, _ = apply(fold_constants, before)
    assert ("Slice" in ops(after)) is ((start, step) == (-9, -1))
    feeds = {"x": numbers(3, 4, 5)}
    np.testing.assert_array_equal(run(after, feeds)["y"], run(before, feeds)["y"])


def test_fold_constants_leaves_other_domains():
    text = "g (float[2] x) => (float[2] y) <float[2] c = {1, 2}> { a = custom.Twice(c) y = Add(x, a) }"
    before = parse(text, domains='"custom" : 1')
    after, count = apply(fold_constants, before)
    assert (count, ops(after)) == (0, ["Twice", "Add"])


@pytest.mark.parametrize(
    "node",
    [
        'Resize<mode="linear", coordinate_transformation_mode="align_corners">(k, none, scales)',
        'Resize<mode="nearest">(k, none, scales)',
        "LRN<size=3>(k)",
        "LpNormalization<axis=-1, p=1>(k)",
    ],
)
def test_fold_constants_leaves_what_the_reference_computes_otherwise(node):
    """onnxruntime, which runs the network, rounds coordinates in another way."""
    text = f"g (float[1,2,4,8] x) => (float[1,2,a,b] y) {{ z = {node} y = Relu(z) }}"
    constants = {"k": numbers(1, 2, 3, 5), "scales": np.array([1, 1, 1.4, 1.7], np.float32), "none": np.float32([])}
    before = parse(text, opset=13, **constants)
    after, count = apply(fold_constants, before)
    assert (count, ops(after)) == (0, [node.partition("<")[0], "Relu"])


def test_fold_constants_leaves_control_flow_and_serves_its_bodies():
    text = """g (float[2] x, bool c) => (float[2] y) {
        k = Constant <value = float[2] {1, 2}> ()
        m = Neg(k)
        y = If (c) <
            then_branch = then () => (float[2] p) { p = Add(x, m) },
            else_branch = other () => (float[2] q) {
                q = If (c) <
                    then_branch = inner () => (float[2] r) { r = Add(x, k) },
                    else_branch = last () => (float[2] s) { s = Mul(x, m) }
                >
            }
        >
    }"""
    for flag in (True, False):
        applied(fold_constants, Case("", text, 2, ["If"]), feeds={"x": numbers(2), "c": np.array(flag)})


def test_fold_constants_constant_condition_is_left_alone():
    text = """g (float[2] x) => (float[2] y) <bool c = {1}> {
        y = If (c) <
            then_branch = then () => (float[2] p) { p = Neg(x) },
            else_branch = other () => (float[2] q) { q = Abs(x) }
        >
    }"""
    applied(fold_constants, Case("", text, 0, ["If"]), feeds={"x": numbers(2)})
