"""What is counted for the energy, against loops over every connection; the arithmetic, against numbers by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import product

import numpy as np
import onnx
import pytest
from helpers import Feeds, assert_valid, make_plan, numbers, parse, run
from networks import network_of

from ftbc_onnx.counting import additions, count, counted_names, total_counts
from ftbc_onnx.energy import Constants, energy_of
from ftbc_onnx.errors import ConfigError
from ftbc_onnx.graph.emit import emit
from ftbc_onnx.graph.emit.unrolled import events_name
from ftbc_onnx.graph.layers import Reads, find_layers, uncounted
from ftbc_onnx.graph.observe import expose_tensors
from ftbc_onnx.neurons import NeuronSpec
from ftbc_onnx.plan import SpikingPlan
from ftbc_onnx.results import Counts

T = 3
N = 2  # samples

NEURONS = [NeuronSpec("if"), NeuronSpec("signed-group", 7), NeuronSpec("group", 5), NeuronSpec("multi-threshold", 4)]


def conv_reach(
    shape: tuple[int, ...],
    kernel: tuple[int, ...],
    out: tuple[int, ...],
    *,
    strides: tuple[int, int] = (1, 1),
    pads: tuple[int, int] = (0, 0),
    dilations: tuple[int, int] = (1, 1),
) -> np.ndarray:
    """How many outputs every input of a Conv reaches, [C, H, W]; `kernel` is [O, C/G, h, w]."""
    reach = np.zeros(shape, int)
    groups = shape[0] // kernel[1]
    for o, i, j in product(range(kernel[0]), range(out[0]), range(out[1])):
        for c, a, b in product(*map(range, kernel[1:])):
            row, column = i * strides[0] + a * dilations[0] - pads[0], j * strides[1] + b * dilations[1] - pads[1]
            if 0 <= row < shape[1] and 0 <= column < shape[2]:
                reach[c + o // (kernel[0] // groups) * kernel[1], row, column] += 1
    return reach


def transposed_reach(
    shape: tuple[int, ...], kernel: tuple[int, ...], out: tuple[int, ...], strides=(1, 1), pads=(0, 0)
) -> np.ndarray:
    """The same of a ConvTranspose; `kernel` is [C, O/G, h, w]."""
    reach = np.zeros(shape, int)
    for c, i, j in product(*map(range, shape)):
        for _, a, b in product(*map(range, kernel[1:])):
            row, column = i * strides[0] + a - pads[0], j * strides[1] + b - pads[1]
            reach[c, i, j] += 0 <= row < out[0] and 0 <= column < out[1]
    return reach


def spent(n: np.ndarray, reach: np.ndarray) -> float:
    """A loop over spikes: n [N, ...] of them, each of which reaches so many outputs; per sample."""
    total = 0
    for sample in n:
        for index in np.ndindex(*reach.shape):
            for _ in range(int(sample[index])):
                total += int(reach[index])
    return total / len(n)


class Ran:
    """A network that was emitted, counted and run."""

    def __init__(self, model: onnx.ModelProto, feeds: Feeds, neuron: NeuronSpec, form: str = "unrolled") -> None:
        network = network_of(model)
        plan = make_plan(network, T, threshold=0.9, bias=0.05)
        self.plan = SpikingPlan("", plan.sites, T, neuron, plan.thresholds, plan.biases)
        self.emitted = emit(network, self.plan, form).model
        self.layers = find_layers(self.emitted, self.plan)
        self.sites = {site.spikes: site for site in self.plan.sites}
        names = set[str]()
        if form == "unrolled":
            names = {events_name(self.plan, site, t) for site in self.plan.sites for t in range(T)}
            names |= {layer.node.input[layer.position] for layer in self.layers.found} - set(feeds)
        watched = count(self.emitted, self.plan)
        assert_valid(watched)
        self.values = {**feeds, **run(expose_tensors(watched, sorted(names)), feeds)}
        self.counts = total_counts(
            self.emitted, self.plan, {name: self.values[name] for name in counted_names(self.plan)}
        )

    def events(self, spikes: str, t: int) -> np.ndarray:
        """What a site sent: 1 where there is an event."""
        return (self.values[events_name(self.plan, self.sites[spikes], t)] != 0).astype(int)

    def binary(self, spikes: str, t: int) -> np.ndarray:
        """The same in binary spikes."""
        site = self.sites[spikes]
        unit = self.plan.neuron_of(site).unit(self.plan.thresholds[site.name].reshape(site.channel_shape))
        k = np.abs(np.rint(self.values[events_name(self.plan, site, t)] / unit)).astype(int)
        return np.vectorize(lambda units: 1 if self.plan.neuron.is_powers and units else bin(units).count("1"))(k)

    def check(self, synops: Callable[[int], float], binary: Callable[[int], float]) -> None:
        """Both curves, summed up to each step."""
        np.testing.assert_allclose(self.counts.synops, np.cumsum([synops(t) for t in range(T)]))
        np.testing.assert_allclose(self.counts.binary_synops, np.cumsum([binary(t) for t in range(T)]))
        assert self.counts.synops[-1] > 0


CHAIN = """g (float[N, 2, 7, 6] x) => (float[N, 5] y) {
    c1 = Conv <strides = [2, 1], pads = [1, 0, 1, 2]> (x, w1) r1 = Relu(c1)
    c2 = Conv <group = 2, dilations = [1, 2], pads = [1, 1, 1, 1]> (r1, w2) r2 = Relu(c2)
    c3 = ConvTranspose <strides = [2, 1], pads = [1, 0, 0, 1]> (r2, w3) r3 = Relu(c3)
    f = Flatten(r3) y = Gemm <transB = 1> (f, w4) }"""

CHAIN_WEIGHTS = {
    "w1": numbers(4, 2, 3, 3, seed=1),
    "w2": numbers(6, 2, 3, 2, seed=2),
    "w3": numbers(6, 3, 3, 2, seed=3),
    "w4": numbers(5, 3 * 8 * 6, seed=4),
}


@pytest.mark.parametrize("neuron", NEURONS, ids=str)
def test_a_chain_of_padded_strided_grouped_dilated_and_transposed_layers(neuron: NeuronSpec) -> None:
    ran = Ran(parse(CHAIN, **CHAIN_WEIGHTS), {"x": numbers(N, 2, 7, 6)}, neuron)
    reach = {
        "x": conv_reach((2, 7, 6), (4, 2, 3, 3), (4, 6), strides=(2, 1), pads=(1, 0)),
        "r1": conv_reach((4, 4, 6), (6, 2, 3, 2), (4, 6), pads=(1, 1), dilations=(1, 2)),
        "r2": transposed_reach((6, 4, 6), (6, 3, 3, 2), (8, 6), strides=(2, 1), pads=(1, 0)),
        "r3": np.full((3, 8, 6), 5),
    }
    assert {name: ran.events(name, 0).shape[1:] for name in ("r1", "r2", "r3")} == {
        name: reach[name].shape for name in ("r1", "r2", "r3")
    }
    ran.check(
        lambda t: sum(spent(ran.events(name, t), reach[name]) for name in ("r1", "r2", "r3")),
        lambda t: sum(spent(ran.binary(name, t), reach[name]) for name in ("r1", "r2", "r3")),
    )
    counts = ran.counts
    assert counts.macs_once == spent(np.ones((1, 2, 7, 6)), reach["x"])
    assert counts.macs_every_step == 0
    assert counts.analog_synops == (0, 0, 0)
    assert counts.ann_macs == sum(spent(np.ones((1, *r.shape)), r) for r in reach.values())
    assert counts.neuron_additions == counts.neurons * additions(ran.plan, ran.plan.sites[0])
    assert counts.levels == {"if": 1, "signed-group": 7, "group": 5, "multi-threshold": 8}[neuron.name]
    binary_is_more = counts.binary_synops[-1] > counts.synops[-1]
    assert binary_is_more == (neuron.name in ("signed-group", "group"))


BRANCHES = """g (float[N, 3, 6, 6] x) => (float[N, 2, 1, 1] y) {
    c1 = Conv <pads = [1, 1, 1, 1]> (x, w1) r1 = Relu(c1)
    c2 = Conv <pads = [1, 1, 1, 1]> (r1, w2) r2 = Relu(c2)
    a = Add(r1, r2) h = Mul(a, half) n = Neg(h)
    p = AveragePool <kernel_shape = [2, 2], strides = [2, 2], pads = [0, 0, 1, 1]> (n)
    c3 = Conv <pads = [0, 1, 0, 1]> (p, w3) r3 = Relu(c3)
    k = Concat <axis = 1> (r3, r3) g = GlobalAveragePool(k) y = Conv(g, w4) }"""

BRANCH_WEIGHTS = {
    "w1": numbers(4, 3, 3, 3, seed=1),
    "w2": numbers(4, 4, 3, 3, seed=2),
    "w3": -numbers(3, 4, 2, 3, seed=3),
    "w4": numbers(2, 6, 1, 1, seed=4),
    "half": np.array([0.5, 0, 1, 2], np.float32).reshape(4, 1, 1),
}


@pytest.mark.parametrize("form", ["unrolled", "fused", "loop"])
@pytest.mark.parametrize("neuron", NEURONS[:2], ids=str)
def test_every_binary_spike_of_a_sum_a_scale_and_a_pooling_arrives(neuron: NeuronSpec, form: str) -> None:
    feeds = {"x": numbers(N, 3, 6, 6)}
    ran = Ran(parse(BRANCHES, **BRANCH_WEIGHTS), feeds, neuron)
    first = conv_reach((4, 6, 6), (4, 4, 3, 3), (6, 6), pads=(1, 1))
    third = conv_reach((4, 3, 3), (3, 4, 2, 3), (2, 3), pads=(0, 1))

    def pooled(x: np.ndarray) -> np.ndarray:
        """Sums over windows of 2 x 2; the last row and column of padding start no window."""
        return x.reshape(N, 4, 3, 2, 3, 2).sum((3, 5))

    def binary(t: int) -> float:
        both = ran.binary("r1", t) + ran.binary("r2", t)
        both[:, 1] = 0  # scaled by 0
        last = ran.binary("r3", t).sum((2, 3), keepdims=True)
        return (
            spent(ran.binary("r1", t), first)
            + spent(pooled(both), third)
            + 2 * spent(last, np.full((3, 1, 1), 2))  # r3 twice
        )

    def synops(t: int) -> float:
        layers = [layer for layer in ran.layers.reading(Reads.SPIKES) if layer.step == t]
        assert len(layers) == 3
        reach = (first, third, np.full((6, 1, 1), 2))
        return sum(spent(ran.values[layer.node.input[0]] != 0, r) for layer, r in zip(layers, reach, strict=True))

    ran.check(synops, binary)
    if form == "loop":
        assert Ran(parse(BRANCHES, **BRANCH_WEIGHTS), feeds, neuron, form).counts == ran.counts


def test_differential_events_arrive_in_units() -> None:
    neuron = NeuronSpec("signed-group", 7, "differential")
    model = parse(
        """g (float[N, 3, 4, 4] x) => (float[N, 2, 4, 4] y) {
        r = Relu(x) s = Relu(m) a = Add(r, s) m = Conv(x, w) y = Conv(a, v) }""".replace(
            "r = Relu(x) s = Relu(m) a = Add(r, s) m = Conv(x, w)",
            "m = Conv(x, w) r = Relu(x) s = Relu(m) a = Add(r, s)",
        ),
        w=numbers(3, 3, 1, 1, seed=1),
        v=numbers(2, 3, 1, 1, seed=2),
    )
    ran = Ran(model, {"x": numbers(N, 3, 4, 4)}, neuron)
    reach = np.full((3, 4, 4), 2)
    sent = [
        ran.values[events_name(ran.plan, ran.sites["r"], t)] + ran.values[events_name(ran.plan, ran.sites["s"], t)]
        for t in range(T)
    ]
    ran.check(
        lambda t: spent(sent[t] != 0, reach),
        lambda t: spent(ran.binary("r", t) + ran.binary("s", t), reach),
    )


def test_a_layer_behind_a_layer_multiplies() -> None:
    """As in an inverted bottleneck: no activation between the last layer of a block and the first of the next."""
    model = parse(
        """g (float[N, 2, 5, 5] x) => (float[N, 2, 3, 3] y) {
        c1 = Conv(x, w1) r1 = Relu(c1) c2 = Conv(r1, w2) c3 = Conv <pads = [1, 1, 1, 1]> (c2, w3) r3 = Relu(c3)
        s = Add(c1, r3) y = Conv(s, w4) }""",
        w1=numbers(3, 2, 1, 1, seed=1),
        w2=numbers(2, 3, 1, 1, seed=2),
        w3=numbers(3, 2, 3, 3, seed=3),
        w4=numbers(2, 3, 3, 3, seed=4),
    )
    ran = Ran(model, {"x": numbers(N, 2, 5, 5)}, NeuronSpec("if"))
    reach = {
        "second": conv_reach((3, 5, 5), (2, 3, 1, 1), (5, 5)),
        "third": conv_reach((2, 5, 5), (3, 2, 3, 3), (5, 5), pads=(1, 1)),
        "fourth": conv_reach((3, 5, 5), (2, 3, 3, 3), (3, 3)),
    }
    real = np.zeros(T)
    for t in range(T):
        third, fourth = (layer for layer in ran.layers.reading(Reads.CURRENTS) if layer.step == t)
        real[t] = spent(ran.values[third.node.input[0]] != 0, reach["third"])
        real[t] += spent(ran.values[fourth.node.input[0]] != 0, reach["fourth"])  # an analog number is added
    spikes = [spent(ran.events("r1", t), reach["second"]) for t in range(T)]
    np.testing.assert_allclose(ran.counts.analog_synops, np.cumsum(real))
    ran.check(lambda t: spikes[t] + real[t], lambda t: spikes[t] + real[t])
    energy = energy_of(ran.counts)
    assert energy.macs == pytest.approx(ran.counts.macs_once + np.cumsum(real))
    assert energy.acs == pytest.approx(np.cumsum(spikes))


@pytest.mark.parametrize("form", ["unrolled", "fused", "loop"])
def test_layers_on_means_multiply_at_every_step(form: str) -> None:
    model = parse(
        """g (float[N, 4, 6] x) => (float[N, 4, 3] y) {
        q = MatMul(x, wq) rq = Relu(q) k = MatMul(x, wk) rk = Relu(k) kt = Transpose <perm = [0, 2, 1]> (rk)
        a = MatMul(rq, kt) s = Softmax <axis = 2> (a) m = MatMul(s, x) y = MatMul(m, wv) }""",
        wq=numbers(6, 5, seed=1),
        wk=numbers(6, 5, seed=2),
        wv=numbers(6, 3, seed=3),
    )
    ran = Ran(model, {"x": numbers(N, 4, 6)}, NeuronSpec("if"), form)
    assert ran.counts.macs_once == 2 * 4 * 6 * 5
    assert ran.counts.macs_every_step == 4 * 5 * 4  # q k^T
    # softmax gets neurons of both signs, whose spikes go through two products: the second reads currents
    assert ran.counts.dense_synops == 4 * 4 * 6 + 4 * 6 * 3
    assert ran.counts.ann_macs == 2 * 4 * 6 * 5 + 4 * 5 * 4 + 4 * 4 * 6 + 4 * 6 * 3
    assert ran.counts.analog_synops[-1] > 0
    energy = energy_of(ran.counts)
    expected = [240 + 80 * (t + 1) + analog for t, analog in enumerate(ran.counts.analog_synops)]
    assert energy.macs == pytest.approx(expected)


def test_additions_are_those_of_the_equations() -> None:
    plan = make_plan(network_of(parse("g (float[N, 3] x) => (float[N, 3] y) { y = Relu(x) }")), T)
    (site,) = plan.sites
    added = {
        str(spec): additions(plan.with_neuron(spec), site)
        for spec in (
            NeuronSpec("if"),
            NeuronSpec("group", 4),
            NeuronSpec("signed"),
            NeuronSpec("if", 1, "differential"),
        )
    }
    assert added["if"] == added["group of 4 levels"] == 3  # current, bias, reset
    assert added["signed"] == 5  # and what was sent, and forth less back
    assert added["if, differential coding"] == 7  # less r; plus r; r; n
    layered = replace(plan, schedule="synchronous")
    assert additions(layered, site) == pytest.approx(((T - 1) + (T - 1) + 2 + (T - 1)) / T)


def test_operators_that_are_not_counted_are_named() -> None:
    model = parse(
        'g (float[N, 3] x) => (float[N, 3] y) { r = Relu(x) y = Einsum <equation = "ni,ij->nj"> (r, w) }', w=np.eye(3)
    )
    assert uncounted(model) == ("Einsum",)
    assert uncounted(parse("g (float[N, 3] x) => (float[N, 3] y) { y = Relu(x) }")) == ()


COUNTS = Counts(
    neurons=10.0,
    events=(0.5, 1.0),
    binary_spikes=(0.6, 1.2),
    synops=(100.0, 220.0),
    dense_synops=300.0,
    binary_synops=(130.0, 280.0),
    analog_synops=(20.0, 50.0),
    macs_once=40.0,
    macs_every_step=7.0,
    neuron_additions=30.0,
    levels=3,
)


def test_the_arithmetic_by_hand() -> None:
    energy = energy_of(COUNTS, Constants(mac=5.0, ac=1.0))
    assert energy.macs == (40 + 7 + 20, 40 + 14 + 50)
    assert energy.acs == (80, 170)
    assert energy.binary_acs == (110, 230)
    assert energy.neuron_additions == (30, 60)
    assert energy.ann_macs == 347
    assert energy.snn == (5 * 67 + 110, 5 * 104 + 230)
    assert energy.binary == (5 * 67 + 140, 5 * 104 + 290)
    assert energy.ann == 5 * 347
    assert energy.bits == (2, 3)  # 3 and 6 levels, and zero
    assert energy.quantised == (5 * 47 + 2 * 300, 5 * 47 + 3 * 300)
    found = energy.as_dict()
    assert found["constants"] == {"mac_pj": 5.0, "ac_pj": 1.0}
    assert found["ratio"] == [445 / 1735, 750 / 1735]
    assert found["ratio_without_neurons"] == [415 / 1735, 690 / 1735]
    assert found["binary_ratio"] == [475 / 1735, 810 / 1735]
    assert found["quantised_ratio"] == [475 / 835, 810 / 1135]
    assert found["snn_pj"] == [445, 750]
    assert found["verdict"] is None


def test_bits_never_cost_more_than_a_mac() -> None:
    many = energy_of(replace(COUNTS, levels=255), Constants(mac=5.0, ac=1.0))
    assert many.bits == (8, 9)
    assert many.quantised == (many.ann, many.ann)


def test_the_plain_sentence() -> None:
    energy = energy_of(replace(COUNTS, macs_once=4.0, synops=(100.0, 3000.0), binary_synops=(130.0, 4000.0)))
    ratios = [energy.snn[1] / energy.ann, energy.binary[1] / energy.ann, energy.binary[1] / energy.quantised[1]]
    assert min(ratios) > 1
    assert energy.verdict() == (
        f"The spiking network costs more energy: {ratios[0]:.2f} times the ANN's, {ratios[1]:.2f} times the ANN's if "
        f"spikes are binary, {ratios[2]:.2f} times that of an ANN with activations of 3 bits."
    )
    between = energy_of(replace(COUNTS, binary_synops=(130.0, 800.0)))
    assert between.snn[1] < between.ann
    assert between.verdict().startswith("The spiking network costs more energy: ")
    assert "times the ANN's," not in between.verdict()
    assert energy_of(COUNTS).as_dict()["verdict"] is None


@pytest.mark.parametrize("value", [0.0, -1.0, float("inf"), float("nan"), True, "4.6"])
def test_constants_are_positive_numbers(value: object) -> None:
    with pytest.raises(ConfigError, match=r"energy_mac is .*: it must be a positive number of pJ"):
        Constants(mac=value)  # type: ignore[arg-type]


def test_without_macs_there_is_no_ratio() -> None:
    none: Mapping[str, float] = {"macs_once": 0.0, "macs_every_step": 0.0, "dense_synops": 0.0}
    assert energy_of(replace(COUNTS, **none)).as_dict()["ratio"] is None
