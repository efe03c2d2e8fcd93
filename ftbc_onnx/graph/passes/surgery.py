"""Moves that several passes make on a graphsurgeon graph. Tensors and nodes are compared by identity throughout."""

from __future__ import annotations

import numpy as np
import onnx
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


_WHOLE = 1 << 53
"""The largest whole number up to which floats have all of them."""


def constant_value(tensor: gs.Tensor) -> np.ndarray | None:
    """Value of a constant, or None."""
    return np.asarray(tensor.values) if isinstance(tensor, gs.Constant) else None


def scalar_value(tensor: gs.Tensor) -> float | None:
    """Value of a constant with one entry (or all entries equal), or None; also for one that is no float."""
    value = constant_value(tensor)
    if value is None or value.size == 0 or value.dtype.kind not in "fiu" or not np.all(value == value.flat[0]):
        return None
    number = value.flat[0].item()
    return None if isinstance(number, int) and abs(number) > _WHOLE else float(number)


def rank_of(tensor: gs.Tensor) -> int | None:
    """Number of axes, or None if not known."""
    return None if tensor.shape is None else len(tensor.shape)


def element_type(tensor: gs.Tensor) -> int | None:
    """ONNX element type, or None if not known (graphsurgeon keeps it as a number where NumPy has no such type)."""
    dtype = tensor.dtype
    return (
        dtype if dtype is None or isinstance(dtype, int) else int(onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))
    )


def fits_into(constant: gs.Constant, tensor: gs.Tensor) -> bool:
    """Whether an elementwise operator on both has the shape of `tensor`: it gets no axis more and none longer."""
    dims, shape = tuple(constant.shape), tensor.shape
    if not dims:
        return True
    if shape is None or len(shape) < len(dims):
        return False
    return all(length in (1, known) for length, known in zip(dims, shape[len(shape) - len(dims) :], strict=True))


def free_name(graph: gs.Graph, name: str, taken: set[str] | None = None) -> str:
    """`name`, or with a number behind it if a tensor of the graph is called so.

    `taken`: names of the graph, where many are asked for; the free one is put there.
    """
    taken = names_of(graph) if taken is None else taken
    free, count = name, 1
    while free in taken:
        count += 1
        free = f"{name}_{count}"
    taken.add(free)
    return free


def new_constant(graph: gs.Graph, name: str, value: np.ndarray, taken: set[str] | None = None) -> gs.Constant:
    """An initializer called `name`, or much like it; `taken` as for `free_name`."""
    return gs.Constant(free_name(graph, name, taken), value)


def names_of(graph: gs.Graph) -> set[str]:
    """Names of all tensors of a graph, and of the bodies in it."""
    names = {tensor.name for tensor in graph.inputs}
    names |= {tensor.name for node in graph.nodes for tensor in (*node.inputs, *node.outputs)}
    for body in _bodies(graph):
        names |= names_of(body)
    return names


def _bodies(graph: gs.Graph) -> list[gs.Graph]:
    return [value for node in graph.nodes for value in node.attrs.values() if isinstance(value, gs.Graph)]


def replace_uses(graph: gs.Graph, old: gs.Tensor, new: gs.Tensor) -> None:
    """Let every reader of `old` read `new`."""
    for node in list(old.outputs):
        for position, tensor in enumerate(node.inputs):
            if tensor is old:
                node.inputs[position] = new
    for body in _bodies(graph):
        _replace_in_body(body, old, new)


def _replace_in_body(body: gs.Graph, old: gs.Tensor, new: gs.Tensor) -> None:
    for node in body.nodes:
        for position, tensor in enumerate(node.inputs):
            if tensor is old:
                node.inputs[position] = new
    for position, tensor in enumerate(body.outputs):
        if tensor is old:
            body.outputs[position] = new
    for inner in _bodies(body):
        _replace_in_body(inner, old, new)


def bypass(graph: gs.Graph, node: gs.Node, source: int = 0) -> bool:
    """Take `node` out: its first output becomes its input number `source`; False if the graph's interface forbids it.

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
    return any(
        any(used is tensor for used in (*body.outputs, *(t for node in body.nodes for t in node.inputs)))
        or _captured(body, tensor)
        for body in _bodies(graph)
    )
