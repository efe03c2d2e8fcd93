"""The calibration graph: ANN and SNN side by side on shared weights, and the calibration rule as standard operators.

At each site and step, with the membrane corrected so far: the rule tries firing with biases of its choice, compares
mean spikes with the ANN's mean activation over everything but the channel axis, and gives the new bias; the site then
fires with that bias, so everything downstream and later sees corrected spikes. Old biases are inputs [T, C], new biases
outputs [T, C]; no activation leaves the runtime. Steps are written in order of time, and within a step in
topological order; a bias depends on biases upstream and before it only, so this gives what going through the sites
one by one gives.

With layer-synchronous firing the sites are gone through one by one, all T steps at once. To the rule a site is then ONE
step of a neuron with T*K levels, threshold T*theta, current x[0] + ... + x[T-1] and mean activation T*mean(a). What it
finds is b[0]; only the sum of the rows of b matters, so the others are 0. ``solve`` makes mean(s) = mean(a) over the T
steps; ``paper`` moves b[0] by what the published step moves all T rows by, -alpha * sum over t of e[t].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import onnx

from ftbc_onnx.graph.builder import GraphBuilder
from ftbc_onnx.graph.emit.step import StepEmitter
from ftbc_onnx.graph.emit.unrolled import Population, emit_populations, split_biases
from ftbc_onnx.graph.sites import Network
from ftbc_onnx.neurons import Neuron
from ftbc_onnx.plan import SpikingPlan, SpikingSite
from ftbc_onnx.sink import Sink


class Firing(Protocol):
    """What a rule needs of a neuron."""

    @property
    def lowest(self) -> float:
        """The lowest spike, in units of the probe's threshold."""
        ...

    def emit_fire(self, sink: Sink, drive: str, state: tuple[str, ...], unit: str, bias: str) -> str:
        """Spikes that the drive gives with this bias."""
        ...


@dataclass(frozen=True)
class Probe:
    """What a rule may use at one site and step. All tensors are per channel, [1, C, 1, 1] say.

    Attributes:
        t: the step, from 0.
        activation: mean activation of the ANN over everything but the channel axis.
        sent: sum over the steps before t of the mean spikes; None at t = 0.
        threshold: theta.
        bias: the old bias b[t].
        neuron: the site's neuron.
    """

    sink: Sink
    t: int
    activation: str
    sent: str | None
    threshold: str
    bias: str
    neuron: Firing
    _site: SpikingSite
    _drive: str
    _state: tuple[str, ...]
    _unit: str

    def mean_spikes(self, bias: str) -> str:
        """Mean spikes at this step if the bias were `bias`; the membrane is left alone."""
        spikes = self.neuron.emit_fire(self.sink, self._drive, self._state, self._unit, bias)
        return self.sink.mean(spikes, self._site.mean_axes)


class Rule(Protocol):
    """How a gap becomes a bias."""

    name: str

    def emit(self, probe: Probe) -> str:
        """Write the rule for one site and step; returns the name of the new bias."""
        ...


@dataclass
class Calibrated:
    """The neurons of one site on their way through the steps, their biases found as they go."""

    builder: GraphBuilder
    site: SpikingSite
    neuron: Neuron
    rule: Rule
    activation: str
    threshold: str
    unit: str
    state: tuple[str, ...]
    old: list[str]
    sent: str | None = None

    def fire(self, t: int, current: str) -> tuple[str, str]:
        """Step t: (spikes, the new bias)."""
        drive = self.neuron.emit_drive(self.builder, current, self.state)
        probe = Probe(
            self.builder,
            t,
            self.activation,
            self.sent,
            self.threshold,
            self.old[t],
            self.neuron,
            self.site,
            drive,
            self.state,
            self.unit,
        )
        bias = self.rule.emit(probe)
        spikes, self.state = self.neuron.emit_step(self.builder, current, self.state, self.unit, bias)
        mean = self.builder.mean(spikes, self.site.mean_axes, out="mean_spikes")
        self.sent = mean if self.sent is None else self.builder.op("Add", self.sent, mean, out="sent_mean")
        return spikes, bias


