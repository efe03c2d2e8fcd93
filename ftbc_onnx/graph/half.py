"""Layers with weights in float16: half the file, and on a GPU less time; neurons and sums stay in float32.

    y = Conv(x, w, b)      becomes      y = Cast32(Conv(Cast16(x), Cast16(w), Cast16(b)))

It is done to the ANN, before anything else is, so that calibration and verification see what the file will compute.
Spikes of up to 2048 equal levels are exact in float16 in units of their height, sums of weights are not. A node whose
weights are beyond the range of float16 stays as it is, and so does a product of two activations: what it reads are sums
over time, which are kept in float32.

Each layer has a Cast of its own, also where two read the same activation: onnxruntime takes pairs of Casts out, and it
should find the same ones in the whole network and in a part of it (`ftbc_onnx.verify`). Behind a Cast from float16 it
would take both out, though something else reads what is between them: there the layer reads what was float16 before.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

from ftbc_onnx.graph.classes import WEIGHTED
from ftbc_onnx.graph.float32 import cast_node
from ftbc_onnx.graph.names import Names
from ftbc_onnx.graph.normalise import infer_shapes
from ftbc_onnx.graph.view import GraphView
from ftbc_onnx.graph.weights import add_initializers

_LARGEST = float(np.finfo(np.float16).max)
_SUFFIX = "float16"


def halve(model: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    """A copy of a normalised model whose Convs, ConvTransposes, Gemms and MatMuls compute in float16, and how many."""
    view = GraphView(model)
    names = Names.of(view.graph)
    nodes: list[onnx.NodeProto] = []
    held: dict[str, onnx.TensorProto] = {}
    narrow: dict[str, str] = {}
    count = 0

    def constant(tensor: str) -> str:
        if tensor not in narrow:
            narrow[tensor] = names.claim(f"{tensor}/{_SUFFIX}")
            value = numpy_helper.to_array(view.initializers[tensor]).astype(np.float16)
            held[tensor] = numpy_helper.from_array(value, narrow[tensor])
        return narrow[tensor]

    def halved(tensor: str) -> str:
        if tensor in view.initializers:
            return constant(tensor)
        maker = view.producers.get(tensor)
        if maker is not None and maker.op_type == "Cast" and view.elem_type(maker.input[0]) == onnx.TensorProto.FLOAT16:
            return str(maker.input[0])
        own = names.claim(f"{tensor}/{_SUFFIX}")
        nodes.append(cast_node(tensor, own, onnx.TensorProto.FLOAT16))
        return own

    for node in view.nodes:
        if node.op_type not in WEIGHTED or not _narrows(view, node):
            nodes.append(node)
            continue
        clone = onnx.NodeProto()
        clone.CopyFrom(node)
        clone.input[:] = [halved(name) if name else "" for name in node.input]
        clone.output[0] = names.claim(f"{node.output[0]}/{_SUFFIX}")
        nodes += [clone, cast_node(clone.output[0], node.output[0], onnx.TensorProto.FLOAT)]
        count += 1
    result = onnx.ModelProto()
    result.CopyFrom(model)
    del result.graph.node[:], result.graph.initializer[:], result.graph.value_info[:]
    result.graph.node.extend(nodes)
    read = {name for node in nodes for name in node.input} | set(view.output_names)
    add_initializers(result, (t for t in view.graph.initializer if t.name in read or t.name not in narrow))
    add_initializers(result, held.values())
    return infer_shapes(result), count


def _narrows(view: GraphView, node: onnx.NodeProto) -> bool:
    """Whether a layer has constant weights, and nothing that float16 cannot hold."""
    weighted = any(view.constant(name) is not None for name in node.input[:2])
    return weighted and all(_fits(view, name) for name in node.input if name)


def _fits(view: GraphView, name: str) -> bool:
    """Whether a tensor is float32, and as a constant within the range of float16."""
    if view.elem_type(name) != onnx.TensorProto.FLOAT:
        return False
    value = view.constant(name)
    return value is None or float(np.abs(value).max(initial=0.0)) <= _LARGEST
