"""Networks as text for the tests of emitted graphs, and what to compare them with.

The oracle below states emission a second time: sites are a NumPy loop, and for every other node the mean of its
outputs after every step is f of the mean of its inputs, f being the node alone in onnxruntime.
"""

from __future__ import annotations

import numpy as np
import onnx
from helpers import assert_valid, eighths, make_plan, numbers, parse, run, session
from onnx import helper, numpy_helper

from ftbc_onnx.graph.classes import NodeClass
from ftbc_onnx.graph.emit.unrolled import Emitted
from ftbc_onnx.graph.normalise import normalise
from ftbc_onnx.graph.observe import expose_running_means
from ftbc_onnx.graph.sites import Network, find_network
from ftbc_onnx.graph.view import GraphView
from ftbc_onnx.plan import SpikingPlan

T = 4

WEIGHTS = {
    "w": numbers(4, 3, 3, 3, seed=1, scale=0.4),
    "w4": numbers(4, 4, 3, 3, seed=2, scale=0.4),
    "b4": numbers(4, seed=3, scale=0.2),
    "m": numbers(6, 8, seed=4, scale=0.6),
    "m8": numbers(8, 8, seed=5, scale=0.5),
    "m3": numbers(8, 3, seed=6, scale=0.5),
    "head": numbers(4, 3, seed=7, scale=0.5),
    "b8": numbers(8, seed=8, scale=0.2),
    "b3": numbers(3, seed=9, scale=0.2),
    "row": np.abs(numbers(8, seed=10)) + 0.5,
    "gain": np.abs(numbers(4, seed=11)) + 0.5,
    "zero": np.float32(0),
    "half": np.float32(0.5),
    "four": np.float32(4),
    "six": np.float32(6),
    "flat": np.array([0, -1]),
    "i0": np.array([0]),
    "i1": np.array([1]),
    "i2": np.array([2]),
    "i23": np.array([2, 3]),
    "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
}
IMAGE, ROWS, TOKENS = "float[N,3,6,6] x", "float[N,6] x", "float[N,5,6] x"
SHAPES = {IMAGE: (3, 6, 6), ROWS: (6,), TOKENS: (5, 6)}
SCORES = "float[N,3] y"

