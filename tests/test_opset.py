"""The opset of what is written: the one that is wanted, or why it cannot be had."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from helpers import parse
from networks import QCFS, RELU, digits

from ftbc_onnx import convert
from ftbc_onnx.errors import ConfigError, ModelError
from ftbc_onnx.graph.normalise import default_opset, normalise


def test_an_opset_that_was_asked_for_is_not_blamed_on_the_export():
    with pytest.raises(ModelError, match=r"could not be changed to 99.*: use another --opset, or none$"):
        normalise(parse("g (float[N] x) => (float[N] y) { y = Relu(x) }"), 99)


def test_an_opset_that_cannot_be_raised_is_an_error():
    model = parse(
        'g (float[N] x) => (float[N] y) { y = Upsample <mode = "nearest", height_scale = 2.0, width_scale = 2.0> (x) }',
        opset=1,
    )
    with pytest.raises(ModelError, match=r"opset 1 could not be changed to 13.*export the model with opset 13"):
        normalise(model)


@pytest.mark.parametrize("opset", [17, 19, 21])
def test_the_opset_that_is_wanted(opset: int) -> None:
    images, labels = digits("test", 12)
    result = convert(QCFS, images, steps=2, neuron="if", opset=opset, eval_data=(images, labels))
    assert default_opset(result.model) == opset
    assert result.report["verification"]["bitwise"]
    assert result.report["evaluation"]["ann_accuracy"] == 100
    same = convert(QCFS, images, steps=2, neuron="if", eval_data=(images, labels)).report
    assert result.report["evaluation"]["accuracy"] == same["evaluation"]["accuracy"]


@pytest.mark.parametrize(
    ("model", "opset", "message"),
    [
        (RELU, 17, "opset 18 could not be changed to 17"),  # the converter's ReduceMean is not valid there
        (QCFS, 13, "opset 17 could not be changed to 13"),
        (QCFS, 999, "opset 17 could not be changed to 999"),
    ],
)
def test_an_opset_that_cannot_be_had(model: Path, opset: int, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        normalise(onnx.load(model), opset)


def test_an_opset_that_is_too_old() -> None:
    with pytest.raises(ConfigError, match="opset is 11: 13 is the oldest that is written"):
        convert(QCFS, steps=2, opset=11)
