"""Counting synaptic operations (SynOps) in an emitted model.

A node with weights (Conv, ConvTranspose, Gemm, MatMul) that reads a current does one operation for every input element
that is not 0 and every output that this element reaches: y = W x at step t costs

    sum over i of [x_i != 0] * fanout_i,    fanout_i = number of j that have a weight W_ji

1. Conv, ConvTranspose: fanout depends on the position only, and is the same for all channels of all groups, O/G times
   that of one channel. With n the number of nonzeros over the channels of a position, the same node with one channel
   and weights 1 gives what arrives at each output: SynOps = O/G * sum(Conv(n, ones)). Padding, stride and dilation are
   thus the node's own. It costs what one of C * O/G pairs of channels costs.
2. Gemm, MatMul: fanout is the same for all elements, Size(y) * K / Size(x) with K the length of the summed axis.

Weights that are 0 count. Without the indicator, the same sums are the *dense* SynOps: the MACs that the ANN spends in
the same nodes. Not counted, in neither: nodes that read no spikes (once per sample, real numbers), nodes that read
running means, and products of two tensors that both depend on spikes.

With differential coding a node reads s = q + r, but what is sent is q: [x != 0] is then taken of what the linear nodes
between the neurons and this node make of q. Behind another node with weights it is taken of what is read.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx

from ftbc_onnx.graph.builder import GraphBuilder
from ftbc_onnx.graph.classes import NodeClass, classify
from ftbc_onnx.graph.emit.unrolled import events_name, spikes_name
from ftbc_onnx.graph.events import emit_batch, emit_nonzero
from ftbc_onnx.graph.recorder import Recorder, Step, flat, steps_of
from ftbc_onnx.graph.view import GraphView, attributes
from ftbc_onnx.plan import SpikingPlan

SYNOPS = "count/synops"
"""Output that holds the SynOps of each step, per sample, [T] double."""

DENSE = "count/dense_synops"
"""Output that holds the SynOps of a step in which every input is nonzero, per sample, [1] double."""

_COUNTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True)
class Synapses:
    """A node with weights that reads a current.

    Attributes:
        node: the node, as it stands in the emitted model.
        position: which input is the current.
        step: t; None in a loop.
    """

    node: onnx.NodeProto
    position: int
    step: Step


def find_synapses(model: onnx.ModelProto, plan: SpikingPlan) -> list[Synapses]:
    """The nodes of an emitted model that are counted, of every step."""
    view = GraphView(flat(model))
    steps = steps_of(model, plan.steps)
    fired = {spikes_name(site.name, t): place for site in plan.sites for place, t in enumerate(steps)}
    step: dict[str, int] = {}  # temporal tensor -> the last step that it depends on
    temporal, means = set[str](), set[str]()
    found = []
    for node in view.nodes:
        reads = [name for name in node.input if name in step]
        kind = classify(view, node, temporal) if reads else NodeClass.STATIC
        in_means = kind is NodeClass.RATE_EXACT or all(name in means for name in reads)
        if kind is not NodeClass.STATIC:
            place = max(step[name] for name in reads)
            step.update(dict.fromkeys(node.output, place))
            if not in_means and kind is NodeClass.LINEAR and node.op_type in _COUNTED:
                places = [i for i in (0, 1) if node.input[i] in step]
                if len(places) == 1:
                    found.append(Synapses(node, places[0], steps[place]))
        for name in node.output:
            if name in fired:
                step[name] = fired[name]
                means.discard(name)
            elif name in step and (name.endswith("/mean") or (in_means and not name.endswith("/current"))):
                means.add(name)
        temporal.update(name for name in node.output if name in step)
    return found


def count_synops(model: onnx.ModelProto, plan: SpikingPlan) -> onnx.ModelProto:
    """A copy of an emitted model that also gives `SYNOPS` and `DENSE`."""
    counter = _Counter(plan, Recorder(model, plan.steps))
    return counter.result(find_synapses(model, plan))


@dataclass
class _Counter:
    plan: SpikingPlan
    recorder: Recorder
    builder: GraphBuilder = field(init=False)
    view: GraphView = field(init=False)
    events: dict[str, str] = field(init=False)  # what is read -> what was sent
    nonzero: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.builder = self.recorder.builder
        self.view = self.recorder.view
        coded = self.plan.sites if self.plan.neuron.coding == "differential" else ()
        pairs = [(s.name, t, events_name(self.plan, s, t)) for s in coded for t in self.recorder.steps]
        self.events = {spikes_name(name, t): sent for name, t, sent in pairs}

    def result(self, synapses: list[Synapses]) -> onnx.ModelProto:
        """The model with what was counted, summed over nodes, per sample."""
        builder, kind = self.builder, onnx.TensorProto.DOUBLE
        batch = emit_batch(builder, self.recorder.model)
        zero = builder.constant(np.zeros(1))

        def write(step: Step, dense: bool = False) -> str:
            with builder.scope("count"):
                counts = [self._count(s, dense=dense) for s in synapses if s.step == step]
                return builder.op("Div", builder.op("Sum", zero, *counts), batch)

        self.recorder.per_step(SYNOPS, kind, [self.plan.steps], write)
        self.recorder.once(DENSE, kind, [1], lambda step: write(step, dense=True))
        return self.recorder.result()

    def _count(self, synapses: Synapses, dense: bool) -> str:
        """SynOps of a node over the whole batch, [1] double."""
        node = synapses.node
        x = self._sent(node.input[synapses.position])
        if node.op_type in ("Gemm", "MatMul"):
            return self._product(node, node.input[synapses.position], x, dense)
        return self._convolution(node, x, dense)

    def _product(self, node: onnx.NodeProto, read: str, x: str, dense: bool) -> str:
        axis = 0 if attributes(node).get("transA", 0) else -1
        links = self._mul(self._size(node.output[0]), self._length(node.input[0], axis))
        if dense:
            return links
        fanout = self.builder.op("Div", links, self._size(read))
        return self._mul(self._total(self._nonzero(x)), fanout)

    def _convolution(self, node: onnx.NodeProto, x: str, dense: bool) -> str:
        builder = self.builder
        weights = node.input[1]
        kernel = builder.op("Slice", builder.op("Shape", weights), builder.integers(2), builder.integers(2**31 - 1))
        one = builder.constant(np.ones(1, np.float32))
        shape = builder.op("Concat", builder.integers(1, 1), kernel, axis=0)
        ones = builder.op("Expand", one, shape)
        active = self._nonzero(x)
        if dense:
            active = builder.op("Expand", one, builder.op("Shape", active))
        n = builder.op("ReduceSum", active, builder.integers(1), keepdims=1)
        reached = builder.like(node, n, ones, without=("group", "kernel_shape"))
        groups = int(str(attributes(node).get("group", 1)))
        per_channel = self._length(weights, 0 if node.op_type == "Conv" else 1)
        if node.op_type == "Conv":
            per_channel = builder.op("Div", per_channel, builder.constant(np.array([groups], np.float64)))
        return self._mul(self._total(reached), per_channel)

    def _sent(self, read: str) -> str:
        """What was sent where this tensor is read: itself, but for differential coding."""
        if read in self.events:
            return self.events[read]
        node = self.view.producers.get(read)
        if node is None or node.op_type in _COUNTED or read.endswith(("/current", "/mean", "/sum", "/total")):
            return read
        rename = {name: self._sent(name) for name in node.input if name}
        if all(old == new for old, new in rename.items()):
            self.events[read] = read
        else:
            self.events.update(self.builder.copy(node, rename, "/sent"))
        return self.events[read]

    def _nonzero(self, x: str) -> str:
        if x not in self.nonzero:
            self.nonzero[x] = emit_nonzero(self.builder, x)
        return self.nonzero[x]

    def _total(self, x: str) -> str:
        """Sum over everything, [1] double: rows in float32 (whole numbers are exact up to 2^24), then in double."""
        rows = self.builder.op("ReduceSum", self.builder.op("Flatten", x, axis=1), self.builder.integers(1), keepdims=0)
        wide = self.builder.op("Cast", rows, to=onnx.TensorProto.DOUBLE)
        return self.builder.op("ReduceSum", wide, self.builder.integers(0), keepdims=1)

    def _size(self, x: str) -> str:
        return self._double(self.builder.op("Size", x))

    def _length(self, x: str, axis: int) -> str:
        return self._double(self.builder.op("Gather", self.builder.op("Shape", x), self.builder.integers(axis), axis=0))

    def _double(self, x: str) -> str:
        return self.builder.op("Cast", x, to=onnx.TensorProto.DOUBLE)

    def _mul(self, a: str, b: str) -> str:
        return self.builder.op("Mul", a, b)
