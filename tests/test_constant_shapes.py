"""The pass `constant_shapes`: each case of its docstring, and the places that it has to leave alone."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import OPSETS, apply, assert_same_function, constant, node_of, numbers, ops, parse
from pass_cases import Case, applied

from ftbc_onnx.graph.passes import (
    constant_shapes,
)

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


def test_constant_shapes_leaves_a_list_of_lists():
    """A shape that was given another axis: its first entry is all of it."""
    text = """g (float[A,3,4] x) => (float[k,l,m] y) <int64[1] o = {0}, int64[1] first = {0}> {
        s = Shape(x) u = Unsqueeze(s, o) g_ = Gather <axis = 0> (u, first) t = Squeeze(g_, o) y = Reshape(x, t) }"""
    before = parse(text)
    after, count = apply(constant_shapes, before)
    assert count == 0
    assert_same_function(before, after, {"x": numbers(2, 3, 4)})


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
