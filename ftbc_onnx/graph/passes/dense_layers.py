"""Write a dense layer as one Gemm, whoever exported it.

1. y = MatMul(x, W) with x [N, K] and a constant W [K, M] becomes y = Gemm(x, W).
2. y = Add(Gemm(x, W), b) or Add(b, Gemm(x, W)) with b a constant [M] or [1, M] becomes y = Gemm(x, W, b), which is
   called as the Add was. One number for all is no bias: it may be the 1/2 of a QCFS activation.

Keras and scikit-learn write dense layers in this way; what is done with the layers of PyTorch (bias and threshold in
the weights, fitting them again) is then done with theirs.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from ftbc_onnx.graph.passes.surgery import bypass, new_constant, rank_of, sole_consumer


def dense_layers(graph: gs.Graph) -> int:
    """Apply 1 and 2 wherever they fit; returns how often."""
    count = 0
    for node in list(graph.nodes):
        if node.op == "MatMul" and _is_dense(node):
            node.op = "Gemm"
            count += 1
        if node.op == "Gemm" and _take_bias(graph, node):
            count += 1
    graph.cleanup(recurse_subgraphs=False)
    return count


def _is_dense(node: gs.Node) -> bool:
    x, weight = node.inputs
    known = isinstance(weight, gs.Constant) and weight.dtype is not None and not isinstance(weight.dtype, int)
    return known and np.dtype(weight.dtype).kind == "f" and len(weight.shape) == 2 and rank_of(x) == 2


def _take_bias(graph: gs.Graph, layer: gs.Node) -> bool:
    output = layer.outputs[0]
    add = sole_consumer(graph, output)
    if add is None or add.op != "Add" or len([tensor for tensor in layer.inputs if tensor.name]) != 2:
        return False
    if not any(add is node for node in graph.nodes):  # it stands in the body of an If or a Loop
        return False
    position = 1 if add.inputs[0] is output else 0
    bias, width = add.inputs[position], output.shape and output.shape[-1]
    if not isinstance(bias, gs.Constant) or width == 1 or tuple(bias.shape) not in ((width,), (1, width)):
        return False
    if len(bias.shape) == 2:
        bias = new_constant(graph, f"{bias.name}/row", bias.values[0])
    name = add.name
    if not bypass(graph, add, 1 - position):
        return False
    layer.name, layer.attrs["beta"] = name, 1.0
    layer.inputs = [*list(layer.inputs)[:2], bias]
    return True
