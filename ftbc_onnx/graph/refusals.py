"""What cannot be converted, and why: each refusal names the node."""

from __future__ import annotations

from collections.abc import Iterable

import onnx

from ftbc_onnx.graph.classes import CONTROL_FLOW, RANDOM, WEIGHTED, NodeClass
from ftbc_onnx.graph.view import GraphView, node_inputs
from ftbc_onnx.graph.weights import count_nan
from ftbc_onnx.plan import Refusal, SpikingSite

_COMPUTES = WEIGHTED | {"Add", "Sub", "Mul", "Div", "Max", "Min", "PRelu"}


def refuse_node(view: GraphView, node: onnx.NodeProto, kind: NodeClass, temporal: Iterable[str]) -> Refusal | None:
    """Why a node that is no site cannot be converted, or None if it can."""
    reason = None
    touches = set(node_inputs(node)) & set(temporal)
    if node.domain not in ("", "ai.onnx"):
        reason = f"it is of the domain '{node.domain}', and only standard operators are emitted"
        if node.op_type.startswith("QLinear"):
            reason += " (a network quantised in the QDQ format has standard operators)"
    elif _drops(view, node):
        reason = "it drops at random, as in training: export the model in evaluation mode (net.eval())"
    elif kind is not NodeClass.STATIC and node.op_type in RANDOM:
        reason = "its output is random"
    elif touches and node.op_type in CONTROL_FLOW:
        reason = f"control flow that depends on spikes ('{sorted(touches)[0]}') cannot be unrolled"
    else:
        reason = _broken(view, node)
    return None if reason is None else Refusal(node.name, node.op_type, reason)


def refuse_site(view: GraphView, site: SpikingSite) -> Refusal | None:
    """Neurons are float32: half precision flips many spikes."""
    kind = view.elem_type(site.current)
    if kind in (0, onnx.TensorProto.FLOAT):
        return None
    found = onnx.TensorProto.DataType.Name(kind).lower()
    reason = f"its input is {found}, and neurons are float32: export the model in float32"
    return Refusal(site.name, site.op_type, reason)


def _broken(view: GraphView, node: onnx.NodeProto) -> str | None:
    """That a node computes with numbers that are NaN. (A Where may have NaN to choose from.)"""
    if node.op_type not in _COMPUTES:
        return None
    counts = {name: count_nan(view.initializers[name]) for name in node.input if name in view.initializers}
    broken = next((name for name, count in counts.items() if count), None)
    if broken is None:
        return None
    return f"{counts[broken]} of the numbers in '{broken}' are NaN, as after training that diverged"


def _drops(view: GraphView, node: onnx.NodeProto) -> bool:
    """Whether a node is a Dropout that drops, or may."""
    if node.op_type != "Dropout" or len(node.input) < 3 or not node.input[2]:
        return False
    ratio = view.constant(node.input[1]) if node.input[1] else None
    if ratio is not None and not ratio.any():
        return False
    training = view.constant(node.input[2])
    return training is None or bool(training.any())
