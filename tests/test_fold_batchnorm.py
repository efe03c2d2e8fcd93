"""The pass `fold_batchnorm`: each case of its docstring, and the places that it has to leave alone."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from helpers import OPSETS, apply, assert_same_function, assert_valid, constant, numbers, ops, parse
from pass_cases import BN, IN, Case, X, applied, cases, named, norm

from ftbc_onnx.errors import ModelError
from ftbc_onnx.graph.passes import (
    fold_batchnorm,
)


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("bias", [False, True])
def test_fold_batchnorm_1_conv(opset, bias):
    text = (
        f"{IN.replace('N,3,4,5] y', 'N,6,4,5] y')} {{ "
        f"a = Conv <pads = [1,1,1,1]> (x, w{', c' if bias else ''}) y = {BN.format('a')} }}"
    )
    constants = {"w": numbers(6, 3, 3, 3, seed=1), "c": numbers(6, seed=2), **norm(6)}
    after = applied(fold_batchnorm, Case("", text, 1, ["Conv"]), opset, X, **constants)
    assert len(after.graph.initializer) == 2
    factor = constants["g"] / np.sqrt(constants["v"] + 0.01)
    np.testing.assert_allclose(
        constant(after, after.graph.node[0].input[1]), constants["w"] * factor[:, None, None, None], rtol=1e-6
    )


@pytest.mark.parametrize("groups", [1, 2, 3])
def test_fold_batchnorm_1_conv_with_groups_and_an_empty_bias(groups):
    text = (
        f"g (float[N,6,4,5] x) => (float[N,6,4,5] y) {{ "
        f"a = Conv <pads = [1,1,1,1], group = {groups}> (x, w, ) y = {BN.format('a')} }}"
    )
    constants = {"w": numbers(6, 6 // groups, 3, 3, seed=1), **norm(6)}
    applied(fold_batchnorm, Case("", text, 1, ["Conv"]), 17, {"x": numbers(2, 6, 4, 5)}, **constants)


@pytest.mark.parametrize("groups", [1, 2, 3])
@pytest.mark.parametrize("bias", ["", ", c"])
def test_fold_batchnorm_1_conv_transpose(groups, bias):
    text = (
        f"g (float[N,6,4,5] x) => (float[N,12,8,10] y) {{ "
        f"a = ConvTranspose <strides = [2,2], group = {groups}> (x, w{bias}) "
        f"y = {BN.format('a')} }}"
    )
    constants = {"w": numbers(6, 12 // groups, 2, 2, seed=1), "c": numbers(12, seed=2), **norm(12)}
    applied(fold_batchnorm, Case("", text, 1, ["ConvTranspose"]), 17, {"x": numbers(2, 6, 4, 5)}, **constants)


@pytest.mark.parametrize(
    "attributes", ["", "transB = 1", "alpha = 0.5, beta = 2.0", "transB = 1, alpha = 3.0, beta = 0.25", "transA = 1"]
)
@pytest.mark.parametrize("bias", [None, (), (1,), (4,), (1, 4), (2, 1), (2, 4)])
def test_fold_batchnorm_1_gemm(attributes, bias):
    shape = (3, 2) if "transA" in attributes else (2, 3)
    third = "" if bias is None else ", c"
    text = (
        f"g (float[{shape[0]},{shape[1]}] x) => (float[2,4] y) {{ "
        f"a = Gemm <{attributes}> (x, w{third}) y = {BN.format('a')} }}"
    )
    text = text.replace("Gemm <>", "Gemm")
    weight = numbers(3, 4, seed=1)
    constants = {"w": weight.T.copy() if "transB" in attributes else weight, **norm(4)}
    if bias is not None:
        constants["c"] = numbers(*bias, seed=2)
    applied(fold_batchnorm, Case("", text, 1, ["Gemm"]), 17, {"x": numbers(*shape)}, **constants)


@cases(
    ("2-conv-read-twice", "a = Conv(x, w) b = {} y = Add(a, b)", 1, ["Conv", "Mul", "Add", "Add"]),
    ("2-before-conv", "b = {0} y = Conv(b, w)", 1, ["Mul", "Add", "Conv"]),
    ("2-after-add", "b = Add(x, x) y = {1}", 1, ["Add", "Mul", "Add"]),
    ("2-after-concat", "b = Concat <axis = 1> (x) y = {1}", 1, ["Concat", "Mul", "Add"]),
    ("2-two-in-a-row", "a = {0} y = BatchNormalization(a, h, g, m, v)", 2, ["Mul", "Add", "Mul", "Add"]),
)
def test_fold_batchnorm_2_product_and_sum(case):
    forms = [BN.format("x"), BN.format("b")] if "{0}" in case.text or "{1}" in case.text else [BN.format("a")]
    body = case.text.format(*forms)
    constants = {"w": numbers(3, 3, 1, 1, seed=1), **norm(3)}
    if case.label == "2-two-in-a-row":
        constants["h"] = np.abs(constants["h"]) + 0.5
    applied(fold_batchnorm, case._replace(text=f"{IN} {{ {body} }}"), 17, X, **constants)


def test_fold_batchnorm_2_conv_that_is_an_output():
    text = f"g (float[N,3,4,5] x) => (float[N,3,4,5] a, float[N,3,4,5] y) {{ a = Conv(x, w) y = {BN.format('a')} }}"
    applied(fold_batchnorm, Case("", text, 1, ["Conv", "Mul", "Add"]), 17, X, w=numbers(3, 3, 1, 1), **norm(3))


def test_fold_batchnorm_2_conv_whose_weights_are_computed():
    text = f"g (float[N,3,4,5] x, float[3,3,1,1] w) => (float[N,3,4,5] y) {{ a = Conv(x, w) y = {BN.format('a')} }}"
    feeds = {**X, "w": numbers(3, 3, 1, 1)}
    applied(fold_batchnorm, Case("", text, 1, ["Conv", "Mul", "Add"]), 17, feeds, **norm(3))


def test_fold_batchnorm_2_conv_whose_bias_is_computed():
    text = f"g (float[N,3,4,5] x, float[3] c) => (float[N,3,4,5] y) {{ a = Conv(x, w, c) y = {BN.format('a')} }}"
    feeds = {**X, "c": numbers(3)}
    applied(fold_batchnorm, Case("", text, 1, ["Conv", "Mul", "Add"]), 17, feeds, w=numbers(3, 3, 1, 1), **norm(3))


@pytest.mark.parametrize("dims", [(), (4,), (4, 5), (2, 4, 5)])
def test_fold_batchnorm_2_any_rank(dims):
    axes = ",".join(map(str, ("N", 3, *dims)))
    text = f"g (float[{axes}] x) => (float[{axes}] y) {{ a = Neg(x) y = {BN.format('a')} }}"
    applied(fold_batchnorm, Case("", text, 1, ["Neg", "Mul", "Add"]), 17, {"x": numbers(2, 3, *dims)}, **norm(3))


def test_fold_batchnorm_leaves_parameters_that_are_not_constant():
    text = f"g (float[N,3] x, float[3] m) => (float[N,3] y) {{ y = {BN.format('x')} }}"
    constants = {name: value for name, value in norm(3).items() if name != "m"}
    feeds = {"x": numbers(2, 3), "m": norm(3)["m"]}
    applied(fold_batchnorm, Case("", text, 0, ["BatchNormalization"]), 17, feeds, **constants)


def test_fold_batchnorm_leaves_an_unknown_rank():
    model = parse(f"g (float[N,3] x) => (float[N,3] y) {{ y = {BN.format('x')} }}", **norm(3))
    model.graph.input[0].type.tensor_type.ClearField("shape")
    model.graph.output[0].type.tensor_type.ClearField("shape")
    after, count = apply(fold_batchnorm, model)
    assert (count, ops(after)) == (0, ["BatchNormalization"])


def test_fold_batchnorm_leaves_a_weight_shared_with_another_layer_as_it_is():
    text = f"{IN} {{ a = Conv(x, w) b = {BN.format('a')} y = Conv(b, w) }}"
    after = applied(fold_batchnorm, Case("", text, 1, ["Conv", "Conv"]), 17, X, w=numbers(3, 3, 1, 1), **norm(3))
    np.testing.assert_array_equal(constant(after, "w"), numbers(3, 3, 1, 1))


@pytest.mark.parametrize("layer", ["Conv(x, w)", "Neg(x)"])
def test_fold_batchnorm_makes_names_of_its_own(layer):
    # the parameters bear the names that the pass would give to what it makes
    text = f"{IN} {{ a = {layer} y = BatchNormalization(a, y_scale, y_bias, y_mean, y_weight) }}"
    parameters = norm(3)
    constants = dict(zip(("y_scale", "y_bias", "y_mean", "y_weight"), parameters.values(), strict=True))
    model = parse(text, **constants, w=numbers(3, 3, 1, 1))
    rename = {name: name.replace("_", "/") for name in constants}
    for tensor in model.graph.initializer:
        tensor.name = rename.get(tensor.name, tensor.name)
    for node in model.graph.node:
        node.input[:] = [rename.get(name, name) for name in node.input]
    # each is read elsewhere too, so none of them goes
    for position, name in enumerate(rename.values()):
        model.graph.node.append(onnx.helper.make_node("Neg", [name], [f"z{position}"]))
        model.graph.output.append(onnx.helper.make_tensor_value_info(f"z{position}", onnx.TensorProto.FLOAT, [3]))
    assert_valid(named(model))
    after, count = apply(fold_batchnorm, model)
    assert count == 1
    assert_valid(named(after))
    assert_same_function(model, after, X)


@pytest.mark.parametrize("opset", [opset for opset in OPSETS if opset >= 14])
def test_fold_batchnorm_refuses_training(opset):
    text = f"{IN} {{ bn = Identity(x) y, p, q = BatchNormalization <training_mode = 1> (bn, g, h, m, v) }}"
    model = parse(text, opset=opset, **norm(3))
    model.graph.node[1].name = "bn1"
    with pytest.raises(ModelError, match=r"BatchNormalization 'bn1' is in training mode .*evaluation mode"):
        apply(fold_batchnorm, model)


def test_fold_batchnorm_refuses_training_below_opset_14():
    # there it is stated by the number of outputs
    model = parse(f"{IN} {{ y, p, q, r, s = BatchNormalization(x, g, h, m, v) }}", opset=13, **norm(3))
    with pytest.raises(ModelError, match="training"):
        apply(fold_batchnorm, model)
