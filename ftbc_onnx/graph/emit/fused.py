"""The fused form: one copy per step, with thresholds and biases in the layers (`ftbc_onnx.graph.fuse`).

It computes what the unrolled form computes, but for rounding, with fewer passes over the tensors of a site. Thresholds
and biases stay initializers of their usual names and units; what the layers read is made of them by nodes that depend
on nothing else, which a runtime computes once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from ftbc_onnx.config import FUSE
from ftbc_onnx.graph.builder import GraphBuilder
from ftbc_onnx.graph.emit.step import StepEmitter
from ftbc_onnx.graph.emit.unrolled import (
    Emitted,
    Membranes,
    check_convertible,
    emit_biases,
    emit_populations,
    split_biases,
    write_steps,
)
from ftbc_onnx.graph.fuse import Fused, fuse
from ftbc_onnx.graph.sites import Network
from ftbc_onnx.graph.units import divisor_name, first_membrane
from ftbc_onnx.plan import SpikingPlan, SpikingSite


def emit_fused(network: Network, plan: SpikingPlan, passes: Iterable[str] = FUSE) -> Emitted:
    """The spiking network of a plan with its numbers in the layers.

    Args:
        network: the normalised ANN that the plan was made for.
        plan: sites, thresholds [C] and biases [T, C].
        passes: of `ftbc_onnx.config.FUSE`.

    Raises:
        ModelError: the network has refusals, or tensors named as the emitted ones are, or no such readout.
    """
    check_convertible(network, plan.readout)
    fused = fuse(network, plan, passes)
    builder = GraphBuilder(network.view.opset)
    builder.reserve(value.name for value in network.view.inputs)
    emitter = _Fusing(builder, fused.network)
    emitter.keep_static()
    builder.skip(builder.constant(1.0), "Mul", "Div")
    builder.skip(builder.constant(0.0), "Add")
    membranes = emitter.membranes = _membranes(builder, emitter, plan, fused)
    emitted = write_steps(builder, fused.network, emitter, membranes)
    return replace(emitted, form="fused", twin=fused)


class _Fusing(StepEmitter):
    """Writes steps in which the entries of the network take biases and membranes in."""

    membranes: Membranes

    def enter(self, entry: str, rows: Sequence[str]) -> None:
        """Say what an entry of a bias is at every step."""
        self._currents.update({(entry, t): name for t, name in enumerate(rows)})

    def current(self, tensor: str, t: int) -> str:
        """Name of the value of `tensor` at step t; of an entry of a membrane, which is taken from its site, the sum."""
        entry = self._network.entries.get(tensor)
        if entry is not None and entry.kind == "membrane" and (tensor, t) not in self._currents:
            states, site = self.membranes.states, entry.site.name
            (membrane,), states[site] = states[site], (self._builder.constant(0.0),)
            source = super().current(entry.source, t)
            with self._builder.scope(f"{site}/t{t}"):
                self._currents[tensor, t] = self._builder.op("Add", source, membrane, out="with_membrane")
        return super().current(tensor, t)


@dataclass
class _Membranes(Membranes):
    """Membranes of the fused plan, and the plan that it was made of."""

    before: SpikingPlan

    def fire(self, site: SpikingSite, t: int, current: str) -> str:
        """As ever; where the plan has gains, which are in the weights now, the spikes are the events."""
        spikes = super().fire(site, t, current)
        if self.before.neuron_of(site).events != self.plan.neuron_of(site).events:
            with self.builder.scope(f"{site.name}/t{t}"):
                self.builder.op("Identity", spikes, out="events")
        return spikes


def _membranes(builder: GraphBuilder, emitter: _Fusing, plan: SpikingPlan, fused: Fused) -> Membranes:
    """Every site's neurons before the first step; biases go to the neurons or, step by step, into a layer."""
    populations = emit_populations(builder, fused.plan, fused.in_units)
    entries = fused.network.entering("bias")
    biases = {}
    for site in plan.sites:
        table = emit_biases(builder, plan, site)
        if site.name in fused.in_units:
            table = builder.op("Div", table, divisor_name(site.name), out=f"{site.name}/bias/in_units")
        if site.name not in entries:
            biases[site.name] = split_biases(builder, site, table, plan.steps)
            continue
        if site.name in fused.plan.reversed:
            table = builder.op("Add", table, builder.constant(first_membrane(plan.steps)))
        entry = entries[site.name]
        constant = fused.network.entries[entry].source
        rows = builder.reshape(builder.op("Add", table, constant), (plan.steps * site.channels,))
        emitter.enter(entry, builder.split(rows, plan.steps, [f"{site.name}/b/t{t}" for t in range(plan.steps)]))
        biases[site.name] = [builder.constant(0.0)] * plan.steps
    units = {name: population.unit for name, population in populations.items()}
    states = {name: population.state for name, population in populations.items()}
    return _Membranes(builder, fused.plan, units, biases, states, plan)
