"""The pass `shrink_broadcasts`: each case of its docstring, and the places that it has to leave alone."""

from __future__ import annotations

from pass_cases import IN, X, applied, cases

from ftbc_onnx.graph.passes import (
    shrink_broadcasts,
)


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
