"""The order of nodes in a file, which is the order in which our sessions run them (`ftbc_onnx.runtime`)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import onnx

from ftbc_onnx.graph.view import node_inputs


def put_in(graph: onnx.GraphProto, more: Iterable[onnx.NodeProto]) -> None:
    """Add nodes to a graph, each as soon as what it reads is there; otherwise the order stays.

    What only watches a tensor would otherwise run last and keep it, and all others that are watched, until then.
    """
    nodes = list(graph.node)
    made = {name: place for place, node in enumerate(nodes) for name in node.output if name}
    behind: defaultdict[int, list[onnx.NodeProto]] = defaultdict(list)
    for node in more:
        place = max((made.get(name, -1) for name in node_inputs(node)), default=-1)
        made.update((name, place) for name in node.output if name)
        behind[place].append(node)
    del graph.node[:]
    graph.node.extend(behind[-1])
    for place, node in enumerate(nodes):
        graph.node.extend([node, *behind[place]])
