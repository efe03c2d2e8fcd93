"""Weights of less than 8 bits as numbers, before graphsurgeon sees them: it does not write such constants."""

from __future__ import annotations

import onnx
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from ftbc_onnx.errors import ModelError
from ftbc_onnx.graph.dequantise import DOMAINS
from ftbc_onnx.graph.view import node_inputs
from ftbc_onnx.graph.weights import add_initializers

_PACKED = {
    getattr(onnx.TensorProto, name)
    for name in ("UINT4", "INT4", "UINT2", "INT2", "FLOAT4E2M1")
    if hasattr(onnx.TensorProto, name)
}
_OPSET = 21  # the first with such types


def unpack(model: onnx.ModelProto) -> int:
    """Write every DequantizeLinear of such constants as its numbers, in place; returns how many there were.

    Raises:
        ModelError: something else reads such a constant.
    """
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        tensor = next((a.t for a in node.attribute if node.op_type == "Constant" and a.name == "value"), None)
        if tensor is not None and tensor.data_type in _PACKED:
            constants[node.output[0]] = named = onnx.TensorProto()
            named.CopyFrom(tensor)
            named.name = node.output[0]
    outputs = {value.name for value in model.graph.output}
    kept, count = [], 0
    for node in list(model.graph.node):
        tensors = [constants[name] for name in node.input if name in constants]
        known = node.op_type == "DequantizeLinear" and len(tensors) == sum(bool(name) for name in node.input)
        if not known or node.domain not in DOMAINS or tensors[0].data_type not in _PACKED or node.output[0] in outputs:
            kept.append(node)
            continue
        count += 1
        plain = onnx.NodeProto()
        plain.CopyFrom(node)
        plain.domain = ""
        graph = helper.make_graph([plain], "unpacked", [], [onnx.ValueInfoProto(name=node.output[0])], tensors)
        alone = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)])
        (value,) = ReferenceEvaluator(alone).run(None, {})
        model.graph.initializer.append(numpy_helper.from_array(value, node.output[0]))
    read = {name for node in kept for name in node_inputs(node)} | outputs
    others = [node for node in kept if node.op_type not in ("QuantizeLinear", "DequantizeLinear")]
    for name in ({name for node in others for name in node_inputs(node)} | outputs) & constants.keys():
        if constants[name].data_type in _PACKED:
            kind = onnx.TensorProto.DataType.Name(constants[name].data_type)
            raise ModelError(f"'{name}' is a constant of {kind} that no DequantizeLinear reads: export it as INT8")
    if count:
        kept = [node for node in kept if node.output[0] not in constants or node.output[0] in read]
        del model.graph.node[:]
        model.graph.node.extend(kept)
        left = [tensor for tensor in model.graph.initializer if tensor.name in read]
        del model.graph.initializer[:]
        add_initializers(model, left)
    return count
