"""Networks as Keras exports them through tf2onnx: images [N, H, W, C], a Transpose on both sides of what is NCHW.

ReLU6 is Relu and Min or Clip, GlobalAveragePooling2D a ReduceMean over axes 1 and 2, BatchNormalization is folded, a
BatchNormalization node or Mul and Add, and `same` padding of a strided layer is a Pad of its own.
"""

from __future__ import annotations

import numpy as np
from helpers import numbers

from corpus.entry import Entry, text

W = {
    "w": numbers(4, 3, 3, 3, seed=1, scale=0.4),
    "b": numbers(4, seed=2, scale=0.2),
    "w4": numbers(4, 4, 3, 3, seed=3, scale=0.3),
    "depth": numbers(4, 1, 3, 3, seed=4, scale=0.6),
    "point": numbers(6, 4, 1, 1, seed=5, scale=0.6),
    "b6": numbers(6, seed=6, scale=0.2),
    "head": numbers(6, 3, seed=7, scale=0.7),
    "head4": numbers(4, 3, seed=8, scale=0.7),
    "b3": numbers(3, seed=9, scale=0.2),
    "gain": np.abs(numbers(4, seed=10)) + np.float32(0.5),
    "shift": numbers(4, seed=11, scale=0.3),
    "gain_nchw": (np.abs(numbers(1, 4, 1, 1, seed=10)) + np.float32(0.5)),
    "shift_nchw": numbers(1, 4, 1, 1, seed=11, scale=0.3),
    "zero": np.float32(0),
    "six": np.float32(6),
    "pads": np.array([0, 0, 0, 0, 0, 0, 1, 1]),
    "pads_nhwc": np.array([0, 0, 0, 0, 0, 1, 1, 0]),
    "rows": np.array([-1, 64]),
    "wide": numbers(64, 3, seed=12, scale=0.2),
    "long": numbers(4, 4, 3, seed=13, scale=0.4),
    "i1": np.array([1]),
    "i12": np.array([1, 2]),
    "i2": np.array([2]),
    "i23": np.array([2, 3]),
    "table": numbers(4, 4, seed=14, scale=0.6),
    "stem1": numbers(4, 2, 1, 3, seed=15, scale=0.5),
    "deep1": numbers(4, 4, 1, 3, seed=16, scale=0.4),
}

TO_NCHW, TO_NHWC = "Transpose<perm=[0,3,1,2]>", "Transpose<perm=[0,2,3,1]>"
IMAGE, SCORES = "float[N,8,8,3] x", "float[N,3] y"
START = f"t = {TO_NCHW}(x) c = Conv<pads=[1,1,1,1], strides=[2,2]>(t, w, b)"
END4 = "g = ReduceMean<axes=[1,2], keepdims=0>(q) m = MatMul(g, head4) l = Add(m, b3) y = Softmax(l)"


def keras(name: str, body: str, **more: object) -> Entry:
    """From an image; `c` is the first convolution [N, 4, 4, 4]."""
    options = {"inputs": IMAGE, "outputs": SCORES, **more}
    inputs, outputs = str(options.pop("inputs")), str(options.pop("outputs"))
    return text(name, inputs, outputs, body, **{**W, **options})


