"""Finding sites and classing every other node; what is refused, and why."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from helpers import OPSETS, numbers, parse

from ftbc_onnx.errors import ModelError
from ftbc_onnx.graph.classes import ACTIVATIONS, LINEAR, NodeClass
from ftbc_onnx.graph.emit.unrolled import emit_unrolled
from ftbc_onnx.graph.normalise import normalise
from ftbc_onnx.graph.sites import Network, find_network
from ftbc_onnx.plan import SpikingPlan

WEIGHTS = {
    "w": numbers(4, 3, 3, 3),
    "w4": numbers(4, 4, 3, 3),
    "zero": np.float32(0),
    "zero1": np.zeros(1, np.float32),
    "six": np.float32(6),
    "one": np.float32(1),
    "minus": np.float32(-1),
    "huge": np.float32(3.4028234663852886e38),
    "infinite": np.float32(np.inf),
    "zeros": np.zeros((3, 1, 1), np.float32),
    "slopes": np.full((3, 1, 1), 0.25, np.float32),
}
IMAGE = "float[N,3,8,8] x"


def network_of(
    body: str, inputs: str = IMAGE, outputs: str = "float[a,b,c,d] y", opset: int = 17, **constants
) -> Network:
    """A classed network; outputs [a, ...] are of any type and shape."""
    model = parse(f"g ({inputs}) => ({outputs}) {{ {body} }}", opset=opset, **{**WEIGHTS, **constants})
    for value in model.graph.output:
        if value.type.tensor_type.shape.dim[0].dim_param == "a":
            value.ClearField("type")
    network = find_network(normalise(model).model)
    assert_consistent(network)
    return network


def assert_consistent(network: Network) -> None:
    """What holds for every network: each node has one class, sites own their nodes, tensors are temporal or not."""
    names = [node.name for node in network.view.nodes]
    assert set(names) == set(network.classes)
    owned = [name for site in network.sites for name in site.nodes]
    assert len(set(owned)) == len(owned)
    assert set(owned) == {name for name, kind in network.classes.items() if kind is NodeClass.SITE}
    assert network.mean_form <= network.temporal
    assert {site.spikes for site in network.sites} <= network.temporal
    assert len({site.name for site in network.sites}) == len(network.sites)
    for position, site in enumerate(network.sites):
        assert set(site.upstream) <= {earlier.name for earlier in network.sites[:position]}


# rectifiers


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize(
    ("body", "op_type", "ceiling"),
    [
        ("y = Relu(x)", "Relu", None),
        ("y = Clip(x, zero, six)", "Clip", 6),
        ("y = Clip(x, zero)", "Clip", None),
        ("y = Clip(x, zero, )", "Clip", None),
        ("y = Clip(x, zero, huge)", "Clip", None),
        ("y = Clip(x, zero, infinite)", "Clip", None),
        ("y = Max(x, zero)", "Max", None),
        ("y = Max(zero, x)", "Max", None),
        ("y = Max(x, zero1)", "Max", None),
        ("y = Max(zeros, x)", "Max", None),
        ("a = Relu(x) y = Min(a, six)", "Clip", 6),
        ("a = Min(x, six) y = Max(a, zero)", "Clip", 6),
        ("s = Shape(x) z = ConstantOfShape(s) y = Max(x, z)", "Max", None),
        ("s = Shape(x) z = Expand(zero, s) y = Max(z, x)", "Max", None),
    ],
)
def test_rectifier_is_a_site(opset, body, op_type, ceiling):
    network = network_of(body, opset=opset)
    (site,) = network.sites
    assert network.refusals == ()
    assert (site.op_type, site.ceiling) == (op_type, ceiling)
    assert (site.current, site.spikes) == ("x", "y")
    assert (site.rank, site.channel_axis, site.channels) == (4, 1, 3)
    assert (site.threshold, site.levels, site.upstream) == (None, None, ())
    assert network.classes[site.name] is NodeClass.SITE


@pytest.mark.parametrize("opset", [9, 10])
def test_clip_with_attributes(opset):
    (site,) = network_of("y = Clip <min = 0.0, max = 6.0> (x)", opset=opset).sites
    assert (site.op_type, site.ceiling) == ("Clip", 6)
    (site,) = network_of("y = Clip <min = 0.0> (x)", opset=opset).sites
    assert (site.op_type, site.ceiling) == ("Clip", None)


@pytest.mark.parametrize("batch", [1, 7])
def test_rectifier_with_zeros_like_and_a_static_batch(batch):
    for made in ("ConstantOfShape(s)", "Expand(zero, s)"):
        (site,) = network_of(f"s = Shape(x) z = {made} y = Max(x, z)", f"float[{batch},3,8,8] x").sites
        assert (site.op_type, site.current) == ("Max", "x")


# what counts as a site of its own


def test_reused_module_is_two_sites():
    network = network_of("a = Conv(x, w) r = Relu(a) b = Conv(r, w4) y = Relu(b)")
    assert [(site.current, site.spikes) for site in network.sites] == [("a", "r"), ("b", "y")]
    assert network.sites[1].upstream == (network.sites[0].name,)


def test_activations_with_the_same_current_are_two_sites():
    network = network_of("a = Relu(x) b = Relu(x) y = Add(a, b)")
    assert [site.current for site in network.sites] == ["x", "x"]
    assert [site.upstream for site in network.sites] == [(), ()]


def test_site_that_is_an_output_and_is_read():
    network = network_of("a = Relu(x) y = Conv(a, w)", outputs="float[N,3,8,8] a, float[N,4,6,6] y")
    (site,) = network.sites
    assert site.spikes == "a"
    assert network.temporal == {"a", "y"}


@pytest.mark.parametrize("names", [["", "", "", ""], ["act", "act", "act", "act"], ["conv", "act", "conv", "act"]])
def test_nodes_without_names_or_with_the_same(names):
    model = parse(
        f"g ({IMAGE}) => (float[N,4,4,4] y) {{ a = Conv(x, w) r = Relu(a) b = Conv(r, w4) y = Relu(b) }}", **WEIGHTS
    )
    for node, name in zip(model.graph.node, names, strict=True):
        node.name = name
    network = find_network(normalise(model).model)
    assert_consistent(network)
    assert len(network.sites) == 2
    assert all(site.name for site in network.sites)


def test_upstream_ends_at_the_first_site():
    network = network_of(
        "a = Relu(x) b = Neg(x) c = Relu(b) d = Add(a, c) e = Relu(d) f = Add(e, a) "
        "g = MaxPool <kernel_shape = [2,2]> (f) h = Relu(g) y = Add(h, h)"
    )
    a, c, e, h = network.sites
    assert (a.upstream, c.upstream) == ((), ())
    assert e.upstream == (a.name, c.name)
    assert h.upstream == (a.name, e.name)


def test_no_activation_at_all():
    network = network_of("y = Conv(x, w)")
    assert (network.sites, network.refusals, network.temporal) == ((), (), frozenset())
    assert set(network.classes.values()) == {NodeClass.STATIC}


# classes


def kind_of(network: Network, tensor: str) -> NodeClass:
    return network.classes[network.view.producers[tensor].name]


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
    assert existing >= set(LINEAR)
    assert existing >= ACTIVATIONS


# refusals


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


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("y = Bernoulli(r)", "its output is random"),
        ("y = RandomNormalLike(r)", "its output is random"),
        ("i = Flatten(r) y = Multinomial(i)", "its output is random"),
        ("y = Dropout(r, zero, yes)", "its output is random"),
        ("y = Dropout(r, zero, perhaps)", "its output is random"),
        ("y = custom.Op(r)", "it is of the domain 'custom'"),
    ],
)
def test_refusal_says_why(body, words):
    text = f"g ({IMAGE}, float top, bool perhaps) => (float[a] y) {{ k = Neg(x) r = Relu(k) {body} }}"
    model = parse(text, domains='"custom" : 1', yes=np.array(True), **WEIGHTS)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    network = find_network(normalise(model).model)
    (refusal,) = network.refusals
    assert refusal.node == network.view.producers["y"].name
    assert words in refusal.reason
    assert str(refusal) == f"{refusal.op_type} '{refusal.node}': {refusal.reason}"


@pytest.mark.parametrize(
    "body",
    [
        "y = custom.Relu(k)",
        "y = custom.Clip(k, zero, six)",
        "y = custom.Max(k, zero)",
        "a = Clip(k, zero, one) b = Mul(a, four) c = Add(b, half) d = custom.Floor(c) y = Div(d, four)",
    ],
)
def test_operator_of_another_domain_with_the_name_of_a_rectifier_is_refused(body):
    text = f"g ({IMAGE}) => (float[a] y) {{ k = Neg(x) {body} }}"
    model = parse(text, domains='"custom" : 1', four=np.float32(4), half=np.float32(0.5), **WEIGHTS)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    network = find_network(normalise(model).model)
    (refusal,) = network.refusals
    assert "it is of the domain 'custom'" in refusal.reason
    assert not any(site.op_type == "QCFS" for site in network.sites)


def test_rectifier_with_a_constant_that_adds_an_axis_is_no_site():
    model = parse(
        "g (float[N,3] x) => (float[1,N,3] y) <float[1,1,1] z = {0}> { r = Relu(x) q = Neg(r) y = Max(q, z) }"
    )
    network = find_network(normalise(model).model)
    assert [site.op_type for site in network.sites] == ["Relu"]
    assert kind_of(network, "y") is NodeClass.RATE_EXACT


@pytest.mark.parametrize("kind", ["double", "float16"])
def test_rectifier_of_another_precision_is_refused(kind):
    model = parse(f"g ({kind}[N,3] x) => ({kind}[N,3] y) {{ y = Relu(x) }}")
    network = find_network(normalise(model).model)
    (refusal,) = network.refusals
    assert "float32" in refusal.reason
    with pytest.raises(ModelError, match="float32"):
        emit_unrolled(
            network, SpikingPlan("", network.sites, 1, "if", {s.name: np.ones(s.channels) for s in network.sites})
        )


def test_integer_clip_and_max_are_no_activations():
    network = network_of(
        "r = Relu(x) i = ArgMax(r) c = Clip(i, low, high) m = Max(c, low) y = Cast <to = 1> (m)",
        low=np.int64(0),
        high=np.int64(3),
    )
    assert [site.op_type for site in network.sites] == ["Relu"]
    assert network.refusals == ()


IF = """y = If ({}) <
    then_branch = then () => (float[N,3,8,8] p) {{ p = Neg({}) }},
    else_branch = other () => (float[N,3,8,8] q) {{ q = Abs(x) }}
