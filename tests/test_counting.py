"""Events and synaptic operations against loops over every connection."""

from __future__ import annotations

from itertools import product

import numpy as np
import onnx
import pytest
from helpers import assert_valid, make_plan, numbers, parse, run
from networks import RELU, digits, network_of

from ftbc_onnx.counting import count, counted_names, total_counts
from ftbc_onnx.graph.builder import GraphBuilder
from ftbc_onnx.graph.emit.unrolled import emit_unrolled, events_name
from ftbc_onnx.graph.events import binary_count_name, events_count_name, neurons_name
from ftbc_onnx.graph.layers import Layer, Reads, find_layers
from ftbc_onnx.graph.observe import expose_tensors
from ftbc_onnx.graph.synops import DENSE, SYNOPS
from ftbc_onnx.graph.tally import Tallies
from ftbc_onnx.neurons import NeuronSpec
from ftbc_onnx.plan import SpikingPlan

T = 3

CONVOLUTIONS = {
    "plain": ((4, 6, 7), "", (5, 4, 3, 3)),
    "pads and strides": ((4, 6, 7), "strides = [2, 3], pads = [1, 0, 2, 1]", (5, 4, 3, 2)),
    "dilations": ((4, 8, 7), "dilations = [2, 3], pads = [2, 3, 1, 0]", (5, 4, 3, 2)),
    "groups": ((4, 6, 6), "group = 2, pads = [1, 1, 1, 1]", (6, 2, 3, 3)),
    "depthwise": ((4, 6, 5), "group = 4, strides = [2, 2], pads = [1, 1, 1, 1]", (4, 1, 3, 3)),
    "1-D": ((3, 9), "strides = [2], pads = [1, 1]", (4, 3, 3)),
    "3-D": ((2, 4, 3, 5), "pads = [0, 1, 0, 0, 1, 0]", (3, 2, 2, 3, 2)),
    "same upper": ((4, 7, 6), 'auto_pad = "SAME_UPPER", strides = [2, 2]', (5, 4, 3, 2)),
}

TRANSPOSED = {
    "plain": ((4, 3, 4), "", (4, 5, 3, 3)),
    "strides, pads, output padding": (
        (4, 3, 4),
        "strides = [2, 3], pads = [1, 0, 1, 1], output_padding = [1, 2]",
        (4, 5, 3, 2),
    ),
    "groups": ((4, 3, 4), "group = 2, dilations = [2, 1]", (4, 3, 3, 2)),
}


