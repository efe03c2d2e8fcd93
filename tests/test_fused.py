"""The fused form: thresholds and biases in the layers change nothing but rounding, and each pass can be left out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from emit_cases import NETS, feeds_of, network_of, plan_of
from helpers import assert_valid, numbers, parse, run
from networks import RELU, SPECS, digits, inputs, random_plan, residual
from networks import network_of as network_from

from ftbc_onnx import ConfigError, convert
from ftbc_onnx.config import FUSE
from ftbc_onnx.errors import VerificationError
from ftbc_onnx.evaluate import evaluate_file
from ftbc_onnx.graph.emit import choose_form, emit
from ftbc_onnx.graph.emit.fused import emit_fused
from ftbc_onnx.graph.emit.unrolled import emit_unrolled
from ftbc_onnx.graph.fuse import fuse
from ftbc_onnx.graph.observe import expose_running_means, observe_snn, running_mean_name
from ftbc_onnx.graph.provenance import read_plan, stamp
from ftbc_onnx.graph.shortcuts import find_shortcut
from ftbc_onnx.graph.sites import Network
from ftbc_onnx.graph.view import GraphView
from ftbc_onnx.neurons import IntegrateAndFire, NeuronSpec, Reversed
from ftbc_onnx.plan import SpikingPlan
from ftbc_onnx.verify import fusion_error, simulate, verify
from ftbc_onnx.window import Window

SUBSETS = [(), ("thresholds",), ("biases",), ("thresholds", "biases"), ("thresholds", "resets"), FUSE]

RATE = [spec for spec in SPECS if spec.coding == "rate"]


def means(network: Network, plan: SpikingPlan, feeds: dict[str, np.ndarray], passes: tuple[str, ...] | None) -> dict:
    """Every output after every step, unoptimised: of the fused form, or of the unrolled one (None)."""
    emitted = emit_unrolled(network, plan) if passes is None else emit_fused(network, plan, passes)
    return run(expose_running_means(emitted.model, emitted.readouts), feeds, optimise=False)


def exact_plan(network: Network, spec: NeuronSpec, steps: int = 5) -> SpikingPlan:
    """Thresholds of powers of two times the levels, so that nothing rounds where it is divided by them."""
    rng = np.random.default_rng(5)
    units = {site.name: 2.0 ** rng.integers(-2, 2, site.channels) for site in network.sites}
    biases = {site.name: rng.normal(0, 0.1, (steps, site.channels)) for site in network.sites}
    return SpikingPlan("", network.sites, steps, spec, {n: u * spec.most for n, u in units.items()}, biases)


@pytest.mark.parametrize("name", NETS)
def test_every_kind_of_network_is_its_twin_to_the_last_bit(name: str) -> None:
    network, plan, feeds = network_of(name), plan_of(network_of(name)), feeds_of(name, 3)
    emitted = emit(network, plan, "fused")
    assert_valid(emitted.model)
    ours, plain = means(network, plan, feeds, FUSE), means(network, plan, feeds, None)
    assert emitted.twin is not None
    if network.sites:
        for output, value in simulate(emitted.twin.network, emitted.twin.plan, feeds).items():
            np.testing.assert_array_equal(ours[running_mean_name(output)], value)
    assert set(ours) == set(plain)
    for output, value in plain.items():
        assert ours[output].shape == value.shape
        assert ours[output].dtype == value.dtype


def test_a_layer_added_to_itself_gets_its_bias_once() -> None:
    text = "g (float[N,2] x) => (float[N,3] y) { r = Relu(x) c = Gemm(r, w) d = Gemm(r, v) a = Add(c, c) "
    for end in ("y = Relu(a) }", "e = Add(a, d) y = Relu(e) }"):
        network = network_from(parse(text + end, w=numbers(2, 3), v=numbers(2, 3, seed=1)))
        plan, feeds = random_plan(network, NeuronSpec("if")), {"x": numbers(8, 2, seed=2)}
        assert verify(emit(network, plan, "fused"), network, plan, feeds).bitwise


@pytest.mark.parametrize("passes", SUBSETS, ids="+".join)
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_every_neuron_and_pass_is_its_twin_to_the_last_bit(spec: NeuronSpec, passes: tuple[str, ...]) -> None:
    network = network_from(onnx.load(RELU))
    plan, feeds = random_plan(network, spec), {"image": digits("test", 3)[0]}
    gains = {site.name: np.linspace(0.8, 1.2, site.channels) for site in network.sites}
    for judged in (plan, plan.with_gains(gains)):
        emitted = emit_fused(network, judged, passes)
        assert verify(emitted, network, judged, feeds).bitwise


@pytest.mark.parametrize("spec", RATE, ids=str)
@pytest.mark.parametrize("name", ["perceptron", "convolutions", "residual", "max pooling", "depthwise"])
def test_thresholds_that_round_nothing_change_no_bit(name: str, spec: NeuronSpec) -> None:
    network = network_of(name) if name != "depthwise" else DEPTHWISE
    plan, feeds = exact_plan(network, spec), feeds_of(name, 2) if name != "depthwise" else {"x": numbers(2, 3, 6, 6)}
    plain, ours = means(network, plan, feeds, None), means(network, plan, feeds, ("thresholds", "resets"))
    assert any(value.any() for value in plain.values())
    for output, value in plain.items():
        np.testing.assert_array_equal(ours[output], value, err_msg=output)


DEPTHWISE = network_from(
    parse(
        """depthwise (float[N,3,6,6] x) => (float[N,4,6,6] y) {
        c = Conv <pads = [1,1,1,1]> (x, w) r = Relu(c) d = Conv <pads = [1,1,1,1], group = 4> (r, dw, b) s = Relu(d)
        y = Conv (s, pw) }""",
        w=numbers(4, 3, 3, 3, seed=1, scale=0.4),
        dw=numbers(4, 1, 3, 3, seed=2, scale=0.6),
        b=numbers(4, seed=3, scale=0.2),
        pw=numbers(4, 4, 1, 1, seed=4),
    )
)


@pytest.mark.parametrize("passes", SUBSETS, ids="+".join)
def test_rounding_is_all_that_changes(passes: tuple[str, ...]) -> None:
    """Where a spike flips, one in T * K units: on real images few do."""
    network = network_from(onnx.load(RELU))
    plan, feeds = random_plan(network, NeuronSpec("signed-group", 8), steps=8), {"image": digits("test", 64)[0]}
    plain, ours = means(network, plan, feeds, None), means(network, plan, feeds, passes)
    (output,) = (name for name in plain if name.endswith("running_mean"))
    assert np.mean(plain[output].argmax(-1) == ours[output].argmax(-1)) > 0.995
    assert np.abs(plain[output] - ours[output]).mean() < 2e-3 * np.abs(plain[output]).mean()


def test_the_other_sign_fires_the_same() -> None:
    rng = np.random.default_rng(0)
    one, plain, turned = np.ones(1, np.float32), IntegrateAndFire(), Reversed()
    near = np.nextafter(np.float32(1), np.float32([0, 2, 1, 0.5, 4]))
    states = plain.initial_state(one), turned.initial_state(one)
    for _ in range(20):
        x = np.concatenate([rng.normal(0.3, 1, 1000).astype(np.float32), near - np.float32(0.5)])
        b = rng.normal(0, 0.1, x.shape).astype(np.float32)
        s, v = plain.step(x, states[0], one, b)
        t, m = turned.step(-x, states[1], one, -b)
        np.testing.assert_array_equal(s, t)
        np.testing.assert_array_equal(v[0], -m[0])
        states = v, m


def test_hard_sigmoid_is_an_exact_step() -> None:
    model = parse("step (float[N] x) => (float[N] y) { y = HardSigmoid <alpha = -16777216.0, beta = -16777215.0> (x) }")
    ones = np.float32(-1) + np.arange(-2000, 2000, dtype=np.float32) * np.float32(2.0**-24)
    far = np.array([-3e38, -2, -1.5, -0.5, 0, 1, 2, 3e38], np.float32)
    x = np.concatenate([ones, np.nextafter(np.float32(-1), np.float32([-2, 0])), far])
    for optimise in (False, True):
        np.testing.assert_array_equal(run(model, {"x": x}, optimise=optimise)["y"], (x <= -1).astype(np.float32))


def test_spikes_are_units_and_no_product_is_left_at_a_step() -> None:
    network = network_from(residual())
    plan = random_plan(network, NeuronSpec("if"), 3)
    emitted = emit_fused(network, plan)
    view = GraphView(emitted.model)
    steps = [node for node in view.nodes if any(node.name.startswith(f"{site.name}/t") for site in network.sites)]
    assert not [node.op_type for node in steps if node.op_type in ("Mul", "Div", "Cast", "GreaterOrEqual", "Where")]
    assert sum(node.op_type == "HardSigmoid" for node in steps) == 9
    names = [f"{site.name}/t{t}/spikes" for site in network.sites for t in range(3)]
    exposed = onnx.ModelProto()
    exposed.CopyFrom(emitted.model)
    exposed.graph.output.extend(onnx.helper.make_tensor_value_info(name, 1, None) for name in names)
    found = run(exposed, {"x": inputs(4)})
    assert {float(v) for name in names for v in np.unique(found[name])} == {0.0, 1.0}


def test_a_shortcut_carries_the_membrane() -> None:
    network = network_from(residual())
    fused = fuse(network, random_plan(network, NeuronSpec("if")))
    kinds = sorted(entry.kind for entry in fused.network.entries.values())
    assert kinds == ["bias", "bias", "bias", "membrane"]
    assert set(fused.plan.reversed.values()) == {0.0}
    dense = network_of("perceptron")  # its first layer reads no spikes, and is no Conv: its bias stays at the neurons
    assert set(fuse(dense, random_plan(dense, NeuronSpec("if"))).plan.reversed.values()) == {-0.5}


def test_the_file_says_what_the_plan_was() -> None:
    network = network_from(residual())
    plan = replace(random_plan(network, NeuronSpec("group", 3), 4), source_digest="0" * 64)
    emitted = emit_fused(network, plan)
    assert read_plan(stamp(emitted.model, emitted.model, {"plan": plan.describe()})) == plan


def test_compressed_biases_and_delayed_readout() -> None:
    network = network_from(onnx.load(RELU))
    plan = replace(random_plan(network, NeuronSpec("if"), 12).with_compressed_biases(), readout=Window(4))
    assert plan.factors
    assert verify(emit_fused(network, plan), network, plan, {"image": digits("test", 2)[0]}).bitwise


def test_mean_spikes_are_as_high_as_ever() -> None:
    network = network_from(onnx.load(RELU))
    feeds = {"image": digits("test", 8)[0]}
    for spec in (NeuronSpec("if"), NeuronSpec("signed-group", 3)):
        plan = exact_plan(network, spec)
        plain, ours = (
            run(observe_snn(emit(network, plan, form).model, plan), feeds, optimise=False)
            for form in ("unrolled", "fused")
        )
        for site in network.sites:
            np.testing.assert_allclose(
                ours[f"{site.name}/mean_spikes"], plain[f"{site.name}/mean_spikes"], rtol=1e-5, atol=1e-6
            )


@pytest.mark.parametrize("neuron", ["if", "signed-group"])
def test_convert_counts_the_same_events(neuron: str) -> None:
    """A file that is fused, and one that is not, of the same plan."""
    options = {"steps": 4, "neuron": neuron, "eval_data": digits("test", 100)}
    fused, plain = (convert(RELU, digits("test", 32)[0], form=form, **options) for form in ("fused", "unrolled"))
    assert fused.plan == plain.plan
    assert fused.report["verification"]["bitwise"]
    assert fused.report["verification"]["fusion_difference"] < 1e-5
    assert plain.report["verification"]["fusion_difference"] is None
    assert fused.evaluation is not None
    assert plain.evaluation is not None
    ours, theirs = (result.report["evaluation"]["counts"] for result in (fused, plain))
    for name in ("events", "binary_spikes", "synops", "binary_synops"):
        np.testing.assert_allclose(ours[name], theirs[name], rtol=0.01, err_msg=name)
    for name in ("neurons", "dense_synops", "macs_once", "macs_every_step", "neuron_additions"):
        assert ours[name] == theirs[name]
    gaps = [[activity.gap for activity in result.evaluation.activity] for result in (fused, plain)]
    np.testing.assert_allclose(*gaps, rtol=0.02, atol=1e-3)
    read = evaluate_file(fused.model.SerializeToString(), digits("test", 100))[0].as_dict()
    assert read["accuracy"] == fused.report["evaluation"]["accuracy"]
    assert read["counts"]["events"] == ours["events"]


def test_auto_takes_it_where_most_sites_stand_behind_layers() -> None:
    network = network_from(residual())
    assert choose_form(network, random_plan(network, NeuronSpec("if")), on_gpu=False)[0] == "fused"
    other = network_of("max pooling with indices")  # its spikes are read by a MaxPool that no layer stands behind
    synchronous = replace(random_plan(network, NeuronSpec("if")), schedule="synchronous")
    assert choose_form(network, synchronous, on_gpu=False)[0] == "unrolled"
    differential = random_plan(other, NeuronSpec("if", 1, "differential"))
    assert choose_form(other, differential, on_gpu=False)[0] == "unrolled"


def test_passes_are_checked() -> None:
    for wrong in ({"fuse": ("gravity",)}, {"fuse": ("resets",)}, {"fuse": ("biases",), "form": "loop"}):
        with pytest.raises(ConfigError, match="fuse"):
            convert(RELU, digits("test", 8)[0], **wrong)
    with pytest.raises(ConfigError, match="synchronous"):
        convert(RELU, digits("test", 8)[0], form="fused", schedule="synchronous", neuron="if")


def test_convert_leaves_a_pass_out() -> None:
    result = convert(RELU, digits("test", 16)[0], steps=2, neuron="if", form="fused", fuse=("thresholds", "biases"))
    kinds = {node.op_type for node in result.model.graph.node}
    assert "HardSigmoid" not in kinds
    assert "GreaterOrEqual" in kinds


SHORTCUT = """
shortcut (float[N,2,6,6] x) => (float[N,4,3,3] y) {
    c = Conv <pads = [1,1,1,1]> (x, w) r = Relu(c)
    d = Conv <pads = [1,1,1,1], strides = [2,2]> (r, u)
    s = Slice(r, zeros, far, axes, steps)
    p = Pad(s, pads)
    a = Add(d, p) q = Relu(a) y = Conv(q, v)
}
"""


def shortcut(**changes: np.ndarray) -> onnx.ModelProto:
    """A block of a ResNet for CIFAR, whose shortcut takes every second pixel and adds a channel on either side."""
    constants = {
        "w": numbers(2, 2, 3, 3, seed=1, scale=0.5),
        "u": numbers(4, 2, 3, 3, seed=2, scale=0.5),
        "v": numbers(4, 4, 1, 1, seed=3),
        "zeros": np.array([0, 0]),
        "far": np.array([2**63 - 1, 6]),
        "axes": np.array([2, -1]),
        "steps": np.array([2, 2]),
        "pads": np.array([0, 1, 0, 0, 0, 1, 0, 0]),
    }
    return parse(SHORTCUT, **{**constants, **changes})


def test_a_shortcut_without_weights_is_a_convolution() -> None:
    view = network_from(shortcut()).view
    add = next(node for node in view.nodes if node.op_type == "Add")
    found = find_shortcut(view, add.input[1])
    assert found is not None
    assert (found.weights.shape, found.strides) == ((4, 2, 1, 1), (2, 2))
    x = numbers(2, 2, 6, 6, seed=9)
    text = "conv (float[N,2,6,6] x) => (float[N,4,3,3] y) { y = Conv <strides = [2,2]> (x, w) }"
    as_conv = parse(text, w=found.weights)
    expected = np.pad(x[:, :, ::2, ::2], [(0, 0), (1, 1), (0, 0), (0, 0)])
    np.testing.assert_array_equal(run(as_conv, {"x": x})["y"], expected)
    network = network_from(shortcut())
    plan = exact_plan(network, NeuronSpec("if"))
    assert "Slice" not in {node.op_type for node in emit_fused(network, plan).model.graph.node}
    assert verify(emit_fused(network, plan), network, plan, {"x": x}).bitwise


@pytest.mark.parametrize(
    "changes",
    [
        {"zeros": np.array([1, 1]), "far": np.array([7, 7])},
        {"steps": np.array([2, 1]), "far": np.array([6, 3])},
        {"pads": np.array([0, 1, 1, 0, 0, 1, 0, 0]), "far": np.array([4, 6])},
    ],
    ids=["does not begin at 0", "ends early", "pads rows"],
)
def test_other_slices_and_pads_stay(changes: dict[str, np.ndarray]) -> None:
    model = shortcut(**changes)
    network = network_from(model)
    plan, x = exact_plan(network, NeuronSpec("if")), {"x": numbers(2, 2, 6, 6, seed=9)}
    emitted = emit_fused(network, plan)
    assert "Slice" in {node.op_type for node in emitted.model.graph.node}
    assert verify(emitted, network, plan, x).bitwise


def test_the_twin_is_what_a_numpy_run_goes_through() -> None:
    network = network_from(residual())
    plan = random_plan(network, NeuronSpec("if"))
    emitted = emit_fused(network, plan)
    assert emitted.twin is not None
    twin = simulate(emitted.twin.network, emitted.twin.plan, {"x": inputs(3)})["y"]
    plain = simulate(network, plan, {"x": inputs(3)})["y"]
    np.testing.assert_allclose(twin[-1], plain[-1], atol=0.3)


@pytest.mark.parametrize("neuron", ["if", "signed-group"])
def test_a_fused_network_has_the_potentials_of_its_plan(neuron: str) -> None:
    """Spike by spike; and an error in what was put into the layers is found, although the file is what its twin is."""
    network = network_from(residual())
    plan = random_plan(network, NeuronSpec(neuron, 1 if neuron == "if" else 3))
    plan = plan.with_gains({site.name: np.linspace(0.8, 1.2, site.channels) for site in network.sites})
    feeds = {"x": inputs(3)}
    fused = fuse(network, plan)
    assert fusion_error(network, plan, fused, feeds, 5) < 1e-5
    thresholds = {**plan.thresholds, "r2": plan.thresholds["r2"] * np.float32(1.01)}
    biases = {**plan.biases, "r2": plan.biases["r2"] + np.float32(0.01)}
    for spoilt in (plan.with_thresholds(thresholds), plan.with_biases(biases), plan.with_gains({})):
        assert fusion_error(network, plan, fuse(network, spoilt), feeds, 5) > 1e-3
        with pytest.raises(VerificationError, match="fused network differs from its plan"):
            verify(emit_fused(network, spoilt), network, plan, feeds)
