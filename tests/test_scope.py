"""Which activations are converted: patterns, their precedence, a node behind which nothing is, strictness."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import numbers, parse, run

from ftbc_onnx import ConfigError, ModelError, convert
from ftbc_onnx.graph.classes import NodeClass
from ftbc_onnx.graph.normalise import normalise
from ftbc_onnx.graph.scope import Scope
from ftbc_onnx.graph.sites import find_network
from ftbc_onnx.inspection import inspect_model

TEXT = """g (float[N,3,6,6] x) => (float[N,4,6,6] y) <float zero = {0}, float six = {6}> {
    c1 = Conv <pads = [1,1,1,1]> (x, w1)
    r1 = Relu(c1)
    c2 = Conv <pads = [1,1,1,1]> (r1, w2)
    k2 = Clip(c2, zero, six)
    c3 = Conv <pads = [1,1,1,1]> (k2, w2)
    r3 = Relu(c3)
    y = Conv <pads = [1,1,1,1]> (r3, w2)
}"""
W = {"w1": numbers(4, 3, 3, 3, scale=0.3), "w2": numbers(4, 4, 3, 3, seed=1, scale=0.3)}


def model():
    return parse(TEXT, **W)


def converted(**scope) -> list[str]:
    network = find_network(normalise(model()).model, Scope(**scope))
    assert {site.name for site in network.sites} | {left.node for left in network.analog} == {"r1", "k2", "r3"}
    return [site.name for site in network.sites]


@pytest.mark.parametrize(
    ("scope", "names"),
    [
        ({}, ["r1", "k2", "r3"]),
        ({"exclude": ("Relu",)}, ["k2"]),
        ({"exclude": ("Clip|Relu",), "include": ("r1",)}, ["r1"]),  # a name goes before a type
        ({"include": ("Relu",)}, ["r1", "r3"]),
        ({"include": ("Relu",), "exclude": ("r3",)}, ["r1"]),
        ({"include": ("r",), "exclude": ("r1",)}, ["r3"]),  # exclude goes before include
        ({"exclude": ("^r",)}, ["k2"]),
        ({"until": "c3"}, ["r1", "k2"]),
        ({"until": "r1"}, ["r1"]),
    ],
)
def test_scope_takes(scope, names):
    assert converted(**scope) == names


@pytest.mark.parametrize(
    ("scope", "message"),
    [
        ({"exclude": ("rr1",)}, "'rr1' matches no activation of the model: did you mean 'r1'"),
        ({"include": ("Reul",)}, "did you mean 'Relu'"),
        ({"exclude": ("qqqqqq",)}, "ftbc-onnx inspect -v"),
        ({"until": "c33"}, "the model has no node 'c33': did you mean 'c3'"),
        ({"include": ("(",)}, r"'\(' is no regular expression"),
    ],
)
def test_what_the_model_does_not_have_is_an_error(scope, message):
    with pytest.raises(ConfigError, match=message):
        converted(**scope)


def test_behind_until_everything_is_computed_on_means():
    network = find_network(normalise(model()).model, Scope(until="k2"))
    assert {network.classes[name] for name in ("c3", "r3", "y")} == {NodeClass.RATE_EXACT}
    assert [left.reason for left in network.analog] == ["behind --until k2"]


def kept(model, until: str) -> tuple[list[str], list[str]]:
    result = convert(model, numbers(32, 6), steps=2, neuron="if", until=until, threads=1)
    assert result.report["verification"]["bitwise"]
    return [site.name for site in result.plan.sites], [left["node"] for left in result.report["analog"]]


@pytest.mark.parametrize("part", ["mul", "div", "floor", "clip", "out"])
def test_until_a_node_within_an_activation_is_until_all_of_it(part):
    """A QCFS activation is a chain of nodes, and neurons take the place of the whole."""

    def chain(of: str, name: str) -> str:
        return (
            f"{name}_mul = Mul({of}, four)  {name}_div = Div({name}_mul, theta)  {name}_add = Add({name}_div, half)  "
            f"{name}_floor = Floor({name}_add)  {name}_clip = Clip({name}_floor, zero, four)  "
            f"{name}_out = Mul({name}_clip, step)"
        )

    numbers_ = {"four": 4.0, "theta": 2.0, "half": 0.5, "zero": 0.0, "step": 0.5}
    net = parse(
        f"g (float[N,6] x) => (float[N,3] y) {{ a = Gemm(x, w)  {chain('a', 'q1')}  b = Gemm(q1_out, v)  "
        f"{chain('b', 'q2')}  s = Add(q1_out, q2_out)  y = Gemm(s, u) }}",
        w=numbers(6, 8),
        v=numbers(8, 8, scale=0.5),
        u=numbers(8, 3),
        **{name: np.array(value, np.float32) for name, value in numbers_.items()},
    )
    assert kept(net, f"q2_{part}") == (["q1_out", "q2_out"], [])
    assert kept(net, f"q1_{part}") == (["q1_out"], ["q2_out"])


def test_until_a_pool_is_behind_the_rectifier_that_it_read():
    """Which goes behind the pool before anything is converted."""
    text = """g (float[N,3,6,6] x) => (float[N,4,1,1] y) {
        a = Conv(x, w) r = Relu(a) b = Conv(r, v) q = Relu(b) p = MaxPool <kernel_shape = [2,2]> (q) y = Conv(p, v)
        }"""
    net = parse(text, w=numbers(4, 3, 2, 2, scale=0.3), v=numbers(4, 4, 2, 2, scale=0.3))
    for until in ("p", "q"):
        result = convert(net, numbers(32, 3, 6, 6), steps=2, neuron="if", until=until, threads=1)
        assert [site.name for site in result.plan.sites] == ["r", "q"]
        assert result.report["verification"]["bitwise"]


@pytest.mark.parametrize(
    ("body", "until", "sites"),
    [
        ("q = Relu(b) o = MaxPool <kernel_shape = [2,2]> (q) p = MaxPool <kernel_shape = [2,2]> (o)", "p", ["q"]),
        ("q = Relu(b) i = Identity(q) p = MaxPool <kernel_shape = [2,2]> (i)", "p", ["q"]),
        (
            "d = Neg(b) e = Relu(b) f = Relu(d) q = Concat <axis = 1> (e, f) p = MaxPool <kernel_shape = [2,2]> (q)",
            "p",
            ["e", "f"],
        ),
    ],
)
def test_until_a_node_that_goes_elsewhere_is_where_its_tensor_is_made(body, until, sites):
    text = (
        f"g (float[N,3,6,6] x) => (float[N,k,h,l] y) {{ a = Conv(x, w) r = Relu(a) b = Conv(r, v) {body} y = Neg(p) }}"
    )
    net = parse(text, w=numbers(4, 3, 2, 2, scale=0.3), v=numbers(4, 4, 2, 2, scale=0.3))
    result = convert(net, numbers(32, 3, 6, 6), steps=2, neuron="if", until=until, threads=1)
    assert [site.name for site in result.plan.sites] == ["r", *sites]
    assert result.report["verification"]["bitwise"]


@pytest.mark.parametrize(
    "body",
    [
        "n = BatchNormalization(b, s, t, t, s) y = Relu(n)",
        "q = Relu(b) n = MaxPool <kernel_shape = [2,2]> (q) y = MaxPool <kernel_shape = [2,2]> (n)",
    ],
)
def test_until_a_node_whose_tensor_is_made_nowhere_is_refused(body):
    text = f"g (float[N,3,6,6] x) => (float[N,k,h,l] y) {{ b = Conv(x, w) {body} }}"
    net = parse(text, w=numbers(4, 3, 2, 2), s=np.ones(4, np.float32), t=np.zeros(4, np.float32))
    with pytest.raises(
        ConfigError, match=r"until is 'n', which is written into other nodes .*: name the one behind it"
    ):
        convert(net, numbers(8, 3, 6, 6), until="n")


@pytest.mark.parametrize("scope", [{"until": "k2"}, {"exclude": ["r3"]}, {"include": ["Clip"]}])
def test_partial_conversions_verify_and_converge(scope):
    x = numbers(32, 3, 6, 6)
    errors = []
    for steps in (4, 64):
        result = convert(model(), x, steps=steps, neuron="if", threshold="max", rule="none", **scope)
        assert result.report["verification"]["bitwise"]
        expected = run(model(), {"x": x})["y"]
        errors.append(np.abs(run(result.model, {"x": x})["y"] - expected).mean() / np.abs(expected).mean())
        assert len(result.report["analog"]) == 3 - len(result.plan.sites)
    assert errors[1] < errors[0] / 3
    assert errors[1] < 0.05


def test_strict_refuses_what_is_no_spike_arithmetic():
    text = TEXT.replace(
        "y = Conv <pads = [1,1,1,1]> (r3, w2)", "s = Softmax <axis = 1> (r3) y = Conv <pads = [1,1,1,1]> (s, w2)"
    )
    assert convert(model(), numbers(8, 3, 6, 6), steps=2, strict=True).report["rate_exact"] == []
    with pytest.raises(ModelError, match=r"--strict: 1 node\(s\) .* are no spike arithmetic: Softmax 's'"):
        convert(parse(text, **W), numbers(8, 3, 6, 6), steps=2, strict=True)
    report = convert(parse(text, **W), numbers(8, 3, 6, 6), steps=2).report
    assert report["rate_exact"] == [{"node": "s", "op_type": "Softmax"}]
    assert [site["signed"] for site in report["sites"]] == [False, False, False, True]


def test_inspection_says_what_is_left_out():
    from ftbc_onnx import ConvertConfig

    report = inspect_model(model(), ConvertConfig(exclude=("r1",)))
    assert report["analog"] == [{"node": "r1", "op_type": "Relu", "reason": "left out by --include or --exclude"}]
