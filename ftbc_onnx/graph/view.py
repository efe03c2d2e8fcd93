"""A read-only look at an ONNX graph by tensor name: producers, consumers, constants, shapes, channel axes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property

import numpy as np
import onnx
from onnx import helper, numpy_helper

Shape = tuple[int | str | None, ...]


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The bodies of an If, Loop or Scan."""
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        elif attribute.type == onnx.AttributeProto.GRAPHS:
            yield from attribute.graphs


def all_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """Nodes, and those of their bodies."""
    for node in nodes:
        yield node
        for body in subgraphs(node):
            yield from all_nodes(body.node)


def count_nodes(graph: onnx.GraphProto) -> int:
    """Nodes of a graph, those of bodies included."""
    return sum(1 for _ in all_nodes(graph.node))


def names_inside(node: onnx.NodeProto) -> Iterator[str]:
    """Names of tensors that the bodies of a node make or take in."""
    for body in subgraphs(node):
        yield from (value.name for value in (*body.input, *body.initializer))
        for inner in body.node:
            yield from inner.output
            yield from names_inside(inner)


def captured_names(graph: onnx.GraphProto) -> set[str]:
    """Names that a body takes from the graph around it."""
    own = {value.name for value in graph.input} | {value.name for value in graph.initializer}
    own |= {name for node in graph.node for name in node.output}
    used = {name for node in graph.node for name in node_inputs(node)} | {value.name for value in graph.output}
    return used - own


def node_inputs(node: onnx.NodeProto) -> list[str]:
    """Names that a node reads, those its bodies capture included; empty optional inputs left out."""
    names = [name for name in node.input if name]
    for body in subgraphs(node):
        names += sorted(captured_names(body))
    return names


def attributes(node: onnx.NodeProto) -> dict[str, object]:
    """The node's attributes as Python values."""
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


class GraphView:
    """Looks up tensors and nodes of a model that nobody changes meanwhile."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.graph = model.graph
        self.nodes: list[onnx.NodeProto] = list(model.graph.node)

    @cached_property
    def opset(self) -> int:
        """Version of the default domain."""
        return next((entry.version for entry in self.model.opset_import if entry.domain in ("", "ai.onnx")), 1)

    @cached_property
    def producers(self) -> dict[str, onnx.NodeProto]:
        """Tensor name -> the node that makes it."""
        return {name: node for node in self.nodes for name in node.output if name}

    @cached_property
    def consumers(self) -> dict[str, list[onnx.NodeProto]]:
        """Tensor name -> the nodes that read it, in order."""
        table: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            for name in dict.fromkeys(node_inputs(node)):
                table.setdefault(name, []).append(node)
        return table

    @cached_property
    def initializers(self) -> dict[str, onnx.TensorProto]:
        """Constants by name."""
        return {tensor.name: tensor for tensor in self.graph.initializer}

    @cached_property
    def inputs(self) -> list[onnx.ValueInfoProto]:
        """The graph's inputs without those that are initializers (old files list both)."""
        return [value for value in self.graph.input if value.name not in self.initializers]

    @cached_property
    def output_names(self) -> list[str]:
        """Names of the graph's outputs, in order."""
        return [value.name for value in self.graph.output]

    def constant(self, name: str) -> np.ndarray | None:
        """Value of a constant tensor, behind Identity too, or None if the tensor is not constant."""
        producer = self.producers.get(name)
        while producer is not None and producer.op_type == "Identity" and not producer.domain:
            name = producer.input[0]
            producer = self.producers.get(name)
        if name in self.initializers:
            return np.asarray(numpy_helper.to_array(self.initializers[name]))
        if producer is not None and producer.op_type == "Constant":
            for kind, value in attributes(producer).items():
                if isinstance(value, onnx.TensorProto):
                    return np.asarray(numpy_helper.to_array(value))
                dtype = {"value_float": np.float32, "value_int": np.int64}.get(kind.removesuffix("s"))
                if dtype is not None:
                    return np.asarray(value, dtype)
        return None

    def sole_consumer(self, name: str) -> onnx.NodeProto | None:
        """The only reader of a tensor that is no output of the graph, or None."""
        readers = self.consumers.get(name, [])
        return readers[0] if len(readers) == 1 and name not in self.output_names else None

    @cached_property
    def _types(self) -> dict[str, onnx.TypeProto]:
        values = [*self.graph.value_info, *self.graph.input, *self.graph.output]
        return {value.name: value.type for value in values}

    def shape(self, name: str) -> Shape | None:
        """Axes of a tensor: numbers, names of dynamic axes, or None for one that is not known; None: rank unknown."""
        if name in self.initializers:
            return tuple(self.initializers[name].dims)
        info = self._types.get(name)
        if info is None or not info.HasField("tensor_type") or not info.tensor_type.HasField("shape"):
            return None
        dims = info.tensor_type.shape.dim
        return tuple(d.dim_value if d.HasField("dim_value") else (d.dim_param or None) for d in dims)

    def elem_type(self, name: str) -> int:
        """ONNX element type of a tensor; 0 if not known."""
        if name in self.initializers:
            return int(self.initializers[name].data_type)
        info = self._types.get(name)
        return int(info.tensor_type.elem_type) if info is not None and info.HasField("tensor_type") else 0

    def is_float(self, name: str) -> bool:
        """Whether a tensor holds floating-point numbers (unknown types count as such)."""
        kinds = (
            0,
            onnx.TensorProto.FLOAT,
            onnx.TensorProto.DOUBLE,
            onnx.TensorProto.FLOAT16,
            onnx.TensorProto.BFLOAT16,
        )
        return self.elem_type(name) in kinds
