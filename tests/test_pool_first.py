"""The pass `pool_first`: each case of its docstring, and the places that it has to leave alone."""

from __future__ import annotations

import numpy as np
from helpers import numbers, parse, run
from pass_cases import applied, cases

from ftbc_onnx.graph.passes import (
    pool_first,
)

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
        "windows-between-values",
        "g (float[N,3,1,1] x) => (float[N,3,k,l] y) { a = Relu(x) "
        "y = MaxPool <kernel_shape = [2, 2], dilations = [2, 2], pads = [1, 1, 1, 1]> (a) }",
        0,
        ["Relu", "MaxPool"],
    ),
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
