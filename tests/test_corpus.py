"""Every graph of the corpus: the ANN is kept, the SNN is valid and standard, and it comes to the ANN as T grows."""

from __future__ import annotations

import pytest
from corpus.entry import Entry
from corpus.graphs import GRAPHS
from corpus.proof import assert_converges, assert_emission, assert_same_ann, convert


@pytest.mark.parametrize("entry", GRAPHS, ids=str)
def test_graph(entry: Entry) -> None:
    model = entry.make()
    network = convert(model)
    assert_same_ann(entry, model, network)
    assert_emission(entry, model, network)
    assert_converges(network, entry, entry.feeds(model))