NETS: dict[str, tuple[str, str, str]] = {
    "one site": (ROWS, "float[N,8] y", "c = MatMul(x, m) y = Relu(c)"),
    "perceptron": (ROWS, SCORES, "c = Gemm(x, m, b8) r = Relu(c) y = Gemm(r, m3, b3)"),
    "three layers": (
        ROWS,
        SCORES,
        "c = Gemm(x, m, b8) r = Relu(c) d = Gemm(r, m8, b8) s = Clip(d, zero, six) y = Gemm(s, m3, b3)",
    ),
    "convolutions": (
        IMAGE,
        SCORES,
        """c = Conv <pads = [1,1,1,1]> (x, w) n = BatchNormalization(c, gain, b4, b4, gain) r = Relu(n)
        p = AveragePool <kernel_shape = [2,2], strides = [2,2]> (r) d = Conv <pads = [1,1,1,1]> (p, w4) s = Max(d, zero)
        g = GlobalAveragePool(s) f = Flatten(g) y = Gemm(f, head, b3)""",
    ),
    "residual": (
        IMAGE,
        SCORES,
        """c = Conv <pads = [1,1,1,1]> (x, w) r = Relu(c) d = Conv <pads = [1,1,1,1]> (r, w4) a = Add(d, r) s = Relu(a)
        e = Conv <pads = [1,1,1,1]> (s, w4) k = Add(c, e) u = Relu(k) g = GlobalAveragePool(u) f = Reshape(g, flat)
        y = MatMul(f, head)""",
    ),
    "batchnorm before conv": (
        IMAGE,
        SCORES,
        """c = Conv <pads = [1,1,1,1]> (x, w) r = Relu(c) n = BatchNormalization(r, gain, b4, b4, gain)
        d = Conv (n, w4) s = Relu(d) g = GlobalAveragePool(s) f = Flatten(g) y = MatMul(f, head)""",
    ),
    "pad, slice, concat, split": (
        IMAGE,
        "float[N,4,6,6] y, float[N,4,3,3] z",
        """c = Conv(x, w) r = Relu(c) p = Pad(r, pads, half) q = Slice(p, i1, i2, i1) k = Concat <axis = 1> (q, p, q)
        l = Slice(k, i0, four_i, i1) y = Neg(l) u, v = Split <axis = 2> (y) t, z = Split <axis = 3> (v)""",
    ),
    "max pooling": (
        IMAGE,
        SCORES,
        """c = Conv <pads = [1,1,1,1]> (x, w) r = Relu(c) p = MaxPool <kernel_shape = [2,2], strides = [2,2]> (r)
        d = Conv <pads = [1,1,1,1]> (p, w4) s = Relu(d) o = MaxPool <kernel_shape = [2,2]> (s)
        g = GlobalAveragePool(o) f = Flatten(g) y = MatMul(f, head)""",
    ),
    "max pooling with indices": (
        IMAGE,
        "float[N,4,3,3] y, int64[N,4,3,3] z",
        "c = Conv <pads = [1,1,1,1]> (x, w) r = Relu(c) y, z = MaxPool <kernel_shape = [2,2], strides = [2,2]> (r)",
    ),
    "reduce max": (
        IMAGE,
        "float[N,3,1,1] y",
        "c = Conv(x, w) r = Relu(c) k = ReduceMax <axes = [2,3]> (r) t = Reshape(k, flat) "
        "u = MatMul(t, head) y = Unsqueeze(u, i23)",
    ),
    "softmax at the end": (
        ROWS,
        SCORES,
        "c = Gemm(x, m, b8) r = Relu(c) l = Gemm(r, m3, b3) y = Softmax <axis = 1> (l)",
    ),
    "softmax inside": (
        ROWS,
        SCORES,
        "c = Gemm(x, m, b8) r = Relu(c) a = Softmax <axis = 1> (r) d = Gemm(a, m8, b8) s = Relu(d) y = Gemm(s, m3, b3)",
    ),
    "product of two spiking tensors": (
        ROWS,
        SCORES,
        "c = Gemm(x, m, b8) r = Relu(c) d = MatMul(r, m8) s = Relu(d) p = Mul(r, s) "
        "e = MatMul(p, m8) u = Relu(e) y = MatMul(u, m3)",
    ),
    "square and root": (
        ROWS,
        SCORES,
        "c = Gemm(x, m, b8) r = Relu(c) p = Mul(r, r) q = Add(p, half) o = Sqrt(q) d = Div(r, o) y = MatMul(d, m3)",
    ),
    "rate-exact and linear in one sum": (
        ROWS,
        SCORES,
        """c = Gemm(x, m, b8) r = Relu(c) a = Softmax(r) n = Neg(a) k = Add(n, r) t = Add(a, n) l = Add(k, t)
        d = MatMul(l, m8) s = Relu(d) y = MatMul(s, m3)""",
    ),
    "attention, the batch on axis 1": (
        TOKENS,
        "float[N,5,8] y",
        """t = Transpose <perm = [1,0,2]> (x) c = MatMul(t, m) r = Relu(c) q = MatMul(r, m8) k = MatMul(q, m8)
        v = Add(r, b8)
        qb = Transpose <perm = [1,0,2]> (q) kb = Transpose <perm = [1,2,0]> (k) vb = Transpose <perm = [1,0,2]> (v)
        a = MatMul(qb, kb) p = Softmax <axis = -1> (a) o = MatMul(p, vb) l = Transpose <perm = [1,0,2]> (o)
        e = Add(l, r)
        s = Relu(e) y = Transpose <perm = [1,0,2]> (s)""",
    ),
    "integers": (
        ROWS,
        "int64[N,1] y, float[N,8] z, float[N,1] f",
        "c = Gemm(x, m, b8) z = Relu(c) d = MatMul(z, m8) y = ArgMax <axis = 1> (d) f = Cast <to = 1> (y)",
    ),
    "integers that are used": (
        ROWS,
        SCORES,
        """c = Gemm(x, m, b8) r = Relu(c) i = ArgMax <axis = 1> (r) g = GatherElements <axis = 1> (r, i)
        d = Add(r, g) s = Relu(d) y = MatMul(s, m3)""",
    ),
    "comparison": (
        ROWS,
        SCORES,
        "c = Gemm(x, m, b8) r = Relu(c) d = MatMul(r, m8) o = Greater(d, r) k = Where(o, d, r) "
        "s = Relu(k) y = MatMul(s, m3)",
    ),
    "top k": (
        ROWS,
        "float[N,2] y, int64[N,2] z",
        "c = Gemm(x, m, b8) r = Relu(c) d = MatMul(r, m8) y, z = TopK <axis = 1> (d, i2)",
    ),
    "double precision between": (
        ROWS,
        SCORES,
        "c = Gemm(x, m, b8) r = Relu(c) k = Cast <to = 11> (r) a = Softmax(k) q = Mul(a, k) "
        "f = Cast <to = 1> (q) d = MatMul(f, m8) s = Relu(d) y = MatMul(s, m3)",
    ),
    "double precision at the end": (ROWS, "double[N,8] y", "c = Gemm(x, m, b8) r = Relu(c) y = Cast <to = 11> (r)"),
    "several outputs": (
        ROWS,
        "float[N,8] r, float[N,3] y, float[N,8] c, float[N,3] z, int64[2] h",
        "c = Gemm(x, m, b8) r = Relu(c) y = MatMul(r, m3) z = Softmax(y) h = Shape(y)",
    ),
    "shape of spikes": (
        IMAGE.replace("6,6", "H,W"),
        "float[P,N] y",
        """c = Conv <pads = [1,1,1,1]> (x, w) r = Relu(c) h = Shape(r) hw = Slice(h, i2, four_i)
        k = ReduceProd <keepdims = 1> (hw)
        n = Slice(h, i0, i1) l = Slice(h, i1, i2) t = Concat <axis = 0> (k, n, l) q = Reshape(r, t) s = Relu(q)
        y = ReduceSum <keepdims = 0> (s, i2)""",
    ),
    "shape of means": (
        IMAGE.replace("6,6", "H,W"),
        "float[P,N,4] y",
        """c = Conv <pads = [1,1,1,1]> (x, w) r = Relu(c) p = MaxPool <kernel_shape = [2,2]> (r) h = Shape(p)
        hw = Slice(h, i2, four_i)
        k = ReduceProd <keepdims = 1> (hw) n = Slice(h, i0, i1) l = Slice(h, i1, i2) t = Concat <axis = 0> (k, n, l)
        y = Reshape(p, t)""",
    ),
    "static branch": (
        ROWS,
        SCORES,
        """k = Sin(x) c = Gemm(k, m, b8) e = Exp(c) r = Relu(c) d = Add(r, e) u = Mul(d, e) s = Relu(u)
        y = MatMul(s, m3)""",
    ),
    "quantised activation": (
        ROWS,
        SCORES,
        """c = Gemm(x, m, b8) a = Div(c, half) b = Clip(a, zero, one) d = Mul(b, four) e = Add(d, half) f = Floor(e)
        h = Div(f, four)
        r = Mul(h, half) y = MatMul(r, m3)""",
    ),
    "nothing that spikes": (ROWS, SCORES, "c = Gemm(x, m, b8) d = Sin(c) y = MatMul(d, m3)"),
    "static control flow": (
        ROWS,
        SCORES,
        """c = Gemm(x, m, b8) k = ReduceSum <keepdims = 0> (c) o = Greater(k, zero)
        d = If (o) <then_branch = then () => (float[N,8] p) { p = Neg(c) },
        else_branch = other () => (float[N,8] q) { q = Abs(c) }>
        r = Relu(d) y = MatMul(r, m3)""",
    ),
    "control flow on the shape of spikes": (
        ROWS,
        "float[N,8] y",
        """c = Gemm(x, m, b8) r = Relu(c) h = Shape(r) n = Slice(h, i0, i1) k = Cast <to = 1> (n) o_ = Greater(k, one)
        o = Squeeze(o_)
        d = If (o) <
            then_branch = then () => (float[1] p) { p = Neg(k) },
            else_branch = other () => (float[1] q) {
                q = If (o) <
                    then_branch = inner () => (float[1] u) { u = Exp(k) },
                    else_branch = last () => (float[1] v) { v = Identity(k) }
                >
            }
        >
        y = Mul(r, d)""",
    ),
    "sequences": (
        ROWS,
        SCORES,
        "c = Gemm(x, m, b8) r = Relu(c) q = SplitToSequence <axis = 1> (r, i1_) "
        "k = ConcatFromSequence <axis = 1> (q) y = MatMul(k, m3)",
    ),
}
MORE = {"four_i": np.array([4]), "one": np.float32(1), "i1_": np.int64(2)}
WATCHED = list(NETS)
"""Nets whose outputs can be watched after every step."""


