"""Cases for passes: a graph as text; asserted are how often the pass applied, what the graph became, that the numbers
are the same, and that the checker is content.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import onnx
import pytest
from helpers import apply, assert_same_function, assert_valid, numbers, ops, parse

X = {"x": numbers(2, 3, 4, 5)}


IN = "g (float[N,3,4,5] x) => (float[N,3,4,5] y)"
BN = "BatchNormalization <epsilon = 0.01> ({}, g, h, m, v)"


class Case(NamedTuple):
    """A graph, and what a pass makes of it."""

    label: str
    text: str
    count: int
    after: list[str]


def cases(*table: tuple[str, str, int, list[str]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", [Case(*row) for row in table], ids=[row[0] for row in table])


def applied(change, case: Case, opset: int = 17, feeds=None, **constants) -> onnx.ModelProto:
    """Apply a pass, assert what is common to all cases, and return what the graph became."""
    before = parse(case.text, opset=opset, **constants)
    assert_valid(named(before))
    after, count = apply(change, before)
    assert count == case.count
    assert ops(after) == case.after
    assert_valid(named(after))
    if feeds is not None:
        assert_same_function(before, after, feeds)
    return after


def named(model: onnx.ModelProto) -> onnx.ModelProto:
    """Nodes of test graphs have no names; the passes are not what gives them any."""
    for position, node in enumerate(model.graph.node):
        node.name = node.name or f"node{position}"
    return model


def norm(channels: int, seed: int = 3) -> dict[str, np.ndarray]:
    """Parameters of a BatchNormalization: scale, bias, mean, var."""
    rng = np.random.default_rng(seed)
    low, high = np.full(channels, 0.5), np.full(channels, 1.5)
    values = {
        "g": rng.uniform(low, high),
        "h": rng.normal(size=channels),
        "m": rng.normal(size=channels),
        "v": rng.uniform(low, high),
    }
    values["g"][0] *= -1
    return {name: value.astype(np.float32) for name, value in values.items()}
