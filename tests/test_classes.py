"""Classing every node that is no site: linear, rate-exact, or neither; and where spikes start again."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from helpers import numbers, parse
from site_cases import IMAGE, WEIGHTS, kind_of, network_of

from ftbc_onnx.graph.classes import ACTIVATIONS, LINEAR, NodeClass
from ftbc_onnx.graph.normalise import normalise
from ftbc_onnx.graph.sites import find_network


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ("y = Conv(r, w)", "linear"),
        ("y = Add(r, x)", "linear"),
        ("y = Sub(x, r)", "linear"),
        ("y = Mul(r, x)", "linear"),
        ("y = Mul(x, r)", "linear"),
        ("y = Div(r, x)", "linear"),
        ("y = Neg(r)", "linear"),
        ("y = Concat <axis = 1> (r, x)", "linear"),
        ("y = Sum(r, x, r)", "linear"),
        ("y = Mean(r, x)", "linear"),
        ("y = AveragePool <kernel_shape = [2,2]> (r)", "linear"),
        ("y = GlobalAveragePool(r)", "linear"),
        ("y = ReduceMean(r)", "linear"),
        ("y = ReduceSum(r)", "linear"),
        ("y = Transpose <perm = [0,2,3,1]> (r)", "linear"),
        ("y = Flatten(r)", "linear"),
        ("y = MatMul(r, x)", "linear"),
        ("y = MatMul(x, r)", "linear"),
        ("y = Pad(r, pads, one)", "linear"),
        ("y = Slice(r, at, to)", "linear"),
        ("y, q = Split <axis = 3> (r)", "linear"),
        ("y = Gather(r, at)", "linear"),
        ("y = Resize(r, , scales)", "linear"),
        ("c = Greater(x, zero) y = Where(c, r, x)", "linear"),
        ("y = Cast <to = 11> (r)", "linear"),
        ("y = BatchNormalization(r, p, p, p, x3)", "linear"),
        ("y = Mul(r, r)", "rate-exact"),
        ("q = Neg(r) y = Mul(r, q)", "rate-exact"),
        ("y = Div(x, r)", "rate-exact"),
        ("y = MatMul(r, r)", "rate-exact"),
        ("y = MaxPool <kernel_shape = [2,2]> (r)", "rate-exact"),
        ("y = GlobalMaxPool(r)", "rate-exact"),
        ("y = Softmax(r)", "rate-exact"),
        ("y = ReduceMax(r)", "rate-exact"),
        ("y = Exp(r)", "rate-exact"),
        ("y = Sqrt(r)", "rate-exact"),
        ("y = Max(r, x)", "rate-exact"),
        ("y = Min(x, r)", "rate-exact"),
        ("y = Greater(r, x)", "rate-exact"),
        ("y = ArgMax(r)", "rate-exact"),
        ("y = Cast <to = 7> (r)", "rate-exact"),
        ("i = Cast <to = 7> (r) y = Cast <to = 1> (i)", "rate-exact"),
        ("c = Greater(r, zero) y = Where(c, r, x)", "rate-exact"),
        ("q = ReduceSum <keepdims = 0> (r) i = Cast <to = 7> (q) y = Gather(x, i)", "rate-exact"),
        ("y = Conv(x, r)", "rate-exact"),
        ("y = LayerNormalization(r, row)", "rate-exact"),
        ("y = Floor(r)", "rate-exact"),
        ("y = Shape(r)", "static"),
        ("y = Size(r)", "static"),
        ("s = Shape(r) c = Cast <to = 1> (s) y = Neg(c)", "static"),
        ("y = Sin(x)", "static"),
    ],
)
def test_class_of_a_node(body, kind):
    constants = {
        "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
        "at": np.array([1]),
        "to": np.array([2]),
        "scales": np.array([1, 1, 2, 2], np.float32),
        "p": numbers(3),
        "row": numbers(8),
    }
    network = network_of(
        f"r = Relu(x) {body} z = Neg(r)", f"{IMAGE}, float[3] x3", "float[a] y, float[a] z", **constants
    )
    assert network.refusals == ()
    assert kind_of(network, "y").value == kind
    assert ("y" in network.temporal) == (kind != "static")
    assert ("y" in network.mean_form) == (kind == "rate-exact")


def test_gemm_is_linear_in_its_bias_and_one_factor():
    def kind(call: str) -> str:
        body = f"r = Relu(x) q = Neg(r) y = Gemm({call})"
        return kind_of(network_of(body, "float[4,4] x", "float[a] y", m=numbers(4, 4)), "y").value

    assert kind("r, m, q") == "linear"
    assert kind("m, r") == "linear"
    assert kind("m, m, r") == "linear"
    assert kind("r, q") == "rate-exact"


def test_linear_nodes_after_rate_exact_ones_only_stay_in_mean_form():
    network = network_of("r = Relu(x) p = Softmax(r) q = Neg(p) s = Add(q, r) t = Add(q, p) y = Add(s, t)")
    assert network.mean_form == {"p", "q", "t"}
    assert {kind_of(network, name) for name in "qsty"} == {NodeClass.LINEAR}


def test_tables_name_operators_that_exist():
    existing = {schema.name for schema in onnx.defs.get_all_schemas() if schema.domain == ""}
    newer = set() if onnx.defs.onnx_opset_version() >= 24 else {"Swish"}
    assert existing >= set(LINEAR)
    assert existing >= ACTIVATIONS - newer


# functions that are no rectifiers


@pytest.mark.parametrize(
    "op",
    [
        "Celu",
        "Elu",
        "HardSigmoid",
        "HardSwish",
        "LeakyRelu",
        "Selu",
        "Shrink",
        "Sigmoid",
        "Softplus",
        "Softsign",
        "Tanh",
        "ThresholdedRelu",
        "Mish",
    ],
)
def test_other_activations_are_applied_to_means(op):
    network = network_of(f"r = Relu(x) y = {op}(r)", opset=18)
    assert network.refusals == ()
    assert kind_of(network, "y") is NodeClass.RATE_EXACT
    assert [site.op_type for site in network.sites] == ["Relu"]  # nothing reads the output, so no spikes are made of it


@pytest.mark.parametrize("op", ["Sigmoid", "Tanh", "HardSwish", "LeakyRelu", "Softsign"])
def test_layers_behind_other_activations_read_spikes(op):
    body = f"c = Conv(x, w) r = Relu(c) a = {op}(r) y = Conv(a, w4)"
    network = network_of(body)
    relu, signed = network.sites
    assert (signed.op_type, signed.signed, signed.upstream) == (op, True, (relu.name,))
    assert (signed.current, signed.channels, signed.channel_axis) == ("a", 4, 1)
    assert network.view.producers["y"].input[0] == signed.spikes
    assert kind_of(network, "y") is NodeClass.LINEAR
    assert "y" not in network.mean_form


def test_values_travel_on_where_spikes_are_not_wanted():
    model = parse(
        "g (float[N,3,8,8] x) => (float[N,4,4,4] y) { c = Conv(x, w) r = Relu(c) a = Tanh(r) y = Conv(a, w4) }",
        **WEIGHTS,
    )
    network = find_network(normalise(model).model, smooth="rate-exact")
    assert [site.signed for site in network.sites] == [False]
    assert "y" in network.mean_form


def test_spikes_start_at_an_activation_that_no_spike_reaches():
    network = network_of("c = Conv(x, w) s = Sigmoid(c) m = Mul(c, s) d = Conv(m, w4) t = Tanh(d) y = Conv(t, w4)")
    assert [(site.op_type, site.signed) for site in network.sites] == [("Mul", True), ("Tanh", True)]
    assert kind_of(network, "s") is NodeClass.STATIC
    assert network.refusals == ()


def test_two_readers_of_one_activation_share_its_spikes():
    network = network_of("r = Relu(x) a = Tanh(r) b = Conv(a, w) c = Conv(a, w) y = Add(b, c)")
    assert len(network.sites) == 2


def test_maxima_are_read_as_they_are():
    body = "r = Relu(x) n = Neg(r) p = MaxPool <kernel_shape = [2, 2]> (n) y = Conv(p, w)"
    network = network_of(body)
    assert [site.signed for site in network.sites] == [False]


def test_a_sum_with_a_current_reads_spikes_and_a_sum_of_means_does_not():
    network = network_of("r = Relu(x) a = Tanh(r) y = Add(a, r)")
    assert [site.op_type for site in network.sites] == ["Relu", "Tanh"]
    network = network_of("r = Relu(x) a = Tanh(r) b = Sigmoid(r) y = Add(a, b)")
    assert [site.op_type for site in network.sites] == ["Relu"]
    assert "y" in network.mean_form


def test_gelu_as_a_chain_of_erf():
    body = "c = Conv(x, w) r = Relu(c) d = Mul(r, one) e = Erf(d) f = Add(e, one) g = Mul(r, f) y = Conv(g, w4)"
    network = network_of(body)
    assert [site.op_type for site in network.sites] == ["Relu", "Mul"]


@pytest.mark.parametrize("body", ["y = PRelu(x, slopes)", "y = PRelu(x, zeros)"])
def test_prelu_is_not_taken_for_a_rectifier(body):
    network = network_of(body)
    assert (network.sites, network.refusals) == ((), ())


@pytest.mark.parametrize(
    "body",
    [
        "q = Neg(r) y = Clip(q, one, six)",
        "q = Neg(r) y = Clip(q, minus, six)",
        "q = Neg(r) y = Clip(q, , six)",
        "q = Neg(r) y = Clip(q, zero, zero)",
        "q = Neg(r) y = Max(q, one)",
        "q = Neg(r) y = Max(q, slopes)",
        "q = Neg(r) y = Min(q, zero)",
        "q = Neg(r) y = Max(q, zero, r)",
    ],
)
def test_bounds_that_are_no_rectifiers_are_applied_to_means(body):
    network = network_of(f"k = Neg(x) r = Relu(k) {body}")
    assert network.refusals == ()
    assert [site.op_type for site in network.sites] == ["Relu"]
    assert kind_of(network, "y") is NodeClass.RATE_EXACT
