"""The calibration graph: ANN and SNN side by side on shared weights, and the calibration rule as standard operators.

The steps are the turns of one Loop, so the graph does not grow with T. At each site and step, with the membrane
corrected so far: the rule tries firing with biases of its choice, compares
mean spikes with the ANN's mean activation over everything but the channel axis, and gives the new bias; the site then
fires with that bias, so everything downstream and later sees corrected spikes. Old biases are inputs [T, C], new biases
outputs [T, C]; no activation leaves the runtime. Steps come in order of time, and within a step sites in topological
order; a bias depends on biases upstream and before it only, so this gives what going through the sites one by one
gives.

With layer-synchronous firing the sites are gone through one by one, all T steps at once. To the rule a site is then ONE
step of a neuron with T*K levels, threshold T*theta, current x[0] + ... + x[T-1] and mean activation T*mean(a). What it
finds is b[0]; only the sum of the rows of b matters, so the others are 0. ``solve`` makes mean(s) = mean(a) over the T
steps; ``paper`` moves b[0] by what the published step moves all T rows by, -alpha * sum over t of e[t].
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import onnx

from ftbc_onnx.graph.builder import GraphBuilder, LoopBody
from ftbc_onnx.graph.emit.carried import CarriedStep
from ftbc_onnx.graph.emit.step import StepEmitter
from ftbc_onnx.graph.emit.unrolled import Population, emit_populations, split_biases
from ftbc_onnx.graph.observe import mean_spikes_name
from ftbc_onnx.graph.refitted import refitted
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

    def emit_events(self, sink: Sink, held: tuple[str, ...], unit: str, bias: str) -> str:
        """Events with this bias, in units."""
        ...

    def emit_height(self, sink: Sink, unit: str) -> str:
        """What an event of one unit adds to what travels on."""
        ...

    def emit_base(self, sink: Sink, held: tuple[str, ...]) -> str | None:
        """What travels on besides the events."""
        ...


@dataclass(frozen=True)
class Probe:
    """What a rule may use at one site and step. All tensors are per channel, [1, C, 1, 1] say.

    `_held` is what `Neuron.emit_hold` made of the neurons at this step.

    Attributes:
        steps: the number of steps up to this one, t + 1; [].
        activation: mean activation of the ANN over everything but the channel axis.
        sent: sum over the steps before t of the mean spikes.
        threshold: theta.
        bias: the old bias b[t].
        neuron: the site's neuron.
        most: the largest spike that travels on: theta, times the gain if there is one.
    """

    sink: Sink
    steps: str
    activation: str
    sent: str
    threshold: str
    bias: str
    neuron: Firing
    _site: SpikingSite
    _held: tuple[str, ...]
    _unit: str
    most: str = field(init=False)
    _height: str = field(init=False)
    _base: str | None = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "most", self.neuron.emit_height(self.sink, self.threshold))
        object.__setattr__(self, "_height", self.neuron.emit_height(self.sink, self._unit))
        base = self.neuron.emit_base(self.sink, self._held)
        mean = None if base is None else self.sink.mean(base, self._site.mean_axes)
        object.__setattr__(self, "_base", mean)

    def mean_spikes(self, bias: str) -> str:
        """Mean spikes at this step if the bias were `bias`; the membrane is left alone."""
        events = self.neuron.emit_events(self.sink, self._held, self._unit, bias)
        mean = self.sink.op("Mul", self.sink.mean(events, self._site.mean_axes), self._height)
        return mean if self._base is None else self.sink.op("Add", mean, self._base)


class Rule(Protocol):
    """How a gap becomes a bias."""

    name: str

    def emit(self, probe: Probe) -> str:
        """Write the rule for one site and step; returns the name of the new bias."""
        ...


@dataclass(frozen=True)
class Fired:
    """What a site made of a step: its spikes; the new bias and the mean spikes, per channel; their sum so far."""

    spikes: str
    bias: str
    mean: str
    total: str


@dataclass(frozen=True)
class Calibrated:
    """The neurons of one site at one step of a loop, their bias found on the way.

    Attributes:
        name: what its tensors and its state are called.
        activation: mean activation of the ANN, per channel.
        threshold: theta.
        unit: lambda.
        start: the state before the first step.
        old: the old bias of this step.
    """

    step: CarriedStep
    builder: GraphBuilder
    site: SpikingSite
    neuron: Neuron
    rule: Rule
    name: str
    activation: str
    threshold: str
    unit: str
    start: tuple[str, ...]
    old: str

    def fire(self, current: str) -> Fired:
        """One step; the state moves on."""
        state = self.step.carry_state(self.name, self.start)
        sent = self.step.carry(f"{self.name}/sent_mean")
        with self.builder.scope(f"{self.name}/step"):
            held = self.neuron.emit_hold(self.builder, current, state, self.unit)
            probe = Probe(
                self.builder,
                self.step.steps(onnx.TensorProto.FLOAT),
                self.activation,
                sent,
                self.threshold,
                self.old,
                self.neuron,
                self.site,
                held,
                self.unit,
            )
            bias = self.rule.emit(probe)
            spikes, after = self.neuron.emit_step(self.builder, current, state, self.unit, bias)
            mean = self.builder.mean(spikes, self.site.mean_axes, out="mean_spikes")
            total = self.builder.op("Add", sent, mean, out="sent_mean")
        self.step.pass_on((*state, sent), (*after, total))
        return Fired(spikes, bias, mean, total)


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
            one, zero = builder.constant(1.0), builder.constant(0.0)
            bias = self.rule.emit(
                Probe(builder, one, activation, zero, threshold, old, layer, site, (drive,), start.unit)
            )
            none = builder.constant(np.zeros(site.channel_shape, np.float32))
            self.new[site.name] += [bias, *[none] * (self.plan.steps - 1)]
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

    Inputs: the ANN's own, and ``SITE/bias_in`` [T, C] per site. Outputs: ``SITE/bias_out`` [T, C] per site, and of an
    asynchronous plan the mean spikes with these biases, ``SITE/mean_spikes`` [T, C].
    """
    builder = GraphBuilder(network.view.opset)
    builder.reserve(value.name for value in network.view.inputs)
    tables = {site.name: _table(old_bias_name(site.name), plan.steps, site) for site in plan.sites}
    builder.reserve(value.name for value in tables.values())
    emit = _emit_layers if plan.synchronous else _emit_loop
    outputs = emit(builder, network, plan, rule)
    inputs = [*network.view.inputs, *tables.values()]
    return builder.to_model("calibration", inputs, outputs, network.view.model.opset_import)


