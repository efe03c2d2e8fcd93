"""Multi-layer perceptrons of scikit-learn through skl2onnx: the same proof, and what is refused of the whole file."""

from __future__ import annotations

import onnx
import pytest
from corpus.entry import Entry
from corpus.proof import assert_converges, assert_emission, assert_same_ann, convert
from helpers import newest_opset

pytest.importorskip("sklearn")
pytest.importorskip("skl2onnx")
from corpus.sklearn_nets import ACTIVATIONS, numbers_only, whole

from ftbc_onnx.graph.normalise import normalise
from ftbc_onnx.graph.sites import find_network


def prove(model: onnx.ModelProto) -> None:
    entry = Entry("MLP", lambda: model, steps=64)
    network = convert(model)
    assert_same_ann(entry, model, network)
    assert_emission(entry, model, network)
    assert_converges(network, entry, entry.feeds(model))


@pytest.mark.parametrize("activation", [name for name in ACTIVATIONS if name != "identity"])
@pytest.mark.parametrize("classes", [0, 2, 3])
def test_perceptron(classes: int, activation: str) -> None:
    prove(numbers_only(whole(classes, activation)))


@pytest.mark.parametrize("target", [11, 15, 18, 21])
def test_targets(target: int) -> None:
    if target > newest_opset():
        pytest.skip(f"opset {target} is newer than what the installed onnxruntime takes")
    prove(numbers_only(whole(3, target=target)))


def test_a_regressor_needs_no_cut() -> None:
    prove(whole(0))


@pytest.mark.parametrize("columns", [False, True])
def test_the_label_is_refused_by_its_node(columns: bool) -> None:
    network = find_network(normalise(whole(3, columns=columns)).model)
    assert {refusal.op_type for refusal in network.refusals} == {"ArrayFeatureExtractor"}
    assert all("'ai.onnx.ml'" in refusal.reason for refusal in network.refusals)


def test_nothing_spikes_where_every_activation_is_the_identity() -> None:
    network = find_network(normalise(numbers_only(whole(0, "identity"))).model)
    assert not network.sites
    assert not network.refusals
