"""A graph that is written anew, node by node, beside the one that is read: what stays keeps its names.

Graphs that are emitted are written by `ftbc_onnx.graph.builder`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from ftbc_onnx.graph.names import Names
from ftbc_onnx.graph.view import GraphView


class Draft:
    """The nodes of a new graph, and the constants that it has more than the old one.

    Attributes:
        nodes: in topological order, as they are written.
        constants: new ones.
        names: those that are taken.
    """

    def __init__(self, view: GraphView) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.names = Names.of(view.graph)

    def add(self, op: str, inputs: list[str], made: str, name: str = "", **attributes: Any) -> str:
        """A node with one output, and the name of that; it must be free, or go with what stood there.

        `name`: of the node, if not after what it makes.
        """
        self.nodes.append(helper.make_node(op, inputs, [made], name=name or f"{made}/{op}", **attributes))
        return made

    def constant(self, value: np.ndarray, wanted: str) -> str:
        """A constant, and its name: as wanted, or with a number behind it."""
        name = self.names.claim(wanted)
        self.constants.append(numpy_helper.from_array(value, name))
        return name

    def model(self, old: onnx.ModelProto) -> onnx.ModelProto:
        """A copy of the old model with the new nodes, and the new constants beside its own."""
        work = onnx.ModelProto()
        work.CopyFrom(old)
        del work.graph.node[:]
        work.graph.node.extend(self.nodes)
        work.graph.initializer.extend(self.constants)
        return work
