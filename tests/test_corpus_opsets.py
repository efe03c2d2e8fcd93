"""Every opset that is read, 9 to the newest: the same networks in the spelling of each, and the whole proof of them."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from corpus.entry import Entry
from corpus.proof import SHORT, assert_converges, assert_emission, assert_same_ann, convert, roomy_plan
from helpers import newest_opset, numbers, parse

from ftbc_onnx.graph.emit.unrolled import emit_unrolled
from ftbc_onnx.graph.files import OLDEST
from ftbc_onnx.graph.normalise import FLOOR, default_opset

SWEEP = range(OLDEST, newest_opset() + 1)

C = {
    "w": numbers(4, 3, 3, 3, seed=1, scale=0.4),
    "w4": numbers(4, 4, 3, 3, seed=2, scale=0.3),
    "b4": numbers(4, seed=3, scale=0.2),
    "wide": numbers(36, 3, seed=4, scale=0.3),
    "b3": numbers(3, seed=5, scale=0.2),
    "head": numbers(4, 3, seed=6, scale=0.6),
    "m": numbers(6, 8, seed=7, scale=0.5),
    "m8": numbers(8, 3, seed=8, scale=0.5),
    "gain": np.abs(numbers(4, seed=9)) + np.float32(0.5),
    "zero": np.float32(0),
    "six": np.float32(6),
}


def clip(opset: int, source: str, result: str) -> str:
    """ReLU6: bounds are attributes below opset 11."""
    return f"{result} = Clip<min=0.0, max=6.0>({source})" if opset < 11 else f"{result} = Clip({source}, zero, six)"


def axes(op: str, opset: int, since: int, source: str, which: list[int], *, more: str = "") -> str:
    """A call with axes as an attribute below opset `since`, as an input i... from there on."""
    if opset < since:
        return f"{op}<axes={which}{', ' + more if more else ''}>({source})"
    return f"{op}{'<' + more + '>' if more else ''}({source}, i{''.join(map(str, which))})"


def plain(opset: int) -> str:
    """Conv, Relu, MaxPool, Flatten, Gemm, Softmax, whose default axis changed in 13."""
    return (
        "g (float[N,3,6,6] x) => (float[N,3] y) { c = Conv<pads=[1,1,1,1]>(x, w, b4) r = Relu(c) "
        "p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(r) d = Conv<pads=[1,1,1,1]>(p, w4) s = Relu(d) "
        f"f = Flatten(s) l = Gemm(f, wide, b3) y = Softmax{'<axis=1>' if opset % 2 else ''}(l) }}"
    )


def pooled(opset: int) -> str:
    """BatchNormalization, ReLU6, ReduceMean (axes from 18), Unsqueeze and Squeeze (13), ReduceSum (13)."""
    mean = axes("ReduceMean", opset, 18, "q", [3], more="keepdims=1")
    return (
        "g (float[N,3,6,6] x) => (float[N,3] y) { c = Conv<pads=[1,1,1,1]>(x, w) "
        f"n = BatchNormalization(c, gain, b4, b4, gain) {clip(opset, 'n', 'r')} "
        f"d = Conv<pads=[1,1,1,1]>(r, w4, b4) {clip(opset, 'd', 'q')} e = {mean} "
        f"k = {axes('Squeeze', opset, 13, 'e', [3])} u = {axes('Unsqueeze', opset, 13, 'k', [3])} "
        f"t = {axes('ReduceSum', opset, 13, 'u', [2], more='keepdims=0')} f = Flatten(t) y = MatMul(f, head) }}"
    )


def scaled(opset: int) -> str:
    """Upsample (9), Resize of two inputs (10), Resize of three (11 on); Pad with attributes below 11; Dropout."""
    if opset == 9:
        up = 'Upsample<mode="nearest">(r, double)'
    else:
        up = 'Resize<mode="nearest">(r, double)' if opset == 10 else (
            'Resize<mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor">(r, none, double)'
        )  # fmt: skip
    pad = "Pad<pads=[0,0,1,1,0,0,1,1]>(u)" if opset < 11 else "Pad(u, pads)"
    return (
        "g (float[N,3,6,6] x) => (float[N,3] y) { c = Conv<pads=[1,1,1,1]>(x, w, b4) r = Relu(c) "
        f"u = {up} p = {pad} d = Conv<strides=[2,2]>(p, w4, b4) s = Relu(d) o = Dropout(s) "
        "g1 = GlobalAveragePool(o) f = Flatten(g1) y = MatMul(f, head) }"
    )


def rows(opset: int) -> str:
    """Split (sizes from 13), Slice (attributes below 10), Concat, Sum, Sigmoid times its input."""
    cut = "Slice<axes=[1], starts=[1], ends=[5]>(a)" if opset < 10 else "Slice(a, i1, i5, i1)"
    return (
        "g (float[N,6] x) => (float[N,3] y, float[N,3] v) { c = MatMul(x, m) r = Relu(c) "
        f"a, b = Split<axis=1{', num_outputs=2' if opset >= 18 else ''}>(r) k = Concat<axis=1>(b, a) "
        f"q = MatMul(k, square) h = Sigmoid(q) z = Mul(q, h) a2 = Sum(z, r) y = MatMul(a2, m8) v = {cut} }}"
    )


NETS = {"plain": plain, "pooled": pooled, "scaled": scaled, "rows": rows}


def model_of(name: str, opset: int) -> onnx.ModelProto:
    text = NETS[name](opset)
    constants = {key: value for key, value in C.items() if f"{key})" in text or f"{key}," in text}
    more = {
        "i1": [1], "i2": [2], "i3": [3], "i5": [5], "pads": [0, 0, 1, 1, 0, 0, 1, 1],
    }  # fmt: skip
    constants |= {key: np.array(value) for key, value in more.items() if f" {key})" in text or f" {key}," in text}
    constants |= {"double": np.array([1, 1, 2, 2], np.float32)} if "double)" in text else {}
    constants |= {"none": np.array([], np.float32)} if "none," in text else {}
    constants |= {"square": numbers(8, 8, seed=10, scale=0.4)} if "square" in text else {}
    return parse(text, opset=opset, **constants)


@pytest.mark.parametrize("opset", SWEEP)
@pytest.mark.parametrize("name", NETS)
def test_opset(name: str, opset: int) -> None:
    model = model_of(name, opset)
    onnx.checker.check_model(model, full_check=True)
    entry = Entry(f"{name} {opset}", lambda: model, opset=opset)
    network = convert(model)
    assert default_opset(network.view.model) == max(opset, FLOOR)
    assert_same_ann(entry, model, network)
    assert_emission(entry, model, network)
    if opset in (OLDEST, FLOOR, newest_opset()):
        assert_converges(network, entry, entry.feeds(model))
    emitted = emit_unrolled(network, roomy_plan(network, entry.feeds(model), SHORT)).model
    assert default_opset(emitted) == max(opset, FLOOR)


@pytest.mark.parametrize("name", NETS)
def test_every_opset_gives_the_same_sites(name: str) -> None:
    found = {
        tuple((s.op_type, s.channel_axis, s.channels, s.ceiling, s.signed) for s in convert(model_of(name, v)).sites)
        for v in SWEEP
    }
    assert len(found) == 1
