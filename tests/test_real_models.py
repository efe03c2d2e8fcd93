"""Checks on real pretrained networks, where they are: FTBC_ONNX_DATA names a folder with `models/*.onnx`.

Without it these tests are skipped; docs/measured.md says how the folder is laid out.
"""

import os
from pathlib import Path

import numpy as np
import onnx
import pytest

from ftbc_onnx.graph.emit.unrolled import emit_unrolled
from ftbc_onnx.graph.normalise import normalise
from ftbc_onnx.graph.sites import find_network
from ftbc_onnx.plan import SpikingPlan
from ftbc_onnx.runtime import Session
from ftbc_onnx.verify import verify

FOLDER = os.environ.get("FTBC_ONNX_DATA", "")
MODELS = sorted(Path(FOLDER, "models").glob("*.onnx")) if FOLDER else []
SITES = {"resnet20": 19, "squeezenet": 26, "mobilenet": 27, "vit": 3}

pytestmark = pytest.mark.skipif(not MODELS, reason="FTBC_ONNX_DATA names no folder with models/*.onnx")


def _feeds(model, rows):
    rng = np.random.default_rng(0)
    value = model.graph.input[0]
    shape = [rows, *(d.dim_value for d in value.type.tensor_type.shape.dim[1:])]
    return {value.name: rng.normal(size=shape).astype(np.float32)}


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
@pytest.mark.parametrize("rows", [1, 3])
def test_normalisation_leaves_the_outputs(path, rows):
    model = onnx.load(path)
    normalised = normalise(model).model
    onnx.checker.check_model(normalised, full_check=True)
    feeds = _feeds(model, rows)
    before, after = Session(model).run(feeds), Session(normalised).run(feeds)
    assert before.keys() == after.keys()
    for name, value in before.items():
        np.testing.assert_allclose(after[name], value, rtol=1e-4, atol=1e-5 * np.abs(value).max())


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_emitted_model_equals_its_plan(path):
    network = find_network(normalise(onnx.load(path)).model)
    assert not network.refusals
    known = [count for part, count in SITES.items() if part in path.stem]
    rectifiers = [site for site in network.sites if not site.signed]
    assert not known or len(rectifiers) == known[0]
    rng = np.random.default_rng(1)
    steps = 3
    plan = SpikingPlan(
        "test",
        network.sites,
        steps,
        "if",
        {
            s.name: np.full(s.channels, 0.5) if s.threshold is None else s.threshold * np.ones(s.channels)
            for s in network.sites
        },
        {s.name: 0.1 * rng.normal(size=(steps, s.channels)) for s in network.sites},
    )
    emitted = emit_unrolled(network, plan)
    onnx.checker.check_model(emitted.model, full_check=True)
    assert {node.domain for node in emitted.model.graph.node} == {""}
    result = verify(emitted, network, plan, _feeds(network.view.model, 2))
    assert result.bitwise
