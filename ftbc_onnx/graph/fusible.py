"""Which sites can have their numbers in the layers around them (`ftbc_onnx.graph.fuse`).

A site can if its current is made by a layer with constant weights, or by sums of such layers with anything, and if
nothing else reads it.
"""

from __future__ import annotations

import onnx

from ftbc_onnx.graph.classes import NodeClass
from ftbc_onnx.graph.sites import Network
from ftbc_onnx.graph.view import GraphView, attributes, node_inputs, subgraphs
from ftbc_onnx.plan import SpikingPlan, SpikingSite


def fusible_sites(network: Network, plan: SpikingPlan) -> dict[str, list[str]]:
    """What makes the current of every site that can, by its name (`layers_before`).

    The plan has to be asynchronous, with rate coding; outputs of the graph, and what bodies read, stay as they are.
    """
    if plan.synchronous or plan.neuron.coding != "rate":
        return {}
    fixed = fixed_tensors(network.view)
    found = {site.name: layers_before(network, site) for site in network.sites if site.spikes not in fixed}
    return {name: tensors for name, tensors in found.items() if tensors}


def fixed_tensors(view: GraphView) -> set[str]:
    """Outputs of the graph, and what nodes with bodies read."""
    return {*view.output_names, *(n for node in view.nodes if any(subgraphs(node)) for n in node_inputs(node))}


def layers_before(network: Network, site: SpikingSite) -> list[str]:
    """Outputs of the layers, and of sums of them, that make nothing but a site's current; empty: it cannot."""
    if site.signed or site.rank not in (2, 4) or site.channel_axis != 1 or not is_float32(network.view, site.current):
        return []
    found: list[str] = []
    first = network.view.sole_consumer(site.current)
    if first is not None and first.name in site.nodes:
        _walk(network, site.current, site, found)
    return found if any(is_layer(network.view, name) for name in found) else []


def _walk(network: Network, tensor: str, site: SpikingSite, found: list[str]) -> None:
    view = network.view
    node = view.producers.get(tensor)
    if node is None or view.sole_consumer(tensor) is None or network.classes[node.name] is NodeClass.SITE:
        return
    if node.op_type == "Add" and tensor not in network.mean_form and node.input[0] != node.input[1]:
        found.append(tensor)
        for name in node.input:
            _walk(network, name, site, found)
    elif is_layer(view, tensor) and channels_out(view, node) == site.channels:
        found.append(tensor)


def is_layer(view: GraphView, tensor: str) -> bool:
    """Whether a Conv or Gemm with constant float32 weights, a bias [C] or none and nothing unusual makes a tensor."""
    node = view.producers.get(tensor)
    if node is None or node.op_type not in ("Conv", "Gemm") or attributes(node).get("transA", 0):
        return False
    numbers = [name for name in node.input[1:] if name]
    if any(name not in view.initializers or not is_float32(view, name) for name in numbers):
        return False
    return len(numbers) == 1 or list(view.initializers[numbers[1]].dims) == [channels_out(view, node)]


def is_float32(view: GraphView, name: str) -> bool:
    """Whether a tensor is known to be float32."""
    return bool(view.elem_type(name) == onnx.TensorProto.FLOAT)


def channels_out(view: GraphView, node: onnx.NodeProto) -> int:
    """Output channels of a layer."""
    return int(view.initializers[node.input[1]].dims[axis_out(node)])


def axis_out(node: onnx.NodeProto) -> int:
    """Axis of a layer's weights that goes with its output channels."""
    return 0 if node.op_type == "Conv" or attributes(node).get("transB", 0) else 1


def axis_in(view: GraphView, node: onnx.NodeProto, site: SpikingSite) -> int | None:
    """Axis of a layer's weights that goes with the channels of a site whose spikes it reads; None: there is none."""
    dims = list(view.initializers[node.input[1]].dims)
    if node.op_type == "Gemm":
        axis = 1 - axis_out(node)
        return axis if dims[axis] == site.channels else None
    groups = attributes(node).get("group", 1)
    if groups == 1 and dims[1] == site.channels:
        return 1
    return 0 if groups == dims[0] == site.channels and dims[1] == 1 else None


def takes_bias(view: GraphView, tensor: str) -> bool:
    """Whether what is added to the bias of the layer that makes a tensor is added to the tensor."""
    return attributes(view.producers[tensor]).get("beta", 1.0) == 1.0
