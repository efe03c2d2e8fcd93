"""NIR: the graph computes what the spiking network does, here and in other packages."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from helpers import eighths, make_plan, parse
from helpers import run as run_onnx
from networks import network_of, residual
from nir_cases import T, graph_of, losses, mlp, reread
from nir_semantics import run_nir

from ftbc_onnx.graph.emit import emit
from ftbc_onnx.graph.normalise import normalise
from ftbc_onnx.graph.scope import Scope
from ftbc_onnx.graph.sites import Network, find_network
from ftbc_onnx.neurons.integrate_and_fire import IntegrateAndFire
from ftbc_onnx.nir.consumer import open_file
from ftbc_onnx.plan import SpikingPlan
from ftbc_onnx.verify import simulate

WEIGHTS = {
    "m": eighths(3, 4, seed=10),
    "wg": eighths(4, 2, 3, 3, seed=11),
    "wd": eighths(4, 1, 3, 3, seed=12),
    "w3": eighths(4, 4, 3, 3, seed=13),
    "w1": eighths(4, 4, 1, 1, seed=14),
    "wf": eighths(144, 3, seed=15),
    "wo": eighths(3, 2, seed=16),
    "ws": eighths(64, 2, seed=17),
    "w2": eighths(4, 2, seed=18),
    "per": eighths(1, 4, 1, 1, seed=19),
    "b": eighths(4, seed=20),
    "wj": eighths(4, 12, 1, 1, seed=22),
    "we": eighths(8, 4, 1, 1, seed=23),
    "ws3": eighths(4, 2, 2, 2, seed=24),
    "wl": eighths(4, 4, 1, 3, seed=25),
    "wh": eighths(4, 4, 3, 1, seed=26),
    "zeros": np.array([0, 0]),
    "ones": np.array([1, 1, -5]),
    "ends": np.array([2**31, 2**31]),
    "axes": np.array([2, 3]),
    "chan": np.array([1, 2, -1]),
    "steps3": np.array([2, 2, 2]),
    "ends3": np.array([100, 2**31, 6]),
    "steps": np.array([2, 2]),
    "padc": np.array([0, 3, 0, 0, 0, 1, 0, 0]),
    "pads": np.array([0, 0, 1, 0, 0, 0, 0, 3]),
}

VECTORS = {
    "matmul and add": "c = MatMul(x, m) d = Add(b, c) r = Relu(d) y = MatMul(r, w2)",
    "gemm attributes": "c = Gemm<alpha=0.5, beta=2.0>(x, m, b) r = Relu(c) y = MatMul(r, w2)",
    "sum at the output": "c = MatMul(x, m) r = Relu(c) s = MatMul(r, w2) t = Relu(s) y = Add(s, t)",
    "the same twice": "c = MatMul(x, m) r = Relu(c) d = Add(r, r) e = Relu(d) y = MatMul(e, w2)",
    "spikes at the output": "c = MatMul(x, m) r = Relu(c) d = MatMul(r, w2) y = Relu(d)",
}
IMAGES = {
    "groups": "c = Conv<group=2, pads=[1,1,1,1]>(r, wg) s = Relu(c) y = GlobalAveragePool(s)",
    "depthwise": "c = Conv<group=4, pads=[1,1,1,1]>(r, wd) s = Relu(c) y = GlobalAveragePool(s)",
    "stride and dilation": "c = Conv<strides=[2,1], dilations=[1,2], pads=[1,2,1,2]>(r, w3) y = Relu(c)",
    "same": 'c = Conv<auto_pad="SAME_UPPER">(r, w3) y = Relu(c)',
    "valid": 'c = Conv<auto_pad="VALID">(r, w3) y = Relu(c)',
    "pool": "p = AveragePool<kernel_shape=[2,2], strides=[2,2]>(r) c = Conv(p, w1) y = Relu(c)",
    "padded pool": "p = AveragePool<kernel_shape=[2,2], pads=[1,1,1,1], count_include_pad=1>(r) y = Conv(p, w1)",
    "pool before a site": "c = Conv(r, w3) p = AveragePool<kernel_shape=[2,2]>(c) y = Relu(p)",
    "bias per channel": "c = Conv(r, w1) d = Add(c, per) y = Relu(d)",
    "two readers of a current": "c = Conv(r, w1) s = Relu(c) d = Conv(s, w1) e = Add(d, c) y = Relu(e)",
    "asymmetric": "c = Conv<pads=[0,3,1,0], strides=[2,1]>(r, w3) y = Relu(c)",
    "asymmetric dilated": "c = Conv<pads=[0,2,2,0], dilations=[2,2]>(r, w3) y = Relu(c)",
    "same, stride 2": 'c = Conv<auto_pad="SAME_UPPER", strides=[2,2]>(r, w3) y = Relu(c)',
    "long kernel": "c = Conv<pads=[0,1,0,1]>(r, wl) y = Relu(c)",
    "high kernel": "c = Conv<strides=[2,1], dilations=[1,2]>(r, wh) y = Relu(c)",
    "long pool": "p = AveragePool<kernel_shape=[1,3], strides=[1,2]>(r) y = Conv(p, w1)",
    "same lower": 'c = Conv<auto_pad="SAME_LOWER", strides=[2,2]>(r, w3) y = Relu(c)',
    "join": "c = Conv(r, w1) s = Relu(c) d = Concat<axis=1>(s, r, s) e = Conv(d, wj) y = Relu(e)",
    "join before a site": "c = Conv(r, w1) d = Concat<axis=1>(c, r) y = Relu(d)",
    "shortcut": "s = Slice(r, zeros, ends, axes, steps) p = Pad(s, padc) c = Conv<strides=[2,2]>(r, we) "
    "d = Add(c, p) y = Relu(d)",
    "slice": "s = Slice(r, ones, ends3, chan, steps3) c = Conv(s, ws3) y = Relu(c)",
    "pad": "p = Pad(r, pads) c = Conv(p, w3) y = Relu(c)",
    "sum of spikes": "c = Conv(r, w1) s = Relu(c) d = Add(s, r) e = Conv(d, w1) y = Relu(e)",
}
FLAT = {
    "flatten": "f = Flatten(r) h = Gemm(f, wf) h2 = Relu(h) y = Gemm(h2, wo)",
    "flatten before a site": "c = Conv(r, w3) f = Flatten(c) h = Relu(f) y = Gemm(h, ws)",
    "mean without axes": "m = ReduceMean<axes=[2,3], keepdims=0>(r) y = Gemm(m, w2)",
}


def small(output: str, body: str, source: str = "x") -> onnx.ModelProto:
    """A network from the lines above, with the weights that it reads."""
    used = {name: value for name, value in WEIGHTS.items() if re.search(rf"[ (]{name}[,)]", body)}
    head = "c0 = Conv<pads=[1,1,1,1]>(x, w0) r = Relu(c0)" if source == "image" else ""
    shape = "N,2,6,6" if source == "image" else "N,3"
    if head:
        used["w0"] = eighths(4, 2, 3, 3, seed=9)
    lines = (head + " " + body).replace(") ", ")\n")
    return parse(f"g (float[{shape}] x) => (float[{output}] y) {{ {lines} }}", opset=17, **used)


NETWORKS = {
    "mlp": mlp(),
    "residual": residual(),
    **{name: small("N,k", body) for name, body in VECTORS.items()},
    **{name: small("N,c,h,w", body, "image") for name, body in IMAGES.items()},
    **{name: small("N,k", body, "image") for name, body in FLAT.items()},
}


def fed(network: Network) -> np.ndarray:
    shape = network.view.shape("x")
    assert shape is not None
    return eighths(5, *(int(str(size)) for size in shape[1:]), seed=21)


def different(network: Network) -> dict[str, np.ndarray]:
    """Another power of two for every channel."""
    rng = np.random.default_rng(3)
    return {site.name: 2.0 ** rng.integers(-1, 3, site.channels) for site in network.sites}


def snn(network: Network, plan: SpikingPlan) -> np.ndarray:
    return run_onnx(emit(network, plan).model, {"x": fed(network)})["y"]


@pytest.mark.parametrize("name", NETWORKS)
def test_a_loop_of_primitives_is_the_spiking_network(name: str, tmp_path: Path) -> None:
    """Weights are eighths and thresholds powers of two: nothing rounds, so spikes on the threshold count too."""
    pytest.importorskip("nir")
    network = network_of(NETWORKS[name])
    plan = make_plan(network, T, different(network))
    assert losses(network, plan) == []
    graph = reread(graph_of(network, plan), tmp_path / "a.nir")
    found = run_nir(graph, fed(network), T)
    assert found.any()
    np.testing.assert_allclose(found.mean(0), snn(network, plan), rtol=0, atol=2e-6)


def test_layers_behind_until_are_said_too() -> None:
    pytest.importorskip("nir")
    model = normalise(mlp(y="h = Gemm<transB=1>(r, w2)\n y = Gemm<transB=1>(h, w3)\n")).model
    model.graph.initializer.append(onnx.numpy_helper.from_array(eighths(2, 2), "w3"))
    model = normalise(model).model
    network = find_network(model, Scope(until=next(n.name for n in model.graph.node if "h" in n.output)))
    assert "rate-exact" in [kind.value for kind in network.classes.values()]
    plan = make_plan(network, T, different(network))
    found = run_nir(graph_of(network, plan), fed(network), T).mean(0)
    np.testing.assert_allclose(found, snn(network, plan), rtol=0, atol=2e-6)


def test_gains_are_said_too() -> None:
    pytest.importorskip("nir")
    network = network_of(residual())
    plan = make_plan(network, T, different(network))
    gains = {site.name: np.array([0.5, 2, 1, 4]) for site in network.sites[:2]}
    graph = graph_of(network, plan.with_gains(gains))
    found = run_nir(graph, fed(network), T).mean(0)
    np.testing.assert_allclose(found, snn(network, plan.with_gains(gains)), rtol=0, atol=2e-6)
    assert not np.allclose(found, snn(network, plan))


class HardReset(IntegrateAndFire):
    """v starts at 0, and is 0 after a spike."""

    start = 0.0

    def step(self, current: Any, state: Any, unit: Any, bias: Any) -> Any:
        u = (state[0] + current) + bias
        s = self.count(u, unit, None) * unit
        return s, (np.where(s > 0, np.float32(0), u),)


@pytest.mark.parametrize("name", NETWORKS)
def test_what_comes_nearest_is_a_hard_reset_half_a_threshold_and_the_mean_bias(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the ANN's units: a run of the plan with such neurons and such biases."""
    network = network_of(NETWORKS[name])
    plan = make_plan(network, T, different(network))
    biases = {site.name: eighths(T, site.channels, seed=i, low=-4) for i, site in enumerate(network.sites)}
    found = run_nir(graph_of(network, plan.with_biases(biases), soft_reset=False), fed(network), T)
    constant_bias = {
        site: np.broadcast_to(bias.mean(0) + plan.thresholds[site] / (2 * T), bias.shape)
        for site, bias in biases.items()
    }
    monkeypatch.setattr(SpikingPlan, "neuron_of", lambda *_: HardReset())
    expected = simulate(network, plan.with_biases(constant_bias), {"x": fed(network)})["y"][-1]
    assert expected.any()
    np.testing.assert_allclose(found.mean(0), expected, rtol=0, atol=2e-6)


