"""Write a rectifier made of comparisons as a Relu.

1. Where(x > 0, x, 0) = Relu(x), as `torch.where`, `masked_fill` and `threshold` are exported; also with the condition
   negated (x <= 0, not x > 0) and its branches exchanged;
2. x * Cast(x > 0) = Relu(x).

At x = 0 both are 0, so >= is as good as >. A zero is a single number, or zeros of the shape of x. (A NaN in x, which
compares as not greater, would become 0 before and stays NaN after.)
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from ftbc_onnx.graph.passes.surgery import element_type, fits_into, producer, scalar_value
from ftbc_onnx.graph.weights import FLOATS

_ABOVE, _BELOW = ("Greater", "GreaterOrEqual"), ("Less", "LessOrEqual")


def compare_to_relu(graph: gs.Graph) -> int:
    """Apply both cases; returns the number of places changed."""
    count = 0
    for node in graph.nodes:
        x = _chosen(node) if node.op == "Where" else _masked(node) if node.op == "Mul" else None
        if x is None or element_type(x) not in FLOATS:
            continue
        node.op, node.inputs = "Relu", [x]
        count += 1
    graph.cleanup(recurse_subgraphs=False)
    return count


def _chosen(node: gs.Node) -> gs.Tensor | None:
    """Case 1: the x of a Where, or None."""
    condition, first, second = node.inputs
    for x, other, wanted in ((first, second, True), (second, first, False)):
        if _is_zero(other, x) and _says_positive(condition, x) is wanted:
            return x
    return None


def _masked(node: gs.Node) -> gs.Tensor | None:
    """Case 2: the x of a Mul, or None."""
    for x, mask in (node.inputs, reversed(node.inputs)):
        cast = producer(mask)
        if cast is not None and cast.op == "Cast" and _says_positive(cast.inputs[0], x):
            return x
    return None


def _says_positive(condition: gs.Tensor, x: gs.Tensor) -> bool | None:
    """True for x > 0, False for its opposite, None for anything else."""
    made = producer(condition)
    if made is None:
        return None
    if made.op == "Not":
        inner = _says_positive(made.inputs[0], x)
        return None if inner is None else not inner
    if made.op not in (*_ABOVE, *_BELOW):
        return None
    first, second = made.inputs
    above = made.op in _ABOVE
    if first is x and _is_zero(second, x):
        return above
    return not above if second is x and _is_zero(first, x) else None


def _is_zero(tensor: gs.Tensor, x: gs.Tensor) -> bool:
    """Whether a tensor is 0 everywhere, and an operator on it and x has the shape of x."""
    if isinstance(tensor, gs.Constant):
        return scalar_value(tensor) == 0 and fits_into(tensor, x)
    made = producer(tensor)
    if made is None or made.op not in ("ConstantOfShape", "Expand"):
        return False
    shape = producer(made.inputs[-1])
    if shape is None or shape.op != "Shape" or shape.inputs[0] is not x or any(shape.attrs.values()):
        return False  # (its attributes may say that it is of some axes only)
    if made.op == "Expand":
        return _is_zero(made.inputs[0], x)
    value = made.attrs.get("value")
    return value is None or not np.any(value.values)