def network_of(name: str, opset: int = 17) -> Network:
    inputs, outputs, body = NETS[name]
    if opset >= 18:
        body = body.replace("ReduceMax <axes = [2,3]> (r)", "ReduceMax(r, i23)").replace(
            "ReduceProd <keepdims = 1> (hw)", "ReduceProd <keepdims = 1> (hw, i0)"
        )
        body = body.replace("Split <axis = 2>", "Split <axis = 2, num_outputs = 2>").replace(
            "Split <axis = 3>", "Split <axis = 3, num_outputs = 2>"
        )
    model = parse(f"g ({inputs}) => ({outputs}) {{ {body} }}", opset=opset, **WEIGHTS, **MORE)
    assert_valid(normalise(model).model)
    return find_network(normalise(model).model, smooth="rate-exact")


def feeds_of(name: str, batch: int) -> dict[str, np.ndarray]:
    shape = SHAPES.get(NETS[name][0], SHAPES[IMAGE])
    return {"x": numbers(batch, *shape, seed=batch)}


def plan_of(network: Network, steps: int = T) -> SpikingPlan:
    """Thresholds and biases that differ from channel to channel."""
    thresholds = {s.name: np.linspace(0.6, 1.1, s.channels) for s in network.sites}
    return make_plan(network, steps, thresholds, bias=0.05)


