"""The unrolled form: one copy of every temporal node per step, weights shared by name.

What does not depend on t (everything before the first site, for a start) is computed once. The thresholds of a site are
an initializer of shape [C], its temporal biases one of shape [T, C]; the output is the mean over t (see
`ftbc_onnx.window`), under the ANN's own name. `ftbc_onnx.graph.observe` adds the running mean after every step.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx

from ftbc_onnx.errors import ModelError
from ftbc_onnx.graph.builder import GraphBuilder
from ftbc_onnx.graph.emit.step import StepEmitter
from ftbc_onnx.graph.fuse import Fused
from ftbc_onnx.graph.recorder import Step, at
from ftbc_onnx.graph.sites import Network
from ftbc_onnx.graph.units import threshold_name
from ftbc_onnx.plan import SpikingPlan, SpikingSite
from ftbc_onnx.window import Window

_SPIKES = re.compile(r"(.*)/(?:step|t\d+)/(?:spikes|events)", re.DOTALL)
"""Names that `spikes_name` and `events_name` give, with the site."""

_FLOATS = (
    onnx.TensorProto.FLOAT,
    onnx.TensorProto.DOUBLE,
    onnx.TensorProto.FLOAT16,
    onnx.TensorProto.BFLOAT16,
)


def bias_name(site: str) -> str:
    """Initializer of a site's temporal biases, [T, C]."""
    return f"{site}/bias"


def factor_names(site: str) -> tuple[str, str]:
    """Initializers of a site's temporal biases where they are compressed: courses [R, T] and vectors [R, C]."""
    return f"{site}/bias_courses", f"{site}/bias_vectors"


def spikes_name(site: str, t: Step) -> str:
    """Tensor of a site's spikes at a step."""
    return f"{site}/{at(t)}/spikes"


def events_name(plan: SpikingPlan, site: SpikingSite, t: Step) -> str:
    """Tensor of a site's events at a step: its spikes, or with differential coding what changes their rate."""
    return f"{site.name}/{at(t)}/{plan.neuron_of(site).events}"


@dataclass(frozen=True)
class Readout:
    """Where the running mean of an output is found in the emitted graph.

    Attributes:
        output: name of the output.
        is_mean: whether `tensors` are running means; else they are sums, to be divided by t + 1.
        tensors: one per step; in the loop form the same for all, and there it is the mean over the window.
        window: over which steps the output is averaged.
    """

    output: str
    is_mean: bool
    tensors: tuple[str, ...]
    window: Window = field(default_factory=Window)


@dataclass(frozen=True)
class Emitted:
    """An emitted model, and where its outputs can be read after every step.

    Attributes:
        model: the model.
        readouts: of every output that depends on spikes.
        form: how time is laid out.
        twin: what it computes to the last bit, if not the network and the plan it was emitted from.
    """

    model: onnx.ModelProto
    readouts: tuple[Readout, ...]
    form: str = "unrolled"
    twin: Fused | None = None


@dataclass
class Membranes:
    """The state of every site's neurons, and how a site fires in the unrolled form."""

    builder: GraphBuilder
    plan: SpikingPlan
    units: dict[str, str]
    biases: dict[str, list[str]]
    states: dict[str, tuple[str, ...]]

    def fire(self, site: SpikingSite, t: int, current: str) -> str:
        """Spikes of the site at step t; the membranes move on."""
        with self.builder.scope(f"{site.name}/t{t}"):
            neuron = self.plan.neuron_of(site)
            spikes, self.states[site.name] = neuron.emit_step(
                self.builder, current, self.states[site.name], self.units[site.name], self.biases[site.name][t]
            )
        return spikes

    def fire_all(self, site: SpikingSite, currents: list[str]) -> list[str]:
        """Spikes of the site at every step, of a synchronous plan."""
        with self.builder.scope(site.name):
            layer = self.plan.layer_of(site)
            return layer.emit(self.builder, currents, self.units[site.name], self.biases[site.name])


@dataclass(frozen=True)
class Population:
    """What the neurons of a site start from, as names in the graph.

    Attributes:
        threshold: theta, broadcast against the site's tensor.
        unit: lambda, the same for the smallest spike.
        state: the state before the first step.
    """

    threshold: str
    unit: str
    state: tuple[str, ...]


