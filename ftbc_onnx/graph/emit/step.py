"""One time step of a network, the part that every form of time shares.

A temporal tensor has a *current* form (its value at step t) and a *mean* form (its running mean after step t):

    cum[t] = cum[t-1] + x[t],            mean[t] = cum[t] / (t+1)
    total[t] = (t+1) * mean[t],          x[t] = total[t] - total[t-1]

Sites and linear nodes make currents, rate-exact nodes make means (they apply f to the means of their inputs); a tensor
is converted where a reader needs the other form, and nowhere else. So y[t] = (t+1)*f(cum[t]/(t+1)) - t*f(cum[t-1]/t),
and a chain of rate-exact nodes is converted at its ends only. The state (membranes, sums, totals) passes from step to
step by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx

from ftbc_onnx.graph.builder import GraphBuilder
from ftbc_onnx.graph.classes import SHAPE_ONLY, NodeClass
from ftbc_onnx.graph.sites import Network
from ftbc_onnx.graph.view import node_inputs, subgraphs
from ftbc_onnx.plan import SpikingSite

Fire = Callable[[SpikingSite, int, str], str]
"""(site, t, current) -> spikes; the caller keeps the membranes."""


class StepEmitter:
    """Writes the temporal nodes of a network into a graph, one time step after another."""

    def __init__(self, builder: GraphBuilder, network: Network, fire: Fire) -> None:
        self._builder = builder
        self._network = network
        self._fire = fire
        self._owner = {site.spikes: site for site in network.sites}
        self._fixed: dict[str, str] = {}
        self._currents: dict[str, str] = {}
        self._means: dict[str, str] = {}
        self._sums: dict[str, str] = {}
        self._summed: set[str] = set()
        self._totals: dict[str, str] = {}
        self._accumulated = _accumulated(network)
        self._shape_readers = _shape_readers(network)

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

    def step(self, t: int) -> None:
        """Write step t (from 0); tensors of the step are then found with `current` and `mean`."""
        self._currents, self._means, self._summed = {}, {}, set()
        for node in self._network.view.nodes:
            kind = self._network.classes[node.name]
            if kind is NodeClass.SITE:
                self._site(node, t)
            elif kind is NodeClass.STATIC:
                if t == 0 and node.name in self._shape_readers:
                    self._fix(node)
            else:
                self._apply(node, t)
        for tensor in self._accumulated:
            self.sum(tensor, t)

    def current(self, tensor: str, t: int) -> str:
        """Name of the value of `tensor` at step t, made from its means if need be."""
        if tensor not in self._network.temporal:
            return self._fixed.get(tensor, tensor)
        if tensor not in self._currents:
            self._currents[tensor] = self._difference(tensor, t)
        return self._currents[tensor]

    def mean(self, tensor: str, t: int) -> str:
        """Name of the running mean of `tensor` after step t, made from its currents if need be."""
        if tensor not in self._network.temporal:
            return self._fixed.get(tensor, tensor)
        if tensor not in self._means:
            total = self.sum(tensor, t)
            with self._builder.scope(f"{tensor}/t{t}"):
                self._means[tensor] = (
                    total if t == 0 else self._builder.op("Div", total, self._number(t + 1, tensor), out="mean")
                )
        return self._means[tensor]

    def sum(self, tensor: str, t: int) -> str:
        """Name of the sum of a tensor's currents up to step t."""
        if tensor not in self._summed:
            total = self._currents[tensor]
            if t > 0:
                with self._builder.scope(f"{tensor}/t{t}"):
                    total = self._builder.op("Add", self._sums[tensor], total, out="sum")
            self._sums[tensor] = total
            self._summed.add(tensor)
        return self._sums[tensor]

    def _difference(self, tensor: str, t: int) -> str:
        mean = self._means[tensor]
        with self._builder.scope(f"{tensor}/t{t}"):
            if t == 0:
                self._totals[tensor] = mean
                return mean
            total = self._builder.op("Mul", mean, self._number(t + 1, tensor), out="total")
            value = self._builder.op("Sub", total, self._totals[tensor], out="current")
            self._totals[tensor] = total
            return value

    def _site(self, node: onnx.NodeProto, t: int) -> None:
        for output in node.output:
            site = self._owner.get(output)
            if site is not None:
                self._currents[output] = self._fire(site, t, self.current(site.current, t))

    def _apply(self, node: onnx.NodeProto, t: int) -> None:
        outputs = [name for name in node.output if name]
        in_mean = outputs[0] in self._network.mean_form
        read = self.mean if in_mean else self.current
        rename = {name: read(name, t) for name in node_inputs(node)}
        made = self._builder.copy(node, rename, f"/t{t}")
        (self._means if in_mean else self._currents).update(made)

    def _fix(self, node: onnx.NodeProto) -> None:
        """A static node that reads a temporal tensor's shape, or such a node's output: once, on the first step."""
        rename = {}
        for name in node_inputs(node):
            made = self._means if name in self._network.mean_form else self._currents
            rename[name] = made[name] if name in self._network.temporal else self._fixed.get(name, name)
        clone = onnx.NodeProto()
        clone.CopyFrom(node)
        _rename_captured(clone, rename)
        self._fixed.update(self._builder.copy(clone, rename, "/fixed"))

    def _number(self, value: int, like: str) -> str:
        """A constant of the type of a tensor (float32 where it is not known)."""
        kind = self._network.view.elem_type(like) or onnx.TensorProto.FLOAT
        return self._builder.constant(np.array(value, dtype=onnx.helper.tensor_dtype_to_np_dtype(kind)))


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


def _accumulated(network: Network) -> list[str]:
    """Tensors made as currents whose sum is kept at every step: rate-exact nodes or the readout read their means."""
    read: dict[str, None] = {}
    for node in network.view.nodes:
        if network.classes[node.name] is NodeClass.RATE_EXACT:
            read.update(dict.fromkeys(node_inputs(node)))
    read.update(dict.fromkeys(network.view.output_names))
    return [name for name in read if name in network.temporal and name not in network.mean_form]
