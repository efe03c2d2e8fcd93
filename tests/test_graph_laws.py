"""Laws that hold for every graph: random directed acyclic ones, over all classes of nodes, with several outputs.

Every node reads tensors [N, 4, 4, 4] that any earlier node made, the input's first layer among them, so that spikes,
currents, means and static tensors meet in every operator.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace

import numpy as np
import onnx
from corpus.entry import Entry
from corpus.proof import SHORT, assert_batch_of_one, assert_same_ann, assert_standard, roomy_plan
from helpers import numbers, parse, run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ftbc_onnx.graph.classes import NodeClass
from ftbc_onnx.graph.emit.unrolled import emit_unrolled, spikes_name
from ftbc_onnx.graph.normalise import normalise
from ftbc_onnx.graph.observe import expose_running_means, expose_tensors, running_mean_name
from ftbc_onnx.graph.sites import Network, find_network
from ftbc_onnx.plan import SpikingPlan
from ftbc_onnx.verify import simulate

LAWS = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)

UNARY = {
    "layer": "Conv<pads=[1,1,1,1]>({a}, {w3}, {b})",
    "pointwise layer": "Conv({a}, {w1}, {b})",
    "Relu": "Relu({a})",
    "Clip": "Clip({a}, zero, six)",
    "MaxPool": "MaxPool<kernel_shape=[3,3], pads=[1,1,1,1]>({a})",
    "AveragePool": "AveragePool<kernel_shape=[3,3], pads=[1,1,1,1]>({a})",
    "Sigmoid": "Sigmoid({a})",
    "Tanh": "Tanh({a})",
    "LeakyRelu": "LeakyRelu<alpha=0.2>({a})",
    "Softmax": "Softmax<axis=1>({a})",
    "scale": "Mul({a}, {gain})",
    "shift": "Add({a}, {gain})",
    "turn": "Transpose<perm=[0,1,3,2]>({a})",
    "normalise": "BatchNormalization({a}, {g}, {b}, {b}, {g})",
}
BINARY = {
    "Add": "Add({a}, {c})",
    "Sub": "Sub({a}, {c})",
    "gate": "s{i} = Sigmoid({c}) {out} = Mul({a}, s{i})",
    "product of bounded": "s{i} = Tanh({a}) u{i} = Tanh({c}) {out} = Mul(s{i}, u{i})",
    "Concat": "s{i} = Concat<axis=1>({a}, {c}) {out} = Conv(s{i}, {w2}, {b})",
    "Max": "Max({a}, {c})",
}


@dataclass(frozen=True)
class Case:
    """A random model, its network, and inputs."""

    lines: str
    model: onnx.ModelProto = field(repr=False)
    network: Network = field(repr=False)
    feeds: dict[str, np.ndarray] = field(repr=False)

    def plan(self, steps: int, bias: float = 0.0) -> SpikingPlan:
        """Thresholds with room for every activation; seeded biases."""
        plan = roomy_plan(self.network, self.feeds, steps)
        rng = np.random.default_rng(steps)
        biases = {s.name: bias * rng.standard_normal((steps, s.channels)) for s in plan.sites}
        return replace(plan, biases=biases)


def _weights(i: int) -> dict[str, np.ndarray]:
    return {
        "w3": numbers(4, 4, 3, 3, seed=9 * i, scale=0.2),
        "w1": numbers(4, 4, 1, 1, seed=9 * i + 1, scale=0.5),
        "w2": numbers(4, 8, 1, 1, seed=9 * i + 2, scale=0.35),
        "b": numbers(4, seed=9 * i + 3, scale=0.2),
        "gain": numbers(1, 4, 1, 1, seed=9 * i + 4),
        "g": np.abs(numbers(4, seed=9 * i + 5)) + np.float32(0.5),
    }


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Two layers and a rectifier, up to eight random nodes, three outputs; without spikes nothing is asked."""
    seed = draw(st.integers(0, 1000))
    first = _weights(seed)
    constants = {"w": numbers(4, 2, 3, 3, seed=seed, scale=0.4), "zero": np.float32(0), "six": np.float32(6)}
    constants |= {"e": first["w1"], "head": numbers(4, 3, seed=seed + 1, scale=0.6)}
    lines = ["t0 = Conv<pads=[1,1,1,1]>(x, w)", "e0 = Conv(t0, e)", "t1 = Relu(e0)"]
    for i in range(2, 2 + draw(st.integers(1, 8))):
        kind = draw(st.sampled_from([*UNARY, *BINARY]))
        near = st.integers(max(0, i - 3), i - 1)
        words = {"a": f"t{draw(near)}", "c": f"t{draw(st.integers(0, i - 1))}", "i": i, "out": f"t{i}"}
        template = UNARY.get(kind) or BINARY[kind]
        for key, value in _weights(seed + i).items():
            if f"{{{key}}}" in template:
                words[key] = f"{key}_{i}"
                constants[f"{key}_{i}"] = value
        text = template.format(**words)
        lines.append(text if "{out}" in template else f"t{i} = {text}")
    last, seen = f"t{len(lines) - 2}", draw(st.integers(1, len(lines) - 2))
    lines.append(f"p = GlobalAveragePool({last}) f = Flatten(p) y = MatMul(f, head) z = Identity(t{seen})")
    outputs = "float[N,3] y, float[N,4,4,4] z, float[N,4,4,4] t1"
    model = parse(f"g (float[N,2,4,4] x) => ({outputs}) {{ {' '.join(lines)} }}", **constants)
    network = find_network(normalise(model).model)
    return Case(" ".join(lines), model, network, {"x": numbers(5, 2, 4, 4, seed=seed + 7)})


