"""Which layers can be fitted again to the spikes that they read (`ftbc_onnx.refit`), and to which tensor of the ANN."""

from __future__ import annotations

import numpy as np
import onnx

from ftbc_onnx.graph.classes import NodeClass
from ftbc_onnx.graph.fusible import axis_out, is_layer, takes_bias
from ftbc_onnx.graph.sites import Network
from ftbc_onnx.graph.view import attributes


def fittable_layers(network: Network) -> dict[str, str]:
    """What every layer that can be fitted is fitted to, by the name of its node.

    They are Conv and Gemm that read what depends on spikes, with constant float32 weights, a bias [C] or none, and no
    factors. Of several that are added up before a site, the one with the most inputs per output is fitted, to the
    site's current; any other layer to its own output.
    """
    targets = {node.output[0]: node.output[0] for node in network.view.nodes if _can_be_fitted(network, node)}
    for site in network.sites:
        before = _added_up(network, site.current)
        if before:
            targets = {name: target for name, target in targets.items() if name not in before}
            targets[max(before, key=lambda name: _inputs(network, name))] = site.current
    return {network.view.producers[name].name: target for name, target in targets.items()}


def _can_be_fitted(network: Network, node: onnx.NodeProto) -> bool:
    output, view = node.output[0] if node.output else "", network.view
    usual = is_layer(view, output) and takes_bias(view, output) and attributes(node).get("alpha", 1.0) == 1.0
    return usual and network.classes[node.name] is NodeClass.LINEAR and node.input[0] in network.temporal


def _added_up(network: Network, tensor: str, first: bool = True) -> list[str]:
    """Outputs of the layers that can be fitted whose sum, with anything else, a tensor is; nothing else reads them."""
    node = network.view.producers.get(tensor)
    if node is None or network.classes[node.name] is NodeClass.SITE:
        return []
    if not first and network.view.sole_consumer(tensor) is None:
        return []
    if node.op_type == "Add" and tensor not in network.mean_form and node.input[0] != node.input[1]:
        return [found for name in node.input for found in _added_up(network, name, False)]
    return [tensor] if _can_be_fitted(network, node) else []


def _inputs(network: Network, tensor: str) -> int:
    """Inputs per output of the layer that makes a tensor."""
    node = network.view.producers[tensor]
    dims = network.view.initializers[node.input[1]].dims
    return int(np.prod([size for axis, size in enumerate(dims) if axis != axis_out(node)]))
