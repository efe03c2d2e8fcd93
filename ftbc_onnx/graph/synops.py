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
the same nodes. Which nodes, and what they read, is found by `ftbc_onnx.graph.layers`:

* SynOps are those of layers that read spikes or currents. Of those that read currents, real numbers, each is a
  multiplication (`ANALOG`).
* The MACs of layers that read inputs (`ONCE`) and of those that read means (`EVERY_STEP`) are dense, and not in SynOps.

`BINARY` are the SynOps in binary spikes: for an input that is not 0, as many as binary spikes arrive there
(`ftbc_onnx.graph.arrivals`); of layers that read currents, the same as before.

With differential coding a node reads s = q + r, but what is sent is q: [x != 0] is then taken of what the linear nodes
between the neurons and this node make of q. Behind another node with weights it is taken of what is read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import onnx

from ftbc_onnx.graph.arrivals import Arrivals
from ftbc_onnx.graph.builder import GraphBuilder
from ftbc_onnx.graph.classes import WEIGHTED
from ftbc_onnx.graph.emit.unrolled import events_name, spikes_name
from ftbc_onnx.graph.events import Events, emit_batch, emit_length, emit_nonzero
from ftbc_onnx.graph.layers import Layer, Layers, Reads, find_layers
from ftbc_onnx.graph.recorder import Recorder, Step
from ftbc_onnx.graph.tally import Tallies, Tally
from ftbc_onnx.graph.view import GraphView, attributes
from ftbc_onnx.plan import SpikingPlan, SpikingSite

SYNOPS = "count/synops"
"""Output that holds the SynOps of each step, per sample, [T] double."""

BINARY = "count/binary_synops"
"""Output that holds the SynOps of each step in binary spikes, per sample, [T] double."""

ANALOG = "count/analog_synops"
"""Output that holds the SynOps of each step whose input is a real number, per sample, [T] double."""

DENSE = "count/dense_synops"
"""Output that holds the SynOps of a step in which every input is nonzero, per sample, [1] double."""

ONCE = "count/macs_once"
"""Output that holds the MACs that are done once, per sample, [1] double."""

EVERY_STEP = "count/macs_every_step"
"""Output that holds the MACs of the layers that read means, in each step, per sample, [1] double."""

_SYNAPTIC = (Reads.SPIKES, Reads.CURRENTS)

Count = Callable[[Layer], str]


def count_synops(recorder: Recorder, plan: SpikingPlan, events: Events, tallies: Tallies) -> None:
    """Add the outputs named above to what is recorded."""
    _Counter(plan, recorder, events, tallies, find_layers(recorder.model, plan)).write()


