"""Layer-synchronous firing: bit for bit what it says, and equal to the ANN with T*K levels, made here independently."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from helpers import OPSETS, assert_close, assert_valid, eighths, numbers, parse, run
from networks import QCFS, batches_of, digits, inputs, network_of, residual, source_of
from onnx import helper, numpy_helper

from ftbc_onnx import ConfigError, ConvertConfig, convert
from ftbc_onnx.calibrate import calibrate
from ftbc_onnx.graph.builder import GraphBuilder
from ftbc_onnx.graph.classes import NodeClass
from ftbc_onnx.graph.emit.unrolled import emit_unrolled, spikes_name
from ftbc_onnx.graph.observe import expose_tensors
from ftbc_onnx.graph.sites import Network
from ftbc_onnx.neurons import NeuronSpec, Synchronous
from ftbc_onnx.plan import SpikingPlan
from ftbc_onnx.rules import CalibrationRule, PaperRule, SolveRule
from ftbc_onnx.runtime import CPU
from ftbc_onnx.verify import simulate, verify

THETA = np.array([0.75, 1.5, 0.3, 2.0], np.float32).reshape(1, 4, 1)


# the equation


@pytest.mark.parametrize("opset", [OPSETS[0], OPSETS[-1]])
@pytest.mark.parametrize("signed", [False, True], ids=["rectifier", "signed"])
@pytest.mark.parametrize(("steps", "levels"), [(1, 3), (3, 1), (6, 3), (7, 4)])
def test_operators_and_numpy_agree_bitwise(steps: int, levels: int, signed: bool, opset: int) -> None:
    layer = Synchronous(levels, steps, signed)
    unit = THETA / np.float32(levels)
    current = numbers(steps, 3, 4, 5, seed=steps) + np.float32(0.1)
    bias = numbers(steps, 1, 4, 1, seed=9, scale=0.2)
    builder = GraphBuilder(opset)
    xs, bs = [f"x{t}" for t in range(steps)], [f"b{t}" for t in range(steps)]
    builder.reserve([*xs, *bs])
    names = layer.emit(builder, xs, builder.initializer("unit", unit), bs)
    values = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in [*xs, *bs]]
    outputs = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names]
    model = builder.to_model("layer", values, outputs, [helper.make_opsetid("", opset)])
    found = run(model, dict(zip([*xs, *bs], [*current, *bias], strict=True)), optimise=False)
    spikes = layer.fire(list(current), unit, list(bias))
    for name, expected in zip(names, spikes, strict=True):
        np.testing.assert_array_equal(found[name], expected)
        assert found[name].dtype == expected.dtype == np.float32
    assert np.any(np.array(spikes) > 0)
    assert np.any(np.array(spikes) < 0) == signed


@pytest.mark.parametrize(("steps", "levels"), [(1, 1), (2, 1), (3, 5), (7, 3), (100, 255), (256, 255), (4095, 1)])
def test_spikes_are_spread_as_whole_numbers_say(steps: int, levels: int) -> None:
    """Against integers: the sum is n, and no step has more than K units; theta = K, so that lambda = 1."""
    layer = Synchronous(levels, steps, signed=True)
    most = steps * levels
    n = np.unique([*np.random.default_rng(0).integers(-most, most + 1, 200), -most, -1, 0, 1, most - 1, most])
    zeros = [np.zeros(1, np.float32)] * steps
    first = [n.astype(np.float32), *(np.zeros(len(n), np.float32) for _ in range(steps - 1))]
    spikes = np.array(layer.fire(first, np.ones(1, np.float32), zeros))
    bounds = np.array([[t * int(k) // steps for k in n] for t in range(steps + 1)])
    np.testing.assert_array_equal(spikes, np.diff(bounds, axis=0))
    np.testing.assert_array_equal(spikes.sum(0), n)
    assert np.abs(spikes).max() <= levels


@pytest.mark.parametrize(("signed", "expected"), [(False, [0, 0, 0, 1, 2, 6, 6]), (True, [-6, -1, 0, 1, 2, 6, 6])])
def test_nearest_count_within_bounds(signed: bool, expected: list[int]) -> None:
    total = np.array([-9, -1.25, -0.25, 0.5, 1.5, 6.4, 9], np.float32)
    found = Synchronous(2, 3, signed).count(total * np.float32(0.25), np.array([0.25], np.float32))
    np.testing.assert_array_equal(found, expected)


# equal to the quantised ANN

POOL = """pool (float[N,2,4,4] x) => (float[N,3] y) {
    c = Conv<pads=[1,1,1,1]>(x, w1, b1)  r = Relu(c)  p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(r)
    g = Conv<strides=[2,2]>(r, w2)
    d = Conv(p, w3)  a = Add(d, g)  z = Relu(a)  q = GlobalAveragePool(z)
    f = Flatten(q)  y = Gemm<transB=1>(f, w4)
}"""
NHWC = """nhwc (float[N,4,4,2] x) => (float[N,4,4,3] y) {
    s = Transpose<perm=[0,3,1,2]>(x)  c = Conv<pads=[1,1,1,1]>(s, w1)  h = Transpose<perm=[0,2,3,1]>(c)
    a = Add(h, b1)  r = Relu(a)  m = MatMul(r, w2)  z = Relu(m)  y = MatMul(z, w3)
}"""


def pool(make: Any) -> onnx.ModelProto:
    """A MaxPool whose rectifier is read elsewhere too: it stays behind it, and is applied to means."""
    weights = {"w1": make(4, 2, 3, 3, seed=1), "b1": make(4, seed=2), "w2": make(4, 4, 2, 2, seed=3)}
    return parse(POOL, **weights, w3=make(4, 4, 1, 1, seed=4), w4=make(3, 4, seed=5))


def nhwc(make: Any) -> onnx.ModelProto:
    """Channels last, as Keras exports it."""
    weights = {"w1": make(4, 2, 3, 3, seed=1), "b1": make(4, seed=2), "w2": make(4, 5, seed=3)}
    return parse(NHWC, **weights, w3=make(5, 3, seed=4))


def random_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    for i, tensor in enumerate(model.graph.initializer):
        value = numbers(*tensor.dims, seed=i, scale=0.4)
        tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    return model


EXACT = {"residual": residual, "pool": lambda: pool(eighths), "nhwc": lambda: nhwc(eighths)}


def images(name: str, samples: int, dyadic: bool = True) -> dict[str, np.ndarray]:
    x = inputs(samples, seed=3) if dyadic else numbers(samples, 2, 4, 4, seed=3)
    return {"x": x.transpose(0, 2, 3, 1).copy() if name == "nhwc" else x}


def synchronous(
    network: Network, steps: int, levels: int, thresholds: list[np.ndarray], bias: float = 0.0
) -> SpikingPlan:
    """A synchronous plan of group neurons; biases are multiples of `bias`, different for every step and channel."""
    return SpikingPlan(
        "0" * 64,
        network.sites,
        steps,
        NeuronSpec("group", levels),
        {s.name: theta for s, theta in zip(network.sites, thresholds, strict=True)},
        {s.name: bias * (np.arange(steps * s.channels).reshape(steps, -1) % 5 - 2) for s in network.sites},
        schedule="synchronous",
    )


def quantised(model: onnx.ModelProto, network: Network, plan: SpikingPlan, levels: int) -> onnx.ModelProto:
    """The ANN with every Relu replaced by theta/N * clip(floor((x + mean b) * N/theta + 1/2), 0, N)."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    del made.graph.node[:]
    sites = list(network.sites)
    for node in model.graph.node:
        if node.op_type != "Relu":
            made.graph.node.append(node)
            continue
        site, name = sites.pop(0), node.output[0]
        theta = plan.thresholds[site.name].astype(np.float64).reshape(site.channel_shape)
        bias = plan.biases[site.name].astype(np.float64).mean(0).reshape(site.channel_shape)
        constants = {"step": theta / levels, "bias": bias, "half": 0.5, "least": 0.0, "most": levels}
        for key, value in constants.items():
            made.graph.initializer.append(numpy_helper.from_array(np.array(value, np.float32), f"{name}_{key}"))
        chain = [
            ("Add", [node.input[0], f"{name}_bias"], f"{name}_0"),
            ("Div", [f"{name}_0", f"{name}_step"], f"{name}_1"),
            ("Add", [f"{name}_1", f"{name}_half"], f"{name}_2"),
            ("Floor", [f"{name}_2"], f"{name}_3"),
            ("Clip", [f"{name}_3", f"{name}_least", f"{name}_most"], f"{name}_4"),
            ("Mul", [f"{name}_4", f"{name}_step"], name),
        ]
        made.graph.node.extend(helper.make_node(op, read, [out]) for op, read, out in chain)
    assert not sites
    return made


