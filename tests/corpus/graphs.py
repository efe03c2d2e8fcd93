"""Shapes of graphs, written as ONNX text: branches, joins, shared things, several inputs and outputs, control flow."""

from __future__ import annotations

import numpy as np
from helpers import numbers

from corpus.entry import Entry, text

W = {
    "w": numbers(4, 3, 3, 3, seed=1, scale=0.4),
    "w4": numbers(4, 4, 3, 3, seed=2, scale=0.3),
    "w8": numbers(4, 8, 3, 3, seed=3, scale=0.2),
    "b4": numbers(4, seed=4, scale=0.2),
    "group": numbers(4, 2, 3, 3, seed=5, scale=0.4),
    "depth": numbers(4, 1, 3, 3, seed=6, scale=0.5),
    "up": numbers(4, 4, 2, 2, seed=7, scale=0.4),
    "upgroup": numbers(4, 2, 2, 2, seed=8, scale=0.5),
    "w1d": numbers(4, 3, 5, seed=9, scale=0.4),
    "v1d": numbers(4, 4, 3, seed=10, scale=0.4),
    "w3d": numbers(4, 2, 3, 3, 3, seed=11, scale=0.25),
    "v3d": numbers(3, 4, 2, 2, 2, seed=12, scale=0.3),
    "head": numbers(4, 3, seed=13, scale=0.6),
    "m": numbers(6, 8, seed=14, scale=0.5),
    "m8": numbers(8, 8, seed=15, scale=0.4),
    "m3": numbers(8, 3, seed=16, scale=0.5),
    "b8": numbers(8, seed=17, scale=0.2),
    "gain": np.abs(numbers(4, seed=18)) + np.float32(0.5),
    "half": np.float32(0.5),
    "zero": np.float32(0),
    "six": np.float32(6),
    "i0": np.array([0]),
    "i1": np.array([1]),
    "i2": np.array([2]),
    "i4": np.array([4]),
    "i23": np.array([2, 3]),
    "order": np.array([3, 1, 0, 2]),
    "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
    "double": np.array([1, 1, 2, 2], np.float32),
    "flat": np.array([0, -1]),
    "picture": np.array([0, 4, 3, 2]),
    "none": np.array([], np.float32),
}
IMAGE, ROWS, SCORES = "float[N,3,6,6] x", "float[N,6] x", "float[N,3] y"
HEAD = "g = GlobalAveragePool(h) f = Flatten(g) y = Gemm(f, head)"


def image(name: str, body: str, inputs: str = IMAGE, outputs: str = SCORES, **more: object) -> Entry:
    """From an image: `c` is a convolution of x, `r` its spikes."""
    return text(name, inputs, outputs, f"c = Conv<pads=[1,1,1,1]>(x, w, b4) r = Relu(c) {body}", **{**W, **more})


def rows(name: str, body: str, inputs: str = ROWS, outputs: str = SCORES, **more: object) -> Entry:
    """From rows of numbers: `c` is a layer on x, `r` its spikes."""
    return text(name, inputs, outputs, f"c = Gemm(x, m, b8) r = Relu(c) {body}", **{**W, **more})


def tail(name: str, body: str, **more: object) -> Entry:
    """An operator between two spiking layers: from `r` to `q`, with four channels."""
    return image(name, f"{body} d = Conv(q, w4) h = Relu(d) {HEAD}", **more)


LAYERS = [
    tail("grouped", "q = Conv<group=2, pads=[1,1,1,1]>(r, group)"),
    tail("depthwise", "e = Conv<group=4, pads=[1,1,1,1]>(r, depth) q = Clip(e, zero, six)"),
    tail("dilated and strided", "q = Conv<dilations=[2,2], strides=[1,2], pads=[2,2,2,2]>(r, w4)"),
    tail("same padding", 'q = Conv<auto_pad="SAME_UPPER", strides=[2,2]>(r, w4)'),
    tail("transposed", "q = ConvTranspose<strides=[2,2], output_padding=[1,1]>(r, up)"),
    tail("transposed and grouped", "e = ConvTranspose<group=2, strides=[2,2]>(r, upgroup) q = Relu(e)"),
    text("one axis", "float[N,3,12] x", "float[N,4,8] y", "c = Conv(x, w1d) r = Relu(c) "
         "p = MaxPool<kernel_shape=[3], strides=[1], pads=[1,1]>(r) d = Conv<pads=[1,1]>(p, v1d) y = Relu(d)", **W),
    text("three axes", "float[N,2,4,4,4] x", "float[N,3] y", "c = Conv<pads=[1,1,1,1,1,1]>(x, w3d) r = Relu(c) "
         "p = AveragePool<kernel_shape=[2,2,2]>(r) d = Conv(p, v3d) s = Relu(d) g = GlobalAveragePool(s) "
         "y = Flatten(g)", **W),
    tail("normalised before the layer", "n = BatchNormalization(r, gain, b4, b4, gain) q = Relu(n)"),
    tail("normalised after a sum", "e = Conv<pads=[1,1,1,1]>(r, w4) a = Add(e, r) "
         "n = BatchNormalization(a, gain, b4, b4, gain) q = Relu(n)"),
]  # fmt: skip