# the oracle


def simulate(network: Network, plan: SpikingPlan, feeds: dict[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """The running mean of every tensor after every step."""
    view = network.view
    fixed = {**run_exposing(view.model, feeds, static_tensors(network)), **feeds}
    fixed.update({name: numpy_helper.to_array(tensor) for name, tensor in view.initializers.items()})
    alone = {
        node.name: OneNode(view, node) for node in view.nodes if network.classes[node.name] is not NodeClass.STATIC
    }
    owner = {site.spikes: site for site in network.sites}
    membranes = {
        s.name: (plan.thresholds[s.name] / 2).reshape(s.channel_shape).astype(np.float64) for s in network.sites
    }
    history: list[dict[str, np.ndarray]] = []
    for t in range(plan.steps):
        means: dict[str, np.ndarray] = dict(fixed)

        def total(name: str, t: int = t, means: dict[str, np.ndarray] = means) -> np.ndarray:
            """Sum of a tensor's values over the steps before t (before the first: none)."""
            rows = [*history, means]
            return t * rows[t - 1][name].astype(np.float64) if t > 0 else np.float64(0)

        for node in view.nodes:
            kind = network.classes[node.name]
            if kind is NodeClass.SITE:
                site = owner.get(node.output[0])
                if site is None:
                    continue
                theta, bias = plan.thresholds[site.name], plan.biases[site.name][t]
                theta, bias = (a.reshape(site.channel_shape).astype(np.float64) for a in (theta, bias))
                x = total(site.current, t + 1) - total(site.current)
                u = membranes[site.name] + x + bias
                spikes = np.where(u >= theta, theta, 0.0)
                membranes[site.name] = u - spikes
                means[site.spikes] = ((total(site.spikes) + spikes) / (t + 1)).astype(np.float32)
            elif kind is not NodeClass.STATIC:
                means.update(alone[node.name](means))
        history.append(means)
    return history


class OneNode:
    """A node alone in onnxruntime."""

    def __init__(self, view: GraphView, node: onnx.NodeProto) -> None:
        self.view, self.node, self.session = view, node, None

    def __call__(self, values: dict[str, object]) -> dict[str, np.ndarray]:
        constants = [self.view.initializers[name] for name in self.node.input if name in self.view.initializers]
        names = list(dict.fromkeys(n for n in self.node.input if n and n not in self.view.initializers))
        outputs = [name for name in self.node.output if name]
        if self.session is None:
            inputs = [self.info(name, values[name]) for name in names]
            made = [helper.make_empty_tensor_value_info(name) for name in outputs]
            graph = helper.make_graph([self.node], "one", inputs, made, list({c.name: c for c in constants}.values()))
            model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.view.opset)])
            model.ir_version = self.view.model.ir_version
            self.session = session(model, optimise=False)
        return dict(zip(outputs, self.session.run(outputs, {name: values[name] for name in names}), strict=True))

    @staticmethod
    def info(name: str, value: object) -> onnx.ValueInfoProto:
        if isinstance(value, list):
            return helper.make_tensor_sequence_value_info(name, helper.np_dtype_to_tensor_dtype(value[0].dtype), None)
        return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), None)