def emit_populations(builder: GraphBuilder, plan: SpikingPlan, in_units: Container[str] = ()) -> dict[str, Population]:
    """Thresholds, units and initial states of every site, by site; of those `in_units` the unit is 1."""
    populations = {}
    for site in plan.sites:
        neuron = plan.neuron_of(site)
        theta = plan.thresholds[site.name]
        shaped = theta.reshape(site.channel_shape)
        with builder.scope(site.name):
            if site.name in in_units:
                unit = threshold = builder.constant(1.0)
            else:
                threshold = builder.initializer(threshold_name(site.name), theta)
                if shaped.shape != theta.shape:
                    threshold = builder.reshape(threshold, site.channel_shape, out="theta")
                unit = neuron.emit_unit(builder, threshold)
            state = tuple(
                builder.initializer(builder.unique_free(f"{site.name}/state{i}"), value)
                if value.any() or site.name not in in_units
                else builder.constant(0.0)
                for i, value in enumerate(neuron.initial_state(neuron.unit(shaped)))
            )
        populations[site.name] = Population(threshold, unit, state)
    return populations


def emit_membranes(builder: GraphBuilder, plan: SpikingPlan) -> Membranes:
    """Every site's neurons before the first step, and its biases as one row per step."""
    populations = emit_populations(builder, plan)
    biases = {}
    for site in plan.sites:
        biases[site.name] = split_biases(builder, site, emit_biases(builder, plan, site), plan.steps)
    units = {name: population.unit for name, population in populations.items()}
    states = {name: population.state for name, population in populations.items()}
    return Membranes(builder, plan, units, biases, states)


def emit_biases(builder: GraphBuilder, plan: SpikingPlan, site: SpikingSite) -> str:
    """The biases of a site as a tensor [T, C]: an initializer, or made of its factors as `Factors.table` does."""
    factors = plan.factors.get(site.name)
    if factors is None:
        return builder.initializer(bias_name(site.name), plan.biases[site.name])
    rank = len(factors.courses)
    parts = []
    for name, value, shape in zip(
        factor_names(site.name),
        (factors.courses, factors.vectors),
        ((rank, plan.steps, 1), (rank, 1, site.channels)),
        strict=True,
    ):
        shaped = builder.reshape(builder.initializer(name, value), shape, out=f"{name}/shaped")
        parts.append(builder.split(shaped, rank, [f"{name}/{i}" for i in range(rank)]))
    with builder.scope(site.name):
        total = ""
        for course, vector in zip(*parts, strict=True):
            product = builder.op("Mul", course, vector, out="bias/product")
            total = builder.op("Add", total, product, out="bias/sum") if total else product
        return builder.reshape(total, (plan.steps, site.channels), out="bias/table")


def split_biases(builder: GraphBuilder, site: SpikingSite, table: str, steps: int, label: str = "b") -> list[str]:
    """The rows of a [T, C] table, each broadcast against the site's tensor."""
    tail = site.channel_shape[1:]
    with builder.scope(site.name):
        rows = builder.reshape(table, (steps, *tail), out=f"{label}/rows")
        return builder.split(rows, steps, [f"{label}/t{t}" for t in range(steps)])


def emit_means(builder: GraphBuilder, readout: Readout, steps: Iterable[int], elem_type: int) -> list[str]:
    """Names of the mean of an output after each of some steps, over the readout's window.

    Of running means the sums are made first: total[t] = (t+1) * mean[t]; those of float16 in float32.
    """
    totals: dict[int, str] = {}
    narrow = readout.is_mean and elem_type == onnx.TensorProto.FLOAT16
    wide = onnx.TensorProto.FLOAT if narrow else elem_type

    def number(value: int) -> str:
        return builder.constant(np.array(value, dtype=onnx.helper.tensor_dtype_to_np_dtype(wide)))

    def total(t: int) -> str:
        if t not in totals:
            tensor = readout.tensors[t]
            tensor = builder.op("Cast", tensor, to=wide) if narrow else tensor
            totals[t] = builder.op("Mul", tensor, number(t + 1)) if readout.is_mean and t > 0 else tensor
        return totals[t]

    means = []
    for t in steps:
        dropped, count = readout.window.dropped(t), readout.window.count(t)
        if dropped is None and readout.is_mean:
            means.append(readout.tensors[t])
            continue
        summed = total(t) if dropped is None else builder.op("Sub", total(t), total(dropped))
        mean = summed if count == 1 else builder.op("Div", summed, number(count))
        means.append(builder.op("Cast", mean, to=elem_type) if narrow else mean)
    return means