@dataclass
class Layers:
    """The sites of a synchronous plan, and how each fires on all T steps of its current with the bias found there."""

    builder: GraphBuilder
    plan: SpikingPlan
    rule: Rule
    populations: dict[str, Population]
    old: dict[str, list[str]]
    new: dict[str, list[str]]

    def fire(self, site: SpikingSite, currents: list[str]) -> list[str]:
        """Spikes of every step; the new biases go to `new`."""
        builder, start, layer = self.builder, self.populations[site.name], self.plan.layer_of(site)
        steps = builder.constant(float(self.plan.steps))
        with builder.scope(site.name):
            activation = builder.op("Mul", builder.mean(site.spikes, site.mean_axes), steps, out="activation")
            threshold = builder.op("Mul", start.threshold, steps, out="total_threshold")
            old = layer.emit_total(builder, self.old[site.name], "bias_total")
            drive = layer.emit_total(builder, currents)
            bias = self.rule.emit(
                Probe(builder, 0, activation, None, threshold, old, layer, site, drive, start.state, start.unit)
            )
            zero = builder.constant(np.zeros(site.channel_shape, np.float32))
            self.new[site.name] += [bias, *[zero] * (self.plan.steps - 1)]
            count = layer.emit_count(builder, builder.op("Add", drive, bias), start.unit)
            return layer.emit_spread(builder, count, start.unit)


def old_bias_name(site: str) -> str:
    """Input of the calibration graph: the biases before the batch, [T, C]."""
    return f"{site}/bias_in"


def new_bias_name(site: str) -> str:
    """Output of the calibration graph: the biases after the batch, [T, C]."""
    return f"{site}/bias_out"


def emit_calibration(network: Network, plan: SpikingPlan, rule: Rule) -> onnx.ModelProto:
    """The calibration graph of a plan (its biases are not used: they are inputs).

    Inputs: the ANN's own, and ``SITE/bias_in`` [T, C] per site. Outputs: ``SITE/bias_out`` [T, C] per site.
    """
    builder = GraphBuilder(network.view.opset)
    builder.reserve(value.name for value in network.view.inputs)
    populations = emit_populations(builder, plan)
    inputs = list(network.view.inputs)
    old: dict[str, list[str]] = {}
    for site in plan.sites:
        name = old_bias_name(site.name)
        builder.reserve([name])
        inputs.append(_table(name, plan.steps, site))
        old[site.name] = split_biases(builder, site, name, plan.steps, label="b_old")
    new: dict[str, list[str]] = {site.name: [] for site in plan.sites}
    running: dict[str, Calibrated] = {}

    def fire(site: SpikingSite, t: int, current: str) -> str:
        if site.name not in running:
            activation = builder.mean(site.spikes, site.mean_axes, out=f"{site.name}/activation")
            start = populations[site.name]
            running[site.name] = Calibrated(
                builder,
                site,
                plan.neuron_of(site),
                rule,
                activation,
                start.threshold,
                start.unit,
                start.state,
                old[site.name],
            )
        with builder.scope(f"{site.name}/t{t}"):
            spikes, bias = running[site.name].fire(t, current)
        new[site.name].append(bias)
        return spikes

    emitter = StepEmitter(builder, network)
    emitter.keep_static()
    emitter.keep_ann()
    if plan.synchronous:
        emitter.all_steps(plan.steps, Layers(builder, plan, rule, populations, old, new).fire)
    else:
        for t in range(plan.steps):
            emitter.step(t, fire)
    outputs = [_collect(builder, site, new[site.name], plan.steps) for site in plan.sites]
    return builder.to_model("calibration", inputs, outputs, network.view.model.opset_import)


def _collect(builder: GraphBuilder, site: SpikingSite, rows: list[str], steps: int) -> onnx.ValueInfoProto:
    """Stack the new biases of a site to [T, C]."""
    flat = [builder.reshape(row, (1, site.channels), out=f"{row}/row") for row in rows]
    name = builder.op("Concat", *flat, out=new_bias_name(site.name), axis=0)
    return _table(name, steps, site)


def _table(name: str, steps: int, site: SpikingSite) -> onnx.ValueInfoProto:
    kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(np.float32))
    return onnx.helper.make_tensor_value_info(name, kind, [steps, site.channels])