def reaches(node: onnx.NodeProto, shape: tuple[int, ...], weights: np.ndarray) -> np.ndarray:
    """How many outputs every input element of one sample reaches: one run of the node per element, all weights 1."""
    graph = onnx.helper.make_graph(
        [node],
        "g",
        [onnx.helper.make_tensor_value_info(node.input[0], 1, [1, *shape])],
        [onnx.helper.make_tensor_value_info(node.output[0], 1, None)],
        [onnx.numpy_helper.from_array(np.ones_like(weights), node.input[1])],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    found = np.zeros(shape)
    for index in np.ndindex(*shape):
        x = np.zeros((1, *shape), np.float32)
        x[(0, *index)] = 1
        found[index] = np.count_nonzero(run(model, {node.input[0]: x})[node.output[0]])
    return found


def naive_conv(x: np.ndarray, weights: np.ndarray, options: tuple, out: tuple[int, ...]) -> int:
    """Connections of a 2-D convolution that carry something: a loop over outputs, channels and kernel."""
    strides, pads, dilations, group = options
    done = 0
    per_group = weights.shape[0] // group
    for n, o, i, j in product(range(len(x)), range(weights.shape[0]), range(out[0]), range(out[1])):
        for c, a, b in product(*map(range, weights.shape[1:])):
            row, column = i * strides[0] + a * dilations[0] - pads[0], j * strides[1] + b * dilations[1] - pads[1]
            inside = 0 <= row < x.shape[2] and 0 <= column < x.shape[3]
            done += bool(inside and x[n, c + o // per_group * weights.shape[1], row, column] != 0)
    return done


def find_synapses(model: onnx.ModelProto, plan: SpikingPlan) -> list[Layer]:
    """The layers that do SynOps."""
    return find_layers(model, plan).reading(Reads.SPIKES, Reads.CURRENTS)


def counted(model: onnx.ModelProto, feeds, neuron: NeuronSpec | None = None, steps: int = T):
    """(plan, counts, values of all events and of everything the counted nodes read, synapses)."""
    network = network_of(model)
    plan = make_plan(network, steps, threshold=0.7, bias=0.05)
    if neuron is not None:
        plan = plan.__class__(plan.source_digest, plan.sites, steps, neuron, plan.thresholds, plan.biases)
    emitted = emit_unrolled(network, plan).model
    synapses = find_synapses(emitted, plan)
    watched = count(emitted, plan)
    assert_valid(watched)
    names = {events_name(plan, site, t) for site in plan.sites for t in range(steps)}
    names |= {s.node.input[s.position] for s in synapses} | {s.node.output[0] for s in synapses}
    values = run(expose_tensors(watched, sorted(names)), feeds)
    return plan, values, synapses


def text(op: str, attrs: str, rank: int) -> str:
    axes = ", ".join("HWD"[:rank])
    attrs = f"<{attrs}>" if attrs else ""
    outputs = ", ".join("PQR"[:rank])
    return f"g (float[N, C, {axes}] x) => (float[N, O, {outputs}] y) {{ r = Relu(x) y = {op} {attrs} (r, w) }}"


@pytest.mark.parametrize(
    ("op", "case"), [*(("Conv", c) for c in CONVOLUTIONS), *(("ConvTranspose", c) for c in TRANSPOSED)]
)
def test_convolutions(op: str, case: str) -> None:
    shape, attrs, kernel = (CONVOLUTIONS if op == "Conv" else TRANSPOSED)[case]
    weights = numbers(*kernel, seed=1)
    model = parse(text(op, attrs, len(shape) - 1).replace("C,", f"{shape[0]},"), w=weights)
    x = numbers(2, *shape)
    _, values, synapses = counted(model, {"x": x})
    assert [s.step for s in synapses] == list(range(T))
    fanout = reaches(synapses[0].node, shape, weights)
    expected = [float(((values[s.node.input[0]] != 0) * fanout).sum()) / 2 for s in synapses]
    np.testing.assert_array_equal(values[SYNOPS], expected)
    np.testing.assert_array_equal(values[DENSE], [fanout.sum()])
    assert min(expected) > 0


@pytest.mark.parametrize(
    ("attrs", "kernel", "options"),
    [
        ("strides = [2, 3], pads = [1, 0, 2, 1]", (5, 4, 3, 2), ((2, 3), (1, 0), (1, 1), 1)),
        ("dilations = [2, 3], pads = [2, 3, 1, 0]", (5, 4, 3, 2), ((1, 1), (2, 3), (2, 3), 1)),
        ("group = 2, pads = [1, 1, 1, 1]", (6, 2, 3, 3), ((1, 1), (1, 1), (1, 1), 2)),
        ("group = 4, strides = [2, 2], pads = [1, 1, 1, 1]", (4, 1, 3, 3), ((2, 2), (1, 1), (1, 1), 4)),
    ],
)
def test_convolutions_against_a_loop_over_connections(attrs, kernel, options) -> None:
    weights = numbers(*kernel, seed=1)
    model = parse(text("Conv", attrs, 2).replace("C,", "4,"), w=weights)
    _, values, synapses = counted(model, {"x": numbers(2, 4, 8, 7)})
    expected = [
        naive_conv(values[s.node.input[0]], weights, options, values[s.node.output[0]].shape[2:]) for s in synapses
    ]
    np.testing.assert_array_equal(values[SYNOPS], np.array(expected) / 2)


@pytest.mark.parametrize(
    ("body", "shape", "kernel", "fanout"),
    [
        ("y = MatMul(r, w)", (4, 6), (6, 5), 5),
        ("y = MatMul(w, r)", (6, 4), (5, 6), 5),
        ("y = MatMul(r, w)", (4, 6), (6,), 1),
        ("z = Flatten(r) y = Gemm(z, w)", (6,), (6, 5), 5),
        ("z = Flatten(r) y = Gemm <transB = 1> (z, w)", (6,), (7, 6), 7),
    ],
)
def test_products(body: str, shape: tuple[int, ...], kernel: tuple[int, ...], fanout: int) -> None:
    axes = ", ".join(map(str, shape))
    model = parse(f"g (float[N, {axes}] x) => (y) {{ r = Relu(x) {body} }}", w=numbers(*kernel))
    model.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    _, values, synapses = counted(model, {"x": numbers(3, *shape)})
    expected = [np.count_nonzero(values[s.node.input[s.position]]) * fanout / 3 for s in synapses]
    assert len(expected) == T
    np.testing.assert_array_equal(values[SYNOPS], expected)
    np.testing.assert_array_equal(values[DENSE], [np.prod(shape) * fanout])


NEURONS = [
    NeuronSpec("if"),
    NeuronSpec("signed"),
    NeuronSpec("group", 3),
    NeuronSpec("signed-group", 15),
    NeuronSpec("multi-threshold", 4),
    NeuronSpec("signed-group", 3, "differential"),
    NeuronSpec("if", 1, "differential"),
]


@pytest.mark.parametrize("neuron", NEURONS, ids=str)
def test_events_and_binary_spikes(neuron: NeuronSpec) -> None:
    plan, values, _ = counted(onnx.load(RELU), {"image": digits("test", 6)[0]}, neuron)
    totals = np.zeros((2, T))
    for site in plan.sites:
        unit = plan.neuron_of(site).unit(plan.thresholds[site.name].reshape(site.channel_shape))
        events = np.stack([values[events_name(plan, site, t)] for t in range(T)])
        k = np.abs(np.rint(events / unit)).astype(int)
        ones = np.vectorize(lambda value: bin(value).count("1"))(k)
        axes = tuple(range(1, k.ndim))
        np.testing.assert_allclose(values[events_count_name(site.name)], (k > 0).mean(axes), rtol=1e-5)
        np.testing.assert_allclose(values[binary_count_name(site.name)], ones.mean(axes), rtol=1e-5)
        assert values[neurons_name(site.name)] == k[0].size / 6
        totals += np.stack([(k > 0).sum(axes), ones.sum(axes)]) / 6
    counts = total_counts(onnx.load(RELU), plan, {name: values[name] for name in counted_names(plan)})
    np.testing.assert_allclose(counts.events, np.cumsum(totals[0]) / counts.neurons, rtol=1e-5)
    np.testing.assert_allclose(counts.binary_spikes, np.cumsum(totals[1]) / counts.neurons, rtol=1e-5)
    np.testing.assert_allclose(counts.synops, np.cumsum(values[SYNOPS]))
    assert neuron.levels == 1 or neuron.is_powers or counts.binary_spikes[-1] > counts.events[-1]


@pytest.mark.parametrize("most", [*range(1, 20), 63, 64, 255])
def test_popcount_of_every_number(most: int) -> None:
    model = parse("g (float[N] k) => () { }")
    builder = GraphBuilder.on(model)
    tallies = Tallies(builder)
    ones = builder.op("Identity", tallies.written(tallies.popcount("k", most)))
    model = builder.extend(model, [onnx.helper.make_tensor_value_info(ones, onnx.TensorProto.FLOAT, ["N"])])
    found = run(model, {"k": np.arange(most + 1, dtype=np.float32)})[ones]
    np.testing.assert_array_equal(found, [bin(k).count("1") for k in range(most + 1)])


def test_differential_coding_counts_what_is_sent() -> None:
    """Through the pooling between the neurons and the layer; what is read there is not zero."""
    model = parse(
        """g (float[N, 2, 4, 4] x) => (float[N, 3, 2, 2] y) {
        r = Relu(x) p = AveragePool <kernel_shape = [2, 2], strides = [2, 2]> (r) y = Conv(p, w) }""",
        w=numbers(3, 2, 1, 1),
    )
    plan, values, synapses = counted(model, {"x": numbers(2, 2, 4, 4)}, NeuronSpec("if", 1, "differential"), 6)
    (site,) = plan.sites
    sent, read = [], []
    for s in synapses:
        q = values[events_name(plan, site, s.step)].reshape(2, 2, 2, 2, 2, 2).sum((3, 5))
        sent.append(np.count_nonzero(q) * 3 / 2)
        read.append(np.count_nonzero(values[s.node.input[0]]) * 3 / 2)
    np.testing.assert_array_equal(values[SYNOPS], sent)
    assert sum(sent) < sum(read)


def test_means_and_products_of_spikes_are_not_counted() -> None:
    model = parse(
        """g (float[N, 2, 4, 4] x) => (float[N, 3, 2, 2] y, float[N, 2, 4, 4] z) {
        r = Relu(x) p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r) q = Softmax <axis = 1> (p)
        y = Conv(q, w) z = MatMul(r, r) }""",
        w=numbers(3, 2, 1, 1),
    )
    network = network_of(model)
    plan = make_plan(network, T, threshold=0.7)
    synapses = find_synapses(emit_unrolled(network, plan).model, plan)
    assert {s.node.op_type for s in synapses} == {"Conv"}  # it reads the signed site behind Softmax
    assert len(synapses) == T
