"""Drop nodes that compute nothing.

Before: y = f(x) with f one of the cases below. After: every reader of y reads x.

1. Identity
2. Dropout in inference (its mask not read)
3. Cast or CastLike to the type that x has already
4. CastLike to a known type becomes Cast (so that it can be folded)
5. Transpose that keeps the order of the axes
6. Pad by nothing
7. Concat, Sum, Mean, Max, Min of one tensor
8. Mul or Div by 1, Add or Sub of 0, by a single number
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from ftbc_onnx.graph.passes.surgery import bypass, constant_value, element_type, fits_into, is_output, scalar_value


def drop_noops(graph: gs.Graph) -> int:
    """Apply the cases above; returns the number of nodes dropped or rewritten."""
    count = 0
    for node in list(graph.nodes):
        if not node.inputs or not node.outputs:
            continue
        if node.op == "CastLike" and element_type(node.inputs[1]) is not None:
            node.op = "Cast"
            node.attrs["to"] = element_type(node.inputs[1])
            del node.inputs[1]
            count += 1
        source = _kept_input(graph, node)
        if source is not None and bypass(graph, node, source):
            count += 1
    graph.cleanup(recurse_subgraphs=False)
    return count


def _kept_input(graph: gs.Graph, node: gs.Node) -> int | None:
    """Which input the node's output equals, or None if it computes something."""
    op, x = node.op, node.inputs[0]
    if op == "Identity":
        return 0
    if op == "Dropout":
        training = constant_value(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2].name else np.array(False)
        mask_read = len(node.outputs) > 1 and (bool(node.outputs[1].outputs) or is_output(graph, node.outputs[1]))
        return 0 if training is not None and not training.any() and not mask_read else None
    if op == "Cast":
        return 0 if node.attrs["to"] == element_type(x) else None
    if op == "Transpose":
        perm = list(node.attrs.get("perm", []))
        return 0 if perm and perm == sorted(perm) else None
    if op == "Pad":
        pads = constant_value(node.inputs[1]) if len(node.inputs) > 1 else None
        return 0 if pads is not None and not pads.any() else None
    if op in ("Concat", "Sum", "Mean", "Max", "Min"):
        return 0 if len(node.inputs) == 1 else None
    if op in ("Mul", "Div", "Add", "Sub"):
        return _neutral(node)
    return None


def _neutral(node: gs.Node) -> int | None:
    neutral = 1.0 if node.op in ("Mul", "Div") else 0.0
    sides = (1,) if node.op in ("Div", "Sub") else (1, 0)
    for side in sides:
        constant, other = node.inputs[side], node.inputs[1 - side]
        value = constant_value(constant)
        if value is None or value.size != 1 or scalar_value(constant) != neutral:
            continue
        if fits_into(constant, other):
            return 1 - side
    return None
