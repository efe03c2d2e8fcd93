"""Find the rectifiers of a graph: what becomes a site with one spike for one activation.

Relu; Clip with minimum 0 (its maximum, if any, is the ceiling of the threshold); Max with 0; QCFS chains.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx

from ftbc_onnx.graph.channels import channel_axis
from ftbc_onnx.graph.qcfs import find_qcfs
from ftbc_onnx.graph.view import GraphView
from ftbc_onnx.plan import SpikingSite


def find_rectifiers(view: GraphView) -> list[SpikingSite]:
    """Every rectifier as a site, QCFS chains first; `upstream` is left empty."""
    sites = []
    taken: set[str] = set()
    for match in find_qcfs(view):
        if any(node.domain for node in match.nodes):
            continue  # an operator of another domain that has the name of a standard one
        names = tuple(node.name for node in match.nodes)
        site = make_site(view, "QCFS", names, match.current, match.output)
        theta = match.threshold
        if len(theta) not in (1, site.channels):
            continue
        taken.update(names)
        sites.append(replace(site, threshold=theta, levels=match.levels))
    for node in view.nodes:
        if node.name in taken:
            continue
        simple = _as_rectifier(view, node)
        if simple is not None:
            current, ceiling = simple
            site = make_site(view, node.op_type, (node.name,), current, node.output[0])
            sites.append(replace(site, ceiling=ceiling))
    return sites


def _as_rectifier(view: GraphView, node: onnx.NodeProto) -> tuple[str, float | None] | None:
    """(current, ceiling) of a node that is max(x, 0), with or without an upper bound."""
    if node.domain:
        return None
    if node.op_type == "Relu":
        return node.input[0], None
    if node.op_type == "Clip" and view.is_float(node.input[0]):
        low, high = _clip_bounds(view, node)
        return (node.input[0], high) if low == 0 and (high is None or high > 0) else None
    if node.op_type == "Max" and len(node.input) == 2:
        for data, bound in ((0, 1), (1, 0)):
            value, shape = view.constant(node.input[bound]), view.shape(node.input[data])
            if value is None or value.ndim > (1 if shape is None else len(shape)):
                continue
            if value.size == 1 and value.dtype.kind == "f" and value.reshape(-1)[0] == 0:
                return node.input[data], None
    return None


def _clip_bounds(view: GraphView, node: onnx.NodeProto) -> tuple[float | None, float | None]:
    """Bounds of a Clip: None where there is none, nan where it is computed in the graph."""
    bounds: list[float | None] = [None, None]
    for side, name in enumerate(node.input[1:3]):
        if name:
            value = view.constant(name)
            bounds[side] = float("nan") if value is None else float(value.reshape(-1)[0])
    if bounds[1] is not None and bounds[1] >= float(np.finfo(np.float32).max):
        bounds[1] = None
    return bounds[0], bounds[1]


def make_site(view: GraphView, op_type: str, nodes: tuple[str, ...], current: str, spikes: str) -> SpikingSite:
    """A site between two tensors, named after the last of its nodes."""
    shape = view.shape(spikes) or view.shape(current)
    axis = channel_axis(view, current)
    channels = shape[axis] if shape is not None and axis is not None and axis < len(shape) else None
    if axis == 0 or not isinstance(channels, int) or channels < 1:
        axis, channels = None, 1
    rank = None if shape is None else len(shape)
    return SpikingSite(nodes[-1], op_type, nodes, current, spikes, rank, axis, channels)