# --- runtimes ---


def test_the_file_opens_in_spikingjelly(tmp_path: Path) -> None:
    """Its neurons are NIR's: to the last spike at every step what the equations of the primitive give."""
    pytest.importorskip("spikingjelly", reason="SpikingJelly is not installed (docs/nir.md says how)")
    network = network_of(residual())
    graph = graph_of(network, make_plan(network, T, different(network), bias=0.25), soft_reset=False)
    back = reread(graph, tmp_path / "a.nir")
    runtime = open_file(tmp_path / "a.nir")
    assert runtime.name == "SpikingJelly"
    found, expected = runtime.run(fed(network), 2 * T), run_nir(back, fed(network), 2 * T)
    assert expected.any()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(runtime.run(fed(network), 2 * T), found)  # from the initial state again


def test_spikingjelly_resets_to_zero(tmp_path: Path) -> None:
    """Ten steps of a constant current: 0.75 and 1.5 fire as after a reset to 0, not as after one by theta."""
    nir = pytest.importorskip("nir")
    pytest.importorskip("spikingjelly", reason="SpikingJelly is not installed (docs/nir.md says how)")
    currents = np.array([[0.375, 0.75, 1.0, 1.5, -0.5]], np.float32)
    one = np.ones(5, np.float32)
    neuron = nir.IF(one, np.nextafter(one, np.float32(0)))
    layer = nir.Affine(np.eye(5, dtype=np.float32), 0 * one)
    nir.write(tmp_path / "a.nir", nir.NIRGraph.from_list(nir.Input(np.array([5])), layer, neuron))
    spikes = open_file(tmp_path / "a.nir").run(currents, 10)[:, 0]
    assert spikes.sum(0).tolist() == [3, 5, 10, 10, 0]  # by theta: 3, 7, 10, 10 (15 theta of charge), 0


@pytest.mark.parametrize("name", NETWORKS)
def test_the_loop_opens_in_nirtorch(name: str, tmp_path: Path) -> None:
    """The file, laid out in time by nirtorch, is the spiking network."""
    nir = pytest.importorskip("nir")
    pytest.importorskip("nirtorch", reason="nirtorch is not installed (it is in the extra 'models')")
    network = network_of(NETWORKS[name])
    plan = make_plan(network, T, different(network))
    nir.write(tmp_path / "a.nir", graph_of(network, plan))
    runtime = open_file(tmp_path / "a.nir")
    assert runtime.name == "nirtorch"
    found = runtime.run(fed(network), T).mean(0)
    np.testing.assert_allclose(found, snn(network, plan), rtol=0, atol=2e-6)
