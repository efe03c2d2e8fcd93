"""Outputs added to a model so that it can be watched: only small numbers leave the graph.

* `observe_maxima`: the largest activation (absolute, of signed sites) of every channel, ``SITE/maximum`` [C].
* `observe_ann`: the mean activation of every site, ``SITE/mean_activation`` [C].
* `observe_snn`: the mean spikes of every site after each step, ``SITE/mean_spikes`` [T, C].
* `expose_running_means`: the running mean of every output after each step, ``OUTPUT/running_mean`` [T, ...].

Means are taken over everything but the channel axis.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import onnx

from ftbc_onnx.graph.builder import GraphBuilder
from ftbc_onnx.graph.emit.unrolled import Readout, emit_means, spikes_name
from ftbc_onnx.graph.recorder import Recorder, Step, at
from ftbc_onnx.graph.units import height_name, is_in_units
from ftbc_onnx.graph.view import GraphView
from ftbc_onnx.plan import SpikingPlan, SpikingSite


def running_mean_name(output: str) -> str:
    """Output that holds the running mean of `output` after every step, [T, ...]."""
    return f"{output}/running_mean"


def mean_activation_name(site: str) -> str:
    """Output that holds a site's mean activation in the ANN, [C]."""
    return f"{site}/mean_activation"


def mean_spikes_name(site: str) -> str:
    """Output that holds a site's mean spikes after each step, [T, C]."""
    return f"{site}/mean_spikes"


def channel_maximum_name(site: str) -> str:
    """Output that holds the largest activation of every channel of a site in the ANN, [C]."""
    return f"{site}/maximum"


def observe_maxima(model: onnx.ModelProto, sites: Iterable[SpikingSite]) -> onnx.ModelProto:
    """A copy of the ANN that also gives the largest activation of every channel of every site."""
    builder = GraphBuilder.on(model)
    outputs = []
    for site in sites:
        size = builder.op("Abs", site.spikes) if site.signed else site.spikes
        top = builder.reduce("ReduceMax", size, site.mean_axes)
        name = builder.reshape(top, (site.channels,), out=channel_maximum_name(site.name))
        outputs.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [site.channels]))
    return builder.extend(model, outputs)


def observe_ann(model: onnx.ModelProto, sites: Iterable[SpikingSite]) -> onnx.ModelProto:
    """A copy of the ANN that also gives the mean activation of every site."""
    builder = GraphBuilder.on(model)
    outputs = []
    for site in sites:
        mean = builder.mean(site.spikes, site.mean_axes, out=f"{site.name}/mean")
        name = builder.reshape(mean, (site.channels,), out=mean_activation_name(site.name))
        outputs.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [site.channels]))
    return builder.extend(model, outputs)


def expose_tensors(model: onnx.ModelProto, names: Iterable[str]) -> onnx.ModelProto:
    """A copy of the model with more of its float tensors as outputs."""
    present = {value.name for value in model.graph.output}
    values = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, None) for n in names if n not in present]
    return GraphBuilder.on(model).extend(model, values)


def observe_snn(model: onnx.ModelProto, plan: SpikingPlan) -> onnx.ModelProto:
    """A copy of an emitted model that also gives the mean spikes of every site after each step."""
    recorder = Recorder(model, plan.steps)
    builder = recorder.builder
    for site in plan.sites:

        def write(step: Step, site: SpikingSite = site) -> str:
            mean = builder.mean(spikes_name(site.name, step), site.mean_axes, out=f"{site.name}/{at(step)}/mean")
            row = builder.reshape(mean, (1, site.channels))
            return builder.op("Mul", row, height_name(site.name)) if is_in_units(recorder.view, site) else row

        shape = [plan.steps, site.channels]
        recorder.per_step(mean_spikes_name(site.name), onnx.TensorProto.FLOAT, shape, write)
    return recorder.result()


def expose_running_means(model: onnx.ModelProto, readouts: Sequence[Readout]) -> onnx.ModelProto:
    """A copy of an emitted model that also gives the running mean of every output after each step.

    With a delayed readout: what the output would be if the run ended there (before t0 the plain mean).
    """
    steps = len(readouts[0].tensors) if readouts else 0
    recorder = Recorder(model, steps)
    builder, view = recorder.builder, GraphView(model)
    axis = builder.integers(0)
    for readout in readouts:
        kind, shape = view.elem_type(readout.output), view.shape(readout.output)
        means = [] if recorder.loops else emit_means(builder, readout, range(steps), kind)

        def write(step: Step, means: Sequence[str] = means, readout: Readout = readout) -> str:
            return builder.op("Unsqueeze", readout.tensors[0] if step is None else means[step], axis)

        recorder.per_step(running_mean_name(readout.output), kind, None if shape is None else [steps, *shape], write)
    return recorder.result()
