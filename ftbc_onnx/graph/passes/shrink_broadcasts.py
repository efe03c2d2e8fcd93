"""Use a single number where a tensor of one value was blown up to another tensor's shape.

Before: z = op(x, t), op elementwise, with t one of these (``torch.maximum(x, zeros_like(x))`` is exported so):

1. Expand(c, Shape(x)), c a single number
2. ConstantOfShape(Shape(x))
3. a constant with one value throughout that broadcasts to the shape of x (what 1 and 2 become if that shape is known)

After: z = op(x, c) with c a single number.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from ftbc_onnx.graph.passes.surgery import fits_into, new_constant, producer, scalar_value

_ELEMENTWISE = {"Add", "Sub", "Mul", "Div", "Max", "Min", "Pow", "PRelu", "Greater", "Less", "Equal"}


def shrink_broadcasts(graph: gs.Graph) -> int:
    """Apply to every elementwise node with two inputs; returns the number of inputs replaced."""
    count = 0
    for node in graph.nodes:
        if node.op not in _ELEMENTWISE or len(node.inputs) != 2:
            continue
        for side in (0, 1):
            value = _uniform_like(node.inputs[side], node.inputs[1 - side])
            if value is not None:
                node.inputs[side] = new_constant(graph, f"{node.inputs[side].name}/value", value)
                count += 1
    graph.cleanup(recurse_subgraphs=False)
    return count


def _uniform_like(tensor: gs.Tensor, other: gs.Tensor) -> np.ndarray | None:
    """The number that fills `tensor`, if it has the shape of `other` by construction, or broadcasts to it."""
    if isinstance(tensor, gs.Constant):
        value = np.asarray(tensor.values)
        uniform = value.size > 1 and fits_into(tensor, other) and scalar_value(tensor) is not None
        return value.reshape(-1)[:1].reshape(()) if uniform else None
    maker = producer(tensor)
    if maker is None or maker.op not in ("Expand", "ConstantOfShape"):
        return None
    shape = producer(maker.inputs[-1])
    if shape is None or shape.op != "Shape" or shape.inputs[0] is not other or not _whole(shape):
        return None
    if maker.op == "ConstantOfShape":
        value = maker.attrs.get("value")
        return np.zeros((), np.float32) if value is None else np.asarray(value.values).reshape(())
    if scalar_value(maker.inputs[0]) is None:
        return None
    return np.asarray(maker.inputs[0].values).reshape(-1)[:1].reshape(())


def _whole(shape: gs.Node) -> bool:
    """Whether a Shape gives every axis (torch's newer exporter states its start, 0)."""
    return shape.attrs.get("start", 0) == 0 and "end" not in shape.attrs
