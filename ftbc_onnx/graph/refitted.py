"""Layers that have other weights in the SNN than in the ANN (`ftbc_onnx.refit`), under names of their own.

The ANN's initializers stay what they are, so that both networks can stand side by side in one graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import onnx
from onnx import numpy_helper

from ftbc_onnx.graph.sites import Network
from ftbc_onnx.graph.view import GraphView, node_inputs
from ftbc_onnx.graph.weights import add_initializers
from ftbc_onnx.plan import Layer, SpikingPlan


def layer_names(node: str) -> tuple[str, str]:
    """Initializers of a layer that was fitted again: weights, in the shape of the ANN's, and bias [C]."""
    return f"{node}/refit/weights", f"{node}/refit/bias"


def refitted(network: Network, plan: SpikingPlan) -> tuple[Network, SpikingPlan]:
    """The network with the layers of a plan in place of its own, and the plan without them."""
    if not plan.layers:
        return network, plan
    model = with_layers(network.view.model, plan.layers)
    return replace(network, view=GraphView(model)), plan.with_layers({})


def with_layers(model: onnx.ModelProto, layers: Mapping[str, Layer]) -> onnx.ModelProto:
    """A copy of a model in which some nodes, known by their names, read other weights; without those nobody reads."""
    copy, fitted = onnx.ModelProto(), []
    copy.CopyFrom(model)
    for node in copy.graph.node:
        layer = layers.get(node.name)
        if layer is None:
            continue
        names = layer_names(node.name)
        node.input[:] = [node.input[0], *names]
        values = zip((layer.weights, layer.bias), names, strict=True)
        fitted += [numpy_helper.from_array(value, name) for value, name in values]
    del copy.graph.initializer[:]
    read = {name for node in copy.graph.node for name in node_inputs(node)} | {v.name for v in copy.graph.output}
    add_initializers(copy, (tensor for tensor in model.graph.initializer if tensor.name in read))
    add_initializers(copy, fitted)
    return copy
