"""The channel axis of a tensor, derived from the layer that made it."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import OPSETS, numbers, parse

from ftbc_onnx.graph.channels import channel_axis
from ftbc_onnx.graph.normalise import infer_shapes, normalise
from ftbc_onnx.graph.sites import find_network
from ftbc_onnx.graph.view import GraphView

WEIGHTS = {
    "w": numbers(8, 3, 3, 3),  # Conv: 3 -> 8 channels
    "w1": numbers(8, 8, 1, 1),
    "wt": numbers(3, 8, 2, 2),  # ConvTranspose: 3 -> 8 channels
    "m": numbers(3, 8),  # MatMul, Gemm: 3 -> 8 features
    "b": numbers(8),
    "b4": numbers(1, 8, 1, 1),
    "nhwc": np.array([0, 0, 0, 8]),
    "flat": np.array([0, -1]),
    "rows": np.array([0, 8, -1]),
    "split": np.array([0, 2, 4, -1]),
    "first": np.array([0]),
    "second": np.array([1]),
    "third": np.array([2]),
    "fourth": np.array([3]),
    "spatial": np.array([2, 3]),
    "merge": np.array([-1, 8]),
    "unmerge": np.array([2, 4, 4, 8]),
    "zero": np.int64(0),
}
IMAGE = "float[N,3,8,8] x"
LAST = "float[N,8,8,3] x"
TOKENS = "float[N,5,3] x"
ROWS = "float[N,3] x"
CONV = "c = Conv <pads = [1,1,1,1]> (x, w)"


def axis_of(inputs: str, body: str, opset: int = 17, tensor: str = "y") -> int | None:
    model = parse(f"g ({inputs}) => (float[] y) {{ {body} }}", opset=opset, **WEIGHTS)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    return channel_axis(GraphView(infer_shapes(model)), tensor)


@pytest.mark.parametrize(
    ("inputs", "body", "axis"),
    [
        # the layers that make channels
        (IMAGE, "y = Conv(x, w)", 1),
        (IMAGE, "y = ConvTranspose(x, wt)", 1),
        (
            "float[N,3,8] x",
            "k = Squeeze(w, third) v = Slice(w, first, second, third) u = Squeeze(v, third) y = Conv(x, u)",
            1,
        ),
        (ROWS, "y = Gemm(x, m, b)", 1),
        (ROWS, "y = MatMul(x, m)", 1),
        (TOKENS, "y = MatMul(x, m)", 2),
        (LAST, "y = MatMul(x, m)", 3),
        ("float[N,8,7] x", "y = MatMul(w2, x)", 1),
        # elementwise operators, constants on either side
        (IMAGE, f"{CONV} y = Add(c, b4)", 1),
        (IMAGE, f"{CONV} y = Mul(b4, c)", 1),
        (ROWS, "c = MatMul(x, m) y = Add(c, b)", 1),
        (TOKENS, "c = MatMul(x, m) y = Add(b, c)", 2),
        ("float[N,5,8] x", "y = Add(x, b)", 2),
        ("float[N,8,5,5] x", "y = Mul(x, b4)", 1),
        ("float[N,5,5,8] x", "y = Sub(x, b)", 3),
        (f"{IMAGE}, float[N,8,8,8] z", f"{CONV} y = Add(z, c)", 1),
        # carried along
        (IMAGE, f"{CONV} r = Relu(c) p = MaxPool <kernel_shape = [2,2], strides = [2,2]> (r) y = Identity(p)", 1),
        (IMAGE, f"{CONV} d = Conv(c, w1) y = Concat <axis = 1> (c, d)", 1),
        (IMAGE, f"{CONV} y = BatchNormalization(c, b, b, b, b)", 1),
        # NHWC, as Keras exports it
        (LAST, "t = Transpose <perm = [0,3,1,2]> (x) c = Conv(t, w) y = Transpose <perm = [0,2,3,1]> (c)", 3),
        (
            LAST,
            "t = Transpose <perm = [0,3,1,2]> (x) c = Conv(t, w) d = Transpose <perm = [0,2,3,1]> (c) y = Add(d, b)",
            3,
        ),
        (IMAGE, f"{CONV} y = Transpose(c)", 2),
        # Reshape in between
        (IMAGE, f"{CONV} y = Reshape(c, rows)", 1),
        (IMAGE, f"{CONV} t = Transpose <perm = [0,2,3,1]> (c) y = Reshape(t, merge)", 1),
        (TOKENS, "c = MatMul(x, m) y = Reshape(c, merge)", 1),
        ("float[8,3] x", "c = MatMul(x, m) y = Reshape(c, unmerge2)", 2),
        (IMAGE, f"{CONV} p = GlobalAveragePool(c) y = Reshape(p, flat)", 1),
        (IMAGE, f"{CONV} y = Flatten(c)", 1),
        # axes added and taken away
        (IMAGE, f"{CONV} p = GlobalAveragePool(c) y = Squeeze(p, spatial)", 1),
        (ROWS, "c = MatMul(x, m) y = Unsqueeze(c, first)", 2),
        (ROWS, "c = MatMul(x, m) y = Unsqueeze(c, second)", 2),
        (ROWS, "c = MatMul(x, m) y = Unsqueeze(c, spatial)", 1),
        (TOKENS, "c = MatMul(x, m) y = ReduceMean <axes = [1], keepdims = 0> (c)", 1),
        (TOKENS, "c = MatMul(x, m) y = Gather <axis = 1> (c, zero)", 1),
        # the batch on axis 1, as a transformer has it
        ("float[5,N,3] x", "y = MatMul(x, m)", 2),
        (TOKENS, "t = Transpose <perm = [1,0,2]> (x) c = MatMul(t, m) y = Add(c, b)", 2),
        # not known: 1, or the last of three axes
        ("float[N,3,8,8] x", "y = Neg(x)", 1),
        ("float[N,3] x", "y = Neg(x)", 1),
        ("float[N,5,3] x", "y = Neg(x)", 2),
        ("float[N] x", "y = Neg(x)", None),
        ("float x", "y = Neg(x)", None),
        (TOKENS, "c = MatMul(x, m) y = Reshape(c, flat)", 1),  # positions and features in one
        (IMAGE, f"{CONV} y = Reshape(c, split)", 1),  # channels in two axes
        ("float[N,5,3] x, float[N,3,4] z", "y = MatMul(x, z)", 2),
    ],
)
def test_channel_axis(inputs, body, axis):
    WEIGHTS.setdefault("w2", numbers(8, 8))
    WEIGHTS.setdefault("unmerge2", np.array([2, 4, 8]))
    assert axis_of(inputs, body) == axis


@pytest.mark.parametrize("opset", OPSETS)
def test_reduction_without_kept_axes(opset):
    axes = ("ReduceMean <keepdims = 0> (c, spatial)") if opset >= 18 else "ReduceMean <keepdims = 0, axes = [2,3]> (c)"
    assert axis_of(IMAGE, f"{CONV} y = {axes}", opset) == 1


def test_rank_not_known():
    model = parse("g (float[N,3] x) => (float[N,3] y) { y = Neg(x) }")
    model.graph.input[0].type.tensor_type.ClearField("shape")
    model.graph.output[0].type.tensor_type.ClearField("shape")
    assert channel_axis(GraphView(model), "y") is None
    assert channel_axis(GraphView(model), "nowhere") is None


def test_unknown_operator_in_between():
    model = parse(
        "g (float[N,3,8,8] x) => (float[N,8,8,8] y) { c = Conv <pads = [1,1,1,1]> (x, w) u = custom.Op(c) y = Neg(u) }",
        domains='"custom" : 1',
        **WEIGHTS,
    )
    assert channel_axis(GraphView(model), "y") == 1


def test_very_deep_graphs_do_not_exhaust_the_stack():
    body = " ".join(f"a{i + 1} = Neg(a{i})" for i in range(1500))
    model = parse(
        f"g (float[N,5,3] x) => (float[N,5,8] y) {{ a0 = MatMul(x, m) {body} y = Identity(a1500) }}", **WEIGHTS
    )
    assert channel_axis(GraphView(infer_shapes(model)), "y") == 2


@pytest.mark.parametrize("residual_blocks", [30])
def test_residual_graphs_take_no_exponential_time(residual_blocks):
    # the operands know nothing, so that every one is followed
    body = " ".join(f"n{i} = Neg(a{i}) a{i + 1} = Add(n{i}, a{i})" for i in range(residual_blocks))
    model = parse(f"g (float[N,5,3] x) => (float[N,5,3] y) {{ a0 = Neg(x) {body} y = Identity(a{residual_blocks}) }}")
    assert channel_axis(GraphView(infer_shapes(model)), "y") == 2


# what a site makes of it


def sites_of(inputs: str, body: str, outputs: str = "float[a,b,c,d] y", **constants):
    return find_network(
        normalise(parse(f"g ({inputs}) => ({outputs}) {{ {body} }}", **{**WEIGHTS, **constants})).model
    ).sites


def test_site_on_nhwc():
    (site,) = sites_of(
        LAST, "t = Transpose <perm = [0,3,1,2]> (x) c = Conv(t, w) d = Transpose <perm = [0,2,3,1]> (c) y = Relu(d)"
    )
    assert (site.rank, site.channel_axis, site.channels) == (4, 3, 8)
    assert site.channel_shape == (1, 1, 1, 8)
    assert site.mean_axes == (0, 1, 2)


def test_site_whose_channels_are_dynamic():
    (site,) = sites_of("float[N,K,4,4] x", "y = Relu(x)")
    assert (site.channel_axis, site.channels) == (None, 1)
    assert site.channel_shape == (1, 1, 1, 1)
    assert site.mean_axes is None


def test_site_without_rank():
    model = parse("g (float[N,3] x) => (float[N,3] y) { y = Relu(x) }")
    model.graph.input[0].type.tensor_type.ClearField("shape")
    model.graph.output[0].type.tensor_type.ClearField("shape")
    (site,) = find_network(normalise(model).model).sites
    assert (site.rank, site.channel_axis, site.channels) == (None, None, 1)


def test_site_with_one_axis():
    (site,) = sites_of("float[K] x", "y = Relu(x)", "float[K] y")
    assert (site.rank, site.channel_axis, site.channels) == (1, None, 1)


def test_channels_that_lie_on_axis_0_are_not_told_apart():
    # axis 0 is where batches are cut and joined
    (site,) = sites_of("float[N,3] x", "c = MatMul(x, m) t = Transpose <perm = [1,0]> (c) y = Relu(t)", "float[8,N] y")
    assert (site.channel_axis, site.channels) == (None, 1)
