"""Which axis of a tensor is the channel axis: derived from the layer that made it, never assumed.

Conv makes channels on axis 1, Gemm and MatMul with constant weights on the last axis; Transpose, Reshape, Squeeze and
the like carry the axis along. So an NHWC export, whose activations stand between Transposes, is handled like any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import onnx

from ftbc_onnx.graph.view import GraphView, attributes

_ON_AXIS_1 = {
    "Conv",
    "ConvTranspose",
    "BatchNormalization",
    "InstanceNormalization",
    "GroupNormalization",
    "DepthToSpace",
    "SpaceToDepth",
    "Flatten",
}
_ELEMENTWISE = {"Add", "Sub", "Mul", "Div", "Max", "Min", "Pow", "Sum", "Mean", "Where", "PRelu", "Expand", "Tile"}
_DEPTH = 200

Known = dict[str, int | None]
"""Tensors followed so far, in one search."""


def channel_axis(view: GraphView, tensor: str) -> int | None:
    """Channel axis of `tensor`: derived, else 1 (or the last axis of a tensor with three axes); None: rank unknown."""
    shape = view.shape(tensor)
    if shape is None or not shape:
        return None
    found = _derive(view, tensor, _DEPTH, {})
    if found is not None and 0 <= found < len(shape):
        return found
    if len(shape) == 1:
        return None
    return 2 if len(shape) == 3 else 1


def _derive(view: GraphView, tensor: str, depth: int, known: Known) -> int | None:
    """Follow producers back to the layer that made the channels, each tensor once."""
    if tensor not in known:
        known[tensor] = _derive_anew(view, tensor, depth, known)
    return known[tensor]


def _derive_anew(view: GraphView, tensor: str, depth: int, known: Known) -> int | None:
    node, shape = view.producers.get(tensor), view.shape(tensor)
    if node is None or shape is None or depth == 0:
        return None
    op, rank = node.op_type, len(shape)
    if op in _ON_AXIS_1:
        return 1 if rank > 1 else None
    if op in ("Gemm", "LayerNormalization"):
        return rank - 1
    if op == "MatMul":
        if view.constant(node.input[1]) is not None:
            return rank - 1
        return rank - 2 if rank > 1 and view.constant(node.input[0]) is not None else None
    if op in _ELEMENTWISE:
        return _from_operands(view, node, rank, depth, known)
    before = _derive(view, node.input[0], depth - 1, known) if node.input else None
    source = view.shape(node.input[0]) if node.input else None
    if before is None or source is None:
        return None
    if op == "Transpose":
        perm = attributes(node).get("perm")
        order = list(perm) if isinstance(perm, Sequence) else list(range(rank))[::-1]
        return order.index(before) if before in order else None
    if op == "Reshape":
        return _through_reshape(source, shape, before)
    if op in ("Squeeze", "Unsqueeze") or (rank != len(source)):
        return _through_rank_change(view, node, source, rank, before)
    return before


def _from_operands(view: GraphView, node: onnx.NodeProto, rank: int, depth: int, known: Known) -> int | None:
    """Of the first operand that knows its channels, axes counted from the right as broadcasting does."""
    for name in node.input:
        shape = view.shape(name)
        axis = None if view.constant(name) is not None else _derive(view, name, depth - 1, known)
        if axis is not None and shape is not None:
            return axis + rank - len(shape)
    for name in node.input:
        value = view.constant(name)
        if value is not None and sum(length > 1 for length in value.shape) == 1:
            return next(i for i, length in enumerate(value.shape) if length > 1) + rank - value.ndim
    return None


def _through_reshape(source: Sequence[object], target: Sequence[object], axis: int) -> int | None:
    """The axis of the target that is the same axis of the source: equal length, and equal size on its left or right."""
    for position, length in enumerate(target):
        if length != source[axis] or not isinstance(length, int):
            continue
        if _size(source[axis + 1 :]) == _size(target[position + 1 :]) or _size(source[:axis]) == _size(
            target[:position]
        ):
            return position
    return None


def _size(dims: Sequence[object]) -> tuple[int, tuple[str, ...]]:
    return prod(d for d in dims if isinstance(d, int)), tuple(sorted(str(d) for d in dims if not isinstance(d, int)))


def _through_rank_change(
    view: GraphView, node: onnx.NodeProto, source: Sequence[object], rank: int, axis: int
) -> int | None:
    """Squeeze, Unsqueeze, reductions without kept axes, Gather of one entry."""
    values = attributes(node)
    if node.op_type == "Gather":
        raw: object = [values.get("axis", 0)]
    elif len(node.input) > 1 and node.input[1]:
        constant = view.constant(node.input[1])
        raw = None if constant is None else constant.reshape(-1).tolist()
    else:
        raw = values.get("axes")
    if not isinstance(raw, Sequence):
        return None
    if node.op_type == "Unsqueeze":
        new = sorted(int(a) % rank for a in raw)
        kept = [a for a in range(rank) if a not in new]
        return kept[axis] if axis < len(kept) else None
    gone = {int(a) % len(source) for a in raw}
    return None if axis in gone else axis - sum(a < axis for a in gone)
