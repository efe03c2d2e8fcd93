"""Finding sites; what is refused, and why."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import OPSETS, parse
from site_cases import IMAGE, WEIGHTS, assert_consistent, kind_of, network_of

from ftbc_onnx.errors import ModelError
from ftbc_onnx.graph.classes import NodeClass
from ftbc_onnx.graph.emit.unrolled import emit_unrolled
from ftbc_onnx.graph.normalise import normalise
from ftbc_onnx.graph.sites import find_network
from ftbc_onnx.plan import SpikingPlan

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


# refusals


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("y = Bernoulli(r)", "its output is random"),
        ("y = RandomNormalLike(r)", "its output is random"),
        ("i = Flatten(r) y = Multinomial(i)", "its output is random"),
        ("y = Dropout(r, half, yes)", "it drops at random, as in training: export the model in evaluation mode"),
        ("y = Dropout(r, half, perhaps)", "it drops at random"),
        ("y = custom.Op(r)", "it is of the domain 'custom'"),
    ],
)
def test_refusal_says_why(body, words):
    text = f"g ({IMAGE}, float top, bool perhaps) => (float[a] y) {{ k = Neg(x) r = Relu(k) {body} }}"
    model = parse(text, domains='"custom" : 1', yes=np.array(True), half=np.float32(0.5), **WEIGHTS)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    network = find_network(normalise(model).model)
    (refusal,) = network.refusals
    assert refusal.node == network.view.producers["y"].name
    assert words in refusal.reason
    assert str(refusal) == f"{refusal.op_type} '{refusal.node}': {refusal.reason}"


def test_a_dropout_before_the_first_activation_is_refused_too():
    body = "k = Dropout(x, share, yes) r = Relu(k) y = Conv(r, w)"
    (refusal,) = network_of(body, yes=np.array(True), share=np.float32(0.5)).refusals
    assert (refusal.op_type, "as in training" in refusal.reason) == ("Dropout", True)
    assert network_of(body, yes=np.array(True), share=np.float32(0)).refusals == ()


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