KERAS = [
    keras("a MobileNet block with Relu and Min",
          f"{START} r = Relu(c) s = Min(r, six) d = Conv<group=4, pads=[1,1,1,1]>(s, depth, b) e = Relu(d) "
          f"f = Min(e, six) p = Conv(f, point, b6) h = Relu(p) i = Min(h, six) q = {TO_NHWC}(i) "
          "g = ReduceMean<axes=[1,2], keepdims=0>(q) m = MatMul(g, head) l = Add(m, b3) y = Softmax(l)", steps=128),
    keras("Clip on both sides of the layout",
          f"{START} s = Clip(c, zero, six) n = {TO_NHWC}(s) k = {TO_NCHW}(n) d = Conv<pads=[1,1,1,1]>(k, w4, b) "
          f"e = {TO_NHWC}(d) q = Clip(e, zero, six) {END4}"),
    keras("activations and sums in NHWC",
          f"{START} n = {TO_NHWC}(c) a = Add(n, shift) r = Relu(a) k = {TO_NCHW}(r) d = Conv<pads=[1,1,1,1]>(k, w4) "
          f"e = {TO_NHWC}(d) f = Add(e, shift) h = Add(f, r) q = Relu(h) {END4}"),
    keras("BatchNorm as Mul and Add in NHWC",
          f"{START} n = {TO_NHWC}(c) u = Mul(n, gain) a = Add(u, shift) r = Relu(a) k = {TO_NCHW}(r) "
          f"d = Conv<pads=[1,1,1,1]>(k, w4, b) e = {TO_NHWC}(d) v = Mul(e, gain) f = Add(v, shift) q = Relu(f) {END4}"),
    keras("BatchNorm as Mul and Add in NCHW",
          f"{START} u = Mul(c, gain_nchw) a = Add(u, shift_nchw) r = Relu(a) v = Mul(r, gain_nchw) "
          f"f = Add(v, shift_nchw) d = Conv<pads=[1,1,1,1]>(f, w4, b) h = Relu(d) q = {TO_NHWC}(h) {END4}"),
    keras("BatchNorm before an activation behind a sum",
          f"{START} r = Relu(c) d = Conv<pads=[1,1,1,1]>(r, w4) a = Add(d, r) "
          f"n = BatchNormalization(a, gain, shift, b, gain) h = Relu(n) q = {TO_NHWC}(h) {END4}"),
    keras("Pad before strided layers",
          f"t = {TO_NCHW}(x) o = Pad(t, pads) c = Conv<strides=[2,2]>(o, w, b) r = Relu(c) n = {TO_NHWC}(r) "
          f"v = Pad(n, pads_nhwc) k = {TO_NCHW}(v) d = Conv<group=4, strides=[2,2]>(k, depth, b) h = Relu(d) "
          f"q = {TO_NHWC}(h) {END4}"),
    keras("Flatten as Reshape to -1 behind NHWC",
          f"{START} r = Relu(c) p = Conv<pads=[1,1,1,1]>(r, w4, b) h = Relu(p) n = {TO_NHWC}(h) f = Reshape(n, rows) "
          "m = MatMul(f, wide) l = Add(m, b3) y = Softmax(l)"),
    keras("pools, then Squeeze",
          f"{START} r = Relu(c) p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(r) d = Conv<pads=[1,1,1,1]>(p, w4, b) "
          "h = Relu(d) g = GlobalAveragePool(h) s = Squeeze(g, i23) m = MatMul(s, head4) l = Add(m, b3) "
          "y = Softmax(l)"),
    keras("averages that keep their axes",
          f"{START} r = Relu(c) n = {TO_NHWC}(r) e = MatMul(n, table) a = Add(e, shift) h = Relu(a) "
          "g = ReduceMean<axes=[1,2], keepdims=1>(h) s = Squeeze(g, i12) m = MatMul(s, head4) y = Add(m, b3)"),
    keras("Conv1D through two axes",
          "t = Transpose<perm=[0,2,1]>(x) u = Unsqueeze(t, i2) c = Conv<pads=[0,1,0,1]>(u, stem1, b) r = Relu(c) "
          "s = Squeeze(r, i2) v = Unsqueeze(s, i2) d = Conv<pads=[0,1,0,1]>(v, deep1) k = Squeeze(d, i2) "
          "e = Transpose<perm=[0,2,1]>(k) f = Add(e, shift) q = Relu(f) "
          "g = ReduceMean<axes=[1], keepdims=0>(q) m = MatMul(g, head4) y = Add(m, b3)", inputs="float[N,9,2] x"),
    keras("swish and Squeeze-and-Excite in NHWC",
          f"{START} n = {TO_NHWC}(c) z = Sigmoid(n) r = Mul(n, z) g = ReduceMean<axes=[1,2], keepdims=1>(r) "
          f"a = MatMul(g, table) e = Relu(a) f = MatMul(e, table) i = Sigmoid(f) h = Mul(r, i) k = {TO_NCHW}(h) "
          f"d = Conv<pads=[1,1,1,1]>(k, w4, b) o = Relu(d) q = {TO_NHWC}(o) "
          "v = ReduceMean<axes=[1,2], keepdims=0>(q) m = MatMul(v, head4) l = Add(m, b3) y = Softmax(l)"),
]  # fmt: skip
