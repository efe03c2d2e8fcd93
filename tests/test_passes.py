"""Every pass: each case of its docstring, and the places that it has to leave alone.

A case is a graph as text; asserted are how often the pass applied, what the graph became, that the numbers are the
same, and that the checker is content.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import onnx
import pytest
from helpers import OPSETS, apply, assert_same_function, assert_valid, constant, node_of, numbers, ops, parse, run

from ftbc_onnx.errors import ModelError
from ftbc_onnx.graph.normalise import infer_shapes
from ftbc_onnx.graph.passes import (
    PASSES,
    constant_shapes,
    copy_axes,
    drop_noops,
    fold_batchnorm,
    fold_constants,
    merge_clips,
    pool_first,
    shrink_broadcasts,
)

X = {"x": numbers(2, 3, 4, 5)}


class Case(NamedTuple):
    """A graph, and what a pass makes of it."""

    label: str
    text: str
    count: int
    after: list[str]


def cases(*table: tuple[str, str, int, list[str]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", [Case(*row) for row in table], ids=[row[0] for row in table])


def applied(change, case: Case, opset: int = 17, feeds=None, **constants) -> onnx.ModelProto:
    """Apply a pass, assert what is common to all cases, and return what the graph became."""
    before = parse(case.text, opset=opset, **constants)
    assert_valid(named(before))
    after, count = apply(change, before)
    assert count == case.count
    assert ops(after) == case.after
    assert_valid(named(after))
    if feeds is not None:
        assert_same_function(before, after, feeds)
    return after


def named(model: onnx.ModelProto) -> onnx.ModelProto:
    """Nodes of test graphs have no names; the passes are not what gives them any."""
    for position, node in enumerate(model.graph.node):
        node.name = node.name or f"node{position}"
    return model


def test_every_pass_is_tested_here():
    assert (
        drop_noops,
        fold_constants,
        constant_shapes,
        copy_axes,
        shrink_broadcasts,
        merge_clips,
        fold_batchnorm,
        pool_first,
    ) == PASSES


# drop_noops


IN = "g (float[N,3,4,5] x) => (float[N,3,4,5] y)"


@cases(
    ("1-identity", f"{IN} {{ a = Identity(x) y = Relu(a) }}", 1, ["Relu"]),
    ("1-identity-makes-output", f"{IN} {{ a = Relu(x) y = Identity(a) }}", 1, ["Relu"]),
    ("1-identity-chain", f"{IN} {{ a = Identity(x) b = Identity(a) c = Relu(b) y = Identity(c) }}", 3, ["Relu"]),
    ("2-dropout", f"{IN} {{ a = Dropout(x) y = Relu(a) }}", 1, ["Relu"]),
    ("2-dropout-mask-not-read", f"{IN} {{ a, mask = Dropout(x) y = Relu(a) }}", 1, ["Relu"]),
    (
        "2-dropout-training-false",
        f"{IN} <float r = {{0.5}}, bool t = {{0}}> {{ a = Dropout(x, r, t) y = Relu(a) }}",
        1,
        ["Relu"],
    ),
    ("2-dropout-makes-output", f"{IN} {{ a = Relu(x) y, mask = Dropout(a) }}", 1, ["Relu"]),
    ("3-cast-to-own-type", f"{IN} {{ a = Cast <to = 1> (x) y = Relu(a) }}", 1, ["Relu"]),
    ("5-transpose-in-order", f"{IN} {{ a = Transpose <perm = [0, 1, 2, 3]> (x) y = Relu(a) }}", 1, ["Relu"]),
    ("6-pad-by-nothing", f"{IN} <int64[8] p = {{0,0,0,0,0,0,0,0}}> {{ a = Pad(x, p) y = Relu(a) }}", 1, ["Relu"]),
    ("7-concat-of-one", f"{IN} {{ a = Concat <axis = 1> (x) y = Relu(a) }}", 1, ["Relu"]),
    ("7-sum-of-one", f"{IN} {{ a = Sum(x) y = Relu(a) }}", 1, ["Relu"]),
    ("7-mean-of-one", f"{IN} {{ a = Mean(x) y = Relu(a) }}", 1, ["Relu"]),
    ("7-max-of-one", f"{IN} {{ a = Max(x) y = Relu(a) }}", 1, ["Relu"]),
    ("7-min-of-one", f"{IN} {{ a = Min(x) y = Relu(a) }}", 1, ["Relu"]),
    ("8-mul-by-1", f"{IN} <float c = {{1}}> {{ a = Mul(x, c) y = Relu(a) }}", 1, ["Relu"]),
    ("8-mul-1-by", f"{IN} <float[1] c = {{1}}> {{ a = Mul(c, x) y = Relu(a) }}", 1, ["Relu"]),
    ("8-div-by-1", f"{IN} <float c = {{1}}> {{ a = Div(x, c) y = Relu(a) }}", 1, ["Relu"]),
    ("8-add-0", f"{IN} <float[1,1,1,1] c = {{0}}> {{ a = Add(x, c) y = Relu(a) }}", 1, ["Relu"]),
    ("8-add-to-0", f"{IN} <float c = {{0}}> {{ a = Add(c, x) y = Relu(a) }}", 1, ["Relu"]),
    ("8-sub-0", f"{IN} <float c = {{0}}> {{ a = Sub(x, c) y = Relu(a) }}", 1, ["Relu"]),
)
def test_drop_noops_drops(case):
    after = applied(drop_noops, case, feeds=X)
    assert list(after.graph.node[0].input) == ["x"]
    assert [value.name for value in after.graph.output] == ["y"]


@cases(
    ("1-between-input-and-output", f"{IN} {{ y = Identity(x) }}", 0, ["Identity"]),
    ("2-training", f"{IN} <float r = {{0}}, bool t = {{1}}> {{ y = Dropout(x, r, t) }}", 0, ["Dropout"]),
    (
        "2-training-not-known",
        "g (float[N,3,4,5] x, bool t) => (float[N,3,4,5] y) <float r = {0}> { a = Dropout(x, r, t) y = Relu(a) }",
        0,
        ["Dropout", "Relu"],
    ),
    (
        "2-mask-is-read",
        f"{IN} {{ r = Relu(x) a, mask = Dropout(r) z = Sub(r, r) y = Where(mask, a, z) }}",
        0,
        ["Relu", "Dropout", "Sub", "Where"],
    ),
    (
        "2-mask-is-an-output",
        "g (float[N,3,4,5] x) => (float[N,3,4,5] y, bool[N,3,4,5] mask) { a = Relu(x) y, mask = Dropout(a) }",
        0,
        ["Relu", "Dropout"],
    ),
    (
        "3-cast-to-another-type",
        "g (float[N,3,4,5] x) => (double[N,3,4,5] y) { a = Cast <to = 11> (x) y = Relu(a) }",
        0,
        ["Cast", "Relu"],
    ),
    (
        "5-transpose-that-moves",
        "g (float[N,3,4,5] x) => (float[N,4,5,3] y) { a = Transpose <perm = [0, 2, 3, 1]> (x) y = Relu(a) }",
        0,
        ["Transpose", "Relu"],
    ),
    (
        "5-transpose-without-perm-reverses",
        "g (float[N,3,4,5] x) => (float[5,4,3,N] y) { a = Transpose(x) y = Relu(a) }",
        0,
        ["Transpose", "Relu"],
    ),
    (
        "6-pad-by-something",
        "g (float[N,3,4,5] x) => (float[N,3,4,6] y) <int64[8] p = {0,0,0,0,0,0,0,1}> { a = Pad(x, p) y = Relu(a) }",
        0,
        ["Pad", "Relu"],
    ),
    ("7-concat-of-two", "g (float[N,3] x) => (float[N,6] y) { y = Concat <axis = 1> (x, x) }", 0, ["Concat"]),
    ("8-1-divided-by", f"{IN} <float c = {{1}}> {{ a = Div(c, x) y = Relu(a) }}", 0, ["Div", "Relu"]),
    ("8-0-minus", f"{IN} <float c = {{0}}> {{ a = Sub(c, x) y = Relu(a) }}", 0, ["Sub", "Relu"]),
    ("8-mul-by-2", f"{IN} <float c = {{2}}> {{ a = Mul(x, c) y = Relu(a) }}", 0, ["Mul", "Relu"]),
    (
        "8-rank-would-rise",
        "g (float[N,3,4,5] x) => (float[1,N,3,4,5] y) <float[1,1,1,1,1] c = {1}> { a = Mul(x, c) y = Relu(a) }",
        0,
        ["Mul", "Relu"],
    ),
    (
        "8-length-would-rise",
        "g (float[N,1] x) => (float[N,3] y) <float[3] c = {0, 0, 0}> { a = Add(x, c) y = Relu(a) }",
        0,
        ["Add", "Relu"],
    ),
)
def test_drop_noops_leaves(case):
    applied(drop_noops, case)


@pytest.mark.parametrize("rank", ["known", "unknown"])
def test_drop_noops_8_needs_the_rank_when_the_constant_has_axes(rank):
    model = parse(f"{IN} <float[1,1] c = {{0}}> {{ a = Add(x, c) y = Relu(a) }}")
    if rank == "unknown":
        model.graph.input[0].type.tensor_type.ClearField("shape")
        model.graph.output[0].type.tensor_type.ClearField("shape")
    _, count = apply(drop_noops, model)
    assert count == (rank == "known")


@pytest.mark.parametrize("opset", [opset for opset in OPSETS if opset >= 15])
def test_drop_noops_4_castlike_becomes_cast(opset):
    text = "g (float[N] x, double[1] z) => (double[N] y) { a = CastLike(x, z) y = Neg(a) }"
    after = applied(drop_noops, Case("", text, 1, ["Cast", "Neg"]), opset, {"x": numbers(4), "z": np.ones(1)})
    assert after.graph.node[0].attribute[0].i == onnx.TensorProto.DOUBLE


def test_drop_noops_4_castlike_to_own_type_goes_at_once():
    text = "g (float[N] x, float[1] z) => (float[N] y) { a = CastLike(x, z) y = Neg(a) }"
    applied(drop_noops, Case("", text, 2, ["Neg"]), feeds={"x": numbers(4), "z": numbers(1)})


def test_drop_noops_takes_types_that_numpy_does_not_have():
    text = "g (bfloat16[N] x) => (bfloat16[N] y) { a = Cast <to = 16> (x) y = Neg(a) }"
    applied(drop_noops, Case("", text, 1, ["Neg"]))
    text = "g (bfloat16[1] x, float[N] z) => (bfloat16[N] y) { a = CastLike(z, x) y = Neg(a) }"
    applied(drop_noops, Case("", text, 1, ["Cast", "Neg"]))


def test_drop_noops_two_outputs_of_one_tensor_keep_their_names():
    text = """g (float[N,3] x) => (float[N,3] y, float[N,3] z, float[N,3] w) {
        a = Relu(x) y = Identity(a) z = Identity(a) w = Neg(a) }"""
    after = applied(drop_noops, Case("", text, 1, ["Relu", "Identity", "Neg"]), feeds={"x": numbers(2, 3)})
    assert after.graph.node[0].output == ["y"]


def test_drop_noops_output_that_is_also_read():
    text = "g (float[N,3] x) => (float[N,3] y, float[N,3] z) { a = Relu(x) y = Identity(a) z = Neg(y) }"
    applied(drop_noops, Case("", text, 1, ["Relu", "Neg"]), feeds={"x": numbers(2, 3)})


def test_drop_noops_identity_of_a_constant_that_is_an_output_stays():
    text = "g (float[N] x) => (float[N] y, float[2] z) <float[2] c = {1, 2}> { y = Relu(x) z = Identity(c) }"
    applied(drop_noops, Case("", text, 0, ["Relu", "Identity"]), feeds={"x": numbers(2)})


def test_drop_noops_reaches_into_bodies():
    text = """g (float[N] x, bool c) => (float[N] y) {
        a = Identity(x)
        y = If (c) <
            then_branch = then () => (float[N] p) { p = Neg(a) },
            else_branch = other () => (float[N] q) { q = Identity(a) }
        >
    }"""
    for flag in (True, False):
        feeds = {"x": numbers(3), "c": np.array(flag)}
        applied(drop_noops, Case("", text, 1, ["If"]), feeds=feeds)


def test_drop_noops_keeps_a_tensor_that_a_body_reads():
    text = """g (float[N] x, bool c) => (float[N] y, float[N] z) {
        a = Relu(x)
        z = Identity(a)
        y = If (c) <
            then_branch = then () => (float[N] p) { p = Neg(a) },
            else_branch = other () => (float[N] q) { q = Identity(a) }
        >
    }"""
    before = named(parse(text))
    after, _ = apply(drop_noops, before)
    assert_same_function(before, after, {"x": numbers(3), "c": np.array(True)})
    assert_same_function(before, after, {"x": numbers(3), "c": np.array(False)})


# fold_constants


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


def test_fold_constants_leaves_other_domains():
    text = "g (float[2] x) => (float[2] y) <float[2] c = {1, 2}> { a = custom.Twice(c) y = Add(x, a) }"
    before = parse(text, domains='"custom" : 1')
    after, count = apply(fold_constants, before)
    assert (count, ops(after)) == (0, ["Twice", "Add"])


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


# constant_shapes


VIEW = """g (float[N,3,4,5] x) => (float[N,K] y) <int64 zero = {0}, int64[1] axes = {0}, int64[1] rest = {-1}> {
    s = Shape(x) n = Gather(s, zero) u = Unsqueeze(n, axes) t = Concat <axis = 0> (u, rest) y = Reshape(x, t) }"""


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("batch", [1, 5])
def test_constant_shapes_1_view(opset, batch):
    feeds = {"x": numbers(batch, 3, 4, 5)}
    after = applied(constant_shapes, Case("", VIEW, 1, ["Reshape"]), opset, feeds)
    np.testing.assert_array_equal(constant(after, after.graph.node[0].input[1]), [0, -1])


def entries(axes: str) -> str:
    """A Reshape whose target is put together from axes of Shapes and numbers."""
    constants = "int64 i0 = {0}, int64 i1 = {1}, int64 i2 = {2}, int64[1] o = {0}, int64[1] n2 = {2}, int64[1] n3 = {3}"
    return f"""g (float[A,B,6] x, float[B,A,9] z) => (float[k,l,m] y) <{constants}, int64[1] free = {{-1}}> {{
        s = Shape(x) a_ = Gather(s, i0) a = Unsqueeze(a_, o) b_ = Gather(s, i1) b = Unsqueeze(b_, o)
        c_ = Gather(s, i2) c = Unsqueeze(c_, o)
        w = Shape(z) za_ = Gather(w, i1) za = Unsqueeze(za_, o) zb_ = Gather(w, i0) zb = Unsqueeze(zb_, o)
        t = Concat <axis = 0> ({axes}) y = Reshape(x, t) }}"""


@pytest.mark.parametrize(
    ("axes", "target"),
    [
        ("a, b, c", [0, 0, 6]),  # own axes, the last one known
        ("b, a, c", None),  # moved: two would be left over
        ("a, n2, free", [0, 2, -1]),
        ("free, b, c", [-1, 0, 6]),
        ("b, free, n2", None),  # B does not stand on its own axis: left over, like the free one
        ("za, zb, c", [0, 0, 6]),  # another tensor's axes of the same names
        ("zb, n3, n2", [-1, 3, 2]),  # one left over is found by division
    ],
)
def test_constant_shapes_1_entries(axes, target):
    before = parse(entries(axes))
    after, count = apply(constant_shapes, before)
    a, b = (1, 4) if axes == "zb, n3, n2" else (2, 4)
    assert_same_function(before, after, {"x": numbers(a, b, 6), "z": numbers(b, a, 9)})
    assert count == (target is not None)
    if target is None:
        assert "Concat" in ops(after)
    else:
        assert ops(after) == ["Reshape"]
        np.testing.assert_array_equal(constant(after, after.graph.node[0].input[1]), target)


def test_constant_shapes_2_where_inference_knows_the_result():
    # the arithmetic (3 * H) is not followed, but y's axes are stated
    text = """g (float[N,3,H] x) => (float[N,12] y) <int64[1] o = {0}, int64[2] i = {1, 2}, int64[1] j = {0}> {
        s = Shape(x) hw = Gather(s, i) p = ReduceProd <keepdims = 1> (hw) n = Gather(s, j)
        t = Concat <axis = 0> (n, p) y = Reshape(x, t) }"""
    after = applied(constant_shapes, Case("", text, 1, ["Reshape"]), feeds={"x": numbers(5, 3, 4)})
    np.testing.assert_array_equal(constant(after, after.graph.node[0].input[1]), [0, 12])


def test_constant_shapes_leaves_what_it_cannot_know():
    text = "g (float[N,3,H] x, int64[2] t) => (float[P,Q] y) { y = Reshape(x, t) }"
    feeds = {"x": numbers(5, 3, 4), "t": np.array([3, 20])}
    applied(constant_shapes, Case("", text, 0, ["Reshape"]), feeds=feeds)


def test_constant_shapes_leaves_a_constant_target():
    text = "g (float[N,3] x) => (float[M] y) <int64[1] t = {-1}> { y = Reshape(x, t) }"
    applied(constant_shapes, Case("", text, 0, ["Reshape"]), feeds={"x": numbers(5, 3)})


def test_constant_shapes_a_literal_zero_with_allowzero_is_no_copy():
    text = """g (float[N,0] x) => (float[A,N] y) <int64 i = {0}, int64[1] o = {0}, int64[1] zero = {0}> {
        s = Shape(x) n_ = Gather(s, i) n = Unsqueeze(n_, o) t = Concat <axis = 0> (zero, n)
        y = Reshape <allowzero = 1> (x, t) }"""
    applied(
        constant_shapes,
        Case("", text, 0, ["Shape", "Gather", "Unsqueeze", "Concat", "Reshape"]),
        feeds={"x": numbers(5, 0)},
    )


def test_constant_shapes_allowzero_goes_with_the_copied_axis():
    text = VIEW.replace("Reshape(x, t)", "Reshape <allowzero = 1> (x, t)")
    after = applied(constant_shapes, Case("", text, 1, ["Reshape"]), feeds={"x": numbers(5, 3, 4, 5)})
    assert not node_of(after, "Reshape").attribute


# copy_axes


def reshape(source: str, result: str, target: list[int], attributes: str = "") -> str:
    shape = f"int64[{len(target)}] t = {{{', '.join(map(str, target))}}}"
    return f"g (float[{source}] x) => (float[{result}] y) <{shape}> {{ y = Reshape {attributes}(x, t) }}"


@pytest.mark.parametrize(
    ("source", "result", "target", "after"),
    [
        ("N,8,2,2", "N,8,4", [-1, 8, 4], [0, 8, 4]),
        ("N,8,2,2", "N,8,4", [-1, 0, 4], [0, 0, 4]),
        ("N,32", "N,4,8", [-1, 4, 8], [0, 4, 8]),
        ("2,N,6", "2,N,2,3", [0, -1, 2, 3], [0, 0, 2, 3]),
        ("N,1", "N", [-1], [0]),
        ("N,8,2,2", "N,8,4", [3, 8, 4], [0, 8, 4]),  # a batch that was baked in
        ("N,8,2,2", "N,8,4", [3, 0, 4], [0, 0, 4]),
        ("2,N,6", "2,N,2,3", [2, 3, 2, 3], [2, 0, 2, 3]),
        ("N,8,2,2", "N,32", [3, -1], None),  # runs in other batches, whatever it was meant for
        ("N,8,2", "M,8,1,1", [6, 8, 1, 1], None),  # and so does this
        ("N,8,4", "M,8", [-1, 8], None),  # merged with another axis
        ("N,8,4", "N,32", [0, -1], None),  # another axis is left over
        ("N,M,4", "N,M,2,2", [-1, 0, 2, 2], None),  # two that are not known
        ("8,N,4", "N,8,4", [-1, 8, 4], None),  # another place
        ("N,8,4", "N,8,4", [0, 8, 4], None),
    ],
)
def test_copy_axes(source, result, target, after):
    names = {"N": 3, "M": 2}
    feeds = {"x": numbers(*(names.get(dim) or int(dim) for dim in source.split(",")))}
    text = reshape(source, result, target)
    model = applied(copy_axes, Case("", text, int(after is not None), ["Reshape"]), feeds=feeds)
    np.testing.assert_array_equal(constant(model, model.graph.node[0].input[1]), after or target)


def test_copy_axes_minds_allowzero():
    model = applied(copy_axes, Case("", reshape("N,8,4", "N,32", [-1, 32], "<allowzero = 1> "), 1, ["Reshape"]))
    assert not node_of(model, "Reshape").attribute
    applied(copy_axes, Case("", reshape("N,0,4", "K,0", [4, 0], "<allowzero = 1> "), 0, ["Reshape"]))


def test_copy_axes_keeps_the_name_of_the_batch():
    text = reshape("N,8,2,2", "N,8,4", [-1, 8, 4]).replace("y = R", "z = R").replace("(x, t) }", "(x, t) y = Relu(z) }")
    model, _ = apply(copy_axes, parse(text))
    del model.graph.value_info[:]  # inferred anew, as for an emitted model
    (value,) = infer_shapes(model).graph.value_info
    assert [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim] == ["N", 8, 4]


# shrink_broadcasts


@cases(
    ("expand", f"{IN} <float[1] c = {{0}}> {{ s = Shape(x) z = Expand(c, s) y = Max(x, z) }}", 1, ["Max"]),
    ("expand-first", f"{IN} <float c = {{2}}> {{ s = Shape(x) z = Expand(c, s) y = Sub(z, x) }}", 1, ["Sub"]),
    (
        "expand-with-the-start-stated",
        f"{IN} <float c = {{0}}> {{ s = Shape <start = 0> (x) z = Expand(c, s) y = Max(x, z) }}",
        1,
        ["Max"],
    ),
    ("constant-of-shape", f"{IN} {{ s = Shape(x) z = ConstantOfShape(s) y = Max(z, x) }}", 1, ["Max"]),
    (
        "constant-of-shape-with-a-value",
        f"{IN} {{ s = Shape(x) z = ConstantOfShape <value = float[1] {{0.5}}> (s) y = Mul(x, z) }}",
        1,
        ["Mul"],
    ),
    (
        "a-constant-of-one-value",
        f"{IN} <float[3,1,1] c = {{2, 2, 2}}> {{ y = Max(x, c) }}",
        1,
        ["Max"],
    ),
)
def test_shrink_broadcasts_shrinks(case):
    after = applied(shrink_broadcasts, case, feeds=X)
    small = [tensor for tensor in after.graph.initializer if tensor.name in after.graph.node[0].input]
    assert [list(tensor.dims) for tensor in small] == [[]]


@cases(
    (
        "of-another-shape",
        "g (float[N,3] x, float[N,3] z) => (float[N,3] y) { s = Shape(z) e = ConstantOfShape(s) y = Max(x, e) }",
        0,
        ["Shape", "ConstantOfShape", "Max"],
    ),
    (
        "of-several-values",
        "g (float[N,3] x) => (float[N,3] y) <float[3] c = {1, 2, 3}> { s = Shape(x) e = Expand(c, s) y = Max(x, e) }",
        0,
        ["Shape", "Expand", "Max"],
    ),
    (
        "window-of-the-shape",
        "g (float[N,3] x) => (float[N,3] y) { s = Shape <start = 1> (x) e = ConstantOfShape(s) y = Max(x, e) }",
        0,
        ["Shape", "ConstantOfShape", "Max"],
    ),
    (
        "window-that-ends-early",
        "g (float[N,3] x) => (float[N,3] y) { s = Shape <end = -1> (x) e = ConstantOfShape(s) u = Transpose(x) "
        "v = Max(u, e) y = Transpose(v) }",
        0,
        ["Shape", "Transpose", "ConstantOfShape", "Max", "Transpose"],
    ),
    (
        "not-elementwise",
        "g (float[N,3] x) => (float[M,3] y) { s = Shape(x) e = ConstantOfShape(s) y = Concat <axis = 0> (x, e) }",
        0,
        ["Shape", "ConstantOfShape", "Concat"],
    ),
    (
        "a-constant-that-lengthens",
        "g (float[N,1] x) => (float[N,3] y) <float[3] c = {2, 2, 2}> { y = Max(x, c) }",
        0,
        ["Max"],
    ),
    (
        "a-constant-that-may-lengthen",
        "g (float[N,M] x) => (float[N,3] y) <float[3] c = {2, 2, 2}> { y = Max(x, c) }",
        0,
        ["Max"],
    ),
    (
        "a-constant-that-adds-an-axis",
        "g (float[N,3] x) => (float[1,N,3] y) <float[1,1,3] c = {2, 2, 2}> { y = Max(x, c) }",
        0,
        ["Max"],
    ),
    ("constants-of-several-values", f"{IN} <float[3,1,1] c = {{1, 2, 3}}> {{ y = Max(x, c) }}", 0, ["Max"]),
)
def test_shrink_broadcasts_leaves(case):
    applied(shrink_broadcasts, case)


# merge_clips


CAP = f"{IN} <float zero = {{0}}, float six = {{6}}, float[1] one = {{1}}>"


@cases(
    ("min-of-relu", f"{CAP} {{ a = Relu(x) y = Min(a, six) }}", 1, ["Clip"]),
    ("min-of-relu-constant-first", f"{CAP} {{ a = Relu(x) y = Min(six, a) }}", 1, ["Clip"]),
    ("relu-of-min", f"{CAP} {{ a = Min(x, six) y = Relu(a) }}", 1, ["Clip"]),
    ("min-of-max", f"{CAP} {{ a = Max(zero, x) y = Min(a, six) }}", 1, ["Clip"]),
    ("max-of-min", f"{CAP} {{ a = Min(x, six) y = Max(a, zero) }}", 1, ["Clip"]),
    ("clip-of-relu", f"{CAP} {{ a = Relu(x) y = Clip(a, , six) }}", 1, ["Clip"]),
    ("relu-of-clip", f"{CAP} {{ a = Clip(x, , six) y = Relu(a) }}", 1, ["Clip"]),
    (
        "relu-of-wider-clip",
        f"{IN} <float low = {{-1}}, float six = {{6}}> {{ a = Clip(x, low, six) y = Relu(a) }}",
        1,
        ["Clip"],
    ),
    (
        "clip-of-relu-from-below-0",
        f"{IN} <float low = {{-1}}, float six = {{6}}> {{ a = Relu(x) y = Clip(a, low, six) }}",
        1,
        ["Clip"],
    ),
    ("two-from-above", f"{CAP} {{ a = Relu(x) b = Min(a, six) y = Min(b, six) }}", 2, ["Clip"]),
)
def test_merge_clips_merges_to_0_6(case):
    after = applied(merge_clips, case, feeds={"x": numbers(2, 3, 4, 5, scale=6)})
    (node,) = after.graph.node
    assert [float(constant(after, name)) for name in node.input[1:]] == [0, 6]


@pytest.mark.parametrize(
    ("inner", "outer", "bounds"),
    [
        ("Clip(x, two, five)", "Clip(a, three, four)", [3, 4]),
        ("Clip(x, three, four)", "Clip(a, two, five)", [3, 4]),
        ("Clip(x, two, four)", "Clip(a, three, five)", [3, 4]),
        ("Clip(x, two, three)", "Clip(a, four, five)", [4, 4]),  # nothing passes but one value
        ("Clip(x, four, five)", "Clip(a, two, three)", [3, 3]),
    ],
)
def test_merge_clips_bounds_compose(inner, outer, bounds):
    text = (
        f"{IN} <float two = {{2}}, float three = {{3}}, float four = {{4}}, float five = {{5}}> "
        f"{{ a = {inner} y = {outer} }}"
    )
    after = applied(merge_clips, Case("", text, 1, ["Clip"]), feeds={"x": numbers(2, 3, 4, 5, scale=6)})
    assert [float(constant(after, name)) for name in node_of(after, "Clip").input[1:]] == bounds


def test_merge_clips_same_side_leaves_the_other_open():
    text = f"{CAP} {{ a = Relu(x) y = Max(a, one) }}"
    after = applied(merge_clips, Case("", text, 1, ["Clip"]), feeds=X)
    names = list(node_of(after, "Clip").input)
    assert float(constant(after, names[1])) == 1
    assert names[2:] in ([], [""])


def test_merge_clips_keeps_the_type():
    text = "g (double[N] x) => (double[N] y) <double six = {6}> { a = Relu(x) y = Min(a, six) }"
    applied(merge_clips, Case("", text, 1, ["Clip"]), feeds={"x": np.linspace(-9, 9, 7)})


def test_merge_clips_keeps_the_type_of_tensors_not_inferred():
    # the operator in between is not known, so neither is the type of anything after it
    text = (
        "g (float[N] x) => (double[N] y) <double six = {6}> { u = custom.Op(x) a = Relu(u) b = Min(a, six) y = Neg(b) }"
    )
    after, count = apply(merge_clips, parse(text, domains='"custom" : 1'))
    assert count == 1
    names = [name for name in node_of(after, "Clip").input[1:] if name]
    assert [constant(after, name).dtype for name in names] == [np.float64, np.float64]


@cases(
    (
        "min-of-two-tensors",
        "g (float[N] x, float[N] z) => (float[N] y) { a = Relu(x) y = Min(a, z) }",
        0,
        ["Relu", "Min"],
    ),
    ("min-per-channel", f"{IN} <float[3,1,1] c = {{1, 2, 3}}> {{ a = Relu(x) y = Min(a, c) }}", 0, ["Relu", "Min"]),
    (
        "min-that-lengthens",
        "g (float[N,1] x) => (float[N,3] y) <float[3] c = {2, 2, 2}> { a = Relu(x) y = Min(a, c) }",
        0,
        ["Relu", "Min"],
    ),
    (
        "outer-adds-an-axis",
        "g (float[N,3] x) => (float[1,N,3] y) <float[1,1,1] six = {6}> { a = Relu(x) y = Min(a, six) }",
        0,
        ["Relu", "Min"],
    ),
    (
        "inner-adds-an-axis",
        "g (float[N,3] x) => (float[1,N,3] y) <float[1,1,1] six = {6}> { a = Min(x, six) y = Relu(a) }",
        0,
        ["Min", "Relu"],
    ),
    ("min-of-three", f"{CAP} {{ a = Relu(x) y = Min(a, six, one) }}", 0, ["Relu", "Min"]),
    ("read-twice", f"{CAP} {{ a = Relu(x) b = Min(a, six) y = Add(a, b) }}", 0, ["Relu", "Min", "Add"]),
    (
        "inner-is-an-output",
        "g (float[N] x) => (float[N] a, float[N] y) <float six = {6}> { a = Relu(x) y = Min(a, six) }",
        0,
        ["Relu", "Min"],
    ),
    (
        "bound-computed-in-the-graph",
        "g (float[N] x, float h) => (float[N] y) { a = Relu(x) y = Clip(a, , h) }",
        0,
        ["Relu", "Clip"],
    ),
    ("one-bound-only", f"{CAP} {{ a = Relu(x) y = Neg(a) }}", 0, ["Relu", "Neg"]),
)
def test_merge_clips_leaves(case):
    applied(merge_clips, case)


# fold_batchnorm


def norm(channels: int, seed: int = 3) -> dict[str, np.ndarray]:
    """Parameters of a BatchNormalization: scale, bias, mean, var."""
    rng = np.random.default_rng(seed)
    low, high = np.full(channels, 0.5), np.full(channels, 1.5)
    values = {
        "g": rng.uniform(low, high),
        "h": rng.normal(size=channels),
        "m": rng.normal(size=channels),
        "v": rng.uniform(low, high),
    }
    values["g"][0] *= -1
    return {name: value.astype(np.float32) for name, value in values.items()}


BN = "BatchNormalization <epsilon = 0.01> ({}, g, h, m, v)"


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("bias", [False, True])
def test_fold_batchnorm_1_conv(opset, bias):
    text = (
        f"{IN.replace('N,3,4,5] y', 'N,6,4,5] y')} {{ "
        f"a = Conv <pads = [1,1,1,1]> (x, w{', c' if bias else ''}) y = {BN.format('a')} }}"
    )
    constants = {"w": numbers(6, 3, 3, 3, seed=1), "c": numbers(6, seed=2), **norm(6)}
    after = applied(fold_batchnorm, Case("", text, 1, ["Conv"]), opset, X, **constants)
    assert len(after.graph.initializer) == 2
    factor = constants["g"] / np.sqrt(constants["v"] + 0.01)
    np.testing.assert_allclose(
        constant(after, after.graph.node[0].input[1]), constants["w"] * factor[:, None, None, None], rtol=1e-6
    )


@pytest.mark.parametrize("groups", [1, 2, 3])
def test_fold_batchnorm_1_conv_with_groups_and_an_empty_bias(groups):
    text = (
        f"g (float[N,6,4,5] x) => (float[N,6,4,5] y) {{ "
        f"a = Conv <pads = [1,1,1,1], group = {groups}> (x, w, ) y = {BN.format('a')} }}"
    )
    constants = {"w": numbers(6, 6 // groups, 3, 3, seed=1), **norm(6)}
    applied(fold_batchnorm, Case("", text, 1, ["Conv"]), 17, {"x": numbers(2, 6, 4, 5)}, **constants)


@pytest.mark.parametrize("groups", [1, 2, 3])
@pytest.mark.parametrize("bias", ["", ", c"])
def test_fold_batchnorm_1_conv_transpose(groups, bias):
    text = (
        f"g (float[N,6,4,5] x) => (float[N,12,8,10] y) {{ "
        f"a = ConvTranspose <strides = [2,2], group = {groups}> (x, w{bias}) "
        f"y = {BN.format('a')} }}"
    )
    constants = {"w": numbers(6, 12 // groups, 2, 2, seed=1), "c": numbers(12, seed=2), **norm(12)}
    applied(fold_batchnorm, Case("", text, 1, ["ConvTranspose"]), 17, {"x": numbers(2, 6, 4, 5)}, **constants)


@pytest.mark.parametrize(
    "attributes", ["", "transB = 1", "alpha = 0.5, beta = 2.0", "transB = 1, alpha = 3.0, beta = 0.25", "transA = 1"]
)
@pytest.mark.parametrize("bias", [None, (), (1,), (4,), (1, 4), (2, 1), (2, 4)])
def test_fold_batchnorm_1_gemm(attributes, bias):
    shape = (3, 2) if "transA" in attributes else (2, 3)
    third = "" if bias is None else ", c"
    text = (
        f"g (float[{shape[0]},{shape[1]}] x) => (float[2,4] y) {{ "
        f"a = Gemm <{attributes}> (x, w{third}) y = {BN.format('a')} }}"
    )
    text = text.replace("Gemm <>", "Gemm")
    weight = numbers(3, 4, seed=1)
    constants = {"w": weight.T.copy() if "transB" in attributes else weight, **norm(4)}
    if bias is not None:
        constants["c"] = numbers(*bias, seed=2)
    applied(fold_batchnorm, Case("", text, 1, ["Gemm"]), 17, {"x": numbers(*shape)}, **constants)


@cases(
    ("2-conv-read-twice", "a = Conv(x, w) b = {} y = Add(a, b)", 1, ["Conv", "Mul", "Add", "Add"]),
    ("2-before-conv", "b = {0} y = Conv(b, w)", 1, ["Mul", "Add", "Conv"]),
    ("2-after-add", "b = Add(x, x) y = {1}", 1, ["Add", "Mul", "Add"]),
    ("2-after-concat", "b = Concat <axis = 1> (x) y = {1}", 1, ["Concat", "Mul", "Add"]),
    ("2-two-in-a-row", "a = {0} y = BatchNormalization(a, h, g, m, v)", 2, ["Mul", "Add", "Mul", "Add"]),
)
def test_fold_batchnorm_2_product_and_sum(case):
    forms = [BN.format("x"), BN.format("b")] if "{0}" in case.text or "{1}" in case.text else [BN.format("a")]
    body = case.text.format(*forms)
    constants = {"w": numbers(3, 3, 1, 1, seed=1), **norm(3)}
    if case.label == "2-two-in-a-row":
        constants["h"] = np.abs(constants["h"]) + 0.5
    applied(fold_batchnorm, case._replace(text=f"{IN} {{ {body} }}"), 17, X, **constants)


def test_fold_batchnorm_2_conv_that_is_an_output():
    text = f"g (float[N,3,4,5] x) => (float[N,3,4,5] a, float[N,3,4,5] y) {{ a = Conv(x, w) y = {BN.format('a')} }}"
    applied(fold_batchnorm, Case("", text, 1, ["Conv", "Mul", "Add"]), 17, X, w=numbers(3, 3, 1, 1), **norm(3))


def test_fold_batchnorm_2_conv_whose_weights_are_computed():
    text = f"g (float[N,3,4,5] x, float[3,3,1,1] w) => (float[N,3,4,5] y) {{ a = Conv(x, w) y = {BN.format('a')} }}"
    feeds = {**X, "w": numbers(3, 3, 1, 1)}
    applied(fold_batchnorm, Case("", text, 1, ["Conv", "Mul", "Add"]), 17, feeds, **norm(3))


def test_fold_batchnorm_2_conv_whose_bias_is_computed():
    text = f"g (float[N,3,4,5] x, float[3] c) => (float[N,3,4,5] y) {{ a = Conv(x, w, c) y = {BN.format('a')} }}"
    feeds = {**X, "c": numbers(3)}
    applied(fold_batchnorm, Case("", text, 1, ["Conv", "Mul", "Add"]), 17, feeds, w=numbers(3, 3, 1, 1), **norm(3))


@pytest.mark.parametrize("dims", [(), (4,), (4, 5), (2, 4, 5)])
def test_fold_batchnorm_2_any_rank(dims):
    axes = ",".join(map(str, ("N", 3, *dims)))
    text = f"g (float[{axes}] x) => (float[{axes}] y) {{ a = Neg(x) y = {BN.format('a')} }}"
    applied(fold_batchnorm, Case("", text, 1, ["Neg", "Mul", "Add"]), 17, {"x": numbers(2, 3, *dims)}, **norm(3))


def test_fold_batchnorm_leaves_parameters_that_are_not_constant():
    text = f"g (float[N,3] x, float[3] m) => (float[N,3] y) {{ y = {BN.format('x')} }}"
    constants = {name: value for name, value in norm(3).items() if name != "m"}
    feeds = {"x": numbers(2, 3), "m": norm(3)["m"]}
    applied(fold_batchnorm, Case("", text, 0, ["BatchNormalization"]), 17, feeds, **constants)


def test_fold_batchnorm_leaves_an_unknown_rank():
    model = parse(f"g (float[N,3] x) => (float[N,3] y) {{ y = {BN.format('x')} }}", **norm(3))
    model.graph.input[0].type.tensor_type.ClearField("shape")
    model.graph.output[0].type.tensor_type.ClearField("shape")
    after, count = apply(fold_batchnorm, model)
    assert (count, ops(after)) == (0, ["BatchNormalization"])


def test_fold_batchnorm_leaves_a_weight_shared_with_another_layer_as_it_is():
    text = f"{IN} {{ a = Conv(x, w) b = {BN.format('a')} y = Conv(b, w) }}"
    after = applied(fold_batchnorm, Case("", text, 1, ["Conv", "Conv"]), 17, X, w=numbers(3, 3, 1, 1), **norm(3))
    np.testing.assert_array_equal(constant(after, "w"), numbers(3, 3, 1, 1))


@pytest.mark.parametrize("layer", ["Conv(x, w)", "Neg(x)"])
def test_fold_batchnorm_makes_names_of_its_own(layer):
    # the parameters bear the names that the pass would give to what it makes
    text = f"{IN} {{ a = {layer} y = BatchNormalization(a, y_scale, y_bias, y_mean, y_weight) }}"
    parameters = norm(3)
    constants = dict(zip(("y_scale", "y_bias", "y_mean", "y_weight"), parameters.values(), strict=True))
    model = parse(text, **constants, w=numbers(3, 3, 1, 1))
    rename = {name: name.replace("_", "/") for name in constants}
    for tensor in model.graph.initializer:
        tensor.name = rename.get(tensor.name, tensor.name)
    for node in model.graph.node:
        node.input[:] = [rename.get(name, name) for name in node.input]
    # each is read elsewhere too, so none of them goes
    for position, name in enumerate(rename.values()):
        model.graph.node.append(onnx.helper.make_node("Neg", [name], [f"z{position}"]))
        model.graph.output.append(onnx.helper.make_tensor_value_info(f"z{position}", onnx.TensorProto.FLOAT, [3]))
    assert_valid(named(model))
    after, count = apply(fold_batchnorm, model)
    assert count == 1
    assert_valid(named(after))
    assert_same_function(model, after, X)


@pytest.mark.parametrize("opset", [opset for opset in OPSETS if opset >= 14])
def test_fold_batchnorm_refuses_training(opset):
    text = f"{IN} {{ bn = Identity(x) y, p, q = BatchNormalization <training_mode = 1> (bn, g, h, m, v) }}"
    model = parse(text, opset=opset, **norm(3))
    model.graph.node[1].name = "bn1"
    with pytest.raises(ModelError, match=r"BatchNormalization 'bn1' is in training mode .*evaluation mode"):
        apply(fold_batchnorm, model)


def test_fold_batchnorm_refuses_training_below_opset_14():
    # there it is stated by the number of outputs
    model = parse(f"{IN} {{ y, p, q, r, s = BatchNormalization(x, g, h, m, v) }}", opset=13, **norm(3))
    with pytest.raises(ModelError, match="training"):
        apply(fold_batchnorm, model)


# pool_first


POOLED = "g (float[N,3,4,5] x) => (float[N,3,2,2] y)"
POOL = "MaxPool <kernel_shape = [2, 2], strides = [2, 2]>"


@cases(
    ("1-relu", f"{POOLED} {{ a = Relu(x) y = {POOL} (a) }}", 1, ["MaxPool", "Relu"]),
    (
        "1-clip",
        f"{POOLED} <float l = {{0}}, float h = {{1}}> {{ a = Clip(x, l, h) y = {POOL} (a) }}",
        1,
        ["MaxPool", "Clip"],
    ),
    ("1-max-with-0", f"{POOLED} <float z = {{0}}> {{ a = Max(z, x) y = {POOL} (a) }}", 1, ["MaxPool", "Max"]),
    ("1-min", f"{POOLED} <float o = {{1}}> {{ a = Min(x, o) y = {POOL} (a) }}", 1, ["MaxPool", "Min"]),
    (
        "1-padding",
        "g (float[N,3,4,5] x) => (float[N,3,4,5] y) "
        "{ a = Relu(x) y = MaxPool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (a) }",
        1,
        ["MaxPool", "Relu"],
    ),
    (
        "1-global",
        "g (float[N,3,4,5] x) => (float[N,3,1,1] y) { a = Relu(x) y = GlobalMaxPool(a) }",
        1,
        ["GlobalMaxPool", "Relu"],
    ),
    (
        "2-concat",
        f"g (float[N,3,4,5] x) => (float[N,6,2,2] y) "
        f"{{ n = Neg(x) a = Relu(x) b = Relu(n) c = Concat <axis = 1> (a, b) y = {POOL} (c) }}",
        1,
        ["Neg", "Relu", "Relu", "MaxPool", "MaxPool", "Concat"],
    ),
)
def test_pool_first_applies(case):
    after = applied(pool_first, case, feeds={"x": numbers(2, 3, 4, 5)})
    x = {"x": numbers(2, 3, 4, 5, seed=3)}
    np.testing.assert_array_equal(run(after, x)["y"], run(parse(case.text), x)["y"])  # to the last bit


@cases(
    (
        "rectifier-read-elsewhere",
        f"g (float[N,3,4,5] x) => (float[N,3,2,2] y, float[N,3,4,5] a) {{ a = Relu(x) y = {POOL} (a) }}",
        0,
        ["Relu", "MaxPool"],
    ),
    ("no-rectifier", f"{POOLED} {{ a = Neg(x) y = {POOL} (a) }}", 0, ["Neg", "MaxPool"]),
    (
        "indices-read",
        f"g (float[N,3,4,5] x) => (float[N,3,2,2] y, int64[N,3,2,2] i) {{ a = Relu(x) y, i = {POOL} (a) }}",
        0,
        ["Relu", "MaxPool"],
    ),
    (
        "concat-along-another-axis",
        f"g (float[N,3,4,5] x) => (float[N,3,4,2] y) "
        f"{{ n = Neg(x) a = Relu(x) b = Relu(n) c = Concat <axis = 2> (a, b) y = {POOL} (c) }}",
        0,
        ["Neg", "Relu", "Relu", "Concat", "MaxPool"],
    ),
    (
        "concat-with-something-else",
        f"g (float[N,3,4,5] x) => (float[N,6,2,2] y) "
        f"{{ n = Neg(x) a = Relu(x) c = Concat <axis = 1> (a, n) y = {POOL} (c) }}",
        0,
        ["Neg", "Relu", "Concat", "MaxPool"],
    ),
)
def test_pool_first_leaves(case):
    applied(pool_first, case)


def test_passes_leave_the_model_they_were_read_from_alone():
    text = f"{IN} {{ a = Conv(x, w) b = {BN.format('a')} y = Identity(b) }}"
    model = parse(text, w=numbers(3, 3, 1, 1), **norm(3))
    content = model.SerializeToString()
    for change in PASSES:
        apply(change, model)
    assert model.SerializeToString() == content
    assert run(model, X)["y"].shape == (2, 3, 4, 5)
