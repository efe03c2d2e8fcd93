"""Laws that hold for every network: on random small graphs of convolutions, linear layers, pools and additions.

Weights, inputs, thresholds and biases are dyadic, so that without a rate-exact node (its input is divided by t+1) every
sum is exact.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx
from helpers import eighths, parse, run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from networks import batches_of, network_of, source_of

from ftbc_onnx.config import ConvertConfig
from ftbc_onnx.graph.emit.calibration import Probe, emit_calibration, old_bias_name
from ftbc_onnx.graph.emit.loop import emit_loop
from ftbc_onnx.graph.emit.unrolled import emit_unrolled, spikes_name
from ftbc_onnx.graph.observe import expose_running_means, expose_tensors, mean_spikes_name, observe_snn
from ftbc_onnx.graph.sites import Network
from ftbc_onnx.plan import SpikingPlan
from ftbc_onnx.runtime import CPU
from ftbc_onnx.thresholds import collect_statistics, estimate_thresholds
from ftbc_onnx.verify import simulate

LAWS = settings(
    max_examples=30, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)


@dataclass
class Sketch:
    """A network in the making: lines of ONNX text, weights, and the tensors that exist with their shapes [C, H, W]."""

    seed: int
    lines: list[str] = field(default_factory=list)
    weights: dict[str, np.ndarray] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=lambda: {"x": (2, 4, 4)})
    last: str = "x"

    def weight(self, *shape: int) -> str:
        name = f"w{len(self.weights)}"
        self.weights[name] = eighths(*shape, seed=self.seed * 100 + len(self.weights))
        return name

    def add(self, text: str, *shape: int) -> None:
        self.last = f"t{len(self.lines)}"
        self.lines.append(f"{self.last} = {text}")
        self.shapes[self.last] = shape

    def layer(self, kind: str, channels: int) -> None:
        """Append one layer, or nothing where it does not fit."""
        c, height, width = self.shapes[self.last]
        if kind == "conv3":
            bias = self.weight(channels)
            self.add(
                f"Conv<pads=[1,1,1,1]>({self.last}, {self.weight(channels, c, 3, 3)}, {bias})", channels, height, width
            )
        elif kind == "conv1":
            self.add(f"Conv({self.last}, {self.weight(channels, c, 1, 1)})", channels, height, width)
        elif kind == "relu":
            self.add(f"Relu({self.last})", c, height, width)
        elif kind == "Softmax":
            self.add(f"Softmax<axis=1>({self.last})", c, height, width)
        elif kind == "add":
            same = [name for name, shape in self.shapes.items() if shape == (c, height, width) and name != self.last]
            if same:
                self.add(f"Add({self.last}, {same[-1]})", c, height, width)
        elif height >= 2:
            self.add(f"{kind}<kernel_shape=[2,2], strides=[2,2]>({self.last})", c, height // 2, width // 2)

    def model(self) -> onnx.ModelProto:
        """With a linear readout of three numbers."""
        c, height, width = self.shapes[self.last]
        self.add(f"Flatten({self.last})", c * height * width)
        body = "\n".join([*self.lines, f"y = Gemm<transB=1>({self.last}, {self.weight(3, c * height * width)})"])
        return parse(f"g (float[N,2,4,4] x) => (float[N,3] y) {{ {body} }}", **self.weights)


@dataclass(frozen=True)
class Case:
    """A network with a plan of T steps and inputs; exact: without a rate-exact node."""

    network: Network
    plan: SpikingPlan
    x: np.ndarray
    exact: bool

    @property
    def feeds(self) -> dict[str, np.ndarray]:
        return {"x": self.x}


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """A random network: the first site, up to five more layers, and a plan of random thresholds and biases."""
    seed = draw(st.integers(0, 1000))
    sketch = Sketch(seed)
    sketch.layer("conv3", draw(st.integers(1, 4)))
    sketch.layer("relu", 0)
    kinds = st.sampled_from(["conv3", "conv1", "relu", "add", "AveragePool", "MaxPool", "Softmax"])
    chosen = draw(st.lists(kinds, max_size=5))
    for kind in [*chosen, "relu"]:
        sketch.layer(kind, draw(st.integers(1, 4)))
    network = network_of(sketch.model())
    steps = draw(st.integers(2, 5))
    rng = np.random.default_rng(seed)
    thresholds = {s.name: 2.0 ** rng.integers(-1, 3, s.channels) for s in network.sites}
    biases = {s.name: rng.integers(-16, 17, (steps, s.channels)) / 32 for s in network.sites}
    plan = SpikingPlan("0" * 64, network.sites, steps, "if", thresholds, biases)
    return Case(network, plan, eighths(3, 2, 4, 4, seed=seed), not network.mean_form)


@LAWS
@given(cases())
def test_charge_is_conserved_at_every_site(case: Case) -> None:
    """Sum x + sum b = sum s + v[last] - v[-1], over T steps of the emitted model."""
    model = emit_unrolled(case.network, case.plan).model
    makers = {name: node for node in model.graph.node for name in node.output}
    last = case.plan.steps - 1
    for site in case.plan.sites:
        currents = [makers[f"{site.name}/t{t}/drive"].input[0] for t in range(case.plan.steps)]
        spikes = [spikes_name(site.name, t) for t in range(case.plan.steps)]
        end = f"{site.name}/t{last}/membrane"
        found = run(expose_tensors(model, dict.fromkeys([*currents, *spikes, end])), case.feeds, optimise=False)
        found = {name: value.astype(np.float64) for name, value in found.items()}
        shape = site.channel_shape
        start = case.plan.thresholds[site.name].reshape(shape) / 2
        charged = sum(found[name] for name in currents) + case.plan.biases[site.name].sum(0).reshape(shape)
        left = sum(found[name] for name in spikes) + found[end] - start
        if case.exact:
            np.testing.assert_array_equal(charged, left)
        else:
            np.testing.assert_allclose(charged, left, rtol=0, atol=1e-5 * max(1.0, np.abs(charged).max()))


class Keep:
    """The rule that leaves every bias as it is."""

    name = "keep"

    def emit(self, probe: Probe) -> str:
        return probe.bias


@LAWS
@given(cases())
def test_calibration_fires_as_the_emitted_model_does(case: Case) -> None:
    """With biases left alone, and with none, which is plain conversion: the mean spikes of every site and step."""
    for plan in (case.plan, case.plan.without_biases()):
        calibration = emit_calibration(case.network, plan, Keep())
        feeds = {**case.feeds, **{old_bias_name(s.name): plan.biases[s.name] for s in plan.sites}}
        inside = run(calibration, feeds, optimise=False)
        outside = run(observe_snn(emit_unrolled(case.network, plan).model, plan), case.feeds, optimise=False)
        for name in (mean_spikes_name(site.name) for site in plan.sites):
            np.testing.assert_array_equal(inside[name], outside[name])


@LAWS
@given(cases())
def test_the_loop_form_is_the_unrolled_form_bit_for_bit(case: Case) -> None:
    emitted = emit_unrolled(case.network, case.plan)
    unrolled = run(observe_snn(expose_running_means(emitted.model, emitted.readouts), case.plan), case.feeds, False)
    emitted = emit_loop(case.network, case.plan)
    loop = run(observe_snn(expose_running_means(emitted.model, emitted.readouts), case.plan), case.feeds, False)
    assert set(loop) == set(unrolled)
    for name, value in unrolled.items():
        np.testing.assert_array_equal(loop[name], value)


@LAWS
@given(cases(), st.data())
def test_a_shorter_run_is_the_beginning_of_a_longer(case: Case, data: st.DataObject) -> None:
    steps = data.draw(st.integers(1, case.plan.steps))
    emitted = emit_unrolled(case.network, case.plan)
    long = run(expose_running_means(emitted.model, emitted.readouts), case.feeds, optimise=False)["y/running_mean"]
    short = run(emit_unrolled(case.network, case.plan.prefix(steps)).model, case.feeds, optimise=False)["y"]
    np.testing.assert_array_equal(long[steps - 1], short)


@LAWS
@given(cases())
def test_replay_is_identical(case: Case) -> None:
    once, again = (emit_unrolled(case.network, case.plan).model for _ in range(2))
    assert once.SerializeToString(deterministic=True) == again.SerializeToString(deterministic=True)
    first, second = run(once, case.feeds), run(again, case.feeds)
    assert first["y"].tobytes() == second["y"].tobytes()


@LAWS
@given(cases())
def test_the_emitted_model_is_its_plan(case: Case) -> None:
    emitted = emit_unrolled(case.network, case.plan)
    found = run(expose_running_means(emitted.model, emitted.readouts), case.feeds, optimise=False)["y/running_mean"]
    np.testing.assert_array_equal(found, simulate(case.network, case.plan, case.feeds)["y"])


@LAWS
@given(cases())
def test_with_maximum_thresholds_the_output_comes_to_the_anns(case: Case) -> None:
    """Without biases: from T = 4 to T = 64 the error shrinks to under a third, or 3 % of the output."""
    source = source_of(case.network.view.model, x=case.x)
    statistics = collect_statistics(case.network, source, len(case.x), batches_of(len(case.x)), CPU)
    thresholds = estimate_thresholds(case.network, statistics, ConvertConfig(threshold="max"))
    plan = SpikingPlan("0" * 64, case.network.sites, 64, "if", thresholds)
    expected = run(case.network.view.model, case.feeds, optimise=False)["y"]
    means = simulate(case.network, plan, case.feeds)["y"]
    early, late = (np.abs(means[t - 1] - expected).mean() for t in (4, 64))
    assert late <= max(early / 3, 0.03 * np.abs(expected).mean() + 1e-6)


@LAWS
@given(st.integers(0, 1000), st.integers(1, 8), st.integers(-2, 2))
def test_qcfs_at_t_equal_to_l_is_its_quantised_activation(seed: int, levels: int, exponent: int) -> None:
    """At the first site, whose current is constant, with any theta and L: the mean of the spikes is the activation."""
    theta = np.float32(2.0**exponent * levels)  # so that theta/L is dyadic
    model = parse(
        """g (float[N,2,4,4] x) => (float[N,3,4,4] y) <float half = {0.5}, float zero = {0.0}> {
            c = Conv(x, w)  a = Mul(c, L)  b = Div(a, theta)  p = Add(b, half)
            f = Floor(p)  q = Clip(f, zero, L)  y = Mul(q, step) }""",
        w=eighths(3, 2, 1, 1, seed=seed),
        L=np.float32(levels),
        theta=theta,
        step=theta / np.float32(levels),
    )
    network = network_of(model)
    (site,) = network.sites
    assert (site.op_type, site.levels, site.threshold) == ("QCFS", levels, (float(theta),))
    plan = SpikingPlan("0" * 64, network.sites, levels, "if", {site.name: np.full(3, theta)})
    x = eighths(4, 2, 4, 4, seed=seed, low=-40, high=40) * theta / np.float32(2)
    emitted = emit_unrolled(network, plan)
    sums = run(expose_tensors(emitted.model, [emitted.readouts[0].tensors[-1]]), {"x": x}, optimise=False)
    spikes = sums[emitted.readouts[0].tensors[-1]] / theta
    expected = run(model, {"x": x}, optimise=False)["y"] / (theta / levels)
    np.testing.assert_array_equal(spikes, expected)
    assert (spikes.min(), spikes.max()) == (0, levels)
