"""Layers fitted to the spikes that they read: which, to what, what it gains, and that every form computes it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from helpers import numbers, parse, run
from networks import (
    CALIBRATION,
    QCFS,
    RELU,
    SPECS,
    TEST,
    THRESHOLDS,
    batches_of,
    digits,
    inputs,
    network_of,
    node_names,
    plan_of,
    random_plan,
    residual,
    source_of,
)

from ftbc_onnx import ConfigError, DataError, ModelError, convert
from ftbc_onnx.calibrate import calibrate
from ftbc_onnx.diagnosis import diagnose_file
from ftbc_onnx.evaluate import evaluate_file
from ftbc_onnx.graph.emit import emit
from ftbc_onnx.graph.emit.calibration import emit_calibration, new_bias_name
from ftbc_onnx.graph.files import load_snn
from ftbc_onnx.graph.fittable import fittable_layers
from ftbc_onnx.graph.observe import expose_tensors, mean_spikes_name, observe_snn
from ftbc_onnx.graph.provenance import read_plan
from ftbc_onnx.graph.refitted import layer_names, refitted
from ftbc_onnx.graph.sites import Network
from ftbc_onnx.neurons import NeuronSpec
from ftbc_onnx.nir.export import export_nir
from ftbc_onnx.plan import Layer, SpikingPlan
from ftbc_onnx.refit import elements, refit
from ftbc_onnx.rules import ROUGH, SolveRule
from ftbc_onnx.runtime import CPU
from ftbc_onnx.selection import Selection

T = 4


# what the fit is


def test_the_current_comes_closer_to_that_of_the_ann() -> None:
    network, x = network_of(residual()), inputs(40)
    plan = plan_of(network, THRESHOLDS, T)
    first, node = plan.sites[0], node_names(network)["c2"]
    layers = refit(network, plan, {"x": x}, CPU)
    assert set(layers) == set(fittable_layers(network))
    source = source_of(residual(), x=x)
    found = calibrate(network, plan, ROUGH, source, batching=batches_of(40), samples=40, device=CPU)
    plan = plan.with_biases({first.name: found.biases[first.name]})
    exact = run(expose_tensors(network.view.model, ["c2"]), {"x": x})["c2"]

    def error(plan: SpikingPlan) -> float:
        names = [f"c2/t{t}" for t in range(T)]
        got = run(expose_tensors(emit(network, plan, "unrolled").model, names), {"x": x})
        return float(np.mean((np.mean([got[name] for name in names], axis=0) - exact) ** 2))

    without, fitted = error(plan), error(plan.with_layers({node: layers[node]}))
    assert fitted < 0.95 * without
    for seed in range(5):  # more of the weights helps no further than the ridge allows
        other = Layer(layers[node].weights + numbers(4, 4, 3, 3, seed=seed, scale=0.2), layers[node].bias)
        assert error(plan.with_layers({node: other})) > fitted


def test_layers_whose_spikes_are_exact_stay_as_they_are() -> None:
    network, x = network_of(residual()), inputs(40)
    spec = NeuronSpec("group", 255)
    highest = run(expose_tensors(network.view.model, [s.spikes for s in network.sites]), {"x": x})
    thresholds = {s.name: np.full(s.channels, highest[s.spikes].max() + 1) for s in network.sites}
    plan = SpikingPlan("", network.sites, 32, spec, thresholds)
    for name, layer in refit(network, plan, {"x": x}, CPU).items():
        node = next(node for node in network.view.nodes if node.name == name)
        own = network.view.constant(node.input[1])
        assert own is not None
        assert np.allclose(layer.weights, own, atol=2e-3)


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_every_neuron_has_layers_fitted(spec: NeuronSpec) -> None:
    network = network_of(residual())
    plan = random_plan(network, spec, T)
    layers = refit(network, plan, {"x": inputs(16)}, CPU)
    assert all(np.isfinite(layer.weights).all() and np.isfinite(layer.bias).all() for layer in layers.values())
    again = refit(network, plan, {"x": inputs(16)}, CPU)
    assert layers == again


# where they stand


@pytest.fixture(scope="module")
def plan() -> SpikingPlan:
    network = network_of(residual())
    plan = random_plan(network, NeuronSpec("if"), T)
    layers = {}
    for seed, name in enumerate(fittable_layers(network)):
        node = next(node for node in network.view.nodes if node.name == name)
        own = network.view.constant(node.input[1])
        assert own is not None
        channels = own.shape[0]
        layers[name] = Layer(own + numbers(*own.shape, seed=seed, scale=0.1), numbers(channels, seed=seed))
    return plan.with_layers(layers)


@pytest.mark.parametrize("form", ["unrolled", "fused", "folded", "loop", "step"])
def test_the_plan_is_read_back_from_every_form(form: str, plan: SpikingPlan) -> None:
    network = network_of(residual())
    model = emit(network, plan, form).model
    names = {tensor.name for tensor in model.graph.initializer}
    if form != "loop":  # there they stand in the body
        assert all(set(layer_names(name)) <= names for name in plan.layers)
    assert "w2" not in names
    model.metadata_props.add(key="ftbc_onnx.plan", value=json.dumps(plan.describe()))
    assert read_plan(model) == plan


def test_plain_conversion_has_the_layers_of_the_ann(plan: SpikingPlan) -> None:
    network = network_of(residual())
    plain = plan.plain()
    assert not plain.layers
    assert refitted(network, plain) == (network, plain)


def test_weights_that_nobody_reads_any_more_are_left_out(plan: SpikingPlan) -> None:
    network = network_of(residual())
    beside, rest = refitted(network, plan)
    assert not rest.layers
    assert {"w1", "b1"} <= set(beside.view.initializers)
    assert not {"w2", "b2", "w3", "w4", "b4"} & set(beside.view.initializers)


def test_the_snn_beside_the_ann_has_the_fitted_weights(plan: SpikingPlan) -> None:
    network, x = network_of(residual()), inputs(6)
    graph = run(emit_calibration(network, plan, SolveRule()), {"x": x, **_no_biases(plan)})
    biases = {site.name: graph[new_bias_name(site.name)] for site in plan.sites}
    emitted = emit(network, plan.with_biases(biases), "unrolled").model
    alone = run(observe_snn(emitted, plan), {"x": x})
    for site in plan.sites:
        assert np.allclose(graph[mean_spikes_name(site.name)], alone[mean_spikes_name(site.name)], atol=1e-5)


def _no_biases(plan: SpikingPlan) -> dict[str, np.ndarray]:
    return {f"{site.name}/bias_in": np.zeros((T, site.channels), np.float32) for site in plan.sites}


def test_the_ann_beside_keeps_its_weights(plan: SpikingPlan) -> None:
    network, x = network_of(residual()), inputs(6)
    names = [site.spikes for site in plan.sites]
    beside = expose_tensors(emit_calibration(network, plan, SolveRule()), names)
    found, exact = run(beside, {"x": x, **_no_biases(plan)}), run(expose_tensors(network.view.model, names), {"x": x})
    assert all(np.array_equal(found[name], exact[name]) for name in names)


@pytest.mark.parametrize("form", ["unrolled", "fused", "folded", "loop", "step"])
@pytest.mark.parametrize("model", [RELU, QCFS], ids=lambda path: path.stem)
def test_a_conversion_is_verified_to_the_last_bit(model: Path, form: str) -> None:
    result = convert(model, digits("calibration")[0], steps=2, neuron="if", refit=True, form=form)
    assert result.report["verification"]["bitwise"]
    assert [s["chosen"] > 0 for s in result.report["selections"] if s["question"] == "layers"] == [True]
    assert len(result.plan.layers) == 4


def test_two_steps_come_closer_to_the_ann_on_test_images() -> None:
    errors = {}
    for fitted in (False, True):
        options = {"steps": 2, "neuron": "if", "threshold": "mse", "verify": False, "refit": fitted}
        report = convert(RELU, digits("calibration")[0], eval_data=digits("test"), **options).report
        errors[fitted] = report["evaluation"]["output_gap"][-1]
        assert report["evaluation"]["output_gap"][-1] < report["evaluation_without_bias"]["output_gap"][-1]
    assert errors[True] < 0.85 * errors[False]


def test_layers_that_do_not_hold_on_samples_held_back_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    def ruined(network: Network, plan: SpikingPlan, *_: object, **__: object) -> dict[str, Layer]:
        return {name: Layer(-layer.weights, layer.bias) for name, layer in refit(network, plan, *_, **__).items()}

    monkeypatch.setattr("ftbc_onnx.planning.refit", ruined)
    result = convert(RELU, digits("calibration")[0], steps=2, neuron="if", refit=True, calib_samples=64)
    assert not result.plan.layers
    assert [s["chosen"] for s in result.report["selections"] if s["question"] == "layers"] == [0]


# what goes with it


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("refit") / "snn.onnx"
    convert(RELU, CALIBRATION, steps=2, neuron="if", refit=True, calib_samples=64).save(path)
    return path


def test_the_file_is_evaluated(written: Path) -> None:
    result, _ = evaluate_file(written, TEST, ann=RELU)
    assert result.accuracy is not None
    assert result.accuracy[-1] > 90


def test_diagnose_says_why_it_cannot(written: Path) -> None:
    with pytest.raises(ModelError, match="fitted again"):
        diagnose_file(written, RELU, CALIBRATION)


def test_nir_gets_the_fitted_weights(written: Path, tmp_path: Path) -> None:
    nir = pytest.importorskip("nir")
    plan = read_plan(load_snn(written))
    (layer,) = [layer for layer in plan.layers.values() if layer.weights.ndim == 2]
    export_nir(written, tmp_path / "snn.nir", ann=RELU, soft_reset=True, lossy=True)
    weights = [np.asarray(n.weight) for n in nir.read(tmp_path / "snn.nir").nodes.values() if hasattr(n, "weight")]
    (found,) = [weight for weight in weights if weight.ndim == 2]
    own = layer.weights if layer.weights.shape == found.shape else layer.weights.T
    for column, exact in zip(found.T, own.T, strict=True):  # spikes come as 1, their heights are in the columns
        height = np.dot(column, exact) / np.dot(exact, exact)
        assert np.allclose(column, height * exact, atol=1e-4 * np.abs(column).max())


def test_plain_conversion_stands_beside_where_there_are_no_biases() -> None:
    options = {"steps": 2, "neuron": "if", "threshold": "mse", "rule": "none", "verify": False}
    found = convert(RELU, digits("calibration")[0], eval_data=digits("test"), refit=True, **options).report
    plain = convert(RELU, digits("calibration")[0], eval_data=digits("test"), **options).report
    assert found["layers"]
    assert found["evaluation"]["output_gap"] != plain["evaluation"]["output_gap"]
    held_back = found["selections"][-1]["trials"][0]["samples"]
    assert held_back == 64  # a quarter of the 256, none of which was fitted to
    assert "192 samples" in found["selections"][-1]["trials"][1]["what"]


def test_fitted_layers_may_stay_without_biases(monkeypatch: pytest.MonkeyPatch) -> None:
    def ruined(self: SpikingPlan, biases: dict[str, np.ndarray]) -> SpikingPlan:
        return replace(self, biases={name: bias + 3.0 for name, bias in biases.items()}, factors={})

    monkeypatch.setattr(SpikingPlan, "with_biases", ruined)
    monkeypatch.setattr("ftbc_onnx.planning.gate_biases", lambda _network, plan, *_: (plan, 0))
    layers = refit(network_of(onnx.load(RELU)), _mse_plan(), {"image": digits("calibration", 128)[0]}, CPU)
    monkeypatch.setattr("ftbc_onnx.planning._Planner._refit", lambda _, plan: (plan.with_layers(layers), _chosen()))
    options = {"steps": T, "neuron": "if", "threshold": "mse", "gain": False, "verify": False}
    result = convert(RELU, digits("calibration")[0], refit=True, **options)
    words = [trial["what"] for trial in result.report["selections"][-1]["trials"]]
    assert words == ["biases at 4 of 4 sites", "no biases", "plain conversion"]
    assert not any(bias.any() for bias in result.plan.biases.values())
    assert bool(result.plan.layers) == (result.report["selections"][-1]["chosen"] == 1)


def _mse_plan() -> SpikingPlan:
    options = {"steps": T, "neuron": "if", "threshold": "mse", "rule": "none", "verify": False}
    return convert(RELU, digits("calibration")[0], **options).plan


def _chosen() -> Selection:
    return Selection("layers", (), 0, "")


def test_elements_are_those_of_the_ann_and_of_all_steps_around_the_largest_site() -> None:
    assert elements({"a": 60, "b": 90}, T) == 2 * (60 + 90) + 8 * T * 90


def test_it_takes_calibration_data() -> None:
    with pytest.raises(DataError, match="refit"):
        convert(QCFS, None, steps=4, neuron="if", refit=True)


@pytest.mark.parametrize("other", [{"schedule": "synchronous"}, {"float16": True}])
def test_what_it_does_not_go_with_is_refused(other: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="refit goes with"):
        convert(RELU, CALIBRATION, refit=True, neuron="if", **other)


def test_a_network_without_such_layers_is_refused() -> None:
    model = parse("g (float[N,3] x) => (float[N,3] y) { r = Relu(x) z = Mul(r, c) y = Relu(z) }", c=numbers(3))
    with pytest.raises(ModelError, match="no layer"):
        convert(model, {"x": numbers(32, 3)}, refit=True, neuron="if", steps=2)


def test_a_batch_that_cannot_be_freed_is_refused() -> None:
    model = parse(
        "g (float[4,3] x) => (float[4,3] y) { a = Relu(x) b = Gemm(a, w) c = Add(b, k) y = Relu(c) }",
        w=numbers(3, 3),
        k=numbers(4, 3),
    )
    with pytest.raises(ModelError, match="dynamic batch"):
        convert(model, {"x": numbers(32, 3)}, refit=True, neuron="if", steps=2)
