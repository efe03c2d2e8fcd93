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
from ftbc_onnx.graph.passes.surgery import (
    bypass,
    constant_value,
    free_name,
    new_constant,
    producer,
    rank_of,
    sole_consumer,
)


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
        if _fold_backward(graph, node, g, h) or _as_mul_add(graph, node, g, h):
            count += 1
    graph.cleanup(recurse_subgraphs=False)
    return count


def _fold_backward(graph: gs.Graph, node: gs.Node, g: np.ndarray, h: np.ndarray) -> bool:
    layer, name = producer(node.inputs[0]), node.outputs[0].name
    if layer is None or layer.op not in ("Conv", "ConvTranspose", "Gemm"):
        return False
    if sole_consumer(graph, layer.outputs[0]) is not node:
        return False
    weight = constant_value(layer.inputs[1])
    has_bias = len(layer.inputs) > 2 and bool(layer.inputs[2].name)
    bias = constant_value(layer.inputs[2]) if has_bias else np.zeros_like(g)
    if weight is None or bias is None:
        return False
    if layer.op == "Gemm":
        alpha, beta = layer.attrs.get("alpha", 1.0), layer.attrs.get("beta", 1.0)
        factor = g[:, None] if layer.attrs.get("transB", 0) else g[None, :]
        new_weight, new_bias = (
            weight * factor * alpha,
            np.broadcast_to(bias * beta, g.shape if bias.ndim < 2 else bias.shape) * g + h,
        )
        layer.attrs.update(alpha=1.0, beta=1.0)
    elif layer.op == "Conv":
        new_weight, new_bias = weight * g.reshape(-1, *[1] * (weight.ndim - 1)), bias * g + h
    else:
        # W is [Cin, Cout/groups, ...]: output channel k of group i is row block i, column k.
        groups = layer.attrs.get("group", 1)
        blocks = weight.reshape(groups, -1, *weight.shape[1:])
        factor = g.reshape(groups, 1, -1, *[1] * (weight.ndim - 2))
        new_weight, new_bias = (blocks * factor).reshape(weight.shape), bias * g + h
    layer.inputs[1] = new_constant(graph, f"{name}/weight", new_weight.astype(weight.dtype))
    new = new_constant(graph, f"{name}/bias", np.ascontiguousarray(new_bias, dtype=weight.dtype))
    if len(layer.inputs) > 2:
        layer.inputs[2] = new
    else:
        layer.inputs.append(new)
    return bypass(graph, node)


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
