"""The opset of what is written: the one that is wanted, or why it cannot be had."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from helpers import numbers, parse, run
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


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize(
    ("op", "opset", "scales"),
    [
        ("Upsample", 9, (2, 2)),
        ("Upsample", 9, (1.5, 3)),
        ("Resize", 10, (2, 2)),
        ("Resize", 10, (2.5, 1)),
        ("Resize", 10, (1 / 3, 1 / 2)),
    ],
)
def test_sizes_change_as_they_did(op: str, opset: int, scales: tuple[float, float], mode: str) -> None:
    """From opset 11 on other coordinates are the default, and the converter does not say which were meant."""
    text = f'g (float[N,2,6,7] x) => (float[N,2,a,b] y) {{ r = Relu(x) y = {op} <mode = "{mode}"> (r, s) }}'
    model = parse(text, opset=opset, s=np.array([1, 1, *scales], np.float32))
    feeds = {"x": numbers(2, 2, 6, 7)}
    np.testing.assert_allclose(run(normalise(model).model, feeds)["y"], run(model, feeds)["y"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("axis", "fits"), [(1, False), (2, True), (-1, True)])
def test_a_hardmax_that_flattened_axes(axis: int, fits: bool) -> None:
    model = parse(f"g (float[N,2,3] x) => (float[N,2,3] y) {{ y = Hardmax <axis = {axis}> (x) }}", opset=11)
    if not fits:
        with pytest.raises(ModelError, match="Hardmax 'y' flattens axes: export with opset 13 or newer"):
            normalise(model)
        return
    feeds = {"x": numbers(2, 2, 3)}
    np.testing.assert_array_equal(run(normalise(model).model, feeds)["y"], run(model, feeds)["y"])


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
