"""The loop form: the same numbers as the unrolled form, in a graph that does not grow with T."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from emit_cases import NETS, feeds_of, network_of, plan_of
from helpers import assert_valid, numbers, parse, run
from networks import CALIBRATION, QCFS, RELU, SPECS, TEST, digits, inputs, random_plan, residual
from networks import network_of as network_from

from ftbc_onnx import ConfigError, ModelError, convert
from ftbc_onnx.counting import count, counted_names
from ftbc_onnx.evaluate import evaluate_file
from ftbc_onnx.graph.emit import LARGEST, emit, unrolled_nodes
from ftbc_onnx.graph.emit.loop import BEYOND, STEPS, emit_loop
from ftbc_onnx.graph.emit.unrolled import Emitted, emit_unrolled
from ftbc_onnx.graph.normalise import normalise
from ftbc_onnx.graph.observe import expose_running_means, observe_snn, running_mean_name
from ftbc_onnx.graph.recorder import TIME, time_loop
from ftbc_onnx.graph.scope import Scope
from ftbc_onnx.graph.sites import Network, find_network
from ftbc_onnx.graph.view import count_nodes
from ftbc_onnx.neurons import NeuronSpec
from ftbc_onnx.plan import SpikingPlan
from ftbc_onnx.window import Window

MATRICES = {"w": numbers(3, 4), "v": numbers(4, 2)}


def watched(emitted: Emitted, plan: SpikingPlan) -> onnx.ModelProto:
    """With everything that can be observed, counts included."""
    model = observe_snn(expose_running_means(emitted.model, emitted.readouts), plan)
    return count(model, plan)


def assert_same(network: Network, plan: SpikingPlan, feeds: Mapping[str, np.ndarray]) -> None:
    """Everything observed agrees to the last bit; SynOps are sums in another order."""
    unrolled, loop = (watched(emit(network, plan, form), plan) for form in ("unrolled", "loop"))
    onnx.checker.check_model(loop, full_check=True)
    expected, found = (run(model, feeds, optimise=False) for model in (unrolled, loop))
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        if name in counted_names(plan):
            np.testing.assert_allclose(found[name], value, rtol=1e-6)
        else:
            np.testing.assert_array_equal(found[name], value, err_msg=name)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", NETS)
def test_every_kind_of_network(name: str, batch: int) -> None:
    network = network_of(name)
    assert_same(network, plan_of(network), feeds_of(name, batch))


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_every_neuron(spec: NeuronSpec) -> None:
    network = network_from(onnx.load(RELU))
    assert_same(network, random_plan(network, spec), {"image": digits("test", 3)[0]})


@pytest.mark.parametrize("name", ["gather", "identity", "go", "goes_on", "turn", "ftbc/turn", "add"])
def test_outputs_may_be_called_as_they_like(name: str) -> None:
    model = parse("g (float[N,3] x) => (float[N,2] y) { a = MatMul(x, w) r = Relu(a) y = MatMul(r, v) }", **MATRICES)
    model.graph.output[0].name = model.graph.node[-1].output[0] = name
    for form in ("unrolled", "loop", "step"):
        result = convert(model, numbers(40, 3), steps=3, form=form)
        assert result.report["verification"]["bitwise"]
        assert name in [value.name for value in result.model.graph.output]


@pytest.mark.parametrize("name", ["r/t1/spikes", "r/step/spikes"])
def test_names_of_spikes_are_refused(name: str) -> None:
    model = parse("g (float[N,3] x) => (float[N,2] y) { a = MatMul(x, w) r = Relu(a) y = MatMul(r, v) }", **MATRICES)
    model.graph.output[0].name = model.graph.node[-1].output[0] = name
    with pytest.raises(ModelError, match=f"the spikes of site 'r' are to be called '{name}': rename that tensor"):
        convert(model, numbers(40, 3), steps=3)


@pytest.mark.parametrize("name", ["gather", "identity", "go", "turn", "ftbc/turn", "ftbc/go"])
def test_bodies_of_the_source_may_use_any_names(name: str) -> None:
    """A static If on the shape of spikes is copied into the loop."""
    model = parse(
        """g (float[N,3] x) => (float[N,4] y) <int64 one = {1}> {
            a = MatMul(x, w)  r = Relu(a)  n = Shape(r)  m = ReduceSum<keepdims = 0>(n)  big = Greater(m, one)
            s = If (big) <then_branch = t () => (float u) { inner = Constant<value_float = 2.0>() u = Identity(inner) },
                else_branch = e () => (float o) { o = Constant<value_float = 3.0>() }>
            y = Mul(r, s) }""",
        **MATRICES,
    )
    for node in model.graph.node:
        for attribute in node.attribute:
            for inner in attribute.g.node:
                inner.input[:] = [name if one == "inner" else one for one in inner.input]
                inner.output[:] = [name if one == "inner" else one for one in inner.output]
    for form in ("unrolled", "loop", "step"):
        assert convert(model, numbers(40, 3), steps=3, form=form).report["verification"]["bitwise"]


def test_behind_until_nothing_is_counted() -> None:
    """Nodes that read means count in no step, the first included."""
    network = find_network(normalise(onnx.load(RELU)).model, Scope(until=network_from(onnx.load(RELU)).sites[1].name))
    assert_same(network, random_plan(network, NeuronSpec("signed-st")), {"image": digits("test", 3)[0]})


@pytest.mark.parametrize("start", [1, 2, 4])
@pytest.mark.parametrize("name", ["residual", "softmax at the end", "double precision at the end", "several outputs"])
def test_delayed_readout(name: str, start: int) -> None:
    network = network_of(name)
    plan = replace(plan_of(network, 5), readout=Window(start))
    assert_same(network, plan, feeds_of(name, 2))


def test_the_graph_does_not_grow_with_t() -> None:
    network = network_from(residual())
    sizes = set()
    for steps in (1, 2, 64):
        plan = SpikingPlan("", network.sites, steps, NeuronSpec(), {s.name: np.ones(4) for s in network.sites})
        model = emit_loop(network, plan).model
        assert_valid(model)
        sizes.add(count_nodes(model.graph))
    assert len(sizes) == 1


def test_auto_takes_the_loop_when_there_are_many_nodes() -> None:
    network = network_from(residual())
    for spec in SPECS:
        per_step = unrolled_nodes(network, random_plan(network, spec, 1))
        nodes = len(emit(network, random_plan(network, spec, 20), "unrolled").model.graph.node)
        assert 0.7 < 20 * per_step / nodes < 1.1
        copies = "fused" if spec.coding == "rate" else "unrolled"
        for steps, form in ((LARGEST // per_step, copies), (LARGEST // per_step + 1, "loop")):
            assert emit(network, random_plan(network, spec, steps)).form == form


def test_a_synchronous_plan_has_none() -> None:
    network = network_from(residual())
    thresholds = {site.name: np.ones(site.channels) for site in network.sites}
    plan = SpikingPlan("", network.sites, 4, NeuronSpec(), thresholds, schedule="synchronous")
    assert emit(network, plan).form == "unrolled"
    with pytest.raises(ModelError, match="has no loop form"):
        emit(network, plan, "loop")
    with pytest.raises(ConfigError, match="form 'loop' goes with schedule asynchronous"):
        convert(residual(), inputs(16), neuron="if", schedule="synchronous", form="loop")


def test_unknown_form() -> None:
    with pytest.raises(
        ConfigError, match=r"form is 'lop' \(did you mean 'loop'\?\): choose one of auto, unrolled, fused, folded"
    ):
        convert(residual(), inputs(16), form="lop")


OPTIONS: dict[str, Any] = {"steps": 4, "neuron": "signed-group", "threshold": "mse", "calib_samples": 64}


class TestConversion:
    def test_both_forms_are_one_network(self, tmp_path: Path) -> None:
        results = {form: convert(RELU, CALIBRATION, form=form, **OPTIONS) for form in ("unrolled", "loop")}
        assert results["loop"].plan == results["unrolled"].plan
        assert results["loop"].report["form"] == "loop"
        assert results["loop"].report["verification"]["bitwise"]
        assert results["loop"].report["emitted_nodes"] < results["unrolled"].report["emitted_nodes"]
        found = {}
        for form, result in results.items():
            path = result.save(tmp_path / f"{form}.onnx")
            found[form], _ = evaluate_file(path, TEST, ann=RELU, device="cpu", early_exit=2.0)
        unrolled, loop = found["unrolled"], found["loop"]
        assert unrolled.accuracy is not None
        assert loop.accuracy is not None
        np.testing.assert_allclose(loop.accuracy, unrolled.accuracy, atol=0.5)  # optimised differently: a spike or two
        assert loop.counts is not None
        assert unrolled.counts is not None
        np.testing.assert_allclose(loop.counts.events, unrolled.counts.events, rtol=1e-3)
        np.testing.assert_allclose(loop.counts.synops, unrolled.counts.synops, rtol=1e-3)

    def test_running_means_on_request(self) -> None:
        result = convert(RELU, CALIBRATION, form="loop", running_mean=True, **OPTIONS)
        values = run(result.model, {"image": digits("test", 3)[0]}, optimise=False)
        output = next(name for name in values if not name.endswith("/running_mean"))
        np.testing.assert_array_equal(values[f"{output}/running_mean"][-1], values[output])

    def test_without_calibration(self) -> None:
        result = convert(QCFS, steps=300)
        assert result.report["form"] == "loop"
        assert result.report["verification"]["bitwise"]
        loop = time_loop(result.model)
        assert loop is not None
        assert loop.name == TIME


@pytest.mark.parametrize("start", [0, 2])
@pytest.mark.parametrize("name", ["residual", "softmax at the end", "several outputs"])
def test_steps_as_an_input(name: str, start: int) -> None:
    """Fewer steps give the running mean after them, to the last bit; T is the default; more are refused by name."""
    network = network_of(name)
    plan = replace(plan_of(network, 5), readout=Window(start))
    whole, free = emit_unrolled(network, plan), emit(network, plan, "loop", steps_input=True)
    assert_valid(free.model)
    feeds = feeds_of(name, 3)
    expected = run(expose_running_means(whole.model, whole.readouts), feeds, optimise=False)
    for t in range(1, 6):
        found = run(free.model, {**feeds, STEPS: np.array(t, np.int64)}, optimise=False)
        for output in network.temporal & set(network.view.output_names):
            np.testing.assert_array_equal(found[output], expected[running_mean_name(output)][t - 1])
    found = run(free.model, feeds, optimise=False)
    assert all(np.array_equal(found[output], expected[output]) for output in network.view.output_names)
    with pytest.raises(Exception, match=BEYOND):
        run(free.model, {**feeds, STEPS: np.array(6, np.int64)})


def test_steps_as_an_input_of_a_converted_file(tmp_path: Path) -> None:
    images = digits("test", 16)
    result = convert(RELU, images[0], steps=4, neuron="if", form="loop", steps_input=True, eval_data=images)
    assert result.report["verification"]["bitwise"]
    session = onnxruntime.InferenceSession(result.save(tmp_path / "snn.onnx"))
    assert [value.name for value in session.get_inputs()] == ["image"]
    assert [value.name for value in session.get_overridable_initializers()] == [STEPS]
    scores = session.run(["logits"], {"image": images[0], STEPS: np.array(2, np.int64)})[0]
    right = 100 * np.mean(scores.argmax(1) == images[1])
    assert right == pytest.approx(result.report["evaluation"]["accuracy"][1])
    evaluated, _ = evaluate_file(tmp_path / "snn.onnx", images)
    assert list(evaluated.accuracy) == result.report["evaluation"]["accuracy"]
    with pytest.raises(ConfigError, match="steps_input goes with form loop"):
        convert(RELU, images[0], steps=4, form="unrolled", steps_input=True)


class TestFullStart:
    """What is carried has one shape from the first turn to the last, where shapes are known."""

    @staticmethod
    def carried(model: onnx.ModelProto) -> dict[str, tuple[list[str | int], int | None]]:
        """Name in the body -> (axes of the start, by shape inference; rank that the body declares)."""
        loop = time_loop(model)
        assert loop is not None
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True, strict_mode=True).graph
        shapes = {
            v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in inferred.value_info
        }
        shapes.update({tensor.name: list(tensor.dims) for tensor in model.graph.initializer})
        found = {}
        for start, value in zip(loop.input[2:], loop.attribute[0].g.input[2:], strict=True):
            kind = value.type.tensor_type
            found[value.name] = shapes[start], len(kind.shape.dim) if kind.HasField("shape") else None
        return found

    @pytest.mark.parametrize("spec", SPECS, ids=str)
    def test_where_only_the_batch_is_free(self, spec: NeuronSpec) -> None:
        network = network_from(onnx.load(RELU))
        found = self.carried(emit_loop(network, random_plan(network, spec)).model)
        shared = [f"{site.name}/state2/before" for site in network.sites] if spec.coding == "differential" else []
        for site in network.sites:
            shape = network.view.shape(site.current)
            assert shape is not None
            assert found[f"{site.name}/state0/before"] == (["N", *shape[1:]], 4)
        assert found["logits/sum/before"] == (["N", 10], 2)
        assert found["logits/output/before"] == (["N", 10], 2)
        assert all(found[name] == ([1], 1) for name in shared)  # the number of the step is one number
        assert sum(start == [1] for start, _ in found.values()) == len(shared)

    def test_where_a_length_follows_from_another_it_stays_as_it_was(self) -> None:
        """The axes behind a convolution over a free length: no runtime is told what is not known."""
        text = "g (float[N,1,S] x) => (float[N,2,R] y) { c = Conv<strides=[2]>(x, w) r = Relu(c) y = Conv(r, v) }"
        network = network_from(parse(text, w=numbers(2, 1, 3), v=numbers(2, 2, 2)))
        plan = random_plan(network, NeuronSpec("signed"))
        assert {rank for _, rank in self.carried(emit_loop(network, plan).model).values()} == {None}
        assert_same(network, plan, {"x": numbers(2, 1, 11)})
