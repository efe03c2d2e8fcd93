"""Fold a product with a constant per channel, or a sum with one, into the layer before it.

1. y = Add(Conv(z, W, c), h), with h one number per output channel, becomes y = Conv(z, W, c + h); Sub likewise.
2. y = Mul(Conv(z, W, c), g) becomes y = Conv(z, g*W, g*c), with g along the output channels of W; Div likewise.

The same for ConvTranspose and Gemm; the layer is read by nothing else. Paddle and tf2onnx write the bias of a
convolution as a sum, and a BatchNormalization that was taken apart is a product and a sum. One number for all stays,
and so does what leads to a Floor or Round: it may be a QCFS activation's.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from ftbc_onnx.graph.passes.surgery import bypass, constant_value, new_constant, producer, rank_of, sole_consumer

_LAYERS = ("Conv", "ConvTranspose", "Gemm")
_BEFORE_ROUNDING = frozenset("Add Clip Div Max Min Mul Relu Sub".split())


def fold_affine(graph: gs.Graph) -> int:
    """Apply 1 and 2 wherever they fit; returns how often."""
    count = 0
    for node in list(graph.nodes):
        found = _affine(node)
        if found is None:
            continue
        source, g, h = found
        if not _is_rounded(graph, node) and into_layer(graph, node, g, h, source):
            count += 1
    graph.cleanup(recurse_subgraphs=False)
    return count


def _affine(node: gs.Node) -> tuple[int, np.ndarray, np.ndarray] | None:
    """(the input x, g, h) of a node that computes g*x + h with g and h along axis 1 of x; None if it does not."""
    if node.op not in ("Add", "Sub", "Mul", "Div") or len(node.inputs) != 2:
        return None
    source = 1 if isinstance(node.inputs[0], gs.Constant) else 0
    values = _per_channel(node.inputs[1 - source], node.inputs[source])
    if values is None:
        return None
    one, zero = np.ones_like(values), np.zeros_like(values)
    if node.op == "Add":
        return source, one, values
    if node.op == "Sub":
        return (0, one, -values) if source == 0 else (1, -one, values)
    if node.op == "Mul":
        return source, values, zero
    return (0, 1 / values, zero) if source == 0 and values.all() else None


def _per_channel(constant: gs.Tensor, x: gs.Tensor) -> np.ndarray | None:
    """A constant with one number per entry of axis 1 of x, [C]; None for anything else."""
    value, rank = constant_value(constant), rank_of(x)
    if value is None or rank is None or value.dtype.kind != "f" or value.size < 2:
        return None
    shape = (1,) * (rank - value.ndim) + value.shape
    if len(shape) != rank or rank < 2 or value.size != shape[1]:
        return None
    return value.reshape(-1).astype(np.float64)


def _is_rounded(graph: gs.Graph, node: gs.Node) -> bool:
    """Whether what a node makes comes to a Floor or Round by way of operators with constants."""
    following = sole_consumer(graph, node.outputs[0])
    while following is not None and following.op in _BEFORE_ROUNDING:
        if sum(not isinstance(tensor, gs.Constant) and bool(tensor.name) for tensor in following.inputs) != 1:
            return False
        following = sole_consumer(graph, following.outputs[0])
    return following is not None and following.op in ("Floor", "Round")


def into_layer(graph: gs.Graph, node: gs.Node, g: np.ndarray, h: np.ndarray, source: int = 0) -> bool:
    """Let the layer that makes input `source` of a node make g*x + h, [C] each, and take the node out, if that can be.

    The layer is a Conv, ConvTranspose or Gemm with constant weights, and nothing but the node reads it.
    """
    layer, name = producer(node.inputs[source]), node.outputs[0].name
    if layer is None or layer.op not in _LAYERS or sole_consumer(graph, layer.outputs[0]) is not node:
        return False
    weight = constant_value(layer.inputs[1])
    has_bias = len(layer.inputs) > 2 and bool(layer.inputs[2].name)
    bias = constant_value(layer.inputs[2]) if has_bias else np.zeros_like(g)
    if weight is None or bias is None or _channels(layer, weight) != g.size:
        return False
    if layer.op == "Gemm":
        bias = np.broadcast_to(bias * layer.attrs.get("beta", 1.0), g.shape if bias.ndim < 2 else bias.shape)
        layer.attrs["beta"] = 1.0
    new_bias = np.ascontiguousarray(bias * g + h, dtype=weight.dtype)
    if not np.all(g == 1):
        layer.inputs[1] = new_constant(graph, f"{name}/weight", _times(layer, weight, g).astype(weight.dtype))
    layer.inputs = [*list(layer.inputs)[:2], new_constant(graph, f"{name}/bias", new_bias)]
    return bypass(graph, node, source)


def _channels(layer: gs.Node, weight: np.ndarray) -> int:
    """Output channels of a layer."""
    if layer.op == "ConvTranspose":
        return int(weight.shape[1] * layer.attrs.get("group", 1))
    return int(weight.shape[0 if layer.op == "Conv" or layer.attrs.get("transB", 0) else 1])


def _times(layer: gs.Node, weight: np.ndarray, g: np.ndarray) -> np.ndarray:
    """Weights with a factor per output channel."""
    if layer.op == "Conv" or (layer.op == "Gemm" and layer.attrs.get("transB", 0)):
        return np.asarray(weight * g.reshape(-1, *[1] * (weight.ndim - 1)))
    if layer.op == "Gemm":
        return np.asarray(weight * g)
    # W is [Cin, Cout/groups, ...]: output channel k of group i is row block i, column k.
    groups = layer.attrs.get("group", 1)
    blocks = weight.reshape(groups, -1, *weight.shape[1:])
    return np.asarray(blocks * g.reshape(groups, 1, -1, *[1] * (weight.ndim - 2))).reshape(weight.shape)
