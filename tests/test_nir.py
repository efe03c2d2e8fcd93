"""NIR: what is refused, and what the graph is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers import constant, eighths, make_plan, parse
from networks import network_of, residual
from nir_cases import T, graph_of, kinds, losses, mlp, reread, stated
from onnxruntime.transformers.float16 import convert_float_to_float16

from ftbc_onnx import ConvertConfig
from ftbc_onnx.graph.prepare import prepare
from ftbc_onnx.neurons import NeuronSpec
from ftbc_onnx.plan import SpikingPlan


def test_1_2_soft_reset_and_initial_membrane_are_losses_of_the_primitive_only() -> None:
    network = network_of(mlp())
    found = losses(network, soft_reset=False)
    assert [loss.what for loss in found] == ["soft reset", "initial membrane theta/2"]
    assert all(loss.nearest for loss in found)
    assert losses(network, soft_reset=True) == []


def test_3_temporal_biases_other_than_zero() -> None:
    network = network_of(residual())
    plan = make_plan(network, T, bias=0.25)
    zero = {network.sites[0].name: np.zeros((T, 4))}
    found = losses(network, plan.with_biases({**plan.biases, **zero}))
    assert [(loss.node, loss.what) for loss in found] == [(s.name, "temporal biases") for s in network.sites[1:]]
    assert all(loss.nearest for loss in found)


@pytest.mark.parametrize(
    "spec", [NeuronSpec("signed"), NeuronSpec("group", 4), NeuronSpec("if", 1, "differential")], ids=str
)
def test_4_other_neurons(spec: NeuronSpec) -> None:
    network = network_of(mlp())
    (loss,) = losses(network, make_plan(network, T).with_neuron(spec))
    assert str(spec) in loss.what
    assert loss.nearest is None


def test_5_signed_sites() -> None:
    network = network_of(mlp(r="r = Sigmoid(c)"))
    found = losses(network)
    assert "spikes of both signs" in [loss.what for loss in found]
    assert all(loss.nearest is None for loss in found)


def test_6_the_synchronous_schedule() -> None:
    network = network_of(mlp())
    plan = make_plan(network, T)
    synchronous = SpikingPlan("0", plan.sites, T, NeuronSpec("if"), plan.thresholds, schedule="synchronous")
    assert [(loss.what, loss.nearest) for loss in losses(network, synchronous)] == [("schedule synchronous", None)]


def test_7_thresholds_along_another_axis() -> None:
    text = "g (float[N,3,4,4] x) => (float[N,4,4,2] y) { t = Transpose<perm=[0,2,3,1]>(x)\n m = MatMul(t, w)\n"
    network = network_of(parse(text + "y = Relu(m) }", w=eighths(3, 2)))
    found = losses(network)
    assert "thresholds along axis 3" in [loss.what for loss in found]
    assert "MatMul" in [loss.what for loss in found]  # what is before it is looked at too
    assert "Transpose" in [loss.what for loss in found]


IMAGE = "g (float[N,2,6,6] x) => (float[N,a,b,c] y) { r = Relu(x)\n "
CASES = {
    "MaxPool": ("y = MaxPool<kernel_shape=[2,2]>(r)", "no layer of weights"),
    "Softmax": ("y = Softmax<axis=1>(r)", "no layer of weights"),
    "depthless": ("m = MaxPool<kernel_shape=[1,1], strides=[2,2]>(r)\n y = Conv(m, w)", "no layer of weights"),
    "excluding": ("y = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1]>(r)", "count_include_pad"),
    "ceil": ("y = AveragePool<kernel_shape=[4,4], strides=[3,3], ceil_mode=1>(r)", "ceil_mode"),
    "reduce": ("y = ReduceMean<axes=[1]>(r)", "other axes than H and W"),
    "reshape": ("y = Reshape(r, shape)", "changes the shape"),
    "asymmetric pool": ("y = AveragePool<kernel_shape=[2,2], pads=[0,0,1,1]>(r)", "not symmetric"),
    "asymmetric dilated": ("y = Conv<pads=[0,0,1,1], dilations=[2,2]>(r, w)", "not symmetric"),
    "not to be squared": ("y = Conv<pads=[0,0,1,2]>(r, w)", "cannot be made square"),
    "negative padding": ("y = Conv<pads=[-1,0,0,0]>(r, w)", "negative"),
    "join of rows": ("y = Concat<axis=2>(r, r)", "another axis"),
    "cut behind": ("y = Slice(r, two, four, two)", "cuts the image behind"),
    "turned around": ("y = Slice(r, minus, least, two, minus)", "turns it around"),
    "edges": ('y = Pad<mode="edge">(r, pads)', "other than zeros"),
    "transposed conv": ("y = ConvTranspose(r, w)", "no layer of weights"),
    "constant": ("y = Add(r, image)", "not one number per channel"),
    "spiking weights": ("y = Mul(r, x)", "no layer of weights"),
}


@pytest.mark.parametrize("name", CASES)
def test_8_nodes_that_are_no_layer(name: str) -> None:
    body, reason = CASES[name]
    model = parse(
        IMAGE + body + " }",
        w=eighths(2, 2, 3, 3),
        shape=np.array([0, 4, 3, 6]),
        image=eighths(1, 2, 6, 6),
        two=np.array([2]),
        four=np.array([4]),
        minus=np.array([-1]),
        least=np.array([-100]),
        pads=np.array([0, 0, 1, 1, 0, 0, 1, 1]),
    )
    found = losses(network_of(model))
    assert any(reason in loss.why for loss in found), found
    assert all(loss.nearest is None for loss in found)


def test_8_sizes_that_are_not_fixed() -> None:
    model = parse("g (float[N,2,H,W] x) => (float[N,2,H,W] y) { r = Relu(x)\n y = Conv(r, w) }", w=eighths(2, 2, 1, 1))
    assert any("no fixed size" in loss.why for loss in losses(network_of(model)))


# --- the graph ---


def test_the_graph_of_a_residual_network() -> None:
    network = network_of(residual())
    plan = make_plan(network, T, stated(network))
    graph = graph_of(network, plan, soft_reset=False)
    assert kinds(graph) == "Input Conv2d IF Conv2d IF Conv2d Conv2d IF AvgPool2d Flatten Affine Output".split()
    for node in graph.nodes.values():
        if type(node).__name__ == "IF":
            assert np.array_equal(node.r, np.ones((4, 4, 4)))
            assert np.array_equal(node.v_threshold, np.nextafter(node.r, np.float32(0)))
            assert not node.v_reset.any()
    assert graph.metadata == {"made_by": "ftbc-onnx", "steps": T, "readout": "mean"}


def test_thresholds_go_into_the_weights_exactly() -> None:
    """Powers of two move no bit: the weights are the ANN's, times theta of their input over theta of their output."""
    network = network_of(residual())
    plan = make_plan(network, T, stated(network))
    graph = graph_of(network, plan)
    first, second, third = (plan.thresholds[s.name] for s in network.sites)
    convs = [graph.nodes[n] for n in sorted(graph.nodes) if type(graph.nodes[n]).__name__ == "Conv2d"]
    incoming = {"w1": np.ones(2), "w2": first, "w3": second}
    for node, (name, before), after in zip(convs, incoming.items(), (first, second, third), strict=False):
        expected = constant(residual(), name) * before.reshape(1, -1, 1, 1) / after.reshape(-1, 1, 1, 1)
        assert np.array_equal(node.weight, expected)
    skip = convs[3].weight[:, :, 0, 0]
    assert np.array_equal(skip, np.diag(first / third))


