"""The unrolled form: one copy of every temporal node per step, weights shared by name.

What does not depend on t (everything before the first site, for a start) is computed once. The thresholds of a site are
an initializer of shape [C], its temporal biases one of shape [T, C]; the output is the mean over t, under the ANN's
own name. `ftbc_onnx.graph.observe` adds the running mean after every step.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx

from ftbc_onnx.errors import ModelError
from ftbc_onnx.graph.builder import GraphBuilder
from ftbc_onnx.graph.emit.step import StepEmitter
from ftbc_onnx.graph.sites import Network
from ftbc_onnx.neurons import get_neuron
from ftbc_onnx.plan import SpikingPlan, SpikingSite


def bias_name(site: str) -> str:
    """Initializer of a site's temporal biases, [T, C]."""
    return f"{site}/bias"


def threshold_name(site: str) -> str:
    """Initializer of a site's thresholds, [C]."""
    return f"{site}/threshold"


def spikes_name(site: str, t: int) -> str:
    """Tensor of a site's spikes at step t (from 0)."""
    return f"{site}/t{t}/spikes"


@dataclass(frozen=True)
class Readout:
    """Where the running mean of an output is found in the emitted graph.

    Attributes:
        output: name of the output.
        is_mean: whether `tensors` are running means; else they are sums, to be divided by t + 1.
        tensors: one per step.
    """

    output: str
    is_mean: bool
    tensors: tuple[str, ...]


@dataclass(frozen=True)
class Emitted:
    """An emitted model, and where its outputs can be read after every step."""

    model: onnx.ModelProto
    readouts: tuple[Readout, ...]


@dataclass
class Membranes:
    """The state of every site's neurons, and how a site fires in the unrolled form."""

    builder: GraphBuilder
    plan: SpikingPlan
    thresholds: dict[str, str]
    biases: dict[str, list[str]]
    states: dict[str, tuple[str, ...]]

    def fire(self, site: SpikingSite, t: int, current: str) -> str:
        """Spikes of the site at step t; the membranes move on."""
        with self.builder.scope(f"{site.name}/t{t}"):
            neuron = get_neuron(self.plan.neuron_of(site))
            spikes, self.states[site.name] = neuron.emit_step(
                self.builder, current, self.states[site.name], self.thresholds[site.name], self.biases[site.name][t]
            )
        return spikes


def emit_thresholds(builder: GraphBuilder, plan: SpikingPlan) -> tuple[dict[str, str], dict[str, tuple[str, ...]]]:
    """Thresholds broadcast against the sites' tensors, and the initial state of their neurons, by site."""
    thresholds, states = {}, {}
    for site in plan.sites:
        neuron = get_neuron(plan.neuron_of(site))
        theta = plan.thresholds[site.name]
        flat = builder.initializer(threshold_name(site.name), theta)
        shaped = theta.reshape(site.channel_shape)
        with builder.scope(site.name):
            same = shaped.shape == theta.shape
            thresholds[site.name] = flat if same else builder.reshape(flat, site.channel_shape, out="theta")
            states[site.name] = tuple(
                builder.initializer(builder.unique_free(f"{site.name}/state{i}"), value)
                for i, value in enumerate(neuron.initial_state(shaped))
            )
    return thresholds, states


def split_biases(builder: GraphBuilder, site: SpikingSite, table: str, steps: int, label: str = "b") -> list[str]:
    """The rows of a [T, C] table, each broadcast against the site's tensor."""
    tail = site.channel_shape[1:]
    with builder.scope(site.name):
        rows = builder.reshape(table, (steps, *tail), out=f"{label}/rows")
        return builder.split(rows, steps, [f"{label}/t{t}" for t in range(steps)])


def emit_unrolled(network: Network, plan: SpikingPlan) -> Emitted:
    """The spiking network of a plan as a standard ONNX model.

    Args:
        network: the normalised ANN that the plan was made for.
        plan: sites, thresholds [C] and biases [T, C].

    Raises:
        ModelError: the network has refusals, or tensors named as the emitted ones are.
    """
    if network.refusals:
        raise ModelError("cannot be converted: " + "; ".join(map(str, network.refusals)))
    builder = GraphBuilder(network.view.opset)
    builder.reserve(value.name for value in network.view.inputs)
    thresholds, states = emit_thresholds(builder, plan)
    biases = {}
    for site in plan.sites:
        table = builder.initializer(bias_name(site.name), plan.biases[site.name])
        biases[site.name] = split_biases(builder, site, table, plan.steps)
    membranes = Membranes(builder, plan, thresholds, biases, states)
    emitter = StepEmitter(builder, network, membranes.fire)
    emitter.keep_static()
    readout: dict[str, list[str]] = {name: [] for name in network.view.output_names if name in network.temporal}
    for t in range(plan.steps):
        emitter.step(t)
        for name, tensors in readout.items():
            tensors.append(emitter.mean(name, t) if name in network.mean_form else emitter.sum(name, t))
    for name in network.view.output_names:
        last = plan.steps - 1
        made = emitter.mean(name, last) if name in network.temporal else emitter.current(name, last)
        if made != name:
            builder.alias(made, name)
    model = builder.to_model(
        network.view.graph.name or "snn",
        network.view.inputs,
        network.view.graph.output,
        network.view.model.opset_import,
    )
    return Emitted(model, tuple(Readout(n, n in network.mean_form, tuple(tensors)) for n, tensors in readout.items()))
