"""The pass `merge_clips`: each case of its docstring, and the places that it has to leave alone."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import apply, constant, node_of, numbers, parse, run
from pass_cases import IN, Case, X, applied, cases

from ftbc_onnx.graph.passes import (
    merge_clips,
)

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


@pytest.mark.parametrize(("high", "merged"), [(1 << 40, 1), (1 << 60, 0), ((1 << 63) - 1, 0)])
def test_merge_clips_leaves_whole_numbers_that_are_no_floats(high, merged):
    text = "g (int64[4] x) => (int64[4] y) { c = Clip(x, low, high) y = Max(c, one) }"
    before = parse(text, low=np.int64(0), high=np.int64(high), one=np.int64(1))
    after, count = apply(merge_clips, before)
    assert count == merged
    feeds = {"x": np.array([-3, 1, 2**50, 2**62])}
    np.testing.assert_array_equal(run(after, feeds)["y"], run(before, feeds)["y"])


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
