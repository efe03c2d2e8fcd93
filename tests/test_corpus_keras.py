"""Networks in the layout of Keras, [N, H, W, C]: the same proof as for every other network of the corpus."""

from __future__ import annotations

import pytest
from corpus.entry import Entry
from corpus.keras import KERAS
from corpus.proof import assert_converges, assert_emission, assert_same_ann, convert


@pytest.mark.parametrize("entry", KERAS, ids=str)
def test_keras(entry: Entry) -> None:
    model = entry.make()
    network = convert(model)
    assert_same_ann(entry, model, network)
    assert_emission(entry, model, network)
    assert_converges(network, entry, entry.feeds(model))


SITES = {
    "a MobileNet block with Relu and Min": [("Clip", 1, 4, 6.0), ("Clip", 1, 4, 6.0), ("Clip", 1, 6, 6.0)],
    "Clip on both sides of the layout": [("Clip", 1, 4, 6.0), ("Clip", 1, 4, 6.0)],
    "activations and sums in NHWC": [("Relu", 1, 4, None), ("Relu", 1, 4, None)],
    "BatchNorm as Mul and Add in NHWC": [("Relu", 1, 4, None), ("Relu", 1, 4, None)],
    "Conv1D through two axes": [("Relu", 1, 4, None), ("Relu", 1, 4, None)],
    "averages that keep their axes": [("Relu", 1, 4, None), ("Relu", 3, 4, None)],
}


@pytest.mark.parametrize("name", SITES)
def test_channels_are_found_through_transposes(name: str) -> None:
    (entry,) = (entry for entry in KERAS if entry.name == name)
    found = [(s.op_type, s.channel_axis, s.channels, s.ceiling) for s in convert(entry.make()).sites]
    assert found == SITES[name]