def static_tensors(network: Network) -> list[str]:
    view = network.view
    return [n for node in view.nodes for n in node.output if n and network.classes[node.name] is NodeClass.STATIC]


def exposing(model: onnx.ModelProto, names: list[str]) -> onnx.ModelProto:
    """A copy with more tensors as outputs, whatever they hold."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    present = {value.name for value in copy.graph.output}
    copy.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names if name not in present)
    return copy


def run_exposing(model: onnx.ModelProto, feeds: dict[str, np.ndarray], names: list[str]) -> dict[str, np.ndarray]:
    values = run(exposing(model, names), feeds, optimise=False)
    return {name: values[name] for name in names}


def exposing_history(emitted: Emitted) -> onnx.ModelProto:
    model = expose_running_means(emitted.model, emitted.readouts)
    onnx.checker.check_model(model, full_check=True)
    return model


def laws(steps: int = 6) -> tuple[Network, SpikingPlan, dict[str, np.ndarray]]:
    """A net of two layers whose every number is a small multiple of a power of two: all sums are exact."""
    text = (
        "g (float[N,6] x) => (float[N,3] y) { c = Gemm(x, m, b) r = Relu(c) d = MatMul(r, k) "
        "s = Relu(d) y = MatMul(s, h) }"
    )
    constants = {
        "m": eighths(6, 8, seed=1),
        "b": eighths(8, seed=2),
        "k": eighths(8, 5, seed=3),
        "h": eighths(5, 3, seed=4),
    }
    network = find_network(normalise(parse(text, **constants)).model, smooth="rate-exact")
    thresholds = {s.name: 2.0 ** (np.arange(s.channels) % 3 - 1) for s in network.sites}
    biases = {s.name: eighths(steps, s.channels, seed=5) for s in network.sites}
    plan = SpikingPlan("", network.sites, steps, "if", thresholds, biases)
    return network, plan, {"x": eighths(7, 6, seed=6)}
