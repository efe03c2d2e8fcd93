"""One time step of a network, the part that every form of time shares.

A temporal tensor has a *current* form (its value at step t) and a *mean* form (its running mean after step t):

    cum[t] = cum[t-1] + x[t],            mean[t] = cum[t] / (t+1)
    total[t] = (t+1) * mean[t],          x[t] = total[t] - total[t-1]

Sites and linear nodes make currents, rate-exact nodes make means (they apply f to the means of their inputs); a tensor
is converted where a reader needs the other form, and nowhere else. So y[t] = (t+1)*f(cum[t]/(t+1)) - t*f(cum[t-1]/t),
and a chain of rate-exact nodes is converted at its ends only. The state (membranes, sums, totals) passes from step to
step by name. Sums and totals are written when they are first asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx

from ftbc_onnx.graph.builder import GraphBuilder
from ftbc_onnx.graph.classes import SHAPE_ONLY, NodeClass
from ftbc_onnx.graph.sites import Network
from ftbc_onnx.graph.view import names_inside, node_inputs, subgraphs
from ftbc_onnx.plan import SpikingPlan, SpikingSite

Fire = Callable[[SpikingSite, int, str], str]
"""(site, t, current) -> spikes; the caller keeps the membranes."""

FireAll = Callable[[SpikingSite, list[str]], list[str]]
"""(site, its currents at every step) -> its spikes at every step."""


def neuron_nodes(plan: SpikingPlan, site: SpikingSite, opset: int) -> list[onnx.NodeProto]:
    """What one step of a site's neurons is written as, by itself: to be counted."""
    scratch, neuron = GraphBuilder(opset), plan.neuron_of(site)
    state = tuple(f"state{i}" for i, _ in enumerate(neuron.initial_state(np.ones(1, np.float32))))
    neuron.emit_step(scratch, "current", state, "unit", "bias")
    return scratch.take_nodes()


