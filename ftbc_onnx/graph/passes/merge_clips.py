"""Write a bound from below and a bound from above as one Clip.

Before: Min(Relu(x), c), Relu(Min(x, c)), Min(Max(x, a), c), Max(Min(x, c), a), Clip(Relu(x), ., c) or
Relu(Clip(x, ., c)), with a and c single numbers (ReLU6 as Keras and others export it). After: Clip(x, a, c).

Relu is a bound from below at 0; a Clip may carry either bound. Two bounds on the same side merge too.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from ftbc_onnx.graph.passes.surgery import bypass, fits_into, new_constant, producer, scalar_value, sole_consumer

Bounds = tuple[float, float]


def merge_clips(graph: gs.Graph) -> int:
    """Merge chains of two bounds until none is left; returns the number of merges."""
    count = 0
    for node in list(graph.nodes):
        outer = bounds_of(node)
        maker = producer(node.inputs[_data_input(node)]) if outer is not None else None
        inner = bounds_of(maker) if maker is not None else None
        if outer is None or inner is None or maker is None or sole_consumer(graph, maker.outputs[0]) is not node:
            continue
        dtype = _type_of(node, maker)
        if dtype is None:
            continue
        low, high = max(min(inner[0], outer[1]), outer[0]), min(max(inner[1], outer[0]), outer[1])
        data = _data_input(maker)
        _make_clip(graph, node, dtype, low, high)
        if bypass(graph, maker, data):
            count += 1
    graph.cleanup(recurse_subgraphs=False)
    return count


def bounds_of(node: gs.Node) -> Bounds | None:
    """(lower, upper) of a Relu, Clip, or Max or Min with a single number; None for any other node."""
    if node.op == "Relu":
        return 0.0, np.inf
    if node.op in ("Max", "Min") and len(node.inputs) == 2:
        numbers = [scalar_value(tensor) for tensor in node.inputs]
        if (numbers[0] is None) == (numbers[1] is None):
            return None
        data = _data_input(node)
        constant, value = node.inputs[1 - data], numbers[1 - data]
        if value is None or np.asarray(constant.values).size != 1 or not fits_into(constant, node.inputs[data]):
            return None
        return (value, np.inf) if node.op == "Max" else (-np.inf, value)
    if node.op == "Clip":
        low = scalar_value(node.inputs[1]) if len(node.inputs) > 1 and node.inputs[1].name else -np.inf
        high = scalar_value(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2].name else np.inf
        if low is not None and high is not None:
            return low, high
    return None


def _data_input(node: gs.Node) -> int:
    return 1 if node.op in ("Max", "Min") and isinstance(node.inputs[0], gs.Constant) else 0


def _type_of(*nodes: gs.Node) -> np.dtype | None:
    """Type of the tensors around some bounds, as far as it is known (a constant's always is)."""
    tensors = [tensor for node in nodes for tensor in (*node.inputs, *node.outputs) if tensor.name]
    known = (tensor.dtype for tensor in tensors if tensor.dtype is not None and not isinstance(tensor.dtype, int))
    return next((np.dtype(dtype) for dtype in known), None)


def _make_clip(graph: gs.Graph, node: gs.Node, dtype: np.dtype, low: float, high: float) -> None:
    x, name = node.inputs[_data_input(node)], node.outputs[0].name
    bounds = [
        new_constant(graph, f"{name}/{side}", np.array(value, dtype=dtype))
        if np.isfinite(value)
        else gs.Variable.empty()
        for side, value in (("min", low), ("max", high))
    ]
    node.op = "Clip"
    node.attrs.clear()
    node.inputs = [x, *bounds]
