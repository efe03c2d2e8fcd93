"""Nodes in topological order, as ONNX has them: onnxruntime takes any order, so some converters leave another one."""

from __future__ import annotations

from heapq import heapify, heappop, heappush

import onnx

from ftbc_onnx.graph.view import node_inputs, subgraphs


def in_order(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model itself if every node stands behind what it reads, else a copy where it does, in bodies of nodes too.

    Nodes stay in the order that they had where that is one. Those of a circle come last, for the checker to name.
    """
    if _ordered(model.graph):
        return model
    work = onnx.ModelProto()
    work.CopyFrom(model)
    _sort(work.graph)
    return work


def _needed(graph: onnx.GraphProto) -> list[set[int]]:
    """For each node those that it reads from, by their positions."""
    makers = {name: position for position, node in enumerate(graph.node) for name in node.output if name}
    return [{makers[name] for name in node_inputs(node) if name in makers} for node in graph.node]


def _ordered(graph: onnx.GraphProto) -> bool:
    if any(max(needed, default=-1) >= position for position, needed in enumerate(_needed(graph))):
        return False
    return all(_ordered(body) for node in graph.node for body in subgraphs(node))


def _sort(graph: onnx.GraphProto) -> None:
    needed = _needed(graph)
    readers: list[list[int]] = [[] for _ in needed]
    for position, makers in enumerate(needed):
        for maker in makers:
            readers[maker].append(position)
    ready = [position for position, makers in enumerate(needed) if not makers]
    heapify(ready)
    order: list[int] = []
    while ready:
        order.append(heappop(ready))
        for reader in readers[order[-1]]:
            needed[reader].discard(order[-1])
            if not needed[reader]:
                heappush(ready, reader)
    left = sorted(set(range(len(needed))) - set(order))
    nodes = [graph.node[position] for position in (*order, *left)]
    del graph.node[:]
    graph.node.extend(nodes)
    for node in graph.node:
        for body in subgraphs(node):
            _sort(body)
