"""Outputs added to an emitted model, one row per time step, whatever the form of time.

In the unrolled form every step has nodes of its own: a row is written for each and the rows are concatenated. In the
loop form a row is written once, into the body, and the Loop collects it. What writes a row is told the step, which is
None in a loop, and gives a tensor with a leading axis of 1.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import onnx
from onnx import helper

from ftbc_onnx.graph.builder import GraphBuilder
from ftbc_onnx.graph.view import GraphView, names_inside, subgraphs
from ftbc_onnx.graph.weights import add_initializers, skeleton

TIME = "ftbc/time"
"""Name of the Loop over time in the loop form."""

_INSIDE = re.compile(r"(.*)/inside(?:_\d+)?", re.DOTALL)
"""What the copy of a weight is called that stands in the body of a Loop (`GraphBuilder.loop`)."""

Step = int | None
"""A time step from 0, or None: any of them, in a loop."""

Write = Callable[[Step], str]


def at(step: Step) -> str:
    """A step in names of tensors."""
    return "step" if step is None else f"t{step}"


def time_loop(model: onnx.ModelProto) -> onnx.NodeProto | None:
    """The Loop over time, or None in the unrolled form."""
    return next((node for node in model.graph.node if node.name == TIME and node.op_type == "Loop"), None)


def initializers(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    """Initializers of an emitted model by name, those that stand in the body of its Loop under their own names."""
    found = {tensor.name: tensor for tensor in model.graph.initializer}
    loop = time_loop(model)
    for body in [] if loop is None else subgraphs(loop):
        for tensor in body.initializer:
            inside = _INSIDE.fullmatch(tensor.name)
            found[inside[1] if inside else tensor.name] = tensor
    return found


def steps_of(model: onnx.ModelProto, steps: int) -> Sequence[Step]:
    """The steps that have nodes of their own."""
    return range(steps) if time_loop(model) is None else (None,)


def flat(model: onnx.ModelProto) -> onnx.ModelProto:
    """The nodes of a model in one graph: of the loop form, with those of the body, and without large numbers."""
    loop = time_loop(model)
    if loop is None:
        return model
    light = skeleton(model)
    body = _body(loop)
    nodes = [node for node in light.graph.node if node.name != TIME]
    del light.graph.node[:]
    light.graph.node.extend([*nodes, *body.node])
    light.graph.input.extend(body.input)
    light.graph.initializer.extend(body.initializer)
    return light


class _Row(NamedTuple):
    inside: str
    output: str
    kind: int
    once: bool


class Recorder:
    """Adds outputs to a copy of an emitted model."""

    def __init__(self, model: onnx.ModelProto, steps: int) -> None:
        """Look at a model of `steps` time steps."""
        self.model = model
        self.steps = steps_of(model, steps)
        self.view = GraphView(flat(model))
        self.builder = GraphBuilder.on(self.view.model)
        self.builder.avoid(name for node in model.graph.node for name in (*node.output, *names_inside(node)))
        self.loops = time_loop(model) is not None
        self._there = {value.name for value in model.graph.output}
        self._rows: list[_Row] = []
        self._outputs: list[onnx.ValueInfoProto] = []

    def per_step(self, name: str, kind: int, shape: Sequence[int | str | None] | None, write: Write) -> None:
        """An output [T, ...] that holds the row of every step; nothing is done if it is there."""
        self._add(name, kind, shape, write, once=False)

    def once(self, name: str, kind: int, shape: Sequence[int], write: Write) -> None:
        """An output that every step has the same of."""
        self._add(name, kind, shape, write, once=True)

    def result(self) -> onnx.ModelProto:
        """The model with the outputs."""
        if not self.loops:
            return self.builder.extend(self.model, self._outputs)
        copy = onnx.ModelProto()
        copy.CopyFrom(self.model)
        loop = time_loop(copy)
        assert loop is not None
        body = _body(loop)
        body.node.extend(self.builder.take_nodes())
        for row in self._rows:
            body.output.append(helper.make_tensor_value_info(row.inside, row.kind, None))
            loop.output.append(f"{row.output}/rows")
            if row.once:
                first = self.builder.op("Gather", f"{row.output}/rows", self.builder.integers(0), axis=0)
                self.builder.op("Squeeze", first, self.builder.integers(0), out=row.output)
            else:
                self.builder.op("Squeeze", f"{row.output}/rows", self.builder.integers(1), out=row.output)
        copy.graph.node.extend(self.builder.take_nodes())
        add_initializers(copy, self.builder.initializers)
        copy.graph.output.extend(self._outputs)
        return copy

    def _add(self, name: str, kind: int, shape: Sequence[int | str | None] | None, write: Write, once: bool) -> None:
        if name in self._there:
            return
        self._outputs.append(helper.make_tensor_value_info(name, kind, shape))
        if self.loops:
            inside = self.builder.op("Identity", write(None), out=f"{name}/row")
            self._rows.append(_Row(inside, name, kind, once))
        elif once:
            self.builder.alias(write(0), name)
        else:
            self.builder.op("Concat", *[write(step) for step in self.steps], out=name, axis=0)


def _body(loop: onnx.NodeProto) -> onnx.GraphProto:
    return next(attribute.g for attribute in loop.attribute if attribute.name == "body")
