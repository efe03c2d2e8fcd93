"""The unrolled form against the oracle: after every step, the mean of outputs is f of the mean of inputs."""

from __future__ import annotations

import numpy as np
import pytest
from emit_cases import WATCHED, WEIGHTS, T, exposing_history, feeds_of, network_of, plan_of, run_exposing, simulate
from helpers import assert_close, make_plan, numbers, parse, run

from ftbc_onnx.graph.emit.unrolled import emit_unrolled, spikes_name
from ftbc_onnx.graph.normalise import normalise
from ftbc_onnx.graph.observe import running_mean_name
from ftbc_onnx.graph.sites import find_network
from ftbc_onnx.runtime import Session


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
