"""Counting events in an emitted model: means over samples and neurons, one number per step.

An event is a number other than 0 that a neuron sends in a step: a spike, or with differential coding a q. One of k
units, k = q/lambda, stands for as many binary spikes as |k| has ones in binary, on wires of heights lambda * 2^i.

``SITE/events`` [T] and ``SITE/binary_spikes`` [T] are per neuron, ``SITE/neurons`` [1] is the number of neurons.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import onnx

from ftbc_onnx.graph.builder import GraphBuilder
from ftbc_onnx.graph.emit.unrolled import events_name
from ftbc_onnx.graph.recorder import Recorder, Step, at
from ftbc_onnx.graph.tally import Tallies, Tally
from ftbc_onnx.graph.units import is_in_units
from ftbc_onnx.plan import SpikingPlan, SpikingSite


def events_count_name(site: str) -> str:
    """Output that holds the events per neuron of a site at each step, [T]."""
    return f"{site}/events"


def binary_count_name(site: str) -> str:
    """Output that holds the binary spikes per neuron of a site at each step, [T]."""
    return f"{site}/binary_spikes"


def neurons_name(site: str) -> str:
    """Output that holds the number of neurons of a site, [1] double."""
    return f"{site}/neurons"


def emit_nonzero(builder: GraphBuilder, x: str) -> str:
    """1.0 where a tensor is not 0, else 0.0."""
    fires = builder.op("Cast", x, to=onnx.TensorProto.BOOL)
    return builder.op("Cast", fires, to=onnx.TensorProto.FLOAT)


def emit_batch(builder: GraphBuilder, model: onnx.ModelProto) -> str:
    """The number of samples in a run, double: the first axis of the first input."""
    given = {tensor.name for tensor in model.graph.initializer}
    first = next(value.name for value in model.graph.input if value.name not in given)
    with builder.scope("count"):
        return emit_length(builder, first, 0, onnx.TensorProto.DOUBLE)


def emit_length(builder: GraphBuilder, x: str, axis: int, kind: int) -> str:
    """How long an axis of a tensor is, [1]."""
    return builder.op("Cast", builder.op("Gather", builder.op("Shape", x), builder.integers(axis)), to=kind)


class Events:
    """What neurons send, per neuron, site and step; written when it is first asked for."""

    def __init__(self, recorder: Recorder, plan: SpikingPlan, tallies: Tallies) -> None:
        self.plan = plan
        self._tallies = tallies
        self._builder = recorder.builder
        self._view = recorder.view
        self._sizes: dict[tuple[str, Step], str] = {}
        self._found: dict[tuple[str, str, Step], Tally] = {}

    def sent(self, site: SpikingSite, step: Step) -> Tally:
        """1 for an event."""
        return self._once("sent", site, step, self._sent)

    def binary(self, site: SpikingSite, step: Step) -> Tally:
        """The binary spikes that an event stands for."""
        return self._once("binary", site, step, self._binary)

    def _once(self, what: str, site: SpikingSite, step: Step, write: Callable[[SpikingSite, Step], Tally]) -> Tally:
        key = what, site.name, step
        if key not in self._found:
            with self._builder.scope(f"{site.name}/{at(step)}/count"):
                self._found[key] = write(site, step)
        return self._found[key]

    def _sent(self, site: SpikingSite, step: Step) -> Tally:
        levels = self._levels(site)
        if self.plan.neuron.is_powers or (levels == 1 and not is_in_units(self._view, site)):
            return Tally.of(emit_nonzero(self._builder, events_name(self.plan, site, step)))
        k = self._units(site, step)
        return Tally.of(k if levels == 1 else self._tallies.reached(k, 1))

    def _binary(self, site: SpikingSite, step: Step) -> Tally:
        levels = self._levels(site)
        if levels == 1 or self.plan.neuron.is_powers:
            return self.sent(site, step)
        return self._tallies.popcount(self._units(site, step), levels)

    def _levels(self, site: SpikingSite) -> int:
        return self.plan.neuron_of(site).levels

    def _units(self, site: SpikingSite, step: Step) -> str:
        """|k|, whole numbers."""
        key = site.name, step
        if key not in self._sizes:
            self._sizes[key] = self._write_units(site, step)
        return self._sizes[key]

    def _write_units(self, site: SpikingSite, step: Step) -> str:
        builder, neuron = self._builder, self.plan.neuron_of(site)
        sent = events_name(self.plan, site, step)
        size = sent if neuron.lowest == 0 else builder.op("Abs", sent)
        if is_in_units(self._view, site):
            return size
        unit = builder.constant(neuron.unit(self.plan.thresholds[site.name].reshape(site.channel_shape)))
        return builder.op("Round", builder.op("Div", size, unit))


def count_events(recorder: Recorder, plan: SpikingPlan, events: Events, tallies: Tallies) -> None:
    """Add events, binary spikes and neurons of every site to what is recorded."""
    builder = recorder.builder
    if not plan.sites:
        return
    batch = emit_batch(builder, recorder.model)
    channels: dict[str, str] = {}
    kind, steps = onnx.TensorProto.FLOAT, [plan.steps]
    for site in plan.sites:

        def mean(step: Step, count: Callable[[SpikingSite, Step], Tally], site: SpikingSite = site) -> str:
            """Of a tally; over channels first where a layer may ask for that sum, too."""
            tally = count(site, step)
            if (site.rank or 0) < 3:
                return tallies.mean(tally)
            if site.name not in channels:
                channels[site.name] = emit_length(builder, events_name(plan, site, step), 1, kind)
            return builder.op("Div", tallies.mean(Tally.of(tallies.over_channels(tally))), channels[site.name])

        def neurons(step: Step, site: SpikingSite = site) -> str:
            size = builder.op("Cast", builder.op("Size", events_name(plan, site, step)), to=onnx.TensorProto.DOUBLE)
            return builder.reshape(builder.op("Div", size, batch), (1,))

        recorder.per_step(events_count_name(site.name), kind, steps, partial(mean, count=events.sent))
        recorder.per_step(binary_count_name(site.name), kind, steps, partial(mean, count=events.binary))
        recorder.once(neurons_name(site.name), onnx.TensorProto.DOUBLE, [1], neurons)
