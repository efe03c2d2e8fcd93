"""A network of another precision, computed in float32: neurons are float32, since half precision flips many spikes.

Of float16 nothing is lost; of float64, what float32 cannot say. Inputs and outputs keep their types:

    y16 = f(x16)      becomes      y16 = Cast16(f(Cast32(x16)))

where every constant, Cast and declaration in f that was float16 is float32.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable

import numpy as np
import onnx
from onnx import helper, inliner, numpy_helper

from ftbc_onnx.graph.names import Names
from ftbc_onnx.graph.view import subgraphs

_FLOAT = onnx.TensorProto.FLOAT
_RANGE = np.finfo(np.float32)
_TYPES = frozenset("to dtype output_dtype output_datatype softmax_precision stash_type".split())
"""Attributes of standard operators that name an element type."""


def in_float32(model: onnx.ModelProto, kinds: Collection[int]) -> tuple[onnx.ModelProto, dict[str, int]]:
    """What computes in these element types computes in float32.

    Args:
        model: as it was read, local functions and all.
        kinds: of `onnx.TensorProto`.

    Returns:
        A copy, and how many constants, attributes, inputs and outputs of each type there were, for a report.
    """
    work = onnx.ModelProto()
    work.CopyFrom(model)
    if work.functions:  # a call may name a type
        work = inliner.inline_local_functions(work)
    rewriter = _Rewriter(kinds)
    rewriter.rewrite_graph(work.graph)
    rewriter.close(work.graph)
    names = {kind: onnx.TensorProto.DataType.Name(kind).lower() for kind in kinds}
    return work, {f"{names[kind]}_to_float32": count for kind, count in sorted(rewriter.counts.items())}


class _Rewriter:
    """Goes over a model and changes it in place."""

    def __init__(self, kinds: Collection[int]) -> None:
        self._kinds = kinds
        self.counts: Counter[int] = Counter()

    def rewrite_graph(self, graph: onnx.GraphProto) -> None:
        """Everything in a graph, but for its inputs and outputs."""
        for tensor in (*graph.initializer, *(sparse.values for sparse in graph.sparse_initializer)):
            self._constant(tensor)
        self.rewrite(graph.node)
        self._declare(graph.value_info)

    def rewrite(self, nodes: Iterable[onnx.NodeProto]) -> None:
        """Constants and types that nodes and their bodies have."""
        for node in nodes:
            for attribute in node.attribute:
                if attribute.name in _TYPES and attribute.i in self._kinds:
                    self.counts[attribute.i] += 1
                    attribute.i = _FLOAT
                for tensor in (attribute.t, attribute.sparse_tensor.values, *attribute.tensors):
                    self._constant(tensor)
            for body in subgraphs(node):
                self.rewrite_graph(body)
                self._declare((*body.input, *body.output))

    def close(self, graph: onnx.GraphProto) -> None:
        """Casts behind the inputs and before the outputs; the tensors between have names of their own."""
        constants = {tensor.name for tensor in graph.initializer}
        listed = [value for value in graph.input if value.name in constants]  # as files of old do
        self._declare(listed)
        inputs = [value for value in graph.input if value.name not in constants]
        passed = {value.name for value in inputs}
        outputs = [value for value in graph.output if value.name not in passed]
        kinds = {value.name: value.type.tensor_type.elem_type for value in (*inputs, *outputs)}
        names, within = Names.of(graph), dict[str, str]()
        for name, kind in kinds.items():
            if kind in self._kinds:
                self.counts[kind] += 1
                within[name] = names.claim(f"{name}/float32")
        _rename(graph, within)
        for value in listed:
            value.name = within.get(value.name, value.name)
        nodes = list(graph.node)
        del graph.node[:]
        graph.node.extend(cast_node(v.name, within[v.name], _FLOAT) for v in inputs if v.name in within)
        graph.node.extend(nodes)
        graph.node.extend(cast_node(within[v.name], v.name, kinds[v.name]) for v in outputs if v.name in within)

    def _constant(self, tensor: onnx.TensorProto) -> None:
        """In float32; what is finite stays finite (masks may have the least number that there is)."""
        if tensor.data_type not in self._kinds:
            return
        self.counts[tensor.data_type] += 1
        values = numpy_helper.to_array(tensor)
        finite = np.clip(values, _RANGE.min, _RANGE.max) if values.dtype == np.float64 else values
        single = np.where(np.isfinite(values), finite, values).astype(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(single, tensor.name))

    def _declare(self, values: Iterable[onnx.ValueInfoProto]) -> None:
        for value in values:
            self._declare_type(value.type)

    def _declare_type(self, kind: onnx.TypeProto) -> None:
        if kind.tensor_type.elem_type in self._kinds:
            kind.tensor_type.elem_type = _FLOAT
        for holder in ("sequence_type", "optional_type"):
            if kind.HasField(holder):
                self._declare_type(getattr(kind, holder).elem_type)


def _rename(graph: onnx.GraphProto, names: dict[str, str]) -> None:
    """Tensors of a graph and of the bodies in it, which may read what is around them."""
    for named in (*graph.initializer, *(sparse.values for sparse in graph.sparse_initializer), *graph.value_info):
        named.name = names.get(named.name, named.name)
    for node in graph.node:
        for tensors in (node.input, node.output):
            tensors[:] = [names.get(name, name) for name in tensors]
        for body in subgraphs(node):
            _rename(body, names)


def cast_node(source: str, target: str, kind: int) -> onnx.NodeProto:
    """A Cast that makes a tensor of an element type from another."""
    return helper.make_node("Cast", [source], [target], name=f"{target}/cast", to=kind)