@LAWS
@given(cases())
def test_every_node_has_one_class_and_nothing_is_refused(case: Case) -> None:
    names = [node.name for node in case.network.view.nodes]
    assert sorted(names) == sorted(case.network.classes)
    assert not case.network.refusals
    assert case.network.sites
    assert_same_ann(Entry("random", lambda: case.model), case.model, case.network)


@LAWS
@given(cases())
def test_the_emitted_model_is_its_plan_in_any_batch(case: Case) -> None:
    emitted = emit_unrolled(case.network, case.plan(SHORT, bias=0.1))
    assert_standard(emitted.model)
    exposed = expose_running_means(emitted.model, emitted.readouts)
    many = run(exposed, case.feeds, optimise=False)
    for name, means in simulate(case.network, case.plan(SHORT, bias=0.1), case.feeds).items():
        np.testing.assert_array_equal(many[running_mean_name(name)], means, err_msg=name)
    assert_batch_of_one(case.model, exposed, case.feeds, many)


@LAWS
@given(cases())
def test_every_output_comes_to_the_anns(case: Case) -> None:
    """Without biases: from T = 4 to T = 64 the error falls to under a third, or to 5 % of the output's mean size."""
    expected = run(case.network.view.model, case.feeds, optimise=False)
    for name, means in simulate(case.network, case.plan(64), case.feeds).items():
        early, late = (np.abs(means[t - 1] - expected[name]).mean() for t in (4, 64))
        size = np.abs(expected[name]).mean()
        assert late <= max(early / 3, 0.05 * size + 1e-5), (name, early, late, size)


@LAWS
@given(cases())
def test_charge_is_conserved_at_every_site(case: Case) -> None:
    """Sum x + sum b = sum s + v[last] - v[-1], at sites of both kinds."""
    steps = 4
    plan = case.plan(steps, bias=0.1)
    model = emit_unrolled(case.network, plan).model
    makers = {name: node for node in model.graph.node for name in node.output}
    for site in plan.sites:
        currents = [makers[f"{site.name}/t{t}/drive"].input[0] for t in range(steps)]
        spikes = [spikes_name(site.name, t) for t in range(steps)]
        end = f"{site.name}/t{steps - 1}/membrane"
        found = run(expose_tensors(model, dict.fromkeys([*currents, *spikes, end])), case.feeds, optimise=False)
        found = {name: value.astype(np.float64) for name, value in found.items()}
        neuron = plan.neuron_of(site)
        unit = neuron.unit(plan.thresholds[site.name].reshape(site.channel_shape))
        start = neuron.initial_state(unit)[0]
        charged = sum(found[name] for name in currents) + plan.biases[site.name].sum(0).reshape(site.channel_shape)
        left = sum(found[name] for name in spikes) + found[end] - start
        np.testing.assert_allclose(charged, left, rtol=0, atol=1e-5 * max(1.0, np.abs(charged).max()))


def test_random_graphs_hold_every_class() -> None:
    seen: Counter[str] = Counter()

    @settings(LAWS, max_examples=75)  # what is drawn depends on the modules that are loaded
    @given(cases())
    def look(case: Case) -> None:
        seen.update({kind.value for kind in case.network.classes.values()})
        seen["signed"] += any(site.signed for site in case.network.sites)

    look()
    assert set(seen) == {kind.value for kind in NodeClass} | {"signed"}
    assert min(seen.values()) >= 8
