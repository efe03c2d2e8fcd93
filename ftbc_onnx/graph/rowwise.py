"""Whether a node works on every row of a batch alone: row i of its outputs depends on row i of its inputs only.

Time may be folded into the batch ([T, B, ...] as [T*B, ...]) where every node does. What is *batched* has its samples
on axis 0. A node is row-wise if

1. it is elementwise, and what it reads besides batched tensors of one rank broadcasts along axis 0;
2. it works on axes behind the first: convolutions, pools (without indices), normalisations; reductions, softmax,
   slices, pads, joins, whose axis or axes are constant and not 0; a Transpose that leaves axis 0 in its place;
3. it is a Reshape to a constant shape that keeps axis 0: a target of [0, ...], or of [-1, ...] where the others hold as
   many numbers as a row;
4. it is a product with a constant matrix, or of two batched stacks of matrices.

Whatever is not recognised is taken for a node that mixes rows.
"""

from __future__ import annotations

from collections.abc import Collection
from math import prod

import numpy as np
import onnx

from ftbc_onnx.graph.view import GraphView, attributes, subgraphs

_ELEMENTWISE = frozenset(
    """
    Abs Acos Acosh Add Asin Asinh Atan Atanh Cast Ceil Celu Clip Cos Cosh Div Dropout Elu Equal Erf Exp Floor
    Gelu Greater GreaterOrEqual HardSigmoid HardSwish Identity LeakyRelu Less LessOrEqual Log Max Mean Min Mish
    Mul Neg Not PRelu Pow Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Sub Sum
    Swish Tan Tanh ThresholdedRelu Where
    """.split()
)
_FROM_AXIS_1 = frozenset(
    """
    AveragePool BatchNormalization Conv ConvTranspose DepthToSpace GlobalAveragePool GlobalLpPool GlobalMaxPool
    GroupNormalization InstanceNormalization LpPool LRN MaxPool SpaceToDepth
    """.split()
)
_ONE_AXIS = {
    "Concat": None,
    "Flatten": 1,
    "Gather": 0,
    "Hardmax": -1,
    "LayerNormalization": -1,
    "LogSoftmax": -1,
    "Softmax": -1,
    "Split": 0,
}
"""Operators with an attribute `axis`, and what it is if it is not given."""
_AXES = frozenset("ReduceL1 ReduceL2 ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum Squeeze Unsqueeze".split())


def is_rowwise(view: GraphView, node: onnx.NodeProto, batched: Collection[str]) -> bool:
    """Whether a node keeps the rows of its batched inputs apart, by what is known of its shapes and constants."""
    places = [place for place, name in enumerate(node.input) if name in batched]
    if any(True for _ in subgraphs(node)) or node.domain not in ("", "ai.onnx"):
        return False
    op = node.op_type
    if op in _ELEMENTWISE:
        return _broadcasts(view, node, batched)
    if op == "MatMul":
        return _matmul(view, node, places)
    if op == "Gemm":
        return places == [0] and not attributes(node).get("transA", 0) and _is_row(view, node.input[2:])
    if op == "Concat":
        return len(places) == len(node.input) and _axis(view, node) not in (0, None)
    if places != [0]:
        return False
    if op in _FROM_AXIS_1:
        return op != "MaxPool" or len([name for name in node.output if name]) == 1  # its indices count the samples
    if op in _ONE_AXIS:
        return _axis(view, node) not in (0, None)
    if op == "Transpose":
        order = attributes(node).get("perm")
        return isinstance(order, list) and order[0] == 0
    if op == "Reshape":
        return _reshape(view, node)
    return op in _AXES | {"Slice", "Pad", "Resize"} and _leaves_axis_0(view, node)


def _rank(view: GraphView, name: str) -> int | None:
    shape = view.shape(name)
    return None if shape is None else len(shape)


def _broadcasts(view: GraphView, node: onnx.NodeProto, batched: Collection[str]) -> bool:
    ranks = {_rank(view, name) for name in node.input if name in batched}
    if len(ranks) != 1 or None in ranks:
        return False
    (rank,) = ranks
    for name in node.input:
        if name and name not in batched:
            shape = view.shape(name)
            if shape is None or rank is None or len(shape) > rank or (len(shape) == rank and shape[0] != 1):
                return False
    return True


def _matmul(view: GraphView, node: onnx.NodeProto, places: list[int]) -> bool:
    ranks = [_rank(view, name) for name in node.input]
    left, right = ranks
    if left is None or right is None:
        return False
    if places == [0]:
        return left >= 2 and right == 2
    if places == [1]:
        return left <= 2 and right >= 3
    return left == right and left >= 3


def _is_row(view: GraphView, names: Collection[str]) -> bool:
    """Whether tensors have no axis 0 but of one row, beside a matrix."""
    shapes = [view.shape(name) for name in names if name]
    return all(shape is not None and (len(shape) < 2 or shape[0] == 1) for shape in shapes)


def _axis(view: GraphView, node: onnx.NodeProto) -> int | None:
    """The axis that a node works on, counted from the front; None: not known."""
    axis = attributes(node).get("axis", _ONE_AXIS[node.op_type])
    rank = _rank(view, node.input[0])
    if not isinstance(axis, int) or rank is None:
        return None
    return axis % rank if axis < 0 else axis


def _reshape(view: GraphView, node: onnx.NodeProto) -> bool:
    target, source = view.constant(node.input[1]), view.shape(node.input[0])
    if target is None or not target.size or not source or attributes(node).get("allowzero", 0):
        return False
    first, *rest = (int(size) for size in target.reshape(-1))
    if first == 0:
        return True
    row = source[1:]
    known = [size for size in row if isinstance(size, int)]
    sizes = [row[i] if size == 0 and i < len(row) else size for i, size in enumerate(rest)]
    whole = [size for size in sizes if isinstance(size, int) and size > 0]
    return first == -1 and len(known) == len(row) and len(whole) == len(sizes) and prod(known) == prod(whole)


def _leaves_axis_0(view: GraphView, node: onnx.NodeProto) -> bool:
    """Whether an operator with axes, pads or scales does nothing to axis 0."""
    rank = _rank(view, node.output[0] if node.op_type == "Unsqueeze" else node.input[0])
    if rank is None:
        return False
    if node.op_type == "Resize":
        scales = _constant(view, node, 2)
        return scales is not None and scales.size == rank and float(scales[0]) == 1.0
    if node.op_type == "Pad":
        pads = _constant(view, node, 1)
        return pads is not None and pads.size == 2 * rank and not pads[0] and not pads[rank] and len(node.input) < 4
    axes = _constant(view, node, 3 if node.op_type == "Slice" else 1)
    if axes is None:
        given = attributes(node).get("axes")
        axes = None if given is None else np.asarray(given)
    return axes is not None and axes.size > 0 and all(int(axis) % rank for axis in axes.reshape(-1))


def _constant(view: GraphView, node: onnx.NodeProto, place: int) -> np.ndarray | None:
    """The constant at an input, flat; None: there is none."""
    value = view.constant(node.input[place]) if len(node.input) > place and node.input[place] else None
    return None if value is None else value.reshape(-1)
