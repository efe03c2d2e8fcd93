"""Find the activations: those that become spiking sites, and those that are refused, with the reason.

Sites: Relu; Clip with minimum 0 (its maximum, if any, is the ceiling of the threshold); Max with 0; QCFS chains.
Every other activation is a `Refusal`. The network around them is classed here too, so that what is asked of it later
(`Network`) is decided once.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import onnx

from ftbc_onnx.graph.channels import channel_axis
from ftbc_onnx.graph.classes import ACTIVATIONS, CONTROL_FLOW, RANDOM, NodeClass, classify
from ftbc_onnx.graph.qcfs import find_qcfs
from ftbc_onnx.graph.view import GraphView, node_inputs
from ftbc_onnx.plan import Refusal, SpikingSite


@dataclass(frozen=True)
class Network:
    """A normalised ANN with every node classed.

    Attributes:
        view: the graph, its nodes in topological order.
        sites: in topological order.
        refusals: activations and other nodes that cannot be converted; if there are any, nothing is emitted.
        classes: class of every node, by node name.
        temporal: tensors that depend on spikes.
        mean_form: temporal tensors that are made as running means (by rate-exact nodes, and by linear ones that read
            nothing else); the others are made as currents, one value per step.
    """

    view: GraphView
    sites: tuple[SpikingSite, ...]
    refusals: tuple[Refusal, ...]
    classes: dict[str, NodeClass]
    temporal: frozenset[str]
    mean_form: frozenset[str]

    @property
    def static_batch(self) -> int | None:
        """The batch size that the model's inputs fix, or None if it is free."""
        for value in self.view.inputs:
            shape = self.view.shape(value.name)
            if shape and isinstance(shape[0], int):
                return shape[0]
        return None


def find_network(model: onnx.ModelProto) -> Network:
    """Class every node of a normalised model and find its sites."""
    view = GraphView(model)
    found = _find_sites(view)
    owner = {node: site for site in found for node in site.nodes}
    classes: dict[str, NodeClass] = {}
    temporal: set[str] = set()
    mean_form: set[str] = set()
    sources: dict[str, set[str]] = {}
    sites: dict[str, SpikingSite] = {}
    refusals: list[Refusal] = []
    for node in view.nodes:
        reads = node_inputs(node)
        upstream = set().union(*(sources.get(name, set()) for name in reads))
        site = owner.get(node.name)
        if site is not None:
            classes[node.name] = NodeClass.SITE
            if site.current in reads and site.name not in sites:
                sites[site.name] = replace(site, upstream=tuple(s for s in sites if s in upstream))
                refusals += _refuse_precision(view, site)
            if site.spikes in node.output:
                temporal.add(site.spikes)
                sources[site.spikes] = {site.name}
            continue
        kind = classify(view, node, temporal)
        refusal = _refuse(view, node, kind, temporal)
        if refusal is not None:
            refusals.append(refusal)
        classes[node.name] = kind
        outputs = [name for name in node.output if name]
        if kind is not NodeClass.STATIC:
            temporal.update(outputs)
            in_mean = kind is NodeClass.RATE_EXACT or all(n in mean_form for n in reads if n in temporal)
            mean_form.update(outputs if in_mean else ())
            sources.update(dict.fromkeys(outputs, upstream))
    return Network(view, tuple(sites.values()), tuple(refusals), classes, frozenset(temporal), frozenset(mean_form))


def _find_sites(view: GraphView) -> list[SpikingSite]:
    sites = []
    taken: set[str] = set()
    for match in find_qcfs(view):
        names = tuple(node.name for node in match.nodes)
        site = _make_site(view, "QCFS", names, match.current, match.output)
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
            site = _make_site(view, node.op_type, (node.name,), current, node.output[0])
            sites.append(replace(site, ceiling=ceiling))
    return sites


def _as_rectifier(view: GraphView, node: onnx.NodeProto) -> tuple[str, float | None] | None:
    """(current, ceiling) of a node that is max(x, 0), with or without an upper bound."""
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


def _make_site(view: GraphView, op_type: str, nodes: tuple[str, ...], current: str, spikes: str) -> SpikingSite:
    shape = view.shape(spikes) or view.shape(current)
    axis = channel_axis(view, current)
    channels = shape[axis] if shape is not None and axis is not None and axis < len(shape) else None
    if axis == 0 or not isinstance(channels, int) or channels < 1:
        axis, channels = None, 1
    rank = None if shape is None else len(shape)
    return SpikingSite(nodes[-1], op_type, nodes, current, spikes, rank, axis, channels)


def _refuse(view: GraphView, node: onnx.NodeProto, kind: NodeClass, temporal: Iterable[str]) -> Refusal | None:
    """Why a node that is no site cannot be converted, or None if it can."""
    op = node.op_type

    def because(reason: str) -> Refusal:
        return Refusal(node.name, op, reason)

    if node.domain not in ("", "ai.onnx"):
        return because(f"it is of the domain '{node.domain}', and only standard operators are emitted")
    if op in ACTIVATIONS:
        return because(
            "this activation has no spiking form yet; only rectifiers (Relu, Clip from 0, Max with 0, QCFS) do"
        )
    if op == "Clip" and kind is not NodeClass.STATIC and view.is_float(node.input[0]):
        low, high = _clip_bounds(view, node)
        return because(f"a Clip to [{low}, {high}] is no rectifier: its minimum would have to be 0")
    if op in ("Max", "Min") and kind is not NodeClass.STATIC and any(view.constant(n) is not None for n in node.input):
        return because("only Max with the number 0 is a rectifier")
    if kind is not NodeClass.STATIC and (op in RANDOM or (op == "Dropout" and _trains(view, node))):
        return because("its output is random")
    touches = set(node_inputs(node)) & set(temporal)
    if touches and op in CONTROL_FLOW:
        return because(f"control flow that depends on spikes ('{sorted(touches)[0]}') cannot be unrolled")
    return None


def _trains(view: GraphView, node: onnx.NodeProto) -> bool:
    """Whether a Dropout drops, or may."""
    if len(node.input) < 3 or not node.input[2]:
        return False
    training = view.constant(node.input[2])
    return training is None or bool(training.any())


def _refuse_precision(view: GraphView, site: SpikingSite) -> list[Refusal]:
    """Neurons are float32: half precision flips many spikes."""
    kind = view.elem_type(site.current)
    if kind in (0, onnx.TensorProto.FLOAT):
        return []
    found = onnx.TensorProto.DataType.Name(kind).lower()
    return [
        Refusal(site.name, site.op_type, f"its input is {found}, and neurons are float32: export the model in float32")
    ]