@pytest.mark.parametrize("bias", [0.0, 0.125], ids=["plain", "biased"])
@pytest.mark.parametrize(
    ("name", "steps", "levels"),
    [(n, *tk) for n in EXACT for tk in [(1, 8), (2, 1), (2, 4), (4, 2), (8, 1)] if n != "pool" or tk[0] <= 2],
)
def test_equal_to_the_quantised_ann_where_numbers_are_exact(name: str, steps: int, levels: int, bias: float) -> None:
    """Of `pool`, T = 1 and 2 only: a mean over 3 steps is rounded."""
    model = EXACT[name]()
    network = network_of(model)
    means = [node.op_type for node in network.view.nodes if network.classes[node.name] is NodeClass.RATE_EXACT]
    assert means == (["MaxPool"] if name == "pool" else [])
    thetas = [2.0 ** (np.arange(site.channels) % 3) for site in network.sites]
    plan = synchronous(network, steps, levels, thetas, bias)
    feeds = images(name, 16)
    found = run(emit_unrolled(network, plan).model, feeds)["y"]
    np.testing.assert_array_equal(found, run(quantised(model, network, plan, steps * levels), feeds)["y"])
    assert len(np.unique(found)) > 10


@pytest.mark.parametrize("bias", [0.0, 0.07], ids=["plain", "biased"])
@pytest.mark.parametrize(("steps", "levels"), [(3, 1), (5, 3), (8, 2)])
@pytest.mark.parametrize("name", EXACT)
def test_equal_to_the_quantised_ann_within_rounding(name: str, steps: int, levels: int, bias: float) -> None:
    model = random_weights(EXACT[name]())
    network = network_of(model)
    thetas = [np.linspace(0.7, 1.9, site.channels) for site in network.sites]
    plan = synchronous(network, steps, levels, thetas, bias)
    feeds = images(name, 16, dyadic=False)
    found = run(emit_unrolled(network, plan).model, feeds)["y"]
    assert_close(found, run(quantised(model, network, plan, steps * levels), feeds)["y"])


