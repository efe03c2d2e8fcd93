"""The pass `compare_to_relu`: each case of its docstring, and the places that it has to leave alone."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import numbers, parse
from pass_cases import IN, applied, cases

from ftbc_onnx import convert
from ftbc_onnx.graph.passes import compare_to_relu

ZERO = f"{IN} <float zero = {{0}}, float one = {{1}}>"
ABOVE = f"{ZERO} {{ c = Greater(x, zero)"
AROUND = np.where(numbers(2, 3, 4, 5) > 1, np.float32(0), numbers(2, 3, 4, 5))  # with zeros in it


@cases(
    ("greater", f"{ABOVE} y = Where(c, x, zero) }}", 1, ["Relu"]),
    ("greater-or-equal", f"{ZERO} {{ c = GreaterOrEqual(x, zero) y = Where(c, x, zero) }}", 1, ["Relu"]),
    ("zero-less", f"{ZERO} {{ c = Less(zero, x) y = Where(c, x, zero) }}", 1, ["Relu"]),
    ("branches-exchanged", f"{ZERO} {{ c = LessOrEqual(x, zero) y = Where(c, zero, x) }}", 1, ["Relu"]),
    ("zero-greater", f"{ZERO} {{ c = GreaterOrEqual(zero, x) y = Where(c, zero, x) }}", 1, ["Relu"]),
    ("not", f"{ZERO} {{ c = Less(x, zero) n = Not(c) y = Where(n, x, zero) }}", 1, ["Relu"]),
    ("not-not", f"{ABOVE} n = Not(c) m = Not(n) y = Where(m, x, zero) }}", 1, ["Relu"]),
    ("a-zero-with-axes", f"{IN} <float[1,1] o = {{0}}> {{ c = Greater(x, o) y = Where(c, x, o) }}", 1, ["Relu"]),
    (
        "zeros-like",
        f"{ZERO} {{ s = Shape(x) o = ConstantOfShape(s) c = Greater(x, zero) y = Where(c, x, o) }}",
        1,
        ["Relu"],
    ),
    ("a-zero-expanded", f"{ABOVE} s = Shape <start = 0> (x) o = Expand(zero, s) y = Where(c, x, o) }}", 1, ["Relu"]),
    ("mask", f"{ABOVE} m = Cast <to = 1> (c) y = Mul(x, m) }}", 1, ["Relu"]),
    ("mask-first", f"{ZERO} {{ c = Less(zero, x) m = Cast <to = 1> (c) y = Mul(m, x) }}", 1, ["Relu"]),
    (
        "twice",
        f"{ABOVE} a = Where(c, x, zero) b = Where(c, x, zero) y = Add(a, b) }}",
        2,
        ["Relu"] * 2 + ["Add"],
    ),
    (
        "condition-read-elsewhere",
        f"{ABOVE} r = Where(c, x, zero) k = Cast <to = 1> (c) y = Add(r, k) }}",
        1,
        ["Greater", "Relu", "Cast", "Add"],
    ),
)
def test_becomes_a_relu(case):
    applied(compare_to_relu, case, feeds={"x": AROUND})


@cases(
    ("another-bound", f"{ZERO} {{ c = Greater(x, one) y = Where(c, x, zero) }}", 0, ["Greater", "Where"]),
    ("another-value", f"{ABOVE} y = Where(c, x, one) }}", 0, ["Greater", "Where"]),
    ("the-negative-part", f"{ZERO} {{ c = Less(x, zero) y = Where(c, x, zero) }}", 0, ["Less", "Where"]),
    (
        "another-tensor",
        f"{ZERO} {{ n = Neg(x) c = Greater(n, zero) y = Where(c, x, zero) }}",
        0,
        ["Neg", "Greater", "Where"],
    ),
    ("leaky", f"{ABOVE} l = Mul(x, one) y = Where(c, x, l) }}", 0, ["Greater", "Mul", "Where"]),
    ("equal", f"{ZERO} {{ c = Equal(x, zero) y = Where(c, x, zero) }}", 0, ["Equal", "Where"]),
    (
        "mask-of-the-negative",
        f"{ZERO} {{ c = Less(x, zero) m = Cast <to = 1> (c) y = Mul(x, m) }}",
        0,
        ["Less", "Cast", "Mul"],
    ),
    (
        "zeros-of-another-shape",
        "g (float[N,1] x) => (float[N,3] y) <float zero = {0}, float[3] o = {0, 0, 0}> "
        "{ c = Greater(x, zero) y = Where(c, x, o) }",
        0,
        ["Greater", "Where"],
    ),
    (
        "ones-like",
        f"{ABOVE} s = Shape(x) o = ConstantOfShape <value = float[1] {{1}}> (s) y = Where(c, x, o) }}",
        0,
        ["Greater", "Shape", "ConstantOfShape", "Where"],
    ),
    (
        "zeros-of-some-axes",
        "g (float[N,3] x) => (float[N,3] y) <float zero = {0}> "
        "{ c = Greater(x, zero) s = Shape <start = 1> (x) o = Expand(zero, s) y = Where(c, x, o) }",
        0,
        ["Greater", "Shape", "Expand", "Where"],
    ),
    (
        "whole-numbers",
        "g (int32[N] x) => (int32[N] y) <int32 zero = {0}> { c = Greater(x, zero) y = Where(c, x, zero) }",
        0,
        ["Greater", "Where"],
    ),
)
def test_leaves(case):
    applied(compare_to_relu, case)


@pytest.mark.parametrize(
    "rectifier",
    ["r = Where(c, a, zero)", "m = Cast <to = 1> (c) r = Mul(a, m)"],
)
def test_its_neurons_are_those_of_a_relu(rectifier):
    plans = []
    for body in (f"c = Greater(a, zero) {rectifier}", "r = Relu(a)"):
        text = f"g (float[N,4] x) => (float[N,3] y) <float zero = {{0}}> {{ a = MatMul(x, w) {body} y = MatMul(r, v) }}"
        result = convert(parse(text, w=numbers(4, 5), v=numbers(5, 3)), numbers(64, 4), steps=4, neuron="if")
        assert result.report["verification"]["bitwise"]
        plans.append([*result.plan.thresholds.values(), *result.plan.biases.values()])
    for one, other in zip(*plans, strict=True):
        np.testing.assert_array_equal(one, other)
