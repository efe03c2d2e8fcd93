"""The unrolled form: valid and portable models, and the laws that every one of them keeps.

The oracle below states emission a second time: sites are a NumPy loop, and for every other node the mean of its
outputs after every step is f of the mean of its inputs, f being the node alone in onnxruntime.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from helpers import (
    OPSETS,
    assert_close,
    assert_valid,
    eighths,
    make_plan,
    newest_opset,
    numbers,
    ops,
    parse,
    run,
    session,
)
from onnx import helper, numpy_helper

from ftbc_onnx.errors import ModelError
from ftbc_onnx.graph.classes import NodeClass
from ftbc_onnx.graph.emit.unrolled import Emitted, bias_name, emit_unrolled, spikes_name, threshold_name
from ftbc_onnx.graph.normalise import normalise
from ftbc_onnx.graph.observe import expose_running_means, running_mean_name
from ftbc_onnx.graph.sites import Network, find_network
from ftbc_onnx.graph.view import GraphView
from ftbc_onnx.plan import SpikingPlan
from ftbc_onnx.runtime import Session

MODELS = Path(__file__).parents[1] / "models"
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


# every net


@pytest.mark.parametrize("opset", [13, 18, newest_opset()])
@pytest.mark.parametrize("name", NETS)
def test_emitted_model_is_valid_portable_and_keeps_the_interface(name, opset):
    network = network_of(name, opset)
    assert network.refusals == ()
    model = emit_unrolled(network, plan_of(network)).model
    assert_valid(model)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", opset)]
    assert model.ir_version == helper.find_min_ir_version_for(list(model.opset_import))
    assert {node.domain for node in model.graph.node} <= {""}
    if "control flow" not in name:
        assert not {"If", "Loop", "Scan"} & set(ops(model))
    source = network.view.model.graph
    assert list(model.graph.input) == list(source.input)
    assert [value.name for value in model.graph.output] == [value.name for value in source.output]
    assert [value.type.tensor_type.elem_type for value in model.graph.output] == [
        value.type.tensor_type.elem_type for value in source.output
    ]


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("name", WATCHED)
def test_mean_of_outputs_is_f_of_mean_of_inputs_after_every_step(name, batch):
    network = network_of(name)
    plan = plan_of(network)
    feeds = feeds_of(name, batch)
    expected = simulate(network, plan, feeds)
    emitted = emit_unrolled(network, plan)
    actual = run(exposing_history(emitted), feeds)
    for output in network.view.output_names:
        assert_close(actual[output], expected[-1][output], steps=200)
        if output in network.temporal:
            rows = actual[running_mean_name(output)]
            assert rows.shape[0] == T
            for t in range(T):
                assert_close(rows[t], expected[t][output], steps=200)


def exposing_history(emitted: Emitted) -> onnx.ModelProto:
    model = expose_running_means(emitted.model, emitted.readouts)
    onnx.checker.check_model(model, full_check=True)
    return model


@pytest.mark.parametrize("name", WATCHED)
def test_a_prefix_is_the_running_mean_bit_for_bit(name):
    network = network_of(name)
    plan = plan_of(network)
    feeds = feeds_of(name, 2)
    long = emit_unrolled(network, plan)
    history = Session(exposing_history(long), optimise=False).run(feeds)
    for steps in range(1, T + 1):
        short = Session(emit_unrolled(network, plan.prefix(steps)).model, optimise=False).run(feeds)
        for output, value in short.items():
            expected = history[running_mean_name(output)][steps - 1] if output in network.temporal else history[output]
            np.testing.assert_array_equal(value, expected)


def test_output_in_double_precision_is_the_mean_too():
    network = network_of("double precision at the end")
    plan, feeds = plan_of(network), feeds_of("double precision at the end", 3)
    value = run(emit_unrolled(network, plan).model, feeds)["y"]
    assert value.dtype == np.float64
    assert_close(value, simulate(network, plan, feeds)[-1]["y"])


@pytest.mark.parametrize("name", NETS)
def test_nodes_are_written_once_per_step_or_once(name):
    network = network_of(name)
    model = emit_unrolled(network, plan_of(network)).model
    made: dict[str, int] = {}
    for node in model.graph.node:
        made[node.op_type] = made.get(node.op_type, 0) + 1
    extra = set("Add Sub Mul Div GreaterOrEqual Cast Split Reshape Identity".split())
    wanted: dict[str, int] = {}
    for node in network.view.nodes:
        kind = network.classes[node.name]
        if kind is not NodeClass.SITE:
            wanted[node.op_type] = wanted.get(node.op_type, 0) + (1 if kind is NodeClass.STATIC else T)
    for op_type, count in wanted.items():
        assert made[op_type] >= count
        if op_type not in extra:
            assert made[op_type] == count
    assert set(made) <= set(wanted) | extra
    copies = [tensor.name for tensor in model.graph.initializer]
    assert len(set(copies)) == len(copies)


@pytest.mark.parametrize("name", NETS)
def test_one_step_without_bias_and_with_it_differ_and_both_are_valid(name):
    network = network_of(name)
    plan = plan_of(network, 1)
    for each in (plan, plan.without_biases()):
        model = emit_unrolled(network, each).model
        assert_valid(model)
        run(model, feeds_of(name, 1))


def test_source_of_an_emission_is_left_alone():
    network = network_of("residual")
    content = network.view.model.SerializeToString(deterministic=True)
    first = emit_unrolled(network, plan_of(network)).model
    second = emit_unrolled(network, plan_of(network)).model
    assert first.SerializeToString(deterministic=True) == second.SerializeToString(deterministic=True)
    assert network.view.model.SerializeToString(deterministic=True) == content


@pytest.mark.parametrize("opset", [9, 11])
def test_old_opsets_are_emitted_at_13(opset):
    text = (
        "g (float[N,3,6,6] x) => (float[N,4,5,5] y) { c = Conv(x, w) r = Relu(c) "
        "y = MaxPool <kernel_shape = [2,2], pads = [1,1,0,0]> (r) }"
    )
    network = find_network(
        normalise(parse(text.replace("5,5] y", "4,4] y"), opset=opset, w=WEIGHTS["w"])).model, smooth="rate-exact"
    )
    model = emit_unrolled(network, plan_of(network)).model
    assert_valid(model)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 13)]


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("name", ["three layers", "max pooling"])
def test_every_opset_gives_the_same_numbers(name, opset):
    feeds = feeds_of(name, 2)
    results = []
    for version in (17, opset):
        network = network_of(name, version)
        results.append(run(emit_unrolled(network, plan_of(network)).model, feeds, optimise=False)["y"])
    np.testing.assert_array_equal(*results)


def test_layer_normalization_is_rate_exact():
    network = find_network(
        normalise(
            parse(
                "g (float[N,5,6] x) => (float[N,5,8] y) { c = MatMul(x, m) r = Relu(c) "
                "l = LayerNormalization(r, row, b8) d = MatMul(l, m8) y = Relu(d) }",
                **WEIGHTS,
            )
        ).model,
        smooth="rate-exact",
    )
    plan = plan_of(network)
    feeds = {"x": numbers(3, 5, 6)}
    names = [f"r/t{t}/spikes" for t in range(T)]
    emitted = emit_unrolled(network, plan)
    spikes = run_exposing(emitted.model, feeds, names)
    mean = sum(spikes.values()) / np.float32(T)
    centred = mean - mean.mean(-1, keepdims=True)
    expected = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * WEIGHTS["row"] + WEIGHTS["b8"]
    (last,) = (node.output[0] for node in emitted.model.graph.node if node.name == f"l/t{T - 1}")
    assert_close(run_exposing(emitted.model, feeds, [last])[last], expected.astype(np.float32))
    assert_close(run(emitted.model, feeds)["y"], simulate(network, plan, feeds)[-1]["y"])


def test_max_pooling_of_spikes_is_stated_by_hand():
    # the Relu is read twice, so the pool cannot be put before it
    text = (
        "g (float[N,1,2,2] x) => (float[N,1,1,1] y, float[N,1,2,2] z) "
        "{ r = Relu(x) y = MaxPool <kernel_shape = [2,2]> (r) z = Neg(r) }"
    )
    network = find_network(normalise(parse(text)).model, smooth="rate-exact")
    # currents 0.5, 0.3, 0.9, -1 at theta = 1, v = 0.5: spikes at steps (0, 2), (1,), (0, 1, 2), ()
    emitted = emit_unrolled(network, make_plan(network, 3))
    x = np.array([[[[0.5, 0.25], [0.875, -1]]]], np.float32)
    spikes = run_exposing(emitted.model, {"x": x}, [spikes_name("r", t) for t in range(3)])
    assert [spikes[spikes_name("r", t)].reshape(-1).tolist() for t in range(3)] == [
        [1, 0, 1, 0],
        [0, 1, 1, 0],
        [1, 0, 1, 0],
    ]
    history = run(exposing_history(emitted), {"x": x})[running_mean_name("y")]
    np.testing.assert_array_equal(history.reshape(-1), [1, 1, 1])


# the laws of integrate-and-fire


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


def traces(model: onnx.ModelProto, feeds: dict[str, np.ndarray], site: str, steps: int) -> dict[str, np.ndarray]:
    """Currents, spikes and membranes of a site, [T, B, C] each, read off the emitted graph."""
    produced = {name: node for node in model.graph.node for name in node.output}
    names: dict[str, list[str]] = {
        "x": [produced[f"{site}/t{t}/drive"].input[0] for t in range(steps)],
        "s": [spikes_name(site, t) for t in range(steps)],
        "v": [f"{site}/t{t}/membrane" for t in range(steps)],
    }
    values = run_exposing(model, feeds, list(dict.fromkeys(n for row in names.values() for n in row)))
    return {key: np.stack([values[name] for name in row]) for key, row in names.items()}


def test_charge_is_conserved():
    network, plan, feeds = laws()
    model = emit_unrolled(network, plan).model
    for site in network.sites:
        trace = traces(model, feeds, site.name, plan.steps)
        theta, bias = plan.thresholds[site.name], plan.biases[site.name]
        arrived = trace["x"].sum(0) + bias.sum(0)
        np.testing.assert_array_equal(arrived, trace["s"].sum(0) + trace["v"][-1] - theta / 2)
        assert 0 < (trace["s"] > 0).mean() < 1


def test_sites_fire_as_the_equations_say_bit_for_bit():
    network, plan, feeds = laws()
    model = emit_unrolled(network, plan).model
    for site in network.sites:
        trace = traces(model, feeds, site.name, plan.steps)
        theta, bias = plan.thresholds[site.name], plan.biases[site.name]
        v = np.broadcast_to(theta * np.float32(0.5), trace["x"].shape[1:])
        for t in range(plan.steps):
            u = (v + trace["x"][t]) + bias[t]
            s = theta * (u >= theta)
            v = u - s
            np.testing.assert_array_equal(trace["s"][t], s)
            np.testing.assert_array_equal(trace["v"][t], v)


def test_it_fires_at_the_threshold_and_not_below():
    network = find_network(
        normalise(parse("g (float[N,1] x) => (float[N,1] y) { y = Relu(x) }")).model, smooth="rate-exact"
    )
    model = emit_unrolled(network, make_plan(network, 1)).model
    x = np.array([[0.5], [0.5 - 2.0**-24], [-1], [9]], np.float32)
    np.testing.assert_array_equal(run(model, {"x": x})["y"], [[1], [0], [0], [1]])


def test_qcfs_at_t_equal_to_l_is_the_activation_itself():
    text = """g (float[N,6] x) => (float[N,8] y) { c = MatMul(x, m) a = Div(c, t) b = Clip(a, zero, one)
        d = Mul(b, four)
        e = Add(d, half) f = Floor(e) h = Div(f, four) y = Mul(h, t) }"""
    constants = {"m": eighths(6, 8, seed=1), "t": np.array([0.5, 1, 2, 4, 0.5, 1, 2, 4], np.float32)}
    source = parse(text, **{k: WEIGHTS[k] for k in ("zero", "half", "four")}, one=np.float32(1), **constants)
    network = find_network(normalise(source).model)
    (site,) = network.sites
    plan = SpikingPlan("", network.sites, site.levels, "if", {site.name: np.array(site.threshold)})
    feeds = {"x": eighths(50, 6, seed=2)}
    np.testing.assert_array_equal(run(emit_unrolled(network, plan).model, feeds)["y"], run(source, feeds)["y"])


def test_long_simulation_converges_to_the_ann():
    network = network_of("residual")
    feeds = feeds_of("residual", 2)
    thresholds = {s.name: np.full(s.channels, 8.0) for s in network.sites}
    errors = []
    for steps in (8, 64):
        model = emit_unrolled(network, make_plan(network, steps, thresholds)).model
        errors.append(np.abs(run(model, feeds)["y"] - run(network.view.model, feeds)["y"]).max())
    assert errors[1] < errors[0] / 2
    assert errors[1] < 0.2


@pytest.mark.parametrize("name", ["digits_relu.onnx", "digits_qcfs4.onnx"])
def test_shipped_networks(name):
    network = find_network(normalise(onnx.load(MODELS / name)).model)
    model = emit_unrolled(network, make_plan(network, T, 1.0, bias=0.1)).model
    assert_valid(model)
    (value,) = model.graph.input
    dims = [dim.dim_value for dim in value.type.tensor_type.shape.dim][1:]
    five = {value.name: np.abs(numbers(5, *dims))}
    one = {value.name: five[value.name][:1]}
    opened = Session(model, optimise=False)
    (scores,), (score,) = opened.run(five).values(), opened.run(one).values()
    assert scores.shape[0] == 5
    assert_close(scores[:1], score, steps=1000)


# what is in the file


def test_tables_of_a_site_are_in_the_file_as_the_plan_states_them():
    network, plan, _ = laws()
    model = emit_unrolled(network, plan).model
    view = GraphView(model)
    for site in network.sites:
        np.testing.assert_array_equal(view.constant(bias_name(site.name)), plan.biases[site.name])
        np.testing.assert_array_equal(view.constant(threshold_name(site.name)), plan.thresholds[site.name])


def test_static_work_is_done_once():
    network = network_of("static branch")
    counts = {
        op: ops(emit_unrolled(network, plan_of(network)).model).count(op) for op in ("Sin", "Gemm", "Exp", "MatMul")
    }
    assert counts == {"Sin": 1, "Gemm": 1, "Exp": 1, "MatMul": T}


def test_shape_of_spikes_is_taken_once():
    network = network_of("shape of spikes")
    made = ops(emit_unrolled(network, plan_of(network)).model)
    assert (made.count("Shape"), made.count("ReduceProd"), made.count("Conv")) == (1, 1, 1)
    assert made.count("ReduceSum") == T


@pytest.mark.parametrize("size", [(4, 4), (6, 5)])
def test_shape_of_spikes_follows_the_input(size):
    network = network_of("shape of spikes")
    feeds = {"x": numbers(2, 3, *size)}
    assert run(emit_unrolled(network, plan_of(network)).model, feeds)["y"].shape == (size[0] * size[1], 2)


def test_rate_exact_nodes_in_a_row_are_converted_at_the_ends_only():
    text = "g (float[N,8] x) => (float[N,8] y) { r = Relu(x) a = Exp(r) b = Sqrt(a) c = Neg(b) y = Relu(c) }"
    network = find_network(normalise(parse(text)).model, smooth="rate-exact")
    made = ops(emit_unrolled(network, make_plan(network, T)).model)
    # r to its mean: a sum and a quotient per step; c to its current: a product and a difference; y to the readout;
    # besides, every spike is a product
    assert made.count("Div") == (T - 1) + 1
    assert made.count("Mul") == (T - 1) + 2 * T


def test_spikes_that_only_linear_nodes_read_are_not_summed():
    network = network_of("three layers")
    names = [name for node in emit_unrolled(network, plan_of(network)).model.graph.node for name in node.output]
    assert not [name for name in names if name.startswith(("r/t1/sum", "s/t1/sum"))]
    assert "y/t1/sum" in names


# names


@pytest.mark.parametrize("taken", ["r/threshold", "r/bias", "y/t0", "r/t1/spikes", "r/b/t0"])
@pytest.mark.parametrize("where", ["initializer", "static", "output"])
def test_names_of_the_source_are_not_confused_with_those_of_the_emission(taken, where):
    text = (
        "g (float[N,8] x) => (float[N,8] y, float[N,8] z) { r = Relu(x) k = Sin(x) y = Neg(r) "
        "q = Mul(r, k) z = Div(q, c) }"
    )
    model = parse(text, c=numbers(8))
    old = {"initializer": "c", "static": "k", "output": "z"}[where]
    for tensor in [*model.graph.initializer, *model.graph.output]:
        tensor.name = taken if tensor.name == old else tensor.name
    for node in model.graph.node:
        node.input[:] = [taken if name == old else name for name in node.input]
        node.output[:] = [taken if name == old else name for name in node.output]
        node.name = "r" if node.op_type == "Relu" else f"the {node.op_type}"
    network = find_network(normalise(model).model)
    feeds = {"x": numbers(2, 8)}
    try:
        emitted = emit_unrolled(network, make_plan(network, 2)).model
    except ModelError as error:
        assert taken in str(error)  # noqa: PT017 - refusing with the name is as good as finding another
        return
    assert_valid(emitted)
    assert [value.name for value in emitted.graph.output] == [value.name for value in network.view.graph.output]
    other = find_network(normalise(parse(text, c=numbers(8))).model, smooth="rate-exact")
    expected = run(emit_unrolled(other, make_plan(other, 2)).model, feeds)
    for actual, wanted in zip(run(emitted, feeds).values(), expected.values(), strict=True):
        np.testing.assert_array_equal(actual, wanted)


def test_weights_are_shared_and_unused_ones_left_out():
    model = parse(
        "g (float[N,6] x) => (float[N,8] y) { r = Relu(x) y = MatMul(r, m) }", m=WEIGHTS["m"], unused=numbers(100)
    )
    network = find_network(normalise(model).model)
    emitted = emit_unrolled(network, make_plan(network, T)).model
    names = [tensor.name for tensor in emitted.graph.initializer]
    assert names.count("m") == 1
    assert "unused" not in names
    assert {node.input[1] for node in emitted.graph.node if node.op_type == "MatMul"} == {"m"}


def test_a_site_without_known_channels_has_one_threshold():
    model = parse("g (float[N,K] x) => (float[N,K] y) { y = Relu(x) }")
    network = find_network(normalise(model).model)
    plan = make_plan(network, T, 1.0, bias=0.1)
    emitted = emit_unrolled(network, plan).model
    assert_valid(emitted)
    x = numbers(3, 7)
    np.testing.assert_array_equal(run(emitted, {"x": x})["y"], simulate(network, plan, {"x": x})[-1]["y"])
