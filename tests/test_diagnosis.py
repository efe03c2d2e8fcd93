"""Where ANN and SNN part: planted faults are found where they are, in every form, and what has no steps is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from diagnosis_cases import deep, diagnosed
from helpers import make_plan, numbers, parse, run
from networks import (
    CALIBRATION,
    QCFS,
    RELU,
    RESIDUAL,
    TEST,
    WEIGHTS,
    batches_of,
    digits,
    inputs,
    network_of,
    residual,
    source_of,
)
from onnx import numpy_helper

from ftbc_onnx import ConvertConfig, DataError, ModelError, convert
from ftbc_onnx.diagnosis import diagnose, diagnose_file
from ftbc_onnx.graph.altered import altered_weights
from ftbc_onnx.graph.emit.unrolled import bias_name, threshold_name
from ftbc_onnx.graph.recorder import time_loop
from ftbc_onnx.graph.view import subgraphs
from ftbc_onnx.plan import SpikingPlan
from ftbc_onnx.remedies import SMALL, remedies, suspects, verdict
from ftbc_onnx.runtime import CPU
from ftbc_onnx.trials import with_neuron

Files = tuple[Path, Path, Path]
"""A spiking network, its ANN, and data."""


def edit(path: Path, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Change an initializer of a file, in the body of its loop too."""
    model = onnx.load(path)
    loop = time_loop(model)
    graphs = [model.graph, *([] if loop is None else subgraphs(loop))]
    tensors = [t for graph in graphs for t in graph.initializer if t.name in (name, f"{name}/inside")]
    assert tensors
    for tensor in tensors:
        value = change(numpy_helper.to_array(tensor).copy()).astype(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    onnx.save(model, path)


def statistics(value: np.ndarray) -> np.ndarray:
    """A scale or shift of a BatchNormalization that was put together from other statistics."""
    return value * 3 + 1


def too_high(theta: np.ndarray) -> np.ndarray:
    """The first channel never fires."""
    theta[0] *= 1e6
    return theta


OPTIONS = {"threshold": "mse", "neuron": "signed-group", "levels": 8, "verify": False}
X = numbers(96, 3, 12, 12, seed=5)


@pytest.fixture(scope="module", params=["digits", "residual", "deep"])
def healthy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Files:
    """A file that is as it should be, its ANN, and data."""
    folder = tmp_path_factory.mktemp(request.param)
    ann, data = RELU, CALIBRATION
    if request.param != "digits":
        ann, data = folder / "ann.onnx", folder / "data.npz"
        onnx.save({"residual": residual, "deep": deep}[request.param](), ann)
        np.savez(data, x=X if request.param == "deep" else inputs(96))
    convert(ann, data, steps=8, **OPTIONS).save(folder / "snn.onnx")
    return folder / "snn.onnx", ann, data


@pytest.fixture
def spoilt(healthy: Files, tmp_path: Path) -> Files:
    """A copy of the file, to be spoilt."""
    target = tmp_path / "spoilt.onnx"
    target.write_bytes(healthy[0].read_bytes())
    return target, *healthy[1:]


def test_a_healthy_network_is_not_accused(healthy: Files) -> None:
    found = diagnose_file(*healthy)
    assert found.output_error[-1] < SMALL
    assert suspects(found) == []
    (said,) = verdict(found)
    assert "follows its ANN" in said
    assert "no site is accused" in said
    assert remedies(found, ConvertConfig(**OPTIONS)) == []


@pytest.mark.parametrize("place", ["first", "second", "third", "last"])
@pytest.mark.parametrize(
    ("fault", "cause"), [(lambda theta: theta * 0.1, "clipping"), (too_high, "silent")], ids=["low", "dead"]
)
def test_the_planted_site_is_named_first(spoilt: Files, fault, cause: str, place: str) -> None:
    sites = [site.site.name for site in diagnose_file(*spoilt, samples=1).sites]
    planted = sites[{"first": 0, "second": 1, "third": 2, "last": -1}[place]]
    edit(spoilt[0], threshold_name(planted), fault)
    found = diagnose_file(*spoilt)
    first = found.ranked[0]
    assert (first.site.name, first.cause) == (planted, cause)
    assert first.share > 0.5
    said = remedies(found, ConvertConfig(**OPTIONS))
    assert (said[0].site, said[0].cause) == (planted, cause)
    assert any(planted in sentence for sentence in verdict(found))
    if cause == "silent":
        assert first.silent == 1
        assert first.worst[0][0] == 0


@pytest.fixture(scope="module")
def binary() -> SpikingPlan:
    """Integrate-and-fire on the digits: rounding alone costs a lot."""
    return convert(RELU, CALIBRATION, steps=4, neuron="if", threshold="mse", verify=False).plan


@pytest.mark.parametrize("number", range(4))
def test_a_low_threshold_stands_out_of_coarse_neurons(binary: SpikingPlan, number: int) -> None:
    network = network_of(onnx.load(RELU))
    planted = binary.sites[number].name
    thresholds = {**binary.thresholds, planted: binary.thresholds[planted] / 10}
    source = source_of(network.view.model, image=digits("calibration", 64)[0])
    found = diagnose(network, binary.with_thresholds(thresholds), source, batches_of(64), device=CPU)
    assert (found.ranked[0].site.name, found.ranked[0].cause) == (planted, "clipping")
    assert [site.site.name for site in suspects(found)] == [planted]


class TestOtherWeights:
    """Weights of the file are not the ANN's: the site behind them is named, with the name of the weights."""

    @pytest.fixture(scope="class", params=["unrolled", "loop"])
    @classmethod
    def clean(cls, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Files:
        folder = tmp_path_factory.mktemp(request.param)
        onnx.save(deep(), folder / "ann.onnx")
        np.savez(folder / "data.npz", x=X)
        result = convert(folder / "ann.onnx", folder / "data.npz", steps=4, form=request.param, **OPTIONS)
        result.save(folder / "snn.onnx")
        return folder / "snn.onnx", folder / "ann.onnx", folder / "data.npz"

    @pytest.mark.parametrize(
        ("weights", "number"), [("n1/scale", 1), ("n1/shift", 1), ("w1", 0), ("w2", 1), ("w3", 2), ("w4", 3)]
    )
    def test_an_unfolded_batchnorm_or_a_layer(self, clean: Files, tmp_path: Path, weights: str, number: int) -> None:
        target = tmp_path / "spoilt.onnx"
        target.write_bytes(clean[0].read_bytes())
        edit(target, weights, statistics)
        found = diagnose_file(target, *clean[1:])
        first = found.ranked[0]
        assert first is found.sites[number]
        assert first.cause == "weights"
        assert found.altered == (weights,)
        assert found.rerun is not None
        assert found.rerun < 1e-3  # the graph runs what the file holds
        assert f"({weights})" in verdict(found)[0]
        assert remedies(found, ConvertConfig(**OPTIONS))[0].sentence.endswith("convert the ANN again")
        assert first.alone[-1] > 0.3  # with upstream exact, its own layer is what is wrong
        for site in found.sites[:number]:
            assert site.real[-1] < 0.2
            assert site.causes["weights"] < 1e-6

    def test_behind_the_last_site(self, clean: Files, tmp_path: Path) -> None:
        target = tmp_path / "spoilt.onnx"
        target.write_bytes(clean[0].read_bytes())
        edit(target, "w5", lambda value: -value)
        found = diagnose_file(target, *clean[1:])
        assert found.tail > 1
        assert any("behind the last site" in said for said in verdict(found))

    def test_a_file_whose_nodes_were_changed(self, clean: Files, tmp_path: Path) -> None:
        model = onnx.load(clean[0])
        body = next(iter(subgraphs(loop))) if (loop := time_loop(model)) is not None else model.graph
        node = next(node for node in body.node if node.op_type == "Concat" and "k3" in node.output[0])
        node.input[0], node.input[1] = node.input[1], node.input[0]
        onnx.save(model, tmp_path / "spoilt.onnx")
        found = diagnose_file(tmp_path / "spoilt.onnx", *clean[1:])
        assert any("does not compute what its plan says" in said for said in verdict(found))

    def test_nothing_is_altered_in_a_clean_file(self, clean: Files) -> None:
        assert altered_weights(network_of(deep()), onnx.load(clean[0])) == {}

    def test_a_weight_of_another_shape_is_refused(self, clean: Files, tmp_path: Path) -> None:
        target = tmp_path / "spoilt.onnx"
        target.write_bytes(clean[0].read_bytes())
        edit(target, "w5", lambda _: np.zeros((2, 2)))
        with pytest.raises(ModelError, match=r"'w5' is \(2, 2\) in the spiking network and \(5, 12\) in the ANN"):
            diagnose_file(target, *clean[1:])


class TestRefusals:
    def test_a_synchronous_network(self, tmp_path: Path) -> None:
        snn = convert(QCFS, steps=2, schedule="synchronous", neuron="if").save(tmp_path / "snn.onnx")
        with pytest.raises(ModelError, match="no steps to compare: convert with --schedule asynchronous"):
            diagnose_file(snn, QCFS, TEST)

    def test_another_ann(self, healthy: Files) -> None:
        with pytest.raises(ModelError, match="was not made from"):
            diagnose_file(healthy[0], QCFS, healthy[2])

    def test_an_output_that_is_not_finite(self) -> None:
        model = parse(
            "g (float[N,2] x) => (float[N,2] y) { r = Relu(x) y = Div(r, zero) }", zero=np.zeros(2, np.float32)
        )
        with pytest.raises(DataError, match="output 'y' is not finite"):
            diagnosed(model, make_plan(network_of(model), 2), np.ones((2, 2), np.float32))


def test_every_form_of_a_plan_is_diagnosed_alike(tmp_path: Path) -> None:
    """The step form is looked at as the others are, but not run."""
    forms = {}
    for form in ("unrolled", "fused", "folded", "step"):
        snn = convert(RELU, CALIBRATION, steps=2, form=form, **OPTIONS).save(tmp_path / f"{form}.onnx")
        forms[form] = diagnose_file(snn, RELU, TEST, batch_size=7, samples=20)
    for form, found in forms.items():
        np.testing.assert_array_equal(found.output_error, forms["unrolled"].output_error)
        assert (found.samples, found.altered) == (20, ())
        assert found.rerun is None if form == "step" else found.rerun < 1e-3


def test_a_network_with_a_fixed_batch(tmp_path: Path) -> None:
    text = RESIDUAL.replace("float[N,", "float[4,")
    onnx.save(parse(text, **WEIGHTS), tmp_path / "ann.onnx")
    x = inputs(12)
    snn = convert(tmp_path / "ann.onnx", x, steps=2, **OPTIONS).save(tmp_path / "snn.onnx")
    found = diagnose_file(snn, tmp_path / "ann.onnx", x, samples=8)
    assert found.samples == 8
    y, ann = (run(onnx.load(tmp_path / name), {"x": x[:4]})["y"] for name in ("snn.onnx", "ann.onnx"))
    first = diagnose_file(snn, tmp_path / "ann.onnx", x[:4])
    assert first.output_error[-1] == pytest.approx(np.abs(y - ann).mean() / np.abs(ann).mean(), rel=1e-4)


def test_plain_form_is_json_with_the_sites_in_order_of_rank(healthy: Files) -> None:
    found = diagnose_file(*healthy, samples=16)
    plain = json.loads(json.dumps(found.as_dict()))
    assert [site["site"] for site in plain["sites"]] == [site.site.name for site in found.ranked]
    assert [len(site["error"]) for site in plain["sites"]] == [8] * len(found.sites)


def test_thresholds_that_the_model_states_are_changed_there(tmp_path: Path) -> None:
    snn = convert(QCFS, steps=4).save(tmp_path / "snn.onnx")
    site = diagnose_file(snn, QCFS, TEST, samples=1).sites[1].site.name
    edit(snn, threshold_name(site), lambda theta: theta * 0.1)
    found = diagnose_file(snn, QCFS, TEST)
    first = remedies(found, with_neuron(ConvertConfig(steps=4), found.plan))[0]
    assert (first.site, first.cause) == (site, "clipping")
    assert "the model states its threshold" in first.sentence


def test_biases_in_the_file_are_what_is_looked_at(spoilt: Files) -> None:
    before = diagnose_file(*spoilt)
    planted = before.sites[1].site.name
    edit(spoilt[0], bias_name(planted), lambda bias: bias + 0.7)
    found = diagnose_file(*spoilt)
    assert (found.ranked[0].site.name, found.ranked[0].cause) == (planted, "bias")
