"""Class every node of a normalised ANN, once and for all: static, linear, rate-exact, or part of a spiking site.

Rectifiers become sites where they stand (`ftbc_onnx.graph.rectifiers`). Anything else that is not linear is applied to
running means, and what it makes is a mean; where a layer with weights, or a sum with a current, reads such a mean, a
*signed* site is put before it: an Identity of the ANN whose place is taken by bipolar neurons, so that spikes travel on

    y = f(x), z = W y      becomes      y = f(mean of x), s = spikes of y, z = W s.

The same holds for an activation that no spike reaches (a network of Tanh only). Maxima (MaxPool and the like) need no
such site: what they make of spikes is read as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import onnx

from ftbc_onnx.graph.classes import ACTIVATIONS, MAXIMA, SHAPE_ONLY, WEIGHTED, NodeClass, classify, is_last_cast
from ftbc_onnx.graph.rectifiers import find_rectifiers, make_site
from ftbc_onnx.graph.refusals import refuse_node, refuse_site
from ftbc_onnx.graph.scope import Scope
from ftbc_onnx.graph.view import GraphView, node_inputs
from ftbc_onnx.plan import Refusal, SpikingSite

_MASKING = {"Add", "Sub", "Sum", "Mul", "Where"}
_HUGE = 9999.0


def _is_huge(value: np.ndarray | None) -> bool:
    """Whether a constant has numbers as masks have them: from -10000 to -inf."""
    return value is not None and value.dtype.kind == "f" and bool((np.abs(value) >= _HUGE).any())


@dataclass(frozen=True)
class Entry:
    """Where the bias of a site, or its membrane, comes in, if not at its neurons.

    Attributes:
        site: the site.
        source: what it is added to: a constant [C], or a tensor of the shape of the site's current.
        kind: ``bias`` or ``membrane``.
    """

    site: SpikingSite
    source: str
    kind: str = "bias"


@dataclass(frozen=True)
class Network:
    """A normalised ANN with every node classed.

    Attributes:
        view: the graph (with the Identities of signed sites), its nodes in topological order.
        sites: in topological order.
        refusals: nodes that cannot be converted; if there are any, nothing is emitted.
        analog: activations that were left out by the scope, and why.
        classes: class of every node, by node name.
        temporal: tensors that depend on spikes.
        mean_form: temporal tensors that are made as running means (by rate-exact nodes, and by linear ones that read
            nothing else); the others are made as currents, one value per step.
        entries: tensors that no node makes: others to which a site's bias or membrane is added, step by step
            (`ftbc_onnx.graph.fuse`).
    """

    view: GraphView
    sites: tuple[SpikingSite, ...]
    refusals: tuple[Refusal, ...]
    classes: dict[str, NodeClass]
    temporal: frozenset[str]
    mean_form: frozenset[str]
    analog: tuple[Refusal, ...] = ()
    entries: Mapping[str, Entry] = field(default_factory=dict)

    def entering(self, kind: str) -> dict[str, str]:
        """Name of the entry of every site that has one of a kind, by site."""
        return {entry.site.name: name for name, entry in self.entries.items() if entry.kind == kind}

    @property
    def not_spiking(self) -> list[onnx.NodeProto]:
        """Nodes that are no spike arithmetic: those applied to means, but for the Cast of an output to its type."""
        rates = (node for node in self.view.nodes if self.classes[node.name] is NodeClass.RATE_EXACT)
        return [node for node in rates if not is_last_cast(self.view, node)]

    @property
    def why_nothing(self) -> str | None:
        """Why there is nothing to convert, refusals apart; None if there is something."""
        if not self.sites and self.analog:
            return f"--include, --exclude and --until leave out all its activations ({len(self.analog)}): leave some in"
        if not self.sites:
            return (
                "it has no activation to convert: neurons stand for Relu, Clip from 0, Max with 0 and QCFS, and for "
                "smooth functions such as Sigmoid where a layer reads them (not behind --until, nor with --smooth "
                "rate-exact); write a rectifier made of other operators as Relu or Clip"
            )
        if not any(name in self.temporal for name in self.view.output_names):
            return "no output depends on an activation: there is nothing to convert"
        return None

    @property
    def static_batch(self) -> int | None:
        """The batch size that the model's inputs fix, or None if it is free."""
        for value in self.view.inputs:
            shape = self.view.shape(value.name)
            if shape and isinstance(shape[0], int):
                return shape[0]
        return None