>"""


@pytest.mark.parametrize(
    ("condition", "read", "refused"),
    [("c", "x", False), ("c", "r", True), ("d", "x", True)],
)
def test_control_flow_is_refused_where_it_touches_spikes(condition, read, refused):
    body = f"r = Relu(x) k = ReduceSum <keepdims = 0> (r) d = Greater(k, zero) {IF.format(condition, read)} z = Neg(r)"
    network = network_of(body, f"{IMAGE}, bool c", "float[N,3,8,8] y, float[N,3,8,8] z")
    assert [refusal.op_type for refusal in network.refusals] == (["If"] if refused else [])
    if refused:
        assert "control flow that depends on spikes" in network.refusals[0].reason


def test_what_no_spike_reaches_is_not_refused_for_being_other_than_a_rectifier():
    network = network_of(
        "a = Clip(x, minus, one) b = Max(a, slopes) c = Min(b, six) d = RandomNormalLike(c) e = Add(c, d) y = Relu(e)"
    )
    assert network.refusals == ()
    assert len(network.sites) == 1


def test_every_refusal_is_listed_and_nothing_is_emitted():
    network = network_of("r = Relu(x) a = Sigmoid(r) b = RandomNormalLike(a) c = Bernoulli(a) y = Add(b, c)")
    assert sorted(refusal.op_type for refusal in network.refusals) == ["Bernoulli", "RandomNormalLike"]
    plan = SpikingPlan("", network.sites, 2, "if", {site.name: np.ones(site.channels) for site in network.sites})
    with pytest.raises(ModelError, match="cannot be converted") as raised:
        emit_unrolled(network, plan)
    assert all(str(refusal) in str(raised.value) for refusal in network.refusals)
