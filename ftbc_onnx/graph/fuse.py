"""Put the numbers of the neurons into the layers around them, so that less is left to do at every step.

With h = lambda * gain the height of a site's smallest spike, [C], and d = lambda, or -lambda where the sign is turned:

1. *thresholds*: spikes are counted in units and currents measured in them, as weight normalisation does.

       x' = x/d:   W' = W/d  along the output channels of the layer before, c' = c/d
       s' = s/h:   W' = W*h  along the input channels of the layer behind

   A shortcut that is added to such a layer is scaled by a depthwise Conv of size 1; whatever else reads the spikes, by
   a Mul. A site takes part if its current comes from layers with constant weights, and sums of them with anything.
2. *biases*: b[t] is added to the bias of the layer before, W x + (c' + b[t]/d), instead of to its output. With 3, a
   current that does not depend on t gets its biases from a depthwise Conv of ones.
3. *resets*: neurons of ``if`` run with the other sign (`ftbc_onnx.neurons.reversed`); needs 1. Where 2 was done, the
   membrane before the first step is a part of the first bias, and a shortcut takes the membrane along:
   u = W s + (shortcut + m), two sums that convolutions do on the way.

What comes out is another ANN and another plan, with the same names, whose emission computes the same as the first but
for rounding; of 3, only the places where membranes are added round. The factors are nodes that read thresholds and
weights, which stay as they were: runtimes compute them once, when they open the file.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx

from ftbc_onnx.config import FUSE
from ftbc_onnx.graph.builder import GraphBuilder
from ftbc_onnx.graph.classes import NodeClass
from ftbc_onnx.graph.fusible import axis_in, axis_out, fixed_tensors, fusible_sites, is_layer, takes_bias
from ftbc_onnx.graph.shortcuts import find_shortcut
from ftbc_onnx.graph.sites import Entry, Network
from ftbc_onnx.graph.units import IN_UNITS, divisor_name, first_membrane, height_name, threshold_name
from ftbc_onnx.graph.view import GraphView, names_inside, node_inputs
from ftbc_onnx.graph.weights import add_initializers
from ftbc_onnx.neurons import Reversed
from ftbc_onnx.plan import SpikingPlan, SpikingSite

_KEEP_CHANNELS = {"AveragePool", "Dropout", "GlobalAveragePool", "GlobalMaxPool", "Identity", "MaxPool"}
"""Operators through which a positive factor per channel passes."""

_FLATTEN = {"Flatten", "Reshape", "Squeeze"}


@dataclass(frozen=True)
class Fused:
    """What `fuse` makes.

    Attributes:
        network: the ANN on currents and spikes in units.
        plan: its plan.
        in_units: names of the sites whose spikes are counted in units.
    """

    network: Network
    plan: SpikingPlan
    in_units: frozenset[str]


def fuse(network: Network, plan: SpikingPlan, passes: Iterable[str] = FUSE) -> Fused:
    """Put thresholds and biases into the layers.

    Args:
        network: the normalised ANN.
        plan: its plan, asynchronous and with rate coding; of any other, nothing is fused.
        passes: of `FUSE`.
    """
    fusion = _Fusion(network, plan, set(passes))
    fusion.choose()
    for node in network.view.nodes:
        fusion.visit(node)
    return fusion.result()


def share(network: Network, plan: SpikingPlan) -> float:
    """The share of a network's sites that would take part, from 0 to 1."""
    return len(fusible_sites(network, plan)) / max(len(network.sites), 1)


