"""Fold BatchNormalization into the layer before it, or write it as a product and a sum.

With g = scale / sqrt(var + epsilon) and h = bias - mean * g, inference BatchNormalization is y = g*x + h per channel.

1. x = Conv(z, W, c), ConvTranspose(z, W, c) or Gemm(z, W, c), read by nothing else:
   y = Conv(z, g*W, g*c + h), with g along the output channels of W.
2. otherwise, where the number of axes is known: y = Add(Mul(x, g), h), g and h as [1, C, 1, 1].

Behind a DequantizeLinear it stays: a layer may stand before the pair (`ftbc_onnx.graph.dequantise`).

``training_mode=1`` (below opset 14: more than one output) is refused: its output depends on the batch.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from ftbc_onnx.errors import ModelError
from ftbc_onnx.graph.passes.fold_affine import into_layer
from ftbc_onnx.graph.passes.surgery import constant_value, free_name, new_constant, producer, rank_of


def fold_batchnorm(graph: gs.Graph) -> int:
    """Apply to every BatchNormalization with constant parameters; returns the number rewritten."""
    count = 0
    for node in list(graph.nodes):
        if node.op != "BatchNormalization":
            continue
        if node.attrs.get("training_mode", 0) or sum(bool(output.name) for output in node.outputs) > 1:
            raise ModelError(
                f"BatchNormalization '{node.name}' is in training mode (training_mode=1), so its output depends on "
                "the batch: export the model in evaluation mode"
            )
        maker = producer(node.inputs[0])
        if maker is not None and maker.op == "DequantizeLinear":
            continue
        parameters = [constant_value(tensor) for tensor in node.inputs[1:5]]
        if any(value is None for value in parameters):
            continue
        scale, bias, mean, var = (np.asarray(value, dtype=np.float64) for value in parameters)
        g = scale / np.sqrt(var + node.attrs.get("epsilon", 1e-5))
        h = bias - mean * g
        if into_layer(graph, node, g, h) or _as_mul_add(graph, node, g, h):
            count += 1
    graph.cleanup(recurse_subgraphs=False)
    return count


def _as_mul_add(graph: gs.Graph, node: gs.Node, g: np.ndarray, h: np.ndarray) -> bool:
    x, y = node.inputs[0], node.outputs[0]
    rank = rank_of(x)
    if rank is None:
        return False
    dtype = x.dtype if x.dtype is not None else np.float32
    shape = [1] * rank
    if rank > 1:
        shape[1] = -1
    else:
        shape[0] = -1
    scaled = gs.Variable(free_name(graph, f"{y.name}/scaled"), dtype=dtype, shape=x.shape)
    factor = new_constant(graph, f"{y.name}/scale", g.reshape(shape).astype(dtype))
    shift = new_constant(graph, f"{y.name}/shift", h.reshape(shape).astype(dtype))
    node.inputs.clear()
    node.outputs.clear()
    graph.nodes.append(gs.Node("Mul", name=f"{node.name}/Mul", inputs=[x, factor], outputs=[scaled]))
    graph.nodes.append(gs.Node("Add", name=f"{node.name}/Add", inputs=[scaled, shift], outputs=[y]))
    graph.toposort()
    return True