ROUTES = [
    tail("concat", "e = Conv<pads=[1,1,1,1]>(r, w4) s = Relu(e) k = Concat<axis=1>(r, s) q = Conv(k, w8)"),
    tail("split", "u, v = Split<axis=1>(r) e = Neg(v) q = Concat<axis=1>(e, u)"),
    tail("split in unequal parts", "u, v = Split<axis=2>(r, parts) q = Concat<axis=2>(v, u)", parts=np.array([2, 4])),
    tail("slice", "u = Slice(r, i1, six_, i2, i2) v = Slice(r, last, first, i3, back) q = Add(u, v)",
         six_=np.array([7]), i3=np.array([2]), last=np.array([5]), first=np.array([-9]), back=np.array([-2])),
    tail("gather", "q = Gather<axis=1>(r, order)"),
    tail("gather of one", "u = Gather<axis=1>(r, one) v = Unsqueeze(u, i1) q = Mul(v, gains)",
         one=np.int64(2), gains=W["gain"].reshape(1, 4, 1, 1)),
    tail("pad", 'p = Pad(r, pads, half) s = Pad<mode="reflect">(p, pads) q = Pad<mode="edge">(s, pads)'),
    tail("resize", 'u = Resize<mode="nearest">(r, none, double) q = Resize<mode="linear">(u, none, double)'),
    tail("depth to space and back", "u = DepthToSpace<blocksize=2>(r) q = SpaceToDepth<blocksize=2>(u)"),
    tail("many consumers", "a = Conv<pads=[1,1,1,1]>(r, w4) b = MaxPool<kernel_shape=[3,3], pads=[1,1,1,1]>(r) "
         "e = Sigmoid(r) f1 = Neg(r) k = Sum(a, b, f1) l = Mul(k, e) q = Relu(l)"),
    tail("squeeze and excite", "p = GlobalAveragePool(r) e = Conv(p, p1) s = Relu(e) t = Conv(s, p2) "
         "o = HardSigmoid<alpha=0.1667, beta=0.5>(t) q = Mul(o, r)",
         p1=numbers(2, 4, 1, 1, seed=20), p2=numbers(4, 2, 1, 1, seed=21)),
    tail("u", "p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(r) e = Conv<pads=[1,1,1,1]>(p, w4) s = Relu(e) "
         "t = ConvTranspose<strides=[2,2]>(s, up) k = Concat<axis=1>(r, t) q = Conv<pads=[1,1,1,1]>(k, w8)"),
    tail("picture from rows", "f1 = Flatten(r) e = MatMul(f1, wide) s = Relu(e) q0 = Reshape(s, picture) "
         "q = Pad(q0, pads)", wide=numbers(144, 24, seed=22, scale=0.15)),
    tail("transposes", "t = Transpose<perm=[0,2,3,1]>(r) e = MatMul(t, m4) s = Relu(e) "
         "q = Transpose<perm=[0,3,1,2]>(s)", m4=numbers(4, 4, seed=23, scale=0.6)),
]  # fmt: skip

