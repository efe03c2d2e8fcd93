"""Move Transposes towards the outputs, where they meet their inverses and go.

Keras computes in [N, H, W, C], and its exporters write every convolution between two Transposes. With P a Transpose:

1. P(Q(x)) is one Transpose of x, or x.
2. f(P(x), P(y), c) = P(f(x, y, c')) for f elementwise, with the axes of a constant c put in the order of x.
3. The same for what works along an axis that it names: Concat, Softmax, Split, Slice, Pad, reductions and Squeeze.
4. Where P only moves axes of length 1: Reshape(P(x)) = Reshape(x), Flatten likewise, and P(Reshape(x)) is a Reshape.

All of it is done, or nothing: only if fewer Transposes are left. Layers are then neighbours of their activations again,
as in any other network. The numbers are the same to the last bit but for the order in which reductions add.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_graphsurgeon as gs

from ftbc_onnx.graph.passes.surgery import bypass, constant_value, free_name, names_of, new_constant, producer, rank_of

_ELEMENTWISE = frozenset(
    """Abs Add And Cast Ceil Celu Clip Cos Div Elu Equal Erf Exp Floor Gelu Greater GreaterOrEqual HardSigmoid
    HardSwish Identity LeakyRelu Less LessOrEqual Log Max Mean Min Mish Mul Neg Not Or PRelu Pow Reciprocal Relu Round
    Selu Sigmoid Sign Sin Softplus Softsign Sqrt Sub Sum Tanh ThresholdedRelu Where Xor""".split()
)
_QUANTISERS = ("QuantizeLinear", "DequantizeLinear")
_ALONG = ("Concat", "LogSoftmax", "Softmax", "Split")
_REDUCTIONS = frozenset(
    "ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum Squeeze".split()
)


def sink_transposes(graph: gs.Graph) -> int:
    """Apply 1 to 4 if that leaves fewer Transposes; returns how many fewer."""
    before = _count(graph)
    if before < 2:
        return 0
    trial = graph.copy()
    _sink(trial)
    fewer = before - _count(trial)
    if fewer <= 0:
        return 0
    _sink(graph)
    graph.toposort()
    return fewer


def _count(graph: gs.Graph) -> int:
    return sum(node.op == "Transpose" for node in graph.nodes)


def _sink(graph: gs.Graph) -> None:
    taken = names_of(graph)
    graph.toposort()
    for node in list(graph.nodes):
        if not node.outputs:
            continue
        if node.op == "Transpose":
            _compose(graph, node, taken)
        elif node.op in _ELEMENTWISE or node.op in _QUANTISERS:
            _sink_elementwise(graph, node, taken)
        elif node.op in _ALONG:
            _sink_along(graph, node, taken)
        elif node.op in ("Pad", "Slice"):
            _sink_ranges(graph, node, taken)
        elif node.op in _REDUCTIONS:
            _sink_reduction(graph, node, taken)
        elif node.op in ("Reshape", "Flatten"):
            _skip_before_reshape(node)
    graph.cleanup(recurse_subgraphs=False)


def _perm(node: gs.Node | None) -> tuple[int, ...] | None:
    """The order of axes of a Transpose; None for anything else."""
    if node is None or node.op != "Transpose":
        return None
    rank = rank_of(node.inputs[0])
    given = node.attrs.get("perm", [] if rank is None else list(reversed(range(rank))))
    return tuple(given) or None


def _common_perm(tensors: Sequence[gs.Tensor]) -> tuple[int, ...] | None:
    """The order of axes if all of them, but for constants, numbers and what is left out, come of the same Transpose."""
    found = {
        _perm(producer(tensor))
        for tensor in tensors
        if tensor.name and not isinstance(tensor, gs.Constant) and rank_of(tensor) != 0
    }
    return found.pop() if len(found) == 1 else None


def _compose(graph: gs.Graph, node: gs.Node, taken: set[str]) -> None:
    """Case 1, and the second half of case 4."""
    maker, perm = producer(node.inputs[0]), _perm(node)
    inner = _perm(maker)
    if perm is None or maker is None:
        return
    if inner is not None:
        together = [inner[axis] for axis in perm]
        node.attrs["perm"], node.inputs[0] = together, maker.inputs[0]
        if together == sorted(together):
            bypass(graph, node)
    elif maker.op == "Reshape" and _keeps_order(node.inputs[0], perm):
        target = _target(maker, perm)
        if target is not None:
            shape = new_constant(graph, f"{node.outputs[0].name}/shape", target[list(perm)], taken)
            node.op, node.attrs, node.inputs = "Reshape", {}, [maker.inputs[0], shape]


def _sink_elementwise(graph: gs.Graph, node: gs.Node, taken: set[str]) -> None:
    """Case 2."""
    perm = _common_perm(node.inputs)
    if perm is None or any(isinstance(t, gs.Constant) and len(t.shape) > len(perm) for t in node.inputs):
        return
    if node.op in _QUANTISERS and not all(_is_number(tensor) for tensor in node.inputs[1:]):
        return
    _take_sources(graph, node, perm, taken)
    _transpose_outputs(graph, node, perm, taken)


def _is_number(tensor: gs.Tensor) -> bool:
    return isinstance(tensor, gs.Constant) and int(np.prod(tensor.shape)) == 1


def _sink_along(graph: gs.Graph, node: gs.Node, taken: set[str]) -> None:
    """Case 3, for an attribute `axis`."""
    data = node.inputs if node.op == "Concat" else node.inputs[:1]
    perm = _common_perm(data)
    if perm is None or any(isinstance(tensor, gs.Constant) and len(tensor.shape) != len(perm) for tensor in data):
        return
    default = 0 if node.op == "Split" else -1
    _take_sources(graph, node, perm, taken, len(data))
    node.attrs["axis"] = perm[node.attrs.get("axis", default)]
    _transpose_outputs(graph, node, perm, taken)


def _sink_ranges(graph: gs.Graph, node: gs.Node, taken: set[str]) -> None:
    """Case 3, for a Pad of all axes, or a Slice with constant ranges."""
    perm = _common_perm(node.inputs[:1])
    values = [constant_value(tensor) if tensor.name else None for tensor in node.inputs]
    if perm is None or len(values) < 2 or values[1] is None:
        return
    if node.op == "Pad":
        if len(values) > 3 and node.inputs[3].name:
            return
        moved = values[1].reshape(2, -1)[:, np.argsort(perm)].reshape(-1)
        position = 1
    else:
        axes = values[3] if len(values) > 3 and node.inputs[3].name else np.arange(values[1].size)
        if axes is None:
            return
        moved, position = np.array([perm[int(axis)] for axis in axes]), 3
    _take_sources(graph, node, perm, taken, 1)
    constant = new_constant(graph, f"{node.outputs[0].name}/{node.op}", moved.astype(values[1].dtype), taken)
    node.inputs = [*list(node.inputs)[:position], constant, *list(node.inputs)[position + 1 :]]
    _transpose_outputs(graph, node, perm, taken)


def _sink_reduction(graph: gs.Graph, node: gs.Node, taken: set[str]) -> None:
    """Case 3, for axes that are an attribute or a constant input."""
    perm = _common_perm(node.inputs[:1])
    as_input = len(node.inputs) > 1 and bool(node.inputs[1].name)
    axes = constant_value(node.inputs[1]) if as_input else node.attrs.get("axes")
    if perm is None or axes is None or not len(axes):
        return
    rank = len(perm)
    reduced = [int(axis) % rank for axis in axes]
    moved = [perm[axis] for axis in reduced]
    _take_sources(graph, node, perm, taken, 1)
    if as_input:
        node.inputs[1] = new_constant(graph, f"{node.outputs[0].name}/axes", np.array(moved, dtype=np.int64), taken)
    else:
        node.attrs["axes"] = moved
    if node.op != "Squeeze" and node.attrs.get("keepdims", 1):
        _transpose_outputs(graph, node, perm, taken)
        return
    left = [perm[axis] for axis in range(rank) if axis not in reduced]
    order = tuple(sorted(left).index(axis) for axis in left)
    if order != tuple(sorted(order)):
        _transpose_outputs(graph, node, order, taken)


def _skip_before_reshape(node: gs.Node) -> None:
    """The first half of case 4."""
    maker = producer(node.inputs[0])
    perm = _perm(maker)
    if maker is None or perm is None or not _keeps_order(maker.inputs[0], perm):
        return
    if node.op == "Reshape" and _target(node, perm) is None:
        return
    if node.op == "Flatten" and (perm[0] != 0 or node.attrs.get("axis", 1) != 1):
        return
    node.inputs[0] = maker.inputs[0]


def _keeps_order(x: gs.Tensor, perm: Sequence[int]) -> bool:
    """Whether a Transpose of x moves nothing but axes of length 1."""
    if x.shape is None or len(x.shape) != len(perm):
        return False
    long = [axis for axis in perm if x.shape[axis] != 1]
    return long == sorted(long)


def _target(reshape: gs.Node, perm: Sequence[int]) -> np.ndarray | None:
    """The constant target of a Reshape, if axes that it copies (0) are where they were in the other order."""
    value = constant_value(reshape.inputs[1]) if len(reshape.inputs) > 1 else None
    if value is None or reshape.attrs.get("allowzero", 0):
        return None
    copied = [axis for axis, length in enumerate(value.reshape(-1)) if length == 0]
    return value.reshape(-1) if all(axis < len(perm) and perm[axis] == axis for axis in copied) else None


def _take_sources(
    graph: gs.Graph, node: gs.Node, perm: Sequence[int], taken: set[str], data: int | None = None
) -> None:
    """Let the first `data` inputs (None: all) be what was transposed, and constants be in that order of axes."""
    for position, tensor in enumerate(list(node.inputs)[:data]):
        maker = producer(tensor)
        if maker is not None and maker.op == "Transpose":
            node.inputs[position] = maker.inputs[0]
        value = constant_value(tensor)
        if value is not None and value.size != 1:
            whole = value.reshape((1,) * (len(perm) - value.ndim) + value.shape).transpose(np.argsort(perm))
            node.inputs[position] = new_constant(graph, f"{tensor.name}/transposed", np.ascontiguousarray(whole), taken)


def _transpose_outputs(graph: gs.Graph, node: gs.Node, perm: Sequence[int], taken: set[str]) -> None:
    """Put a Transpose behind every output; what reads them reads the same tensors as before."""
    for position, output in enumerate(list(node.outputs)):
        if not output.name:
            continue
        shape = None if output.shape is None else [output.shape[axis] for axis in np.argsort(perm)]
        name = free_name(graph, f"{output.name}/sunk", taken)
        inner = gs.Variable(name, dtype=output.dtype, shape=shape)
        node.outputs[position] = inner
        transpose = gs.Node("Transpose", name=name, attrs={"perm": list(perm)}, inputs=[inner], outputs=[output])
        graph.nodes.append(transpose)
