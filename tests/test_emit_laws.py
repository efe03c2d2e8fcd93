"""The laws of integrate-and-fire, in the emitted graph: charge, firing, the threshold, and what it converges to."""

from __future__ import annotations

import numpy as np
import onnx
from emit_cases import WEIGHTS, feeds_of, laws, network_of, run_exposing
from helpers import eighths, make_plan, parse, run

from ftbc_onnx.graph.emit.unrolled import emit_unrolled, spikes_name
from ftbc_onnx.graph.normalise import normalise
from ftbc_onnx.graph.sites import find_network
from ftbc_onnx.plan import SpikingPlan


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
