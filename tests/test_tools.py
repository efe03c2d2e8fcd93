"""The scripts in tools/: what they make of what they measure."""

from __future__ import annotations

import sys

import numpy as np
import onnx
import pytest
from helpers import TOOLS, run, tool
from networks import RELU, digits, network_of, random_plan

from ftbc_onnx.graph.emit import emit
from ftbc_onnx.neurons import NeuronSpec


@pytest.fixture(autouse=True)
def beside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scripts find each other."""
    monkeypatch.setattr(sys, "path", [str(TOOLS), *sys.path])


@pytest.mark.parametrize("power", [0.5, 1.0, 1.7])
def test_an_exponent_is_a_slope(power: float) -> None:
    scaling = tool("scaling")
    rows = [{"T": t, "run, s": 3 * t**power if t > 4 else 1.0} for t in (1, 2, 4, 8, 16, 32, 64, 128)]
    assert scaling.exponent(rows, "T", "run, s") == pytest.approx(power)


def test_forms_stand_side_by_side() -> None:
    benchmark = tool("benchmark")
    cases = [(1, "unrolled", 2.0), (1, "fused", 1.0), (32, "fused", 1.5)]
    rows = [{"network": "n", "batch": b, "steps": 8, "form": form, "x": x} for b, form, x in cases]
    assert benchmark.pivot(rows, "x") == [
        {"network": "n", "batch": 1, "steps": 8, "unrolled": 2.0, "fused": 1.0},
        {"network": "n", "batch": 32, "steps": 8, "fused": 1.5},
    ]


@pytest.mark.parametrize("variant", ["float", "weights", "ConvInteger", "QLinearConv"])
def test_layers_in_integers_decide_alike(variant: str, tmp_path) -> None:
    integers = tool("integer_path")
    network = network_of(onnx.load(RELU))
    plan = random_plan(network, NeuronSpec("if"), 4)
    model = integers.folded(emit(network, plan, "fused").model, tmp_path)
    rewriting = integers.Integers(model, variant)
    feeds = {"image": digits("test", 64)[0]}
    (plain,), (found,) = run(model, feeds).values(), run(rewriting.rewritten(), feeds).values()
    assert rewriting.layers == (0 if variant == "float" else 2 * 4)
    assert np.mean(plain.argmax(-1) == found.argmax(-1)) > 0.9
