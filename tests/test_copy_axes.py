"""The pass `copy_axes`: each case of its docstring, and the places that it has to leave alone."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import apply, constant, node_of, numbers, parse
from pass_cases import Case, applied

from ftbc_onnx.graph.normalise import infer_shapes
from ftbc_onnx.graph.passes import (
    copy_axes,
)


def reshape(source: str, result: str, target: list[int], attributes: str = "") -> str:
    shape = f"int64[{len(target)}] t = {{{', '.join(map(str, target))}}}"
    return f"g (float[{source}] x) => (float[{result}] y) <{shape}> {{ y = Reshape {attributes}(x, t) }}"


@pytest.mark.parametrize(
    ("source", "result", "target", "after"),
    [
        ("N,8,2,2", "N,8,4", [-1, 8, 4], [0, 8, 4]),
        ("N,8,2,2", "N,8,4", [-1, 0, 4], [0, 0, 4]),
        ("N,32", "N,4,8", [-1, 4, 8], [0, 4, 8]),
        ("2,N,6", "2,N,2,3", [0, -1, 2, 3], [0, 0, 2, 3]),
        ("N,1", "N", [-1], [0]),
        ("N,8,2,2", "N,8,4", [3, 8, 4], [0, 8, 4]),  # a batch that was baked in
        ("N,8,2,2", "N,8,4", [3, 0, 4], [0, 0, 4]),
        ("2,N,6", "2,N,2,3", [2, 3, 2, 3], [2, 0, 2, 3]),
        ("N,8,2,2", "N,32", [3, -1], None),  # runs in other batches, whatever it was meant for
        ("N,8,2", "M,8,1,1", [6, 8, 1, 1], None),  # and so does this
        ("N,8,4", "M,8", [-1, 8], None),  # merged with another axis
        ("N,8,4", "N,32", [0, -1], None),  # another axis is left over
        ("N,M,4", "N,M,2,2", [-1, 0, 2, 2], None),  # two that are not known
        ("8,N,4", "N,8,4", [-1, 8, 4], None),  # another place
        ("N,8,4", "N,8,4", [0, 8, 4], None),
    ],
)
def test_copy_axes(source, result, target, after):
    names = {"N": 3, "M": 2}
    feeds = {"x": numbers(*(names.get(dim) or int(dim) for dim in source.split(",")))}
    text = reshape(source, result, target)
    model = applied(copy_axes, Case("", text, int(after is not None), ["Reshape"]), feeds=feeds)
    np.testing.assert_array_equal(constant(model, model.graph.node[0].input[1]), after or target)


def test_copy_axes_minds_allowzero():
    model = applied(copy_axes, Case("", reshape("N,8,4", "N,32", [-1, 32], "<allowzero = 1> "), 1, ["Reshape"]))
    assert not node_of(model, "Reshape").attribute
    applied(copy_axes, Case("", reshape("N,0,4", "K,0", [4, 0], "<allowzero = 1> "), 0, ["Reshape"]))


def test_copy_axes_keeps_the_name_of_the_batch():
    text = reshape("N,8,2,2", "N,8,4", [-1, 8, 4]).replace("y = R", "z = R").replace("(x, t) }", "(x, t) y = Relu(z) }")
    model, _ = apply(copy_axes, parse(text))
    del model.graph.value_info[:]  # inferred anew, as for an emitted model
    (value,) = infer_shapes(model).graph.value_info
    assert [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim] == ["N", 8, 4]