@dataclass
class _Fusion:
    """One walk through the graph in topological order."""

    network: Network
    plan: SpikingPlan
    passes: set[str]
    targets: dict[str, SpikingSite] = field(default_factory=dict)  # tensors to be in units of the site they lead to
    entry_at: dict[str, SpikingSite] = field(default_factory=dict)  # output of the layer that takes a site's bias
    scaled: dict[str, SpikingSite] = field(default_factory=dict)  # tensors in units of the site they come from
    chosen: dict[str, SpikingSite] = field(default_factory=dict)
    entries: dict[str, Entry] = field(default_factory=dict)
    unscaled: dict[str, str] = field(default_factory=dict)
    head: list[onnx.NodeProto] = field(default_factory=list)
    nodes: list[onnx.NodeProto] = field(default_factory=list)

    def __post_init__(self) -> None:
        view = self.network.view
        self.view = view
        self.builder = GraphBuilder(view.opset)
        self.builder.reserve(dict.fromkeys([*view.initializers, *(v.name for v in view.inputs), *view.producers]))
        self.builder.avoid(name for node in view.nodes for name in names_inside(node))
        self.builder.avoid(node.name for node in view.nodes)
        self.classes = dict(self.network.classes)
        self.temporal, self.mean_form = set(self.network.temporal), set(self.network.mean_form)
        self.owner = {site.spikes: site for site in self.network.sites}
        self.fixed = fixed_tensors(view)

    @property
    def scaling(self) -> bool:
        """Whether thresholds are put into weights."""
        return "thresholds" in self.passes

    # which sites

    def choose(self) -> None:
        """Find the sites that take part, and write their factors."""
        sites = {site.name: site for site in self.network.sites}
        for name, tensors in fusible_sites(self.network, self.plan).items():
            site = self.chosen[name] = sites[name]
            self.targets.update(dict.fromkeys(tensors, site))
            layers = [n for n in tensors if is_layer(self.view, n) and takes_bias(self.view, n) and n in self.temporal]
            if layers and "biases" in self.passes:
                self.entry_at[layers[0]] = site
            if self.scaling:
                self._write_factors(site)

    def _write_factors(self, site: SpikingSite) -> None:
        """Threshold, height and divisor of a site, [C]."""
        neuron, gain = self.plan.neuron.make(), self.plan.gains.get(site.name)
        theta = self.builder.initializer(threshold_name(site.name), self.plan.thresholds[site.name])
        unit = neuron.emit_unit(self.builder, theta)
        height, divisor = height_name(site.name), divisor_name(site.name)
        if gain is None:
            self.builder.op("Identity", unit, out=height)
        else:
            self.builder.op("Mul", unit, self.builder.constant(gain), out=height)
        self.builder.op("Neg" if self._turned else "Identity", unit, out=divisor)
        self._keep_head()

    @property
    def _turned(self) -> bool:
        """Whether currents have the other sign."""
        return self.scaling and "resets" in self.passes and self.plan.neuron.name == "if"

    # what becomes of the nodes

    def visit(self, node: onnx.NodeProto) -> None:
        """Rewrite one node, all before it being rewritten."""
        if self.classes[node.name] is NodeClass.SITE:
            self.nodes.append(node)
            for output in node.output:
                site = self.owner.get(output)
                if self.scaling and site is not None and site.name in self.chosen:
                    self.scaled[output] = site
            return
        output = node.output[0] if node.output else ""
        clone = onnx.NodeProto()
        clone.CopyFrom(node)
        if is_layer(self.view, output) and (output in self.targets or node.input[0] in self.scaled):
            self._visit_layer(node, clone)
        elif output in self.targets:
            self._visit_sum(node, clone, self.targets[output])
        elif self._passes(node):
            self.scaled[output] = self.scaled[node.input[0]]
        else:
            for position, name in enumerate(node.input):
                clone.input[position] = self._unscale(name)
        self.nodes.append(clone)
        site = self.targets.get(output)
        if site is not None and output == site.current and output not in self.temporal:
            self._visit_first(clone, site)

    def _visit_first(self, clone: onnx.NodeProto, site: SpikingSite) -> None:
        """What makes a current that does not depend on t: a depthwise Conv of ones adds the bias of each step to it."""
        if not self._turned or "biases" not in self.passes or site.rank != 4:
            return
        clone.output[0] = self.builder.unique(f"{site.current}/static")
        ones = self.builder.constant(np.ones((site.channels, 1, 1, 1), np.float32))
        entry = self._entry(site, self.builder.constant(np.zeros(site.channels, np.float32)))
        name = f"{site.name}/{IN_UNITS}"
        inputs, group = [clone.output[0], ones, entry], site.channels
        self.nodes.append(onnx.helper.make_node("Conv", inputs, [site.current], name=name, group=group))
        self.classes[name] = NodeClass.LINEAR
        self.temporal.add(site.current)

    def _visit_layer(self, node: onnx.NodeProto, clone: onnx.NodeProto) -> None:
        """A layer behind a site, before one, or both."""
        before, site = self.scaled.get(node.input[0]), self.targets.get(node.output[0])
        weights, dims = node.input[1], self.view.initializers[node.input[1]].dims
        if before is not None:
            axis = axis_in(self.view, node, before)
            if axis is None:
                clone.input[0] = self._unscale(node.input[0])
            else:
                weights = self._times("Mul", weights, height_name(before.name), axis, len(dims))
        if site is None:
            clone.input[1] = weights
            return
        bias = node.input[2] if len(node.input) > 2 and node.input[2] else ""
        if self.scaling:
            weights = self._times("Div", weights, divisor_name(site.name), axis_out(node), len(dims))
            if bias:
                bias = self._static("Div", bias, divisor_name(site.name), out=f"{bias}/{IN_UNITS}")
        if node.output[0] in self.entry_at:
            bias = self._entry(site, bias or self.builder.constant(np.zeros(site.channels, np.float32)))
        clone.input[:] = [clone.input[0], weights, *([bias] if bias else [])]

    def _visit_sum(self, node: onnx.NodeProto, clone: onnx.NodeProto, site: SpikingSite) -> None:
        """A sum before a site. Of a layer and a shortcut: the shortcut takes the membrane along."""
        others = [i for i, name in enumerate(node.input) if self.targets.get(name) is not site]
        for position in others if self.scaling else ():
            clone.input[position] = self._operand(node, node.input[position], site)
        entered = any(entry.site is site for entry in self.entries.values())
        if self._turned and entered and len(others) < 2 and node.output[0] == site.current:
            position = others[0] if others else 1
            source, entry = clone.input[position], self.builder.unique(f"{site.name}/with_membrane")
            if source in self.temporal and source not in self.mean_form:
                self._enter(entry, Entry(site, source, "membrane"))
                clone.input[position] = entry

    def _entry(self, site: SpikingSite, constant: str) -> str:
        """What a layer reads as its bias: a constant [C], and at every step the bias of a site."""
        name = self.builder.unique(f"{site.name}/entry")
        self._enter(name, Entry(site, self._static("Identity", constant, out=f"{site.name}/constant")))
        return name

    def _enter(self, name: str, entry: Entry) -> None:
        self.entries[name] = entry
        self.temporal.add(name)

    def _passes(self, node: onnx.NodeProto) -> bool:
        """Whether a factor per channel of a node's input is one of its output."""
        if not node.input or node.input[0] not in self.scaled or node.output[0] in self.fixed:
            return False
        if sum(bool(name) for name in node.output) > 1:
            return False
        if node.op_type in _KEEP_CHANNELS:
            return True
        shape, made = self.view.shape(node.input[0]), self.view.shape(node.output[0])
        return node.op_type in _FLATTEN and shape is not None and shape[2:] == (1, 1) and (made or ())[1:] == shape[1:2]

    def _operand(self, node: onnx.NodeProto, name: str, site: SpikingSite) -> str:
        """What is added to a layer, in units of a site: a shortcut by a Conv of size 1, anything else by a Div."""
        divisor, label = divisor_name(site.name), f"{node.name}/{name}/{IN_UNITS}"
        shortcut = find_shortcut(self.view, name)
        if shortcut is not None and len(shortcut.weights) == site.channels:
            before = self.scaled.get(shortcut.source)
            weights = self.builder.constant(shortcut.weights)
            if before is not None:
                weights = self._times("Mul", weights, height_name(before.name), 1, 4)
            weights = self._times("Div", weights, divisor, 0, 4)
            source, strides = shortcut.source, shortcut.strides
            return self._made("Conv", source, weights, like=source, out=label, strides=strides)
        before, shape = self.scaled.get(name), self.view.shape(name)
        if name in self.view.initializers or shape is None or len(shape) != 4 or shape[1] != site.channels:
            tail = [1] * ((site.rank or 2) - 2)
            return self._made("Div", self._unscale(name), self._column(divisor, (1, site.channels, *tail)), like=name)
        above = self.builder.constant(np.ones(1, np.float32)) if before is None else height_name(before.name)
        factor = self._static("Div", above, divisor, out=f"{node.name}/{name}/factor")
        weights = self._column(factor, (site.channels, 1, 1, 1))
        return self._made("Conv", name, weights, like=name, out=label, group=site.channels)

    def _unscale(self, name: str) -> str:
        """A tensor as it is in the ANN."""
        if name not in self.scaled:
            return name
        if name not in self.unscaled:
            site = self.scaled[name]
            rank = len(self.view.shape(name) or [0] * (site.rank or 2))
            height = self._column(height_name(site.name), (1, site.channels, *[1] * (rank - 2)))
            self.unscaled[name] = self._made("Mul", name, height, like=name, out=f"{name}/unscaled")
        return self.unscaled[name]

    # writing

    def _times(self, op_type: str, weights: str, factor: str, axis: int, rank: int) -> str:
        shape = tuple(-1 if i == axis else 1 for i in range(rank))
        return self._static(op_type, weights, self._column(factor, shape), out=f"{weights}/{op_type.lower()}")

    def _column(self, values: str, shape: tuple[int, ...]) -> str:
        """[C] in the shape in which it broadcasts."""
        made = self.builder.reshape(values, shape, out=f"{values}/shaped")
        self._keep_head()
        return made

    def _static(self, op_type: str, *inputs: str, out: str) -> str:
        made = self.builder.op(op_type, *inputs, out=out)
        self._keep_head()
        return made

    def _made(self, op_type: str, *inputs: str, like: str, out: str | None = None, **attrs: object) -> str:
        """A node that depends on t where `like` does, in the same form."""
        made = self.builder.op(op_type, *inputs, out=out, **attrs)
        kind = NodeClass.LINEAR if like in self.temporal else NodeClass.STATIC
        for node in self.builder.take_nodes():
            self.classes[node.name] = kind
            self.nodes.append(node)
        if like in self.temporal:
            self.temporal.add(made)
        if like in self.mean_form:
            self.mean_form.add(made)
        return made

    def _keep_head(self) -> None:
        """Put what was written before everything else: it depends on constants only."""
        made: Sequence[onnx.NodeProto] = self.builder.take_nodes()
        self.classes.update({node.name: NodeClass.STATIC for node in made})
        self.head.extend(made)

    def result(self) -> Fused:
        """The network and the plan."""
        model = onnx.ModelProto()
        model.CopyFrom(self.view.model)
        del model.graph.node[:]
        model.graph.node.extend(self._needed([*self.head, *self.nodes]))
        add_initializers(model, self.builder.initializers)
        network = replace(
            self.network,
            view=GraphView(model),
            classes=self.classes,
            temporal=frozenset(self.temporal),
            mean_form=frozenset(self.mean_form),
            entries=self.entries,
        )
        in_units = frozenset(self.chosen) if self.scaling else frozenset[str]()
        return Fused(network, self._plan(in_units), in_units)

    def _needed(self, nodes: Sequence[onnx.NodeProto]) -> list[onnx.NodeProto]:
        """The nodes that outputs, sites or those who look for a height need."""
        needed = set(self.view.output_names) | {height_name(name) for name in self.chosen}
        needed.update(entry.source for entry in self.entries.values())
        kept = []
        for node in reversed(nodes):
            if self.classes[node.name] is NodeClass.SITE or needed.intersection(node.output):
                needed.update(node_inputs(node))
                kept.append(node)
        return kept[::-1]

    def _plan(self, in_units: frozenset[str]) -> SpikingPlan:
        """Thresholds of as many units as a neuron has levels, and biases in units."""
        plan, neuron = self.plan, self.plan.neuron.make()
        turned, entered = in_units if self._turned else (), {entry.site.name for entry in self.entries.values()}
        sign = np.float32(-1 if self._turned else 1)
        divisors = {name: sign * neuron.unit(plan.thresholds[name]) for name in in_units}
        biases = {name: plan.biases[name] / divisor for name, divisor in divisors.items()}
        biases.update({name: biases[name] + first_membrane(plan.steps) for name in turned if name in entered})
        whole = {name: np.full(site.channels, neuron.levels, np.float32) for name, site in self.chosen.items()}
        return replace(
            plan,
            thresholds={**plan.thresholds, **{name: whole[name] for name in in_units}},
            biases={**plan.biases, **biases},
            factors={},
            gains={name: gain for name, gain in plan.gains.items() if name not in in_units},
            reversed={name: 0.0 if name in entered else Reversed().start for name in turned},
        )