class StepEmitter:
    """Writes the temporal nodes of a network into a graph, one time step after another or one node after another.

    What a step needs to know of its place in time is asked of `_at`, `_is_first`, `_count`, `_sum_before` and
    `_total_before`: `ftbc_onnx.graph.emit.carried` answers them for a step that stands for all of them.
    """

    def __init__(self, builder: GraphBuilder, network: Network) -> None:
        self._builder = builder
        self._network = network
        self._owner = {site.spikes: site for site in network.sites}
        self._fixed: dict[str, str] = {}
        self._currents: dict[tuple[str, int], str] = {}
        self._means: dict[tuple[str, int], str] = {}
        self._sums: dict[tuple[str, int], str] = {}
        self._totals: dict[tuple[str, int], str] = {}
        self._shape_readers = _shape_readers(network)
        builder.avoid(name for node in network.view.nodes for name in names_inside(node))

    def keep_static(self) -> None:
        """Write what does not depend on t: static nodes that read no temporal tensor's shape, and the constants."""
        for tensor in self._network.view.graph.initializer:
            self._builder.keep_initializer(tensor)
        for node in self._network.view.nodes:
            if self._network.classes[node.name] is NodeClass.STATIC and node.name not in self._shape_readers:
                self._builder.keep(node)

    def keep_ann(self) -> None:
        """Write the temporal part of the ANN as it is, beside the steps: same names, same weights."""
        for node in self._network.view.nodes:
            if self._network.classes[node.name] is not NodeClass.STATIC or node.name in self._shape_readers:
                self._builder.keep(node)

    def read_instead(self, names: Mapping[str, str]) -> None:
        """Let the steps read other tensors in the place of some that do not depend on t: weights, for example."""
        self._fixed.update(names)

    def step(self, t: int, fire: Fire) -> None:
        """Write step t (from 0), time-major; its tensors are then found with `current`, `mean` and `sum`."""
        for node in self._network.view.nodes:
            if self._network.classes[node.name] is NodeClass.SITE:
                for site in self._sites_of(node):
                    self._currents[site.spikes, t] = fire(site, t, self.current(site.current, t))
            else:
                self._visit(node, t)

    def all_steps(self, steps: int, fire: FireAll) -> None:
        """Write all steps, site-major: a site sees its currents of every step before it fires at the first."""
        for node in self._network.view.nodes:
            if self._network.classes[node.name] is NodeClass.SITE:
                for site in self._sites_of(node):
                    spikes = fire(site, [self.current(site.current, t) for t in range(steps)])
                    self._currents.update({(site.spikes, t): name for t, name in enumerate(spikes)})
            else:
                for t in range(steps):
                    self._visit(node, t)

    def current(self, tensor: str, t: int) -> str:
        """Name of the value of `tensor` at step t, made from its means if need be."""
        if tensor not in self._network.temporal:
            return self._fixed.get(tensor, tensor)
        if (tensor, t) not in self._currents:
            self._currents[tensor, t] = self._difference(tensor, t)
        return self._currents[tensor, t]

    def mean(self, tensor: str, t: int) -> str:
        """Name of the running mean of `tensor` after step t, made from its currents if need be."""
        if tensor not in self._network.temporal:
            return self._fixed.get(tensor, tensor)
        if (tensor, t) not in self._means:
            total = self.sum(tensor, t)
            with self._builder.scope(f"{tensor}/{self._at(t)}"):
                # the first mean is the first current, but has a name of its own: who reads it reads a mean
                self._means[tensor, t] = (
                    self._builder.op("Identity", total, out="mean")
                    if self._is_first(t)
                    else self._builder.op("Div", total, self._count(t, tensor), out="mean")
                )
        return self._means[tensor, t]

    def sum(self, tensor: str, t: int) -> str:
        """Name of the sum of a tensor's currents up to step t."""
        if (tensor, t) not in self._sums:
            total = self._currents[tensor, t]
            if not self._is_first(t):
                before = self._sum_before(tensor, t)
                with self._builder.scope(f"{tensor}/{self._at(t)}"):
                    total = self._builder.op("Add", before, total, out="sum")
            self._sums[tensor, t] = total
        return self._sums[tensor, t]

    def _difference(self, tensor: str, t: int) -> str:
        if self._is_first(t):
            return self._means[tensor, t]
        before, total = self._total_before(tensor, t), self._total(tensor, t)
        with self._builder.scope(f"{tensor}/{self._at(t)}"):
            return self._builder.op("Sub", total, before, out="current")

    def _total(self, tensor: str, t: int) -> str:
        """The sum up to step t of a tensor that is made as means."""
        mean = self._means[tensor, t]
        if self._is_first(t):
            return mean
        if (tensor, t) not in self._totals:
            with self._builder.scope(f"{tensor}/{self._at(t)}"):
                self._totals[tensor, t] = self._builder.op("Mul", mean, self._count(t, tensor), out="total")
        return self._totals[tensor, t]

    def _at(self, t: int) -> str:
        """Step t in names."""
        return f"t{t}"

    def _is_first(self, t: int) -> bool:
        """Whether nothing comes before step t."""
        return t == 0

    def _count(self, t: int, like: str) -> str:
        """The number of steps up to step t, of the type of a tensor (float32 where it is not known)."""
        kind = onnx.helper.tensor_dtype_to_np_dtype(self.kind(like))
        return self._builder.constant(np.array(t + 1, dtype=kind))

    def _sum_before(self, tensor: str, t: int) -> str:
        return self.sum(tensor, t - 1)

    def _total_before(self, tensor: str, t: int) -> str:
        return self._total(tensor, t - 1)

    def kind(self, tensor: str) -> int:
        """Element type of a tensor (float32 where it is not known)."""
        return self._network.view.elem_type(tensor) or onnx.TensorProto.FLOAT

    def _sites_of(self, node: onnx.NodeProto) -> list[SpikingSite]:
        return [self._owner[output] for output in node.output if output in self._owner]

    def _visit(self, node: onnx.NodeProto, t: int) -> None:
        if self._network.classes[node.name] is not NodeClass.STATIC:
            self._apply(node, t)
        elif t == 0 and node.name in self._shape_readers:
            self._fix(node)

    def _apply(self, node: onnx.NodeProto, t: int) -> None:
        outputs = [name for name in node.output if name]
        in_mean = outputs[0] in self._network.mean_form
        read = self.mean if in_mean else self.current
        rename = {name: read(name, t) for name in node_inputs(node)}
        made = self._builder.copy(node, rename, f"/{self._at(t)}")
        (self._means if in_mean else self._currents).update({(old, t): new for old, new in made.items()})

    def _fix(self, node: onnx.NodeProto) -> None:
        """A static node that reads a temporal tensor's shape, or such a node's output: once, on the first step."""
        rename = {}
        for name in node_inputs(node):
            made = self._means if name in self._network.mean_form else self._currents
            rename[name] = made[name, 0] if name in self._network.temporal else self._fixed.get(name, name)
        clone = onnx.NodeProto()
        clone.CopyFrom(node)
        _rename_captured(clone, rename)
        self._fixed.update(self._builder.copy(clone, rename, "/fixed"))


def _rename_captured(node: onnx.NodeProto, rename: Mapping[str, str]) -> None:
    """Let the bodies of an If, Loop or Scan read the tensors around them by their new names."""
    for body in subgraphs(node):
        for inner in body.node:
            inner.input[:] = [rename.get(name, name) for name in inner.input]
            _rename_captured(inner, rename)
        for value in body.output:
            value.name = rename.get(value.name, value.name)


def _shape_readers(network: Network) -> set[str]:
    """Names of static nodes that need a temporal tensor for its shape, or the output of such a node."""
    tensors: set[str] = set()
    names: set[str] = set()
    for node in network.view.nodes:
        if network.classes[node.name] is NodeClass.STATIC:
            reads = set(node_inputs(node))
            if reads & tensors or (node.op_type in SHAPE_ONLY and reads & network.temporal):
                names.add(node.name)
                tensors.update(node.output)
    return names
