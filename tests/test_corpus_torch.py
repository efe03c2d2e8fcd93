"""Networks of PyTorch, from both of its exporters: the same proof as for every other network of the corpus."""

from __future__ import annotations

import pytest
from corpus.entry import Entry
from corpus.proof import assert_converges, assert_emission, assert_same_ann, convert

pytest.importorskip("torch")
pytest.importorskip("onnxscript")
from corpus.torch_nets import NETS, export


@pytest.mark.parametrize("dynamo", [False, True], ids=["torchscript", "dynamo"])
@pytest.mark.parametrize("name", NETS)
def test_torch(name: str, dynamo: bool) -> None:
    model = export(name, dynamo)
    entry = Entry(name, lambda: model)
    network = convert(model)
    assert_same_ann(entry, model, network)
    assert_emission(entry, model, network)
    assert_converges(network, entry, entry.feeds(model))
