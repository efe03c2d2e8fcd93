"""How large a network is: the neurons of every site, by which batches are bounded."""

from __future__ import annotations

from ftbc_onnx.batching import Batching
from ftbc_onnx.data import DataSource
from ftbc_onnx.graph.observe import expose_tensors
from ftbc_onnx.graph.sites import Network
from ftbc_onnx.runtime import Device, Session


def count_neurons(network: Network, source: DataSource, device: Device) -> dict[str, int]:
    """Neurons of every site, per sample: activations of the ANN on the first one; empty if there is none.

    Raises:
        ModelError: the ANN cannot be run on it.
    """
    if not len(source):
        return {}
    static = network.static_batch
    batch, _ = next(Batching(static or 1, static is not None).padded(source))
    names = [site.spikes for site in network.sites]
    values = Session(expose_tensors(network.view.model, names), device).run(batch.feeds, names)
    return {site.name: values[site.spikes].size // (static or 1) for site in network.sites}