def test_the_casts_around_a_network_of_float16_are_nothing() -> None:
    """Its numbers are eighths, so float16 has them: the graph is that of the float32 network."""
    half = convert_float_to_float16(mlp())
    network = prepare(half, ConvertConfig(steps=T))[1]
    assert [node.op_type for node in network.view.nodes] == ["Cast", "Gemm", "Relu", "Gemm", "Cast"]
    found = graph_of(network, make_plan(network, T))
    plain = network_of(mlp())
    expected = graph_of(plain, make_plan(plain, T))
    assert kinds(found) == kinds(expected)
    for name in expected.nodes:
        if hasattr(expected.nodes[name], "weight"):
            np.testing.assert_array_equal(found.nodes[name].weight, expected.nodes[name].weight)


def test_a_cast_to_what_is_no_float_is_no_layer() -> None:
    network = network_of(mlp(y="i = Cast <to = 7> (r) f = Cast <to = 1> (i) y = Gemm <transB = 1> (f, w2)"))
    assert "it casts from or to what is no float" in [loss.why for loss in losses(network)]


def test_a_file_comes_back_as_it_was_written(tmp_path: Path) -> None:
    pytest.importorskip("nir")
    network = network_of(residual())
    graph = graph_of(network, make_plan(network, T, stated(network)))
    back = reread(graph, tmp_path / "a.nir")
    assert sorted(back.nodes) == sorted(graph.nodes)
    assert sorted(back.edges) == sorted(graph.edges)
    for name, node in graph.nodes.items():
        for key, value in node.to_dict().items():
            other = back.nodes[name].to_dict()[key]
            assert np.array_equal(np.asarray(value), np.asarray(other)) or key == "metadata", (name, key)
        origin = back.nodes[name].metadata["onnx"]
        assert (origin.decode() if isinstance(origin, bytes) else origin) == node.metadata["onnx"]


def test_hostile_names(tmp_path: Path) -> None:
    """Names that are paths, keywords, empty for HDF5 or for Python."""
    model = residual()
    names = ["a/b", "..", ".", "for", "a\0b", "node", "//", "ü \n", "state"]
    for node, name in zip(model.graph.node, names, strict=False):
        node.name = name
    network = network_of(model)
    back = reread(graph_of(network, make_plan(network, T)), tmp_path / "a.nir")
    assert all(name.isidentifier() for name in back.nodes)
    origins = [node.metadata["onnx"] for node in back.nodes.values()]
    origins = [o.decode() if isinstance(o, bytes) else o for o in origins]
    assert {"a/b", "..", ".", "for", "a\\0b", "ü \n"} <= set(origins)