def _emit_loop(builder: GraphBuilder, network: Network, plan: SpikingPlan, rule: Rule) -> list[onnx.ValueInfoProto]:
    """Asynchronous firing: one turn of a Loop is one step of all sites. Returns the outputs."""
    network, plan = emit_ann(builder, network, plan)
    populations = emit_populations(builder, plan)
    means = {site.name: builder.mean(site.spikes, site.mean_axes, out=f"{site.name}/activation") for site in plan.sites}
    rows = {site.name: (plan.steps, *site.channel_shape[1:]) for site in plan.sites}
    old = {name: builder.reshape(old_bias_name(name), shape, out=f"{name}/b_old") for name, shape in rows.items()}
    made: dict[str, Fired] = {}

    def write(body: LoopBody) -> None:
        step = CarriedStep(builder, network, body)

        def fire(site: SpikingSite, _t: int, current: str) -> str:
            start = populations[site.name]
            calibrated = Calibrated(
                step,
                builder,
                site,
                plan.neuron_of(site),
                rule,
                site.name,
                means[site.name],
                start.threshold,
                start.unit,
                start.state,
                step.row(old[site.name]),
            )
            fired = calibrated.fire(current)
            made[site.name] = fired
            body.collect(fired.bias)
            body.collect(fired.mean)
            return fired.spikes

        step.step(0, fire)

    _, collected = builder.loop(plan.steps, write)
    outputs = []
    for site in plan.sites:
        fired, shape = made[site.name], (plan.steps, site.channels)
        for inside, name in ((fired.bias, new_bias_name(site.name)), (fired.mean, mean_spikes_name(site.name))):
            builder.alias(builder.reshape(collected[inside], shape), name)
            outputs.append(_table(name, plan.steps, site))
    return outputs


def _emit_layers(builder: GraphBuilder, network: Network, plan: SpikingPlan, rule: Rule) -> list[onnx.ValueInfoProto]:
    """Layer-synchronous firing: site after site, all steps of each. Returns the outputs."""
    network, plan = emit_ann(builder, network, plan)
    populations = emit_populations(builder, plan)
    old = {
        site.name: split_biases(builder, site, old_bias_name(site.name), plan.steps, label="b_old")
        for site in plan.sites
    }
    new: dict[str, list[str]] = {site.name: [] for site in plan.sites}
    emitter = StepEmitter(builder, network)
    emitter.all_steps(plan.steps, Layers(builder, plan, rule, populations, old, new).fire)
    return [_collect(builder, site, new[site.name], plan.steps) for site in plan.sites]


def emit_ann(builder: GraphBuilder, network: Network, plan: SpikingPlan) -> tuple[Network, SpikingPlan]:
    """The ANN as it is, for what runs beside it; returns the network and the plan of what does."""
    emitter = StepEmitter(builder, network)
    emitter.keep_static()
    emitter.keep_ann()
    beside, plan = refitted(network, plan)
    for name, tensor in beside.view.initializers.items():
        if name not in network.view.initializers:
            builder.keep_initializer(tensor)
    return beside, plan


def _collect(builder: GraphBuilder, site: SpikingSite, rows: list[str], steps: int) -> onnx.ValueInfoProto:
    """Stack the new biases of a site to [T, C]."""
    flat = [builder.reshape(row, (1, site.channels), out=f"{row}/row") for row in rows]
    name = builder.op("Concat", *flat, out=new_bias_name(site.name), axis=0)
    return _table(name, steps, site)


def _table(name: str, steps: int, site: SpikingSite) -> onnx.ValueInfoProto:
    kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(np.float32))
    return onnx.helper.make_tensor_value_info(name, kind, [steps, site.channels])