@dataclass
class _Counter:
    plan: SpikingPlan
    recorder: Recorder
    sent: Events
    tallies: Tallies
    layers: Layers
    builder: GraphBuilder = field(init=False)
    view: GraphView = field(init=False)
    arrivals: Arrivals = field(init=False)
    events: dict[str, str] = field(init=False)  # what is read -> what was sent
    places: dict[str, tuple[SpikingSite, Step]] = field(init=False)  # events -> whose and when
    nonzero: dict[str, Tally] = field(default_factory=dict)
    counted: dict[tuple[str, Tally | None], str] = field(default_factory=dict)  # (output of a layer, n) -> its SynOps
    kernels: dict[str, str] = field(default_factory=dict)  # weights -> weights 1 from one channel to one
    lengths: dict[tuple[str, int], str] = field(default_factory=dict)  # (tensor, axis) -> how long it is

    def __post_init__(self) -> None:
        self.builder = self.recorder.builder
        self.view = self.recorder.view
        pairs = [(site, t) for site in self.plan.sites for t in self.recorder.steps]
        coded = pairs if self.plan.neuron.coding == "differential" else ()
        self.events = {spikes_name(site.name, t): events_name(self.plan, site, t) for site, t in coded}
        self.places = {events_name(self.plan, site, t): (site, t) for site, t in pairs}
        fired = {spikes_name(s.name, t): partial(self.sent.binary, s, t) for s, t in pairs}
        self.arrivals = Arrivals(self.tallies, self.view, self.layers.spiking, fired, self._otherwise)

    def write(self) -> None:
        """What was counted, summed over layers, per sample."""
        builder, kind = self.builder, onnx.TensorProto.DOUBLE
        batch = emit_batch(builder, self.recorder.model)
        zero = builder.constant(np.zeros(1))

        def write(step: Step, count: Count, *kinds: Reads) -> str:
            with builder.scope("count"):
                counts = [count(layer) for layer in self.layers.reading(*kinds) if layer.step == step]
                return builder.op("Div", builder.op("Sum", zero, *counts), batch)

        steps = [self.plan.steps]
        self.recorder.per_step(SYNOPS, kind, steps, lambda t: write(t, self._events, *_SYNAPTIC))
        self.recorder.per_step(BINARY, kind, steps, lambda t: write(t, self._binary, *_SYNAPTIC))
        self.recorder.per_step(ANALOG, kind, steps, lambda t: write(t, self._events, Reads.CURRENTS))
        self.recorder.once(DENSE, kind, [1], lambda t: write(t, self._dense, *_SYNAPTIC))
        self.recorder.once(ONCE, kind, [1], lambda t: write(t, self._dense, Reads.INPUTS))
        self.recorder.once(EVERY_STEP, kind, [1], lambda t: write(t, self._dense, Reads.MEANS))

    def _events(self, layer: Layer) -> str:
        """SynOps of a layer over the whole batch, [1] double."""
        return self._count(layer, self._nonzero(self._sent(layer.node.input[layer.position])))

    def _binary(self, layer: Layer) -> str:
        """The same in binary spikes."""
        if layer.reads is Reads.CURRENTS:
            return self._events(layer)
        return self._count(layer, self.arrivals.tally(layer.node.input[layer.position]))

    def _dense(self, layer: Layer) -> str:
        """The same if no input is 0."""
        return self._count(layer, None)

    def _count(self, layer: Layer, n: Tally | None) -> str:
        """Sum of n * fanout over the inputs of a layer; 1 for n if there is none."""
        key = (layer.node.output[0], n)
        if key not in self.counted:
            product = layer.node.op_type in ("Gemm", "MatMul")
            self.counted[key] = (self._product if product else self._convolution)(layer, n)
        return self.counted[key]

    def _product(self, layer: Layer, n: Tally | None) -> str:
        node = layer.node
        axis = 0 if attributes(node).get("transA", 0) else -1
        links = self._mul(self._size(node.output[0]), self._length(node.input[0], axis))
        if n is None:
            return links
        fanout = self.builder.op("Div", links, self._size(node.input[layer.position]))
        return self._mul(self.tallies.total(n), fanout)

    def _convolution(self, layer: Layer, n: Tally | None) -> str:
        builder, node = self.builder, layer.node
        weights = node.input[1]
        if n is None:
            n = Tally.of(builder.op("Expand", self._one, builder.op("Shape", node.input[0])))
        ones = self._kernel(weights)
        reached = builder.like(node, self.tallies.over_channels(n), ones, without=("group", "kernel_shape"))
        groups = int(str(attributes(node).get("group", 1)))
        per_channel = self._length(weights, 0 if node.op_type == "Conv" else 1)
        if node.op_type == "Conv":
            per_channel = builder.op("Div", per_channel, builder.constant(np.array([groups], np.float64)))
        return self._mul(self.tallies.total(Tally.of(reached)), per_channel)

    @property
    def _one(self) -> str:
        return self.builder.constant(np.ones(1, np.float32))

    def _kernel(self, weights: str) -> str:
        if weights not in self.kernels:
            builder = self.builder
            kernel = builder.op("Slice", builder.op("Shape", weights), builder.integers(2), builder.integers(2**31 - 1))
            shape = builder.op("Concat", builder.integers(1, 1), kernel, axis=0)
            self.kernels[weights] = builder.op("Expand", self._one, shape)
        return self.kernels[weights]

    def _sent(self, read: str) -> str:
        """What was sent where this tensor is read: itself, but for differential coding."""
        if read in self.events:
            return self.events[read]
        node = self.view.producers.get(read)
        if node is None or node.op_type in WEIGHTED or read.endswith(("/current", "/mean", "/sum", "/total")):
            return read
        rename = {name: self._sent(name) for name in node.input if name}
        if all(old == new for old, new in rename.items()):
            self.events[read] = read
        else:
            self.events.update(self.builder.copy(node, rename, "/sent"))
        return self.events[read]

    def _otherwise(self, x: str) -> str:
        """1 where what was sent at a tensor is not 0."""
        return self.tallies.written(self._nonzero(self._sent(x)))

    def _nonzero(self, x: str) -> Tally:
        """1 where a tensor is not 0."""
        if x in self.places:
            return self.sent.sent(*self.places[x])
        if x not in self.nonzero:
            self.nonzero[x] = Tally.of(emit_nonzero(self.builder, x))
        return self.nonzero[x]

    def _size(self, x: str) -> str:
        return self._double(self.builder.op("Size", x))

    def _length(self, x: str, axis: int) -> str:
        if (x, axis) not in self.lengths:
            self.lengths[x, axis] = emit_length(self.builder, x, axis, onnx.TensorProto.DOUBLE)
        return self.lengths[x, axis]

    def _double(self, x: str) -> str:
        return self.builder.op("Cast", x, to=onnx.TensorProto.DOUBLE)

    def _mul(self, a: str, b: str) -> str:
        return self.builder.op("Mul", a, b)