def check_convertible(network: Network, window: Window) -> None:
    """Refuse what cannot be emitted in any form.

    Raises:
        ModelError: the network has refusals; or a tensor that is called as spikes are to be; or a delayed mean is
            wanted of an output that depends on spikes and is no float: a class number or a truth value, say.
    """
    if network.refusals:
        raise ModelError("cannot be converted: " + "; ".join(map(str, network.refusals)))
    sites = {site.name for site in network.sites}
    for name in (*network.view.producers, *network.view.initializers):
        ours = _SPIKES.fullmatch(name)
        if ours is not None and ours[1] in sites:
            raise ModelError(f"the spikes of site '{ours[1]}' are to be called '{name}': rename that tensor")
    for name in network.view.output_names:
        kind = network.view.elem_type(name)
        if window.start and name in network.temporal and kind not in _FLOATS:
            raise ModelError(
                f"output '{name}' is {onnx.TensorProto.DataType.Name(kind).lower()}, of which there is no mean over "
                "the last steps: use --readout mean, or a model without this output"
            )


def emit_unrolled(network: Network, plan: SpikingPlan) -> Emitted:
    """The spiking network of a plan as a standard ONNX model.

    Args:
        network: the normalised ANN that the plan was made for.
        plan: sites, thresholds [C] and biases [T, C].

    Raises:
        ModelError: the network has refusals, or tensors named as the emitted ones are, or no such readout.
    """
    check_convertible(network, plan.readout)
    builder = GraphBuilder(network.view.opset)
    builder.reserve(value.name for value in network.view.inputs)
    membranes = emit_membranes(builder, plan)
    emitter = StepEmitter(builder, network)
    emitter.keep_static()
    return write_steps(builder, network, emitter, membranes)


def write_steps(builder: GraphBuilder, network: Network, emitter: StepEmitter, membranes: Membranes) -> Emitted:
    """All steps, one copy of the network each, and the outputs."""
    plan = membranes.plan
    builder.promise(network.view.output_names)
    tensors: dict[str, list[str]] = {name: [] for name in network.view.output_names if name in network.temporal}
    if plan.synchronous:
        emitter.all_steps(plan.steps, membranes.fire_all)
    for t in range(plan.steps):
        if not plan.synchronous:
            emitter.step(t, membranes.fire)
        for name, made_at in tensors.items():
            made_at.append(emitter.mean(name, t) if name in network.mean_form else emitter.sum(name, t))
    readouts = {n: Readout(n, n in network.mean_form, tuple(found), plan.readout) for n, found in tensors.items()}
    last = plan.steps - 1
    for name in network.view.output_names:
        if name not in network.temporal:
            made = emitter.current(name, last)
        elif plan.readout.dropped(last) is None:
            made = emitter.mean(name, last)
        else:
            with builder.scope(f"{name}/delayed"):
                (made,) = emit_means(builder, readouts[name], [last], network.view.elem_type(name))
        if made != name:
            builder.alias(made, name)
    return Emitted(finish(builder, network), tuple(readouts.values()))


def finish(
    builder: GraphBuilder,
    network: Network,
    inputs: Sequence[onnx.ValueInfoProto] = (),
    outputs: Sequence[onnx.ValueInfoProto] = (),
) -> onnx.ModelProto:
    """The model of a form: the ANN's interface, with more inputs and outputs behind it."""
    view = network.view
    return builder.to_model(
        view.graph.name or "snn",
        [*view.inputs, *inputs],
        [*view.graph.output, *outputs],
        view.model.opset_import,
    )
