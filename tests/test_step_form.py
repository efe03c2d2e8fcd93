"""The step form and its runner: T steps are the unrolled network to the last bit; streaming, early exit, bad use."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from emit_cases import NETS, feeds_of, network_of, plan_of
from helpers import assert_valid, numbers, parse, run
from networks import CALIBRATION, QCFS, RELU, SPECS, TEST, digits, inputs, random_plan, residual
from networks import network_of as network_from

from ftbc_onnx import ConfigError, DataError, ModelError, StepRunner, convert
from ftbc_onnx.early_exit import decisions, steps_used
from ftbc_onnx.evaluate import evaluate_file
from ftbc_onnx.graph.emit import emit
from ftbc_onnx.graph.emit.one_step import NEXT, STATES, STEP, read_states
from ftbc_onnx.graph.emit.unrolled import emit_unrolled
from ftbc_onnx.graph.observe import expose_running_means, running_mean_name
from ftbc_onnx.graph.sites import Network
from ftbc_onnx.neurons import NeuronSpec
from ftbc_onnx.plan import SpikingPlan
from ftbc_onnx.runtime import CPU
from ftbc_onnx.window import Window


def stepped(network: Network, plan: SpikingPlan, feeds: Mapping[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """The outputs after each of T steps."""
    model = emit(network, plan, "step").model
    onnx.checker.check_model(model, full_check=True)
    runner = StepRunner(model, plan, CPU, optimise=False)
    return [runner.step(feeds) for _ in range(plan.steps)]


def assert_same(network: Network, plan: SpikingPlan, feeds: Mapping[str, np.ndarray]) -> None:
    """Every output after every step is that of the unrolled form, to the last bit."""
    emitted = emit_unrolled(network, plan)
    expected = run(expose_running_means(emitted.model, emitted.readouts), feeds, optimise=False)
    rows = stepped(network, plan, feeds)
    for output in network.view.output_names:
        np.testing.assert_array_equal(rows[-1][output], expected[output], err_msg=output)
        if output in network.temporal:
            for t, row in enumerate(rows):
                np.testing.assert_array_equal(row[output], expected[running_mean_name(output)][t])


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", NETS)
def test_every_kind_of_network(name: str, batch: int) -> None:
    network = network_of(name)
    assert_same(network, plan_of(network), feeds_of(name, batch))


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_every_neuron(spec: NeuronSpec) -> None:
    network = network_from(onnx.load(RELU))
    assert_same(network, random_plan(network, spec), {"image": digits("test", 3)[0]})


@pytest.mark.parametrize("form", ["step", "loop"])
@pytest.mark.parametrize("coding", ["rate", "differential"])
def test_a_site_behind_a_transposed_batch(coding: str, form: str) -> None:
    """It has one threshold, and its state the axes of its tensor, [8, N]: no number that all neurons share."""
    text = """g (float[N,6] x) => (float[N,3] y) {
        a = MatMul(x, m) r = Relu(a) t = Transpose <perm = [1,0]> (r) e = MatMul(k, t) s = Relu(e)
        q = Transpose <perm = [1,0]> (s) y = MatMul(q, v) }"""
    model = parse(text, m=numbers(6, 8), k=numbers(8, 8, seed=6), v=numbers(8, 3, seed=7))
    result = convert(model, numbers(64, 6), steps=4, form=form, neuron="signed", coding=coding)
    assert result.report["verification"]["bitwise"]
    onnx.checker.check_model(result.model, full_check=True)
    parts = [part for node in result.model.graph.node for part in node.attribute]
    graph = next((part.g for part in parts if part.HasField("g")), result.model.graph)
    states = [value.type.tensor_type.shape.dim for value in graph.input if value.name.startswith("s/state0")]
    assert [len(dims) for dims in states] == [2]


@pytest.mark.parametrize("shape", ["N,C", "N,D,C", "N,A,B,C"])
def test_a_site_without_channels(shape: str) -> None:
    """Its states start with the axes that they have later."""
    model = parse(f"g (float[{shape}] x) => (float[{shape}] y) {{ r = Relu(x) y = Identity(r) }}")
    x = numbers(40, *[4] * shape.count(","))
    for spec in ({"neuron": "if"}, {"neuron": "signed-group", "coding": "differential"}):
        result = convert(model, x, steps=4, form="step", threshold="mse", **spec)
        assert result.report["verification"]["bitwise"]


@pytest.mark.parametrize("start", [1, 4])
@pytest.mark.parametrize("name", ["residual", "softmax at the end", "double precision at the end"])
def test_delayed_readout(name: str, start: int) -> None:
    network = network_of(name)
    assert_same(network, replace(plan_of(network, 5), readout=Window(start)), feeds_of(name, 2))


def test_steps_beyond_t_have_no_bias() -> None:
    network = network_of("residual")
    short = plan_of(network, 3)
    zeros = {name: np.concatenate([bias, np.zeros((4, bias.shape[1]))]) for name, bias in short.biases.items()}
    long = replace(short, steps=7, biases=zeros)
    feeds = feeds_of("residual", 2)
    runner = StepRunner(emit(network, short, "step").model, short, CPU, optimise=False)
    found = runner.run(feeds, 7)
    (output,) = network.view.output_names
    expected = run(emit_unrolled(network, long).model, feeds, optimise=False)[output]
    np.testing.assert_array_equal(found[output], expected)


def test_a_caller_without_this_package_hands_the_state_on(tmp_path: Path) -> None:
    """By what the metadata say, with onnxruntime and json only."""
    result = convert(RELU, CALIBRATION, steps=4, neuron="signed-group", threshold="mse", form="step")
    assert_valid(result.model)
    path = result.save(tmp_path / "step.onnx")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    states = json.loads(session.get_modelmeta().custom_metadata_map[STATES])
    values = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
    held = {name: values[start] for name, _, start in states}
    image, t = digits("test", 5)[0], np.array(0)
    for _ in range(4):
        names = ["logits", NEXT, *(after for _, after, _ in states)]
        logits, t, *after = session.run(names, {"image": image, STEP: t, **held})
        held = dict(zip([name for name, _, _ in states], after, strict=True))
    assert t == 4
    np.testing.assert_array_equal(StepRunner(path, device="cpu").run(image)["logits"], logits)


class TestRunner:
    @pytest.fixture(scope="class")
    @classmethod
    def path(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        result = convert(RELU, CALIBRATION, steps=6, neuron="signed-st", threshold="mse", form="step")
        assert result.report["form"] == "step"
        assert result.report["verification"]["bitwise"]
        return result.save(tmp_path_factory.mktemp("step") / "step.onnx")

    def test_reset_starts_anew_with_another_number_of_samples(self, path: Path) -> None:
        runner = StepRunner(path, device="cpu")
        images = digits("test", 5)[0]
        first = runner.run(images)["logits"]
        assert runner.t == runner.steps == 6
        runner.reset()
        assert runner.t == 0
        alone = runner.run(images[:2])["logits"]
        assert alone.shape == (2, 10)
        np.testing.assert_allclose(alone, first[:2], atol=0.5)
        runner.reset()
        np.testing.assert_array_equal(runner.run({"image": images})["logits"], first)

    def test_a_new_frame_at_every_step(self, path: Path) -> None:
        """The state goes on: what came before is seen in what comes out."""
        runner = StepRunner(path, device="cpu")
        a, b = digits("test", 2)[0][:, None]
        for frame in (a, b, a, b):
            mixed = runner.step(frame)["logits"]
        runner.reset()
        only = runner.run(a, 4)["logits"]
        assert not np.array_equal(mixed, only)

    @pytest.mark.parametrize("margin", [0.0, 2.0, 6.0, 1e9])
    def test_decide_is_early_exit_of_the_whole_run(self, path: Path, margin: float) -> None:
        runner = StepRunner(path, device="cpu")
        images = digits("test", 40)[0]
        curve = np.stack([runner.step(images)["logits"] for _ in range(6)])
        used = steps_used(curve, margin, Window())
        classes, steps = runner.decide(images, margin)
        np.testing.assert_array_equal(steps, used)
        np.testing.assert_array_equal(classes, decisions(curve, used))

    def test_bad_use(self, path: Path) -> None:
        runner = StepRunner(path, device="cpu")
        with pytest.raises(DataError, match="input 'image' is missing: the network has image"):
            runner.step({"picture": digits("test", 1)[0]})
        with pytest.raises(ConfigError, match="margin is -1"):
            runner.decide(digits("test", 1)[0], -1.0)
        with pytest.raises(ConfigError, match="there is no output 'nope': the network has logits"):
            runner.decide(digits("test", 1)[0], 1.0, "nope")
        runner.reset()
        runner.step(digits("test", 3)[0])
        for count in (2, 1):
            with pytest.raises(DataError, match=f"state is that of 3 samples, and now there are {count}: call reset"):
                runner.step(digits("test", count)[0])
        runner.reset()
        runner.step(digits("test", 1)[0])
        with pytest.raises(DataError, match="state is that of 1 samples, and now there are 3"):  # it would broadcast
            runner.step(digits("test", 3)[0])
        with pytest.raises(DataError, match="now there are none: call reset"):
            runner.step(np.float32(3))
        with pytest.raises(ConfigError, match="there is no output 'nope'"):
            runner.decide(digits("test", 1)[0], 1.0, "nope")
        with pytest.raises(ConfigError, match="steps is 0"):
            runner.run(digits("test", 1)[0], 0)
        assert runner.t == 1  # as before: what was a mistake has no effect
        runner.reset()
        with pytest.raises(ModelError, match="onnxruntime could not run a step"):
            runner.step(np.zeros((1, 1, 8, 9), np.float32))
        with pytest.raises(DataError, match="input 'image' is <U3 of shape"):
            runner.step(np.array(["abc"]))
        with pytest.raises(DataError, match="has values that float32 does not hold, in sample 1"):
            runner.step(np.stack([digits("test", 1)[0][0], digits("test", 1)[0][0] * np.float64(1e300)]))
        with pytest.raises(ModelError, match="is no spiking network made by ftbc-onnx"):
            StepRunner(RELU)

    def test_inputs_of_other_types_are_cast(self, path: Path) -> None:
        images = np.round(digits("test", 3)[0])
        expected = StepRunner(path, device="cpu").step(images)["logits"]
        for given in (images.astype(np.float64), images.astype(np.uint8), images.tolist()):
            np.testing.assert_array_equal(StepRunner(path, device="cpu").step(given)["logits"], expected)

    def test_bytes_and_missing_starts(self, path: Path) -> None:
        images = digits("test", 2)[0]
        np.testing.assert_array_equal(
            StepRunner(path.read_bytes(), device="cpu").run(images)["logits"],
            StepRunner(path, device="cpu").run(images)["logits"],
        )
        model = onnx.load(path)
        gone = next(tensor for tensor in model.graph.initializer if tensor.name.endswith("/start"))
        model.graph.initializer.remove(gone)
        with pytest.raises(ModelError, match="a state before the first step, is missing: some tool removed"):
            StepRunner(model)

    def test_other_forms_are_refused_with_what_to_do(self, path: Path) -> None:
        unrolled = convert(QCFS, steps=2)
        with pytest.raises(ModelError, match="not in the step form: convert the ANN with --form step"):
            StepRunner(unrolled.model)
        with pytest.raises(ModelError, match=r"is in the step form, whose state the caller keeps"):
            evaluate_file(path, TEST)

    def test_what_does_not_go_with_it(self) -> None:
        with pytest.raises(ConfigError, match="form 'step' goes with schedule asynchronous"):
            convert(residual(), inputs(16), neuron="if", schedule="synchronous", form="step")
        with pytest.raises(ConfigError, match="running_mean goes with another form"):
            convert(residual(), inputs(16), form="step", running_mean=True)

    def test_states_have_as_many_axes_as_their_tensors(self, path: Path) -> None:
        for state in read_states(onnx.load(path)):
            assert all(length == 1 for length in state.start.shape[:1])
            assert state.start.ndim in (2, 4)

    @pytest.mark.parametrize("spec", [NeuronSpec("signed-st"), NeuronSpec("group", 3, "differential")], ids=str)
    def test_outputs_declare_the_shape_that_a_state_has_then(self, spec: NeuronSpec) -> None:
        """A caller whose runtime fixes shapes broadcasts the start to it: the same numbers."""
        network = network_from(onnx.load(RELU))
        model, images = emit(network, random_plan(network, spec), "step").model, digits("test", 3)[0]
        types = {value.name: value.type.tensor_type for value in model.graph.output}
        axes = {
            state.output: [d.dim_value or d.dim_param for d in types[state.output].shape.dim]
            for state in read_states(model)
        }
        full = {name: tuple(len(images) if axis == "N" else axis for axis in shape) for name, shape in axes.items()}
        states = read_states(model)
        small = run(
            model, {"image": images, STEP: np.array(0)} | {state.input: state.start for state in states}, optimise=False
        )
        starts = {state.input: np.broadcast_to(state.start, full[state.output]).copy() for state in states}
        found = run(model, {"image": images, STEP: np.array(0)} | starts, optimise=False)
        for state in states:
            assert small[state.output].shape == full[state.output]
        for name, value in small.items():
            np.testing.assert_array_equal(found[name], value)
