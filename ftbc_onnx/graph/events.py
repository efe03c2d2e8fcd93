"""Counting events in an emitted model: means over samples and neurons, one number per step.

An event is a number other than 0 that a neuron sends in a step: a spike, or with differential coding a q. One of k
units, k = q/lambda, stands for as many binary spikes as |k| has ones in binary, on wires of heights lambda * 2^i:

    popcount(k) = |k| - sum over i >= 1 of floor(|k| / 2^i)

``SITE/events`` [T] and ``SITE/binary_spikes`` [T] are per neuron, ``SITE/neurons`` [1] is the number of neurons.
"""

from __future__ import annotations

import onnx

from ftbc_onnx.graph.builder import GraphBuilder
from ftbc_onnx.graph.emit.unrolled import events_name
from ftbc_onnx.graph.recorder import Recorder, Step, at
from ftbc_onnx.graph.units import is_in_units
from ftbc_onnx.plan import SpikingPlan, SpikingSite


def events_count_name(site: str) -> str:
    """Output that holds the events per neuron of a site at each step, [T]."""
    return f"{site}/events"


def binary_count_name(site: str) -> str:
    """Output that holds the binary spikes per neuron of a site at each step, [T]."""
    return f"{site}/binary_spikes"


def units_name(site: str, step: Step) -> str:
    """Tensor of the binary spikes that each event of a site stands for at a step; missing where each stands for one."""
    return f"{site}/{at(step)}/count/binary"


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
        axis = builder.op("Gather", builder.op("Shape", first), builder.integers(0), axis=0)
        return builder.op("Cast", axis, to=onnx.TensorProto.DOUBLE)


def emit_popcount(builder: GraphBuilder, k: str, most: int) -> str:
    """Ones in the binary form of whole numbers from 0 to `most`, both in float32."""
    ones = k
    for i in range(1, most.bit_length()):
        ones = builder.op("Sub", ones, builder.op("Floor", builder.op("Mul", k, builder.constant(0.5**i))))
    return ones


def count_events(model: onnx.ModelProto, plan: SpikingPlan) -> onnx.ModelProto:
    """A copy of an emitted model that also gives events, binary spikes and neurons of every site."""
    recorder = Recorder(model, plan.steps)
    builder = recorder.builder
    if not plan.sites:
        return model
    batch = emit_batch(builder, model)
    for site in plan.sites:
        counted: dict[Step, str] = {}

        def events(step: Step, site: SpikingSite = site, counted: dict[Step, str] = counted) -> str:
            with builder.scope(f"{site.name}/{at(step)}/count"):
                counted[step] = builder.mean(emit_nonzero(builder, events_name(plan, site, step)), None)
            return counted[step]

        def binary(step: Step, site: SpikingSite = site, counted: dict[Step, str] = counted) -> str:
            with builder.scope(f"{site.name}/{at(step)}/count"):
                unit = builder.constant(1.0) if is_in_units(recorder.view, site) else None
                units = _binary(builder, plan, site, step, unit)
                return counted[step] if units is None else builder.mean(units, None)

        def neurons(step: Step, site: SpikingSite = site) -> str:
            size = builder.op("Cast", builder.op("Size", events_name(plan, site, step)), to=onnx.TensorProto.DOUBLE)
            return builder.reshape(builder.op("Div", size, batch), (1,))

        recorder.per_step(events_count_name(site.name), onnx.TensorProto.FLOAT, [plan.steps], events)
        recorder.per_step(binary_count_name(site.name), onnx.TensorProto.FLOAT, [plan.steps], binary)
        recorder.once(neurons_name(site.name), onnx.TensorProto.DOUBLE, [1], neurons)
    return recorder.result()


def _binary(builder: GraphBuilder, plan: SpikingPlan, site: SpikingSite, step: Step, unit: str | None) -> str | None:
    """Write `units_name`; None if each event stands for one."""
    neuron = plan.neuron_of(site)
    if neuron.levels == 1 or plan.neuron.is_powers:
        return None
    unit = unit or builder.constant(neuron.unit(plan.thresholds[site.name].reshape(site.channel_shape)))
    k = builder.op("Round", builder.op("Div", builder.op("Abs", events_name(plan, site, step)), unit))
    return builder.op("Identity", emit_popcount(builder, k, neuron.levels), out="binary")
