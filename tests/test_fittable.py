"""Which layers can be fitted to the spikes that they read, and to what."""

from __future__ import annotations

import numpy as np
from helpers import numbers, parse
from networks import network_of, node_names, random_plan, residual

from ftbc_onnx import convert
from ftbc_onnx.graph.fittable import fittable_layers
from ftbc_onnx.neurons import NeuronSpec
from ftbc_onnx.refit import refit
from ftbc_onnx.runtime import CPU

T = 4


def targets_of(text: str, **weights: np.ndarray) -> dict[str, str]:
    """What layers are fitted to, by the tensors that they make."""
    network = network_of(parse(text, **weights))
    tensors = {name: tensor for tensor, name in node_names(network).items()}
    return {tensors[node]: target for node, target in fittable_layers(network).items()}


def test_layers_that_read_spikes_are_fitted_to_the_current_of_the_site_behind() -> None:
    network = network_of(residual())
    names = node_names(network)
    assert fittable_layers(network) == {names["c2"]: "c2", names["c3"]: "a3", names["y"]: "y"}


def test_of_two_layers_before_a_site_the_one_with_more_inputs_is_fitted() -> None:
    found = targets_of(
        """g (float[N,2,4,4] x) => (float[N,3,4,4] y) {
            r = Relu(x)
            s = Conv(r, w1)
            c = Conv<pads=[1,1,1,1]>(r, w3)
            a = Add(s, c)
            y = Relu(a)
        }""",
        w1=numbers(3, 2, 1, 1),
        w3=numbers(3, 2, 3, 3),
    )
    assert found == {"c": "a"}


def test_a_layer_that_leads_to_no_site_is_fitted_to_its_own_output() -> None:
    found = targets_of(
        """g (float[N,2,4,4] x) => (float[N,6] y) {
            r = Relu(x)
            c = Conv(r, w)
            m = MaxPool<kernel_shape=[2,2]>(c)
            f = Flatten(m)
            y = Gemm<alpha=0.5>(f, v)
        }""",
        w=numbers(1, 2, 2, 2),
        v=numbers(4, 6),
    )
    assert found == {"c": "c"}  # a Gemm with a factor is left alone


def test_of_several_layers_only_usual_ones_count() -> None:
    found = targets_of(
        """g (float[N,6] x) => (float[N,3] y) {
            r = Relu(x)
            q = Slice(r, zero, four, one)
            c = Gemm<alpha=0.5>(r, w1)
            d = Gemm(q, w2)
            a = Add(c, d)
            y = Relu(a)
        }""",
        w1=numbers(6, 3),
        w2=numbers(4, 3),
        zero=np.array([0]),
        four=np.array([4]),
        one=np.array([1]),
    )
    assert found == {"d": "a"}


def test_a_layer_that_is_added_to_itself_is_fitted_to_its_own_output() -> None:
    text = "g (float[N,2] x) => (float[N,3] y) { r = Relu(x) c = Gemm(r, w) a = Add(c, c) y = Relu(a) }"
    assert targets_of(text, w=numbers(2, 3)) == {"c": "c"}


def test_a_current_may_be_read_by_others_too() -> None:
    found = targets_of(
        """g (float[N,2,4,4] x) => (float[N,2,4,4] y) {
            r = Relu(x)
            c = Conv(r, w)
            a = Add(c, x)
            s = Relu(a)
            d = Conv(s, v)
            y = Add(d, a)
        }""",
        w=numbers(2, 2, 1, 1),
        v=numbers(2, 2, 1, 1),
    )
    assert found == {"c": "a", "d": "d"}


BROADCAST = """g (float[N,2,4,4] x) => (float[N,3,4,4] y) {
    r = Relu(x)
    p = GlobalAveragePool(r)
    c = Conv(p, w1)
    d = Conv<pads=[1,1,1,1]>(x, w3)
    a = Add(d, c)
    s = Relu(a)
    y = Conv(s, w5)
}"""


def test_a_layer_that_an_add_spreads_is_fitted_to_the_mean() -> None:
    weights = {"w1": numbers(3, 2, 1, 1), "w3": numbers(3, 2, 3, 3, seed=2), "w5": numbers(3, 3, 1, 1, seed=4)}
    model = parse(BROADCAST, **weights)
    assert targets_of(BROADCAST, **weights) == {"c": "a", "y": "y"}
    result = convert(model, {"x": numbers(96, 2, 4, 4)}, steps=2, neuron="if", threshold="mse", refit=True)
    assert result.report["verification"]["bitwise"]


def test_layers_that_share_their_weights_are_fitted_each_by_itself() -> None:
    model = parse(
        "g (float[N,3] x) => (float[N,3] y) { a = Relu(x) b = Gemm(a, w) c = Relu(b) y = Gemm(c, w) }",
        w=numbers(3, 3),
    )
    network = network_of(model)
    plan = random_plan(network, NeuronSpec("if"), T)
    first, second = refit(network, plan, {"x": numbers(64, 3)}, CPU).values()
    assert not np.array_equal(first.weights, second.weights)