def test_qcfs_at_t_equal_to_l_decides_as_its_ann() -> None:
    result = convert(QCFS, steps=4, neuron="if", schedule="synchronous")
    feeds = {"image": digits("test")[0]}
    found, expected = run(result.model, feeds)["logits"], run(onnx.load(QCFS), feeds)["logits"]
    np.testing.assert_array_equal(found.argmax(1), expected.argmax(1))
    assert_close(found, expected, steps=1024)


# the graph and its NumPy run

BODIES = {
    "rectifiers": "q = Conv(r, v)  z = Relu(q)  y = Flatten(z)",
    "MaxPool": "p = MaxPool<kernel_shape=[2,2]>(r)  q = Conv(p, v)  z = Relu(q)  s = Sum(r, r)  y = Flatten(z)",
    "a mean at the end": "p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(r)  h = Tanh(p)  y = Flatten(h)",
    "signed sites": "h = Tanh(r)  q = Conv(h, v)  z = Relu(q)  k = Sigmoid(z)  m = Conv(k, u)  y = Flatten(m)",
    "a product": "p = Mul(r, r)  y = Flatten(p)",
    "means and currents": "p = MaxPool<kernel_shape=[1,1]>(r)  q = Add(p, r)  z = Relu(q)  y = Flatten(z)",
    "a shape": "k = Shape(r)  q = Neg(r)  m = Reshape(q, k)  z = Relu(m)  y = Flatten(z)",
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
@pytest.mark.parametrize(
    ("steps", "neuron"), [(1, NeuronSpec("if")), (5, NeuronSpec("if")), (3, NeuronSpec("group", 3))]
)
def test_emitted_model_is_its_plan_bitwise(body: str, steps: int, neuron: NeuronSpec) -> None:
    model = parse(
        f"g (float[N,2,4,4] x) => (float[N,K] y) {{ c = Conv<pads=[1,1,1,1]>(x, w)  r = Relu(c)  {body} }}",
        w=numbers(3, 2, 3, 3, seed=1, scale=0.5),
        v=numbers(2, 3, 2, 2, seed=2),
        u=numbers(2, 2, 1, 1, seed=3),
    )
    network = network_of(model)
    thetas = [np.linspace(0.6, 1.3, site.channels) for site in network.sites]
    plan = replace(synchronous(network, steps, 1, thetas, bias=0.1), neuron=neuron)
    emitted = emit_unrolled(network, plan)
    assert_valid(emitted.model)
    result = verify(emitted, network, plan, {"x": numbers(4, 2, 4, 4, seed=3)})
    assert result.bitwise
    assert result.steps == steps


def test_a_long_run_is_compared_to_the_end() -> None:
    network = network_of(parse("g (float[N,3] x) => (float[N,3] y) { y = Relu(x) }"))
    plan = synchronous(network, 2500, 1, [np.ones(3)])
    found = simulate(network, plan, {"x": numbers(2, 3)}, steps=2)
    assert len(found["y"]) == 2500


# calibration


def calibrated(rule: CalibrationRule, plan: SpikingPlan, x: np.ndarray, size: int) -> dict[str, np.ndarray]:
    network = network_of(residual())
    source = source_of(network.view.model, x=x)
    result = calibrate(network, plan, rule, source, batching=batches_of(size), samples=len(x), device=CPU)
    return dict(result.biases)


@pytest.fixture
def plan() -> SpikingPlan:
    network = network_of(residual())
    return synchronous(network, 4, 2, [2.0 ** (np.arange(4) % 3 - 1) for _ in network.sites])


def channel_means(x: np.ndarray) -> np.ndarray:
    return x.mean((0, 2, 3), dtype=np.float64).astype(np.float32)


def first_currents(x: np.ndarray) -> np.ndarray:
    """The current of the first site of `residual`, the same at every step."""
    return run(expose_tensors(residual(), ["c1"]), {"x": x}, optimise=False)["c1"]


def test_paper_moves_the_first_row_by_the_steps_of_all_rows(plan: SpikingPlan) -> None:
    x = inputs(16)
    old = plan.with_biases({name: bias + 0.25 for name, bias in plan.biases.items()})
    found = calibrated(PaperRule(0.5), old, x, 16)["r1"]
    current, layer = first_currents(x), Synchronous(2, 4)
    unit = (plan.thresholds["r1"] / 2).reshape(1, 4, 1, 1)
    total = layer.count(4 * current + 1, unit) * unit  # the old rows sum to 1
    step = channel_means(total) - 4 * channel_means(np.maximum(current, 0))
    np.testing.assert_array_equal(found[0], 1 - np.float32(0.5) * step)
    np.testing.assert_array_equal(found[1:], 0)


def test_solve_is_one_step_with_all_the_levels(plan: SpikingPlan) -> None:
    """12 halvings of [-T theta, T theta] towards T mean(a); no bias unless it comes closer."""
    x = inputs(16)
    found = calibrated(SolveRule(), plan, x, 16)["r1"]
    current, layer = first_currents(x), Synchronous(2, 4)
    theta = plan.thresholds["r1"]
    unit = (theta / 2).reshape(1, 4, 1, 1)

    def sent(bias: np.ndarray) -> np.ndarray:
        return channel_means(layer.count(4 * current + bias.reshape(1, 4, 1, 1), unit) * unit)

    target = np.minimum(4 * channel_means(np.maximum(current, 0)), 4 * theta)
    middle, reach = np.zeros(4, np.float32), 4 * theta
    for _ in range(12):
        reach = reach / 2
        middle = np.where(sent(middle) >= target, middle - reach, middle + reach)
    closer = np.abs(sent(middle) - target) < np.abs(sent(np.zeros(4, np.float32)) - target)
    np.testing.assert_array_equal(found[0], np.where(closer, middle, 0))
    np.testing.assert_array_equal(found[1:], 0)
    assert found.any()


def test_solve_closes_the_gap_of_every_site(plan: SpikingPlan) -> None:
    """On the batch of the calibration; the first site has too few different currents for more than a part."""
    x = inputs(64)
    network = network_of(residual())
    activations = run(expose_tensors(residual(), [s.spikes for s in network.sites]), {"x": x})

    def gaps(judged: SpikingPlan) -> np.ndarray:
        names = {s.name: [spikes_name(s.name, t) for t in range(4)] for s in network.sites}
        model = expose_tensors(emit_unrolled(network, judged).model, [n for row in names.values() for n in row])
        found = run(model, {"x": x})
        sent = {name: np.mean([found[n] for n in row], 0) for name, row in names.items()}
        expected = {s.name: channel_means(activations[s.spikes]) for s in network.sites}
        most = {s.name: np.minimum(expected[s.name], judged.thresholds[s.name]) for s in network.sites}
        return np.array([np.abs(channel_means(sent[s.name]) - most[s.name]).mean() for s in network.sites])

    before, after = gaps(plan), gaps(plan.with_biases(calibrated(SolveRule(), plan, x, 64)))
    assert np.all(after < before)
    assert np.all(after[1:] < before[1:] / 5)


def test_several_batches_are_averaged(plan: SpikingPlan) -> None:
    x = inputs(16)
    both, first, second = (calibrated(SolveRule(), plan, part, 8) for part in (x, x[:8], x[8:]))
    for name, bias in both.items():
        np.testing.assert_allclose(bias, (first[name] + second[name]) / 2, atol=1e-6)


# options, plan, report


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"schedule": "layered"}, r"schedule is 'layered': choose one of asynchronous, synchronous$"),
        ({"neuron": "signed"}, r"neuron signed cannot fire layer-synchronously.*choose if or group"),
        ({"neuron": "signed-group"}, r"neuron signed-group of 4 levels cannot fire layer-synchronously"),
        ({"neuron": "multi-threshold"}, r"neuron multi-threshold of 4 thresholds cannot fire"),
        ({"coding": "differential"}, r"neuron if, differential coding cannot fire layer-synchronously"),
        (
            {"steps": 4096},
            r"T = 4096 with 1 level\(s\) is too long for schedule synchronous: T\*T\*K must be below 2\^24",
        ),
    ],
    ids=lambda value: "" if isinstance(value, str) else next(iter(value.values())),
)
def test_what_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        ConvertConfig(**{"schedule": "synchronous", "neuron": "if", **options})
    assert "\n" not in str(caught.value)


def test_plan_refuses_it_too_and_has_no_prefix(plan: SpikingPlan) -> None:
    with pytest.raises(ConfigError, match="cannot fire layer-synchronously"):
        replace(plan, neuron=NeuronSpec("signed"))
    with pytest.raises(ConfigError, match="a synchronous plan of T = 4 steps has no prefix: convert with T = 2"):
        plan.prefix(2)
    assert plan.prefix(4) == plan
    assert replace(plan, schedule="asynchronous") != plan


def test_depth_is_the_longest_chain(plan: SpikingPlan) -> None:
    assert plan.depth == 3
    both = parse("g (float[N,3] x) => (float[N,3] y) { a = Relu(x)  n = Neg(x)  b = Relu(n)  y = Add(a, b) }")
    assert synchronous(network_of(both), 2, 1, [np.ones(3)] * 2).depth == 1