INTERFACES = [
    image("several inputs", f"e = Conv<pads=[1,1,1,1]>(z, w4) k = Add(r, e) h = Relu(k) {HEAD}",
          inputs=f"{IMAGE}, float[N,4,6,6] z"),
    image("an input that scales", f"s = Mul(r, z) d = Conv(s, w4) h = Relu(d) {HEAD}",
          inputs=f"{IMAGE}, float[N,4,1,1] z"),
    rows("an input that gates", "d = MatMul(r, m8) k = Where(z, d, r) s = Relu(k) y = MatMul(s, m3)",
         inputs=f"{ROWS}, bool[N,8] z"),
    rows("several outputs", "d = MatMul(r, m8) s = Relu(d) y = MatMul(s, m3) p = Softmax(y) c2 = Neg(c)",
         outputs=f"{SCORES}, float[N,3] p, float[N,8] s, float[N,8] c2"),
    image("outputs before the last layer", f"d = Conv(r, w4) h = Relu(d) {HEAD}",
          outputs=f"float[N,4,6,6] r, {SCORES}, float[N,4,4,4] h, float[N,4,6,6] c"),
    rows("an input that is an output", "y = MatMul(r, m3)", outputs=f"{SCORES}, float[N,6] x"),
    rows("the only output is a site", "d = MatMul(r, m8) y = Relu(d)", outputs="float[N,8] y"),
    rows("one output, two names", "y = MatMul(r, m3) z = Identity(y)", outputs=f"{SCORES}, float[N,3] z"),
    rows("an output without a batch", "y = MatMul(r, m3) z = ReduceMean<keepdims=0>(y)", outputs=f"{SCORES}, float z"),
    rows("numbers behind numbers", "i = ArgMax<axis=1>(r) o = Cast<to=1>(i) y = MatMul(r, m3)",
         outputs=f"{SCORES}, float[N,1] o", slope=None),
    text("reused activations", ROWS, SCORES, "c = Gemm(x, m, b8) r = act.F(c) d = MatMul(r, m8) s = act.F(d) "
         "e = MatMul(s, m8) u = act.F(e) y = MatMul(u, m3)", domains='"act" : 1',
         functions='<domain: "act", opset_import: ["" : 17]> F (a) => (b) { b = Relu(a) }', **W),
    text("a function of functions", ROWS, SCORES, "c = Gemm(x, m, b8) r = act.G(c, m8) y = MatMul(r, m3)",
         domains='"act" : 1',
         functions='<domain: "act", opset_import: ["" : 17, "act" : 1]> G (a, v) => (b) '
         "{ p = act.F(a) q = MatMul(p, v) b = act.F(q) } "
         '<domain: "act", opset_import: ["" : 17]> F (a) => (b) { s = Sigmoid(a) b = Mul(a, s) }', **W),
]  # fmt: skip

ISLANDS = [
    rows("if on the input", "t = ReduceMax<keepdims=0>(x) k = Greater(t, zero) "
         "l = If(k) <then_branch = a () => (float[N,8] o1) { o1 = Neg(c) }, "
         "else_branch = b () => (float[N,8] o2) { o2 = Identity(c) }> d = Add(l, r) s = Relu(d) y = MatMul(s, m3)"),
    rows("loop on the input", "k = Loop(three, yes, x) <body = b (int64 i, bool go, float[N,6] a) => "
         "(bool on, float[N,6] o) { on = Identity(go) o = Mul(a, half) }> e = MatMul(k, m) d = Add(e, r) s = Relu(d) "
         "y = MatMul(s, m3)", three=np.int64(3), yes=np.array(True)),
    rows("scan on the input", "k, l = Scan(zeros, x) <num_scan_inputs=1, scan_input_axes=[1], scan_output_axes=[1], "
         "body = b (float[1] a, float[N] e) => (float[1] o, float[N] p) { o = Add(a, halves) p = Mul(e, o) }> "
         "e = MatMul(l, m) d = Add(e, r) s = Relu(d) y = MatMul(s, m3)",
         zeros=np.zeros(1, np.float32), halves=np.full(1, 0.5, np.float32)),
    rows("integers from the input", "q = Cast<to=7>(x) t = Abs(q) u = Mod(t, three) e = Cast<to=1>(u) f = MatMul(e, m) "
         "d = Add(f, r) s = Relu(d) y = MatMul(s, m3)", three=np.int64(3)),
    text("an embedding", "int64[N,6] x", SCORES, "e = Gather(table, x) c = ReduceMean<axes=[1], keepdims=0>(e) "
         "r = Relu(c) d = MatMul(r, m8) s = Relu(d) y = MatMul(s, m3)", table=numbers(4, 8, seed=24), **W),
    rows("truth values", "n = Less(x, zero) a = Not(n) o = And(a, n) u = Or(o, a) e = Cast<to=1>(u) f = MatMul(e, m) "
         "d = Add(f, r) s = Relu(d) y = MatMul(s, m3)"),
    rows("integers from spikes", "d = MatMul(r, m8) i = ArgMax<axis=1>(d) o = OneHot(i, eight, pair) "
         "q = Reshape(o, flat) k = Add(q, r) s = Relu(k) y = MatMul(s, m3)", slope=None,
         eight=np.array([8]), pair=np.array([0, 1], np.float32)),
]  # fmt: skip

GRAPHS = [*LAYERS, *ROUTES, *INTERFACES, *ISLANDS]
