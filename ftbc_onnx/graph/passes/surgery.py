"""Moves that several passes make on a graphsurgeon graph. Tensors and nodes are compared by identity throughout."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs


def is_output(graph: gs.Graph, tensor: gs.Tensor) -> bool:
    """Whether `tensor` is one of the graph's outputs."""
    return any(tensor is output for output in graph.outputs)


def producer(tensor: gs.Tensor) -> gs.Node | None:
    """The node that makes `tensor`, or None for an input or a constant."""
    return tensor.inputs[0] if tensor.inputs else None


def sole_consumer(graph: gs.Graph, tensor: gs.Tensor) -> gs.Node | None:
    """The only reader of `tensor`, if it is read once and is no output of the graph."""
    if is_output(graph, tensor) or len(tensor.outputs) != 1:
        return None
    return tensor.outputs[0]


def constant_value(tensor: gs.Tensor) -> np.ndarray | None:
    """Value of a constant, or None."""
    return np.asarray(tensor.values) if isinstance(tensor, gs.Constant) else None


def scalar_value(tensor: gs.Tensor) -> float | None:
    """Value of a constant with one entry (or all entries equal), or None."""
    value = constant_value(tensor)
    if value is None or value.size == 0 or value.dtype.kind not in "fiu" or not np.all(value == value.flat[0]):
        return None
    return float(value.flat[0])


def rank_of(tensor: gs.Tensor) -> int | None:
    """Number of axes, or None if not known."""
    return None if tensor.shape is None else len(tensor.shape)


def replace_uses(graph: gs.Graph, old: gs.Tensor, new: gs.Tensor) -> None:
    """Let every reader of `old` read `new`."""
    for node in list(old.outputs):
        for position, tensor in enumerate(node.inputs):
            if tensor is old:
                node.inputs[position] = new
    for body_owner in graph.nodes:
        for value in body_owner.attrs.values():
            if isinstance(value, gs.Graph):
                _replace_in_body(value, old, new)


def _replace_in_body(body: gs.Graph, old: gs.Tensor, new: gs.Tensor) -> None:
    for node in body.nodes:
        for position, tensor in enumerate(node.inputs):
            if tensor is old:
                node.inputs[position] = new
    for position, tensor in enumerate(body.outputs):
        if tensor is old:
            body.outputs[position] = new


def bypass(graph: gs.Graph, node: gs.Node, source: int = 0) -> bool:
    """Take `node` out: its first output becomes its input number `source`. False if the graph's interface forbids it.

    A graph output keeps its name: the tensor before it takes that name, unless it is an input, a constant or an
    output itself.
    """
    before, after = node.inputs[source], node.outputs[0]
    if is_output(graph, after):
        maker = producer(before)
        if maker is None or is_output(graph, before) or _captured(graph, before):
            return False
        node.outputs.clear()
        node.inputs.clear()
        position = next(i for i, tensor in enumerate(maker.outputs) if tensor is before)
        replace_uses(graph, before, after)
        maker.outputs[position] = after
        return True
    node.outputs.clear()
    node.inputs.clear()
    replace_uses(graph, after, before)
    return True


def _captured(graph: gs.Graph, tensor: gs.Tensor) -> bool:
    bodies = [value for node in graph.nodes for value in node.attrs.values() if isinstance(value, gs.Graph)]
    return any(used is tensor for body in bodies for inner in body.nodes for used in inner.inputs)