def find_network(model: onnx.ModelProto, scope: Scope | None = None, smooth: str = "spiking") -> Network:
    """Class every node of a normalised model and find its sites.

    Args:
        model: the ANN.
        scope: which activations to convert; None: all.
        smooth: ``spiking`` puts signed sites behind functions that are no rectifiers; ``rate-exact`` does not.

    Raises:
        ConfigError: the scope speaks of what the model does not have.
    """
    view = GraphView(model)
    scope = scope or Scope()
    rectifiers = find_rectifiers(view)
    scope.check([(site.name, site.op_type) for site in rectifiers], [node.name for node in view.nodes])
    analog = [site for site in rectifiers if not scope.takes(site.name, site.op_type)]
    owner = {name: site for site in rectifiers if site not in analog for name in site.nodes}
    left_out = frozenset(name for site in analog for name in site.nodes)
    if scope.until in owner:  # within an activation of several nodes: behind all of them
        scope = replace(scope, until=owner[scope.until].nodes[-1])
    search = _Search(view, scope, smooth, owner, left_out)
    for node in view.nodes:
        search.visit(node)
    left = [Refusal(site.name, site.op_type, "left out by --include or --exclude") for site in analog]
    return search.result(tuple(left))


@dataclass
class _Search:
    """One walk through the graph in topological order."""

    view: GraphView
    scope: Scope
    smooth: str
    owner: dict[str, SpikingSite]
    left_out: frozenset[str]
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    classes: dict[str, NodeClass] = field(default_factory=dict)
    temporal: set[str] = field(default_factory=set)
    mean_form: set[str] = field(default_factory=set)
    bounded: set[str] = field(default_factory=set)  # tensors in mean form that only maxima made
    stirred: set[str] = field(default_factory=set)  # static tensors behind an activation and before the next layer
    beyond: set[str] = field(default_factory=set)  # tensors behind --until
    sources: dict[str, set[str]] = field(default_factory=dict)
    sites: dict[str, SpikingSite] = field(default_factory=dict)
    signed: dict[str, str] = field(default_factory=dict)  # tensor -> its spikes
    masked: set[str] = field(default_factory=set)  # scores that a mask puts out of reach, and such masks
    refusals: list[Refusal] = field(default_factory=list)
    analog: list[Refusal] = field(default_factory=list)

    def visit(self, node: onnx.NodeProto) -> None:
        """Class one node, all before it being classed."""
        beyond = bool(self.beyond & set(node_inputs(node)))
        if beyond or node.name == self.scope.until:
            self.beyond.update(node.output)
        site = self.owner.get(node.name)
        if site is not None and beyond:
            if site.spikes in node.output:
                self.analog.append(Refusal(site.name, site.op_type, f"behind --until {self.scope.until}"))
            site = None
        if site is not None:
            self._visit_site(node, site)
        else:
            self._visit_other(node, beyond)

    def _visit_site(self, node: onnx.NodeProto, site: SpikingSite) -> None:
        self.nodes.append(node)
        self.classes[node.name] = NodeClass.SITE
        if site.current in node_inputs(node) and site.name not in self.sites:
            self._add_site(site, self._upstream([site.current]))
        if site.spikes in node.output:
            self.temporal.add(site.spikes)
            self.sources[site.spikes] = {site.name}

    def _visit_other(self, node: onnx.NodeProto, beyond: bool) -> None:
        if self.smooth == "spiking" and not beyond:
            node = self._stir(node)
        kind = classify(self.view, node, self.temporal)
        masks = kind is not NodeClass.RATE_EXACT and self._masks(node)
        if kind is NodeClass.LINEAR and (beyond or masks):
            kind = NodeClass.RATE_EXACT
        refusal = refuse_node(self.view, node, kind, self.temporal)
        if refusal is not None:
            self.refusals.append(refusal)
        if kind is NodeClass.LINEAR and self.smooth == "spiking":
            node = self._read_spikes(node)
        self.nodes.append(node)
        self.classes[node.name] = kind
        if kind is NodeClass.STATIC:
            return
        outputs = [name for name in node.output if name]
        reads = [name for name in node_inputs(node) if name in self.temporal]
        self.temporal.update(outputs)
        self.sources.update(dict.fromkeys(outputs, self._upstream(reads)))
        if kind is NodeClass.RATE_EXACT or all(name in self.mean_form for name in reads):
            self.mean_form.update(outputs)
            means = [name for name in reads if name in self.mean_form]
            made_by_maxima = kind is NodeClass.LINEAR or node.op_type in MAXIMA
            if made_by_maxima and all(name in self.bounded for name in means):
                self.bounded.update(outputs)

    def _masks(self, node: onnx.NodeProto) -> bool:
        """Whether a node puts scores out of reach of a Softmax, or passes on what does, or such scores.

        No neuron can take part in -1e9 or -inf, and sums of it over the steps overflow: these stay means.
        """
        reads = node_inputs(node)
        puts = node.op_type in _MASKING and any(_is_huge(self.view.constant(name)) for name in reads)
        found = node.op_type not in WEIGHTED and (puts or bool(self.masked & set(reads)))
        if found:
            self.masked.update(name for name in node.output if name)
        return found

    def _stir(self, node: onnx.NodeProto) -> onnx.NodeProto:
        """The node, reading spikes instead of a static activation if it is a layer with weights."""
        stirred = [name for name in node.input if name in self.stirred]
        if stirred and node.op_type in WEIGHTED:
            return self._reading(node, {name: self._signed_site(name) for name in stirred})
        static = not any(name in self.temporal for name in node_inputs(node))
        activates = node.op_type in ACTIVATIONS and all(self.view.is_float(name) for name in node.output if name)
        if static and (stirred or activates) and node.name not in self.left_out and node.op_type not in SHAPE_ONLY:
            self.stirred.update(name for name in node.output if name and self.view.constant(name) is None)
        return node

    def _read_spikes(self, node: onnx.NodeProto) -> onnx.NodeProto:
        """The node, reading spikes instead of means where it wants currents."""
        reads = [name for name in node.input if name in self.temporal]
        if node.op_type not in WEIGHTED and all(name in self.mean_form for name in reads):
            return node
        wanted = [name for name in reads if name in self.mean_form and name not in self.bounded]
        if not wanted:
            return node
        return self._reading(node, {name: self._signed_site(name) for name in wanted})

    @staticmethod
    def _reading(node: onnx.NodeProto, rename: Mapping[str, str]) -> onnx.NodeProto:
        changed = onnx.NodeProto()
        changed.CopyFrom(node)
        changed.input[:] = [rename.get(name, name) for name in node.input]
        return changed

    def _signed_site(self, tensor: str) -> str:
        """Put a signed site behind a tensor (once); returns the name of its spikes."""
        if tensor not in self.signed:
            maker, spikes = self.view.producers[tensor], f"{tensor}/quantised"
            if self._narrows(maker):  # neurons are in float32: the site stands before the Cast
                source = self._signed_site(maker.input[0])
                node, kind = self._reading(maker, {maker.input[0]: source}), NodeClass.LINEAR
                node.name, node.output[0] = f"{maker.name}/quantised", spikes
                self.sources[spikes] = self._upstream([source])
            else:
                place = list(maker.output).index(tensor)
                name, kind = f"{maker.name}/quantiser{f'_{place + 1}' if place else ''}", NodeClass.SITE
                node = onnx.helper.make_node("Identity", [tensor], [spikes], name=name)
                site = make_site(self.view, maker.op_type, (name,), tensor, spikes)
                self._add_site(replace(site, signed=True), self._upstream([tensor]))
                self.sources[spikes] = {name}
            self.nodes.append(node)
            self.classes[node.name] = kind
            self.temporal.add(spikes)
            self.signed[tensor] = spikes
        return self.signed[tensor]

    def _narrows(self, node: onnx.NodeProto) -> bool:
        """Whether a node is the Cast to float16 before a layer (`ftbc_onnx.graph.half`)."""
        kinds = [self.view.elem_type(name) for name in (*node.input, *node.output)]
        return node.op_type == "Cast" and kinds == [onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16]

    def _add_site(self, site: SpikingSite, upstream: set[str]) -> None:
        self.sites[site.name] = replace(site, upstream=tuple(name for name in self.sites if name in upstream))
        refusal = refuse_site(self.view, site)
        if refusal is not None:
            self.refusals.append(refusal)

    def _upstream(self, tensors: list[str]) -> set[str]:
        return set().union(*(self.sources.get(name, set()) for name in tensors))

    def result(self, left_out: tuple[Refusal, ...]) -> Network:
        view = self.view
        if self.signed:
            read = {*view.output_names, *(name for node in self.nodes for name in node_inputs(node))}
            for unread in [view.producers[tensor].name for tensor in self.signed if tensor not in read]:
                del self.classes[unread]  # a Cast that was written again behind a site
            model = onnx.ModelProto()
            model.CopyFrom(view.model)
            del model.graph.node[:]
            model.graph.node.extend(node for node in self.nodes if node.name in self.classes)
            for tensor, spikes in self.signed.items():
                kind, shape = view.elem_type(tensor) or onnx.TensorProto.FLOAT, view.shape(tensor)
                model.graph.value_info.append(onnx.helper.make_tensor_value_info(spikes, kind, shape))
            view = GraphView(model)
        return Network(
            view,
            tuple(self.sites.values()),
            tuple(self.refusals),
            self.classes,
            frozenset(self.temporal),
            frozenset(self.mean_form),
            (*left_out, *self.analog),
        )
