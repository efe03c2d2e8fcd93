"""The ANN cut into segments wherever a step of the SNN leaves plain ANN arithmetic, to run a step from outside.

A cut is a tensor that one segment computes, that is turned into something else in NumPy, and that later segments read:

* at a site, the current is handed out and the spikes are fed in;
* where the bias or the membrane of a site comes in before its neurons, what it is added to is handed out and the sum is
  fed in;
* where a current is read as a mean, or a mean as a current, the tensor is handed out and its other form is fed in.

Within a segment every node is the ANN's own. Each node stands in exactly one segment, so a step costs one run of the
ANN. `ftbc_onnx.verify` runs a plan this way, by an arithmetic of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import onnx

from ftbc_onnx.graph.classes import NodeClass
from ftbc_onnx.graph.sites import Network
from ftbc_onnx.graph.view import GraphView, node_inputs
from ftbc_onnx.graph.weights import add_initializers
from ftbc_onnx.plan import SpikingSite


@dataclass(frozen=True)
class Cut:
    """One place to compute outside.

    Attributes:
        handed_out: tensor of the ANN to start from.
        fed_in: name under which later segments read what was made of it.
        kind: ``fire``, ``to_mean``, ``to_current``, or ``bias`` or ``membrane`` (that of a site is added, see
            `Network.entries`).
        site: the site, where there is one.
    """

    handed_out: str
    fed_in: str
    kind: str
    site: SpikingSite | None = None


@dataclass(frozen=True)
class Segment:
    """Nodes to run before a cut (before the outputs, in the last segment).

    Attributes:
        model: the nodes; None if everything needed is there already.
        reads: tensors to feed.
        temporal: whether it has to be run at every step.
        cut: what happens behind it; None in the last segment.
    """

    model: onnx.ModelProto | None
    reads: tuple[str, ...]
    temporal: bool
    cut: Cut | None


def cut_network(network: Network) -> tuple[Segment, ...]:
    """Cut a network at its sites and conversions; segments in the order in which they can be run."""
    cuts, nodes = _cuts(network)
    made_by = {name: node for node in nodes for name in node.output if name}
    targets = [[cut.handed_out] for cut in cuts] + [list(network.view.output_names)]
    fed_in = {cut.fed_in for cut in cuts}
    place: dict[str, int] = {}
    for position, names in enumerate(targets):
        _assign(names, position, place, made_by)
    groups = [[node for node in nodes if place.get(node.name) == position] for position in range(len(targets))]
    wanted = {name for names in targets for name in names}
    read_in: dict[str, set[int]] = {}
    for position, group in enumerate(groups):
        for node in group:
            for name in node_inputs(node):
                read_in.setdefault(name, set()).add(position)
    kinds = {cut.fed_in: network.view.elem_type(cut.handed_out) for cut in cuts if cut.site is None}
    segments = []
    for position, group in enumerate(groups):
        outs = [n for node in group for n in node.output if n and (n in wanted or read_in.get(n, set()) - {position})]
        cut = cuts[position] if position < len(cuts) else None
        segments.append(_segment(network.view, group, outs, network.temporal | fed_in, cut, kinds=kinds))
    return tuple(segments)


def _cuts(network: Network) -> tuple[list[Cut], list[onnx.NodeProto]]:
    """The cuts in order, and the nodes that are no sites, reading what the cuts feed in."""
    cuts: dict[str, Cut] = {}
    nodes: list[onnx.NodeProto] = []
    owner = {site.spikes: site for site in network.sites}
    for node in network.view.nodes:
        kind = network.classes[node.name]
        if kind is NodeClass.SITE:
            for site in (owner[name] for name in node.output if name in owner):
                current = _converted(network, site.current, False, cuts)
                cuts[site.spikes] = Cut(current, site.spikes, "fire", site)
            continue
        for name in node.input:
            if name in network.entries:
                entry = network.entries[name]
                source = _converted(network, entry.source, False, cuts)
                cuts[name] = Cut(source, name, entry.kind, entry.site)
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        if kind is not NodeClass.STATIC:
            wants_mean = next(name for name in node.output if name) in network.mean_form
            for position, name in enumerate(node.input):
                copy.input[position] = _converted(network, name, wants_mean, cuts)
        nodes.append(copy)
    return list(cuts.values()), nodes


def _converted(network: Network, tensor: str, wants_mean: bool, cuts: dict[str, Cut]) -> str:
    """Name under which a reader finds `tensor` in the form it wants; adds a cut if it is made in the other form."""
    if tensor not in network.temporal or (tensor in network.mean_form) == wants_mean:
        return tensor
    name = f"{tensor}/{'mean' if wants_mean else 'current'}"
    cuts.setdefault(name, Cut(tensor, name, "to_mean" if wants_mean else "to_current"))
    return name


def _assign(names: Iterable[str], position: int, place: dict[str, int], made_by: dict[str, onnx.NodeProto]) -> None:
    """Put every node that `names` need, and that has no place yet, into segment `position`."""
    open_names = list(names)
    while open_names:
        node = made_by.get(open_names.pop())
        if node is not None and node.name not in place:
            place[node.name] = position
            open_names += node_inputs(node)


def _segment(
    view: GraphView,
    nodes: list[onnx.NodeProto],
    outs: list[str],
    temporal: Iterable[str],
    cut: Cut | None,
    *,
    kinds: Mapping[str, int],
) -> Segment:
    if not nodes:
        return Segment(None, (), False, cut)
    made = {name for node in nodes for name in node.output}
    read = dict.fromkeys(name for node in nodes for name in node_inputs(node) if name not in made)
    reads = [name for name in read if name not in view.initializers]

    def declare(names: Iterable[str]) -> list[onnx.ValueInfoProto]:
        typed = [(name, kinds.get(name) or view.elem_type(name) or onnx.TensorProto.FLOAT) for name in names]
        return [onnx.helper.make_tensor_value_info(name, kind, None) for name, kind in typed]

    constants = [tensor for name, tensor in view.initializers.items() if name in read]
    graph = onnx.helper.make_graph(nodes, "segment", declare(reads), declare(dict.fromkeys(outs)))
    model = onnx.helper.make_model(graph, opset_imports=view.model.opset_import, ir_version=view.model.ir_version)
    add_initializers(model, constants)
    return Segment(model, tuple(reads), bool(set(reads) & set(temporal)), cut)
