"""The folded form: time in the batch gives what a copy per step gives; what mixes the samples of a batch is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from emit_cases import NETS, feeds_of, network_of, plan_of
from helpers import assert_valid, numbers, parse, run
from networks import RELU, SPECS, TEST, digits, random_plan
from networks import network_of as network_from

from ftbc_onnx import ModelError, convert
from ftbc_onnx.cli import cli
from ftbc_onnx.evaluate import evaluate_file
from ftbc_onnx.graph.emit import choose_form, emit
from ftbc_onnx.graph.emit.folded import batched_tensors, why_not_folded
from ftbc_onnx.graph.emit.unrolled import emit_unrolled
from ftbc_onnx.graph.normalise import normalise
from ftbc_onnx.graph.observe import expose_running_means
from ftbc_onnx.graph.sites import Network, find_network
from ftbc_onnx.neurons import NeuronSpec
from ftbc_onnx.plan import SpikingPlan
from ftbc_onnx.window import Window


def assert_same(network: Network, plan: SpikingPlan, feeds: dict[str, np.ndarray]) -> None:
    """Every output after every step is that of the unrolled form, to the last bit."""
    both = [emit_unrolled(network, plan), emit(network, plan, "folded")]
    for emitted in both:
        assert_valid(emitted.model)
    expected, found = (
        run(expose_running_means(emitted.model, emitted.readouts), feeds, optimise=False) for emitted in both
    )
    assert set(found) == set(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", NETS)
def test_every_kind_of_network(name: str, batch: int) -> None:
    network = network_of(name)
    if why_not_folded(network) is not None:
        with pytest.raises(ModelError, match="time cannot be folded into the batch"):
            emit(network, plan_of(network), "folded")
        return
    assert_same(network, plan_of(network), feeds_of(name, batch))


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_every_neuron(spec: NeuronSpec) -> None:
    network = network_from(onnx.load(RELU))
    assert_same(network, random_plan(network, spec), {"image": digits("test", 3)[0]})


@pytest.mark.parametrize("start", [1, 4])
@pytest.mark.parametrize("name", ["residual", "softmax at the end"])
def test_delayed_readout(name: str, start: int) -> None:
    network = network_of(name)
    assert_same(network, replace(plan_of(network, 5), readout=Window(start)), feeds_of(name, 2))


def test_synchronous_plan() -> None:
    network = network_of("residual")
    assert_same(network, replace(plan_of(network), schedule="synchronous"), feeds_of("residual", 2))


def test_one_step() -> None:
    network = network_of("residual")
    assert_same(network, plan_of(network, 1), feeds_of("residual", 2))


def test_layers_run_once_and_the_static_part_on_one_row_per_sample() -> None:
    network = network_of("residual")
    model = emit(network, plan_of(network, 4), "folded").model
    layers = [node for node in network.view.nodes if node.op_type in ("Conv", "Gemm", "MatMul")]
    assert sum(node.op_type in ("Conv", "Gemm", "MatMul") for node in model.graph.node) == len(layers)


def test_convert_writes_it_and_says_so() -> None:
    result = convert(RELU, digits("test", 16)[0], steps=3, form="folded", neuron="if", eval_data=digits("test", 12))
    assert result.report["form"] == "folded"
    assert result.report["verification"]["bitwise"]
    assert result.report["evaluation"]["counts"]["events"]


ROW, STACK, IMAGE = "float[N,4] x", "float[N,3,4] x", "float[N,4,6,6] x"
KEEPS = {
    "elementwise with a row": (ROW, "k = Constant <value = float[4] {1,2,3,4}> () y = Mul(x, k)"),
    "elementwise with a matrix of one row": (ROW, "k = Constant <value = float[1,4] {1,2,3,4}> () y = Add(x, k)"),
    "reshape that copies axis 0": (STACK, "s = Constant <value = int64[2] {0,-1}> () y = Reshape(x, s)"),
    "reshape that infers axis 0": (STACK, "s = Constant <value = int64[2] {-1,12}> () y = Reshape(x, s)"),
    "softmax over the last axis": (STACK, "y = Softmax <axis = -1> (x)"),
    "mean over axis 1": (STACK, "y = ReduceMean <axes = [1]> (x)"),
    "slice of axis 1": (
        ROW,
        """a = Constant <value = int64[1] {1}> () b = Constant <value = int64[1] {3}> ()
        y = Slice(x, a, b, a)""",
    ),
    "pad of the last axes": (IMAGE, "p = Constant <value = int64[8] {0,0,1,1,0,0,1,1}> () y = Pad(x, p)"),
    "transpose behind axis 0": (STACK, "y = Transpose <perm = [0,2,1]> (x)"),
    "join along axis 1": (ROW, "y = Concat <axis = 1> (x, x)"),
    "pool": (IMAGE, "y = MaxPool <kernel_shape = [2,2]> (x)"),
    "product of two stacks": (STACK, "t = Transpose <perm = [0,2,1]> (x) y = MatMul(x, t)"),
}
MIXES = {
    "mean over axis 0": (STACK, "m = ReduceMean <axes = [0]> (x) y = Sub(x, m)"),
    "softmax over axis 0": (ROW, "y = Softmax <axis = 0> (x)"),
    "transpose of axis 0": (STACK, "y = Transpose <perm = [1,0,2]> (x)"),
    "reshape across rows": (STACK, "s = Constant <value = int64[2] {-1,24}> () y = Reshape(x, s)"),
    "elementwise with the batch on another axis": (
        STACK,
        "t = Transpose <perm = [1,0,2]> (x) s = ReduceSum <axes = [0]> (t) y = Mul(x, s)",
    ),
    "product across rows": (ROW, "t = Transpose <perm = [1,0]> (x) y = MatMul(x, t)"),
    "cumulative sum over rows": (ROW, "a = Constant <value = int64 {0}> () y = CumSum(x, a)"),
    "slice of rows": (
        ROW,
        """a = Constant <value = int64[1] {0}> () b = Constant <value = int64[1] {1}> ()
        y = Slice(x, a, b, a)""",
    ),
}


def single(declared: str, body: str) -> Network:
    return find_network(normalise(parse(f"g ({declared}) => (float y) {{ {body} }}", opset=13)).model)


@pytest.mark.parametrize("case", KEEPS)
def test_rows_that_are_kept_apart(case: str) -> None:
    """Recognised as such, and a batch gives what its samples give alone."""
    declared, body = KEEPS[case]
    model = parse(f"g ({declared}) => (float y) {{ {body} }}", opset=13)
    network = find_network(normalise(model).model)
    assert {"x", "y"} <= batched_tensors(network)
    shape = [4 if part == "N" else int(part) for part in declared.split("[")[1].split("]")[0].split(",")]
    x = numbers(*shape)
    whole = run(model, {"x": x})["y"]
    np.testing.assert_array_equal(whole, np.concatenate([run(model, {"x": x[i : i + 1]})["y"] for i in range(4)]))


@pytest.mark.parametrize("case", MIXES)
def test_rows_that_are_mixed(case: str) -> None:
    declared, body = MIXES[case]
    assert "y" not in batched_tensors(single(declared, body))


def test_what_is_the_same_for_all_samples_has_no_rows() -> None:
    """Neurons on constants (a table of positions), and an input of one row beside a free batch."""
    text = """g (float[N,6] x) => (float[N,4] y) {
        c = MatMul(x, w) r = Relu(c) t = Relu(table) p = MatMul(t, v) g_ = Gather(p, place) y = Add(r, g_) }"""
    table = parse(text, w=numbers(6, 4), table=numbers(40, 6), v=numbers(6, 4, seed=1), place=np.array([3]))
    network = find_network(table)
    assert why_not_folded(network) == "Relu '' is the same for all samples"
    beside = parse(
        "g (float[N,6] x, float[1,4] a) => (float[N,4] y) { c = MatMul(x, w) r = Relu(c) y = Mul(r, a) }",
        w=numbers(6, 4),
    )
    assert why_not_folded(find_network(beside)) == "Mul '' may mix the samples of a batch"
    fixed = parse(
        "g (float[2,6] x, float[2,4] a) => (float[2,4] y) { c = MatMul(x, w) r = Relu(c) y = Mul(r, a) }",
        w=numbers(6, 4),
    )
    assert why_not_folded(find_network(fixed)) is None


def test_a_folded_file_is_evaluated_without_counts(tmp_path: Path) -> None:
    images, labels = digits("test", 12)
    result = convert(RELU, digits("test", 16)[0], steps=3, form="folded", neuron="if", eval_data=(images, labels))
    path = result.save(tmp_path / "snn.onnx")
    found, _ = evaluate_file(path, (images, labels), ann=RELU)
    assert list(found.accuracy) == result.report["evaluation"]["accuracy"]
    assert found.counts is None
    done = CliRunner().invoke(cli, ["evaluate", str(path), "--eval-data", str(TEST), "--samples", "12"])
    assert done.exit_code == 0, done.output
    assert "are not counted in the folded form: convert in another form" in done.output


def test_the_transformer_that_moves_its_batch_is_refused() -> None:
    network = network_of("attention, the batch on axis 1")
    reason = why_not_folded(network)
    assert reason is not None
    assert "may mix the samples" in reason
    with pytest.raises(ModelError, match="use form unrolled or loop"):
        emit(network, plan_of(network), "folded")


def test_auto_takes_it_on_a_gpu_where_it_is_possible() -> None:
    """And says why; many nodes take the loop there, too."""
    network = network_of("residual")
    form, why = choose_form(network, plan_of(network), on_gpu=True)
    assert (form, why) == ("folded", "time in the batch keeps a GPU busy")
    assert emit(network, plan_of(network), on_gpu=True).form == "folded"
    assert emit(network, plan_of(network)).form == "fused"
    form, why = choose_form(network_of("top k"), plan_of(network_of("top k")), on_gpu=True)
    assert form == "unrolled"
    assert "may mix the samples" in why
    form, why = choose_form(network, plan_of(network, 2000), on_gpu=True)
    assert form == "loop"
    assert "slow to open" in why
