"""The unrolled form: valid and portable models of every opset, what is in the file, and its names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from emit_cases import NETS, WEIGHTS, T, feeds_of, laws, network_of, plan_of, simulate
from helpers import OPSETS, assert_close, assert_valid, make_plan, newest_opset, numbers, ops, parse, run
from onnx import helper

from ftbc_onnx.errors import ModelError
from ftbc_onnx.graph.classes import NodeClass
from ftbc_onnx.graph.emit.unrolled import bias_name, emit_unrolled, threshold_name
from ftbc_onnx.graph.normalise import normalise
from ftbc_onnx.graph.sites import find_network
from ftbc_onnx.graph.view import GraphView
from ftbc_onnx.runtime import Session

MODELS = Path(__file__).parents[1] / "models"


@pytest.mark.parametrize("opset", [13, 18, newest_opset()])
@pytest.mark.parametrize("name", NETS)
def test_emitted_model_is_valid_portable_and_keeps_the_interface(name, opset):
    network = network_of(name, opset)
    assert network.refusals == ()
    model = emit_unrolled(network, plan_of(network)).model
    assert_valid(model)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", opset)]
    assert model.ir_version == helper.find_min_ir_version_for(list(model.opset_import))
    assert {node.domain for node in model.graph.node} <= {""}
    if "control flow" not in name:
        assert not {"If", "Loop", "Scan"} & set(ops(model))
    source = network.view.model.graph
    assert list(model.graph.input) == list(source.input)
    assert [value.name for value in model.graph.output] == [value.name for value in source.output]
    assert [value.type.tensor_type.elem_type for value in model.graph.output] == [
        value.type.tensor_type.elem_type for value in source.output
    ]


@pytest.mark.parametrize("name", NETS)
def test_nodes_are_written_once_per_step_or_once(name):
    network = network_of(name)
    model = emit_unrolled(network, plan_of(network)).model
    made: dict[str, int] = {}
    for node in model.graph.node:
        made[node.op_type] = made.get(node.op_type, 0) + 1
    extra = set("Add Sub Mul Div GreaterOrEqual Cast Split Reshape Identity".split())
    wanted: dict[str, int] = {}
    for node in network.view.nodes:
        kind = network.classes[node.name]
        if kind is not NodeClass.SITE:
            wanted[node.op_type] = wanted.get(node.op_type, 0) + (1 if kind is NodeClass.STATIC else T)
    for op_type, count in wanted.items():
        assert made[op_type] >= count
        if op_type not in extra:
            assert made[op_type] == count
    assert set(made) <= set(wanted) | extra
    copies = [tensor.name for tensor in model.graph.initializer]
    assert len(set(copies)) == len(copies)


@pytest.mark.parametrize("name", NETS)
def test_one_step_without_bias_and_with_it_differ_and_both_are_valid(name):
    network = network_of(name)
    plan = plan_of(network, 1)
    for each in (plan, plan.without_biases()):
        model = emit_unrolled(network, each).model
        assert_valid(model)
        run(model, feeds_of(name, 1))


def test_source_of_an_emission_is_left_alone():
    network = network_of("residual")
    content = network.view.model.SerializeToString(deterministic=True)
    first = emit_unrolled(network, plan_of(network)).model
    second = emit_unrolled(network, plan_of(network)).model
    assert first.SerializeToString(deterministic=True) == second.SerializeToString(deterministic=True)
    assert network.view.model.SerializeToString(deterministic=True) == content


@pytest.mark.parametrize("opset", [9, 11])
def test_old_opsets_are_emitted_at_13(opset):
    text = (
        "g (float[N,3,6,6] x) => (float[N,4,5,5] y) { c = Conv(x, w) r = Relu(c) "
        "y = MaxPool <kernel_shape = [2,2], pads = [1,1,0,0]> (r) }"
    )
    network = find_network(
        normalise(parse(text.replace("5,5] y", "4,4] y"), opset=opset, w=WEIGHTS["w"])).model, smooth="rate-exact"
    )
    model = emit_unrolled(network, plan_of(network)).model
    assert_valid(model)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 13)]


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("name", ["three layers", "max pooling"])
def test_every_opset_gives_the_same_numbers(name, opset):
    feeds = feeds_of(name, 2)
    results = []
    for version in (17, opset):
        network = network_of(name, version)
        results.append(run(emit_unrolled(network, plan_of(network)).model, feeds, optimise=False)["y"])
    np.testing.assert_array_equal(*results)


@pytest.mark.parametrize("name", ["digits_relu.onnx", "digits_qcfs4.onnx"])
def test_shipped_networks(name):
    network = find_network(normalise(onnx.load(MODELS / name)).model)
    model = emit_unrolled(network, make_plan(network, T, 1.0, bias=0.1)).model
    assert_valid(model)
    (value,) = model.graph.input
    dims = [dim.dim_value for dim in value.type.tensor_type.shape.dim][1:]
    five = {value.name: np.abs(numbers(5, *dims))}
    one = {value.name: five[value.name][:1]}
    opened = Session(model, optimise=False)
    (scores,), (score,) = opened.run(five).values(), opened.run(one).values()
    assert scores.shape[0] == 5
    assert_close(scores[:1], score, steps=1000)


# what is in the file


def test_tables_of_a_site_are_in_the_file_as_the_plan_states_them():
    network, plan, _ = laws()
    model = emit_unrolled(network, plan).model
    view = GraphView(model)
    for site in network.sites:
        np.testing.assert_array_equal(view.constant(bias_name(site.name)), plan.biases[site.name])
        np.testing.assert_array_equal(view.constant(threshold_name(site.name)), plan.thresholds[site.name])


def test_static_work_is_done_once():
    network = network_of("static branch")
    counts = {op: ops(emit_unrolled(network, plan_of(network)).model).count(op) for op in ("Sin", "Gemm", "Exp")}
    assert counts == {"Sin": 1, "Gemm": 1 + T, "Exp": 1}  # one Gemm of the static branch, one on spikes


def test_shape_of_spikes_is_taken_once():
    network = network_of("shape of spikes")
    made = ops(emit_unrolled(network, plan_of(network)).model)
    assert (made.count("Shape"), made.count("ReduceProd"), made.count("Conv")) == (1, 1, 1)
    assert made.count("ReduceSum") == T


@pytest.mark.parametrize("size", [(4, 4), (6, 5)])
def test_shape_of_spikes_follows_the_input(size):
    network = network_of("shape of spikes")
    feeds = {"x": numbers(2, 3, *size)}
    assert run(emit_unrolled(network, plan_of(network)).model, feeds)["y"].shape == (size[0] * size[1], 2)


def test_rate_exact_nodes_in_a_row_are_converted_at_the_ends_only():
    text = "g (float[N,8] x) => (float[N,8] y) { r = Relu(x) a = Exp(r) b = Sqrt(a) c = Neg(b) y = Relu(c) }"
    network = find_network(normalise(parse(text)).model, smooth="rate-exact")
    made = ops(emit_unrolled(network, make_plan(network, T)).model)
    # r to its mean: a sum and a quotient per step; c to its current: a product and a difference; y to the readout;
    # besides, every spike is a product
    assert made.count("Div") == (T - 1) + 1
    assert made.count("Mul") == (T - 1) + 2 * T


def test_spikes_that_only_linear_nodes_read_are_not_summed():
    network = network_of("three layers")
    names = [name for node in emit_unrolled(network, plan_of(network)).model.graph.node for name in node.output]
    assert not [name for name in names if name.startswith(("r/t1/sum", "s/t1/sum"))]
    assert "y/t1/sum" in names


# names


@pytest.mark.parametrize("taken", ["r/threshold", "r/bias", "y/t0", "r/t1/spikes", "r/b/t0"])
@pytest.mark.parametrize("where", ["initializer", "static", "output"])
def test_names_of_the_source_are_not_confused_with_those_of_the_emission(taken, where):
    text = (
        "g (float[N,8] x) => (float[N,8] y, float[N,8] z) { r = Relu(x) k = Sin(x) y = Neg(r) "
        "q = Mul(r, k) z = Div(q, c) }"
    )
    model = parse(text, c=numbers(8))
    old = {"initializer": "c", "static": "k", "output": "z"}[where]
    for tensor in [*model.graph.initializer, *model.graph.output]:
        tensor.name = taken if tensor.name == old else tensor.name
    for node in model.graph.node:
        node.input[:] = [taken if name == old else name for name in node.input]
        node.output[:] = [taken if name == old else name for name in node.output]
        node.name = "r" if node.op_type == "Relu" else f"the {node.op_type}"
    network = find_network(normalise(model).model)
    feeds = {"x": numbers(2, 8)}
    try:
        emitted = emit_unrolled(network, make_plan(network, 2)).model
    except ModelError as error:
        assert taken in str(error)  # noqa: PT017 - refusing with the name is as good as finding another
        return
    assert_valid(emitted)
    assert [value.name for value in emitted.graph.output] == [value.name for value in network.view.graph.output]
    other = find_network(normalise(parse(text, c=numbers(8))).model, smooth="rate-exact")
    expected = run(emit_unrolled(other, make_plan(other, 2)).model, feeds)
    for actual, wanted in zip(run(emitted, feeds).values(), expected.values(), strict=True):
        np.testing.assert_array_equal(actual, wanted)


def test_weights_are_shared_and_unused_ones_left_out():
    model = parse(
        "g (float[N,6] x) => (float[N,8] y) { r = Relu(x) y = MatMul(r, m) }", m=WEIGHTS["m"], unused=numbers(100)
    )
    network = find_network(normalise(model).model)
    emitted = emit_unrolled(network, make_plan(network, T)).model
    names = [tensor.name for tensor in emitted.graph.initializer]
    assert names.count("m") == 1
    assert "unused" not in names
    assert {node.input[1] for node in emitted.graph.node if node.op_type == "Gemm"} == {"m"}


def test_a_site_without_known_channels_has_one_threshold():
    model = parse("g (float[N,K] x) => (float[N,K] y) { y = Relu(x) }")
    network = find_network(normalise(model).model)
    plan = make_plan(network, T, 1.0, bias=0.1)
    emitted = emit_unrolled(network, plan).model
    assert_valid(emitted)
    x = numbers(3, 7)
    np.testing.assert_array_equal(run(emitted, {"x": x})["y"], simulate(network, plan, {"x": x})[-1]["y"])
