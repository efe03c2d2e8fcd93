"""The pass `drop_noops`: each case of its docstring, and the places that it has to leave alone."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from helpers import OPSETS, apply, assert_same_function, numbers, parse
from pass_cases import IN, Case, X, applied, cases, named

from ftbc_onnx.graph.passes import (
    drop_noops,
)


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
