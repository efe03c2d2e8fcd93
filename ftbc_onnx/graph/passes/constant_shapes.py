"""Make the target shape of Reshape a constant wherever it can be known.

Before: y = Reshape(x, s) with s computed in the graph (``view(x.size(0), -1)``). After: s is an initializer.

1. s is put together from numbers and from axes of Shapes: an axis that stands where the same axis of x stands is 0
   ("copy this axis"), another one is -1 ("what is left over").
2. otherwise, where shape inference knows y: the same with y's axes.

With two or more axes left over, the arithmetic stays.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from ftbc_onnx.graph.passes.surgery import constant_value, new_constant, producer

Entry = int | tuple[gs.Tensor, int]
"""An entry of a shape: a number, or (y, k) for the length of axis k of y."""


def constant_shapes(graph: gs.Graph) -> int:
    """Apply to every Reshape; returns the number of shapes made constant."""
    count = 0
    for node in graph.nodes:
        if node.op != "Reshape" or len(node.inputs) < 2 or constant_value(node.inputs[1]) is not None:
            continue
        x, y = node.inputs[0], node.outputs[0]
        entries = shape_entries(node.inputs[1])
        if node.attrs.get("allowzero", 0) and entries is not None and 0 in [e for e in entries if isinstance(e, int)]:
            continue
        target = None if entries is None else _from_entries(x, entries)
        if target is None and y.shape is not None:
            target = _from_dims(x.shape, list(y.shape))
        if target is not None:
            node.inputs[1] = new_constant(graph, f"{y.name}/shape", np.array(target, dtype=np.int64))
            node.attrs.pop("allowzero", None)
            count += 1
    graph.cleanup(recurse_subgraphs=False)
    return count


def shape_entries(tensor: gs.Tensor) -> list[Entry] | None:
    """The entries of a shape tensor followed back to numbers and axes of Shapes, or None."""
    value = constant_value(tensor)
    if value is not None:
        return [int(v) for v in value.reshape(-1)] if value.dtype.kind in "iu" else None
    node = producer(tensor)
    if node is None:
        return None
    if node.op in ("Cast", "Identity"):
        return shape_entries(node.inputs[0])
    if node.op in ("Unsqueeze", "Squeeze", "Reshape"):  # of several entries they make no list of them
        entries = shape_entries(node.inputs[0])
        return entries if entries is not None and len(entries) == 1 else None
    if node.op == "Concat":
        parts = [shape_entries(part) for part in node.inputs]
        return None if any(part is None for part in parts) else [entry for part in parts for entry in part or []]
    if node.op == "Shape" and node.inputs[0].shape is not None:
        rank = len(node.inputs[0].shape)
        axes = range(rank)[node.attrs.get("start", 0) : node.attrs.get("end", rank)]
        return [(node.inputs[0], axis) for axis in axes]
    if node.op == "Gather":
        entries, index = shape_entries(node.inputs[0]), constant_value(node.inputs[1])
        if entries is None or index is None:
            return None
        return [entries[int(i)] for i in index.reshape(-1)]
    return None


def _from_entries(x: gs.Tensor, entries: list[Entry]) -> list[int] | None:
    target: list[int] = []
    for position, entry in enumerate(entries):
        if isinstance(entry, int):
            target.append(entry)
            continue
        tensor, axis = entry
        dim = tensor.shape[axis]
        if isinstance(dim, int):
            target.append(dim)
        elif (tensor is x and axis == position) or _same_axis(x, position, dim):
            target.append(0)
        else:
            target.append(-1)
    return target if target.count(-1) <= 1 else None


def _same_axis(x: gs.Tensor, position: int, dim: object) -> bool:
    return isinstance(dim, str) and x.shape is not None and position < len(x.shape) and x.shape[position] == dim


def _from_dims(source: list[object] | None, shape: list[object]) -> list[int] | None:
    target = []
    for axis, dim in enumerate(shape):
        if isinstance(dim, int):
            if dim == 0:
                return None
            target.append(dim)
        elif isinstance(dim, str) and source is not None and axis < len(source) and source[axis] == dim:
            target.append(0)
        else:
            target.append(-1)
    return target if target.count(-1) <= 1 else None
