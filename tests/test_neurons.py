"""Every neuron of the registry: the NumPy twin and the operators agree bitwise, and charge is conserved."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from helpers import OPSETS, run
from onnx import helper

from ftbc_onnx.errors import ConfigError
from ftbc_onnx.graph.builder import GraphBuilder
from ftbc_onnx.neurons import Neuron, NeuronSpec, Scaled
from ftbc_onnx.neurons.multi_threshold import MultiThreshold

T, B, C, H = 6, 3, 4, 5
ROW = (1, C, 1)  # of a threshold or a bias, broadcast against [B, C, H]
THETA = np.array([0.75, 1.5, 0.3, 2.0], np.float32).reshape(ROW)
DYADIC = np.array([0.75, 1.5, 0.25, 2.0], np.float32).reshape(ROW)


EVERY = {
    **{
        str(spec): spec.make()
        for spec in (
            NeuronSpec("if"),
            NeuronSpec("signed"),
            NeuronSpec("signed-st"),
            NeuronSpec("group", 3),
            NeuronSpec("group", 4),
            NeuronSpec("signed-group", 3),
            NeuronSpec("signed-group", 15),
            NeuronSpec("multi-threshold", 4),
            NeuronSpec("if", coding="differential"),
            NeuronSpec("signed", coding="differential"),
            NeuronSpec("signed-group", 4, "differential"),
            NeuronSpec("multi-threshold", 3, "differential"),
        )
    },
    **{
        f"{spec} bipolar": spec.make(bipolar=True)
        for spec in (
            NeuronSpec("if"),
            NeuronSpec("group", 5),
            NeuronSpec("multi-threshold", 4),
            NeuronSpec("signed-group", 4, "differential"),
        )
    },
    **{
        f"{spec} scaled": Scaled(spec.make(), np.float32([0.75, 1.25, 1.0, 1.7]).reshape(ROW))
        for spec in (NeuronSpec("if"), NeuronSpec("signed-group", 4), NeuronSpec("if", 1, "differential"))
    },
}
"""Every neuron, with parameters away from their defaults, for rectifiers and for y = x."""


def neuron_called(name: str) -> Neuron:
    return EVERY[name]


def emit(name: str, theta: np.ndarray, opset: int = 17) -> tuple[onnx.ModelProto, list[list[str]]]:
    """T steps of a neuron on currents [T, B, C, H] and biases [T, 1, C, 1].

    Returns the model, and per step the names of: what it would fire (by `emit_hold`, `emit_events`, `emit_base`), what
    it fires, its state.
    """
    builder = GraphBuilder(opset)
    builder.reserve(["current", "bias"])
    neuron = neuron_called(name)
    threshold = neuron.emit_unit(builder, builder.initializer("theta", theta))
    start = neuron.initial_state(neuron.unit(theta))
    state = tuple(builder.initializer(f"state{i}", value) for i, value in enumerate(start))
    steps = []
    for t in range(T):
        with builder.scope(f"t{t}"):
            now = builder.constant(np.array(t, np.int64))
            x, b = (builder.op("Gather", table, now, axis=0) for table in ("current", "bias"))
            held = neuron.emit_hold(builder, x, state, threshold)
            height = neuron.emit_height(builder, threshold)
            tried = builder.op("Mul", neuron.emit_events(builder, held, threshold, b), height)
            base = neuron.emit_base(builder, held)
            tried = tried if base is None else builder.op("Add", tried, base)
            spikes, state = neuron.emit_step(builder, x, state, threshold, b)
        steps.append([tried, spikes, *state])
    kind = onnx.TensorProto.FLOAT
    shapes = {"current": [T, B, C, H], "bias": [T, *ROW]}
    values = [helper.make_tensor_value_info(key, kind, shape) for key, shape in shapes.items()]
    outputs = [helper.make_tensor_value_info(key, kind, None) for names in steps for key in names]
    return builder.to_model("neuron", values, outputs, [helper.make_opsetid("", opset)]), steps


def simulate(
    name: str, current: np.ndarray, theta: np.ndarray, bias: np.ndarray
) -> tuple[list[np.ndarray], list[tuple[np.ndarray, ...]]]:
    """Spikes and states of every step from the NumPy twin."""
    neuron = neuron_called(name)
    unit = neuron.unit(theta)
    state = neuron.initial_state(unit)
    spikes, states = [], []
    for x, b in zip(current, bias, strict=True):
        s, state = neuron.step(x, state, unit, b)
        spikes.append(s)
        states.append(state)
    return spikes, states


def currents(theta: np.ndarray, bias: np.ndarray, seed: int = 0) -> np.ndarray:
    """Random currents of both signs; at t = 0 the first entries reach theta exactly, or miss it by a millionth."""
    x = np.random.default_rng(seed).normal(0.3, 1.0, (T, B, C, H)).astype(np.float32)
    exact = (theta * np.float32(0.5) - bias[0]).astype(np.float32)
    x[0, 0, :, :1] = exact[0]
    x[0, 1, :, :1] = exact[0] - theta[0] * np.float32(2**-20)
    return x


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("name", EVERY)
def test_operators_and_numpy_agree_bitwise(name: str, opset: int) -> None:
    rng = np.random.default_rng(1)
    bias = rng.normal(0, 0.4, (T, *ROW)).astype(np.float32)
    current = currents(THETA, bias)
    model, steps = emit(name, THETA, opset)
    found = run(model, {"current": current, "bias": bias}, optimise=False)
    spikes, states = simulate(name, current, THETA, bias)
    for t, (tried, fired, *state) in enumerate(steps):
        np.testing.assert_array_equal(found[fired], spikes[t])
        np.testing.assert_array_equal(found[tried], spikes[t])
        for key, value in zip(state, states[t], strict=True):
            np.testing.assert_array_equal(found[key], value)
            assert found[key].dtype == value.dtype == np.float32
    assert 0.1 < np.mean(np.array(spikes) > 0) < 0.9


@pytest.mark.parametrize("name", EVERY)
def test_charge_is_conserved(name: str) -> None:
    """Sum x + sum b = sum s + v[last] - v[-1], exactly where every sum is."""
    rng = np.random.default_rng(2)
    current = (rng.integers(-16, 32, (T, B, C, H)) / 16).astype(np.float32)
    bias = (rng.integers(1, 8, (T, *ROW)) / 32).astype(np.float32)
    model, steps = emit(name, DYADIC)
    found = run(model, {"current": current, "bias": bias}, optimise=False)
    spikes = np.array([found[names[1]] for names in steps])
    neuron = neuron_called(name)
    start = neuron.initial_state(neuron.unit(DYADIC))[0]
    taken = spikes / getattr(neuron, "gain", np.float32(1))
    went_in, came_out = current.sum(0) + bias.sum(0), taken.sum(0) + found[steps[-1][2]] - start
    rounded = neuron.levels & (neuron.levels - 1) or "differential" in name or "scaled" in name
    if rounded:  # theta/K, q/n or g*s
        np.testing.assert_allclose(went_in, came_out, rtol=0, atol=1e-5)
    else:
        np.testing.assert_array_equal(went_in, came_out)
    assert 0.1 < np.mean(spikes > 0) < 0.9


class TestIntegrateAndFire:
    def test_starts_at_half_the_threshold(self) -> None:
        (v,) = EVERY["if"].initial_state(THETA)
        np.testing.assert_array_equal(v, THETA / 2)
        assert v.dtype == np.float32

    def test_fires_on_reaching_the_threshold_and_not_just_below(self) -> None:
        bias = np.full((T, *ROW), 0.125, np.float32)
        current = currents(DYADIC, bias)
        spikes, states = simulate("if", current, DYADIC, bias)
        np.testing.assert_array_equal(spikes[0][0, :, 0], DYADIC[0, :, 0])
        np.testing.assert_array_equal(states[0][0][0, :, 0], 0)
        np.testing.assert_array_equal(spikes[0][1, :, 0], 0)
        model, steps = emit("if", DYADIC)
        found = run(model, {"current": current, "bias": bias}, optimise=False)
        np.testing.assert_array_equal(found[steps[0][1]], spikes[0])

    def test_reset_subtracts_the_threshold_and_keeps_the_rest(self) -> None:
        u = np.array([[[3.5], [1.0], [-2.0]]], np.float32)
        theta = np.ones((1, 3, 1), np.float32)
        spikes, (v,) = EVERY["if"].step(u - 0.5, (theta / 2,), theta, np.zeros_like(theta))
        np.testing.assert_array_equal(spikes, [[[1], [1], [0]]])
        np.testing.assert_array_equal(v, [[[2.5], [0], [-2]]])

    def test_order_of_additions_is_membrane_current_bias(self) -> None:
        v, x, b = np.float32(1), np.float32(2**-24), np.float32(2**-24)  # (v + x) + b is 1, v + (x + b) is not
        assert (v + x) + b != v + (x + b)
        theta = np.array([2.0], np.float32)
        _, (u,) = EVERY["if"].step(np.array([x]), (np.array([v]),), theta, np.array([b]))
        assert u[0] == v

    def test_the_state_given_is_left_alone(self) -> None:
        v = np.array([0.5], np.float32)
        EVERY["if"].step(np.array([3.0], np.float32), (v,), np.array([1.0], np.float32), np.zeros(1, np.float32))
        assert v[0] == 0.5


def test_unknown_neuron_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"unknown neuron 'lif'.*choose one of if, signed, "):
        NeuronSpec("lif")


@pytest.mark.parametrize("thresholds", [1, 2, 3, 4, 6, 16])
@pytest.mark.parametrize("rectifies", [False, True])
def test_multi_threshold_at_the_floats_around_its_thresholds(thresholds: int, rectifies: bool) -> None:
    """Of 4,000 units: the float that is a threshold, the next below, the next above, and those of the other sign."""
    neuron = MultiThreshold(thresholds, rectifies)
    unit = np.random.default_rng(0).lognormal(0, 3, 4000).astype(np.float32)
    edges = [unit * np.float32(0.75 * 2**i) for i in range(-1, thresholds + 1)]
    around = [np.nextafter(edge, towards) for edge in edges for towards in (edge, np.float32(0), np.float32(np.inf))]
    u = np.stack([*around, *(-value for value in around), np.zeros_like(unit)])
    sent = np.full_like(u, 2.0 ** (thresholds - 2)) if rectifies else None
    builder = GraphBuilder(17)
    builder.reserve(["u", "unit", "sent"])
    memory = neuron.emit_memory(builder, "sent", "unit") if rectifies else None
    k = neuron.emit_count(builder, "u", "unit", memory)
    feeds = {"u": u, "unit": unit, **({"sent": sent} if sent is not None else {})}
    inputs = [helper.make_tensor_value_info(name, 1, value.shape) for name, value in feeds.items()]
    model = builder.to_model("g", inputs, [helper.make_tensor_value_info(k, 1, None)], [helper.make_opsetid("", 17)])
    np.testing.assert_array_equal(run(model, feeds, optimise=False)[k], neuron.count(u, unit, sent))


@pytest.mark.parametrize("name", ["signed-group", "multi-threshold"])
def test_differential_coding_never_takes_the_sum_for_negative(name: str) -> None:
    """A running mean that rounds to a little below 0 is no spike that was owed."""
    neuron = NeuronSpec(name, 4, "differential").make()
    unit, current = neuron.unit(np.ones((1, 1), np.float32)), np.zeros((1, 1), np.float32)
    state = (np.full((1, 1), 0.01, np.float32), np.full((1, 1), -2e-9, np.float32), np.full(1, 4, np.float32))
    spikes, _ = neuron.step(current, state, unit, current)
    assert spikes == state[1]
