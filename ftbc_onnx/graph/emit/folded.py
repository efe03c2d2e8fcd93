"""The folded form: time in the batch. Layers run once, on all time steps of all samples, [T*B, ...], time-major.

Row t*B + b is sample b at step t. Between the layers a site's currents are split into T parts, its neurons go through
the steps, and their spikes are joined again. The conversions between currents and means (`ftbc_onnx.graph.emit.step`)
are made on such parts too. A static tensor that a temporal node reads is repeated T times.

This is right only where every node keeps the rows of its batch apart (`ftbc_onnx.graph.rowwise`). Large layers keep a
GPU busy; on a CPU the copies of splitting and joining cost more than they bring.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx

from ftbc_onnx.errors import ModelError
from ftbc_onnx.graph.builder import GraphBuilder
from ftbc_onnx.graph.classes import SHAPE_ONLY, NodeClass
from ftbc_onnx.graph.emit.step import StepEmitter
from ftbc_onnx.graph.emit.unrolled import (
    Emitted,
    Membranes,
    Readout,
    check_convertible,
    emit_means,
    emit_membranes,
)
from ftbc_onnx.graph.rowwise import is_rowwise
from ftbc_onnx.graph.sites import Network
from ftbc_onnx.graph.view import node_inputs
from ftbc_onnx.plan import SpikingPlan


def batched_tensors(network: Network) -> set[str]:
    """Tensors with one row per sample on axis 0: what row-wise nodes make of the inputs, and of nothing mixed."""
    return _walk(network)[0]


def why_not_folded(network: Network) -> str | None:
    """The first node that does not keep the rows of the batch apart, in words; None: time can be folded."""
    return _walk(network)[1]


def _walk(network: Network) -> tuple[set[str], str | None]:
    """What is batched, and the first temporal node that is in the way."""
    depends = {value.name for value in network.view.inputs}
    batched = {name for name in depends if network.view.shape(name)}
    reason = None
    for node in network.view.nodes:
        reads = depends & set(node_inputs(node))
        if node.op_type in SHAPE_ONLY or not reads:
            if network.temporal & reads:
                reason = reason or f"{node.op_type} '{node.name}' reads the size of the batch"
            continue
        made, kind = [name for name in node.output if name], network.classes[node.name]
        depends.update(made)
        if reads <= batched and (kind is NodeClass.SITE or is_rowwise(network.view, node, batched)):
            batched.update(made)
        elif kind is not NodeClass.STATIC:
            reason = reason or f"{node.op_type} '{node.name}' may mix the samples of a batch"
    return batched, reason


def emit_folded(network: Network, plan: SpikingPlan) -> Emitted:
    """The spiking network of a plan with time folded into the batch.

    Args:
        network: the normalised ANN that the plan was made for.
        plan: sites, thresholds [C] and biases [T, C].

    Raises:
        ModelError: the network has refusals, or tensors named as the emitted ones are, or no such readout; or a node
            does not keep the rows of its batch apart.
    """
    check_convertible(network, plan.readout)
    reason = why_not_folded(network)
    if reason is not None:
        raise ModelError(f"time cannot be folded into the batch: {reason}; use form unrolled or loop")
    builder = GraphBuilder(network.view.opset)
    builder.reserve(value.name for value in network.view.inputs)
    membranes = emit_membranes(builder, plan)
    StepEmitter(builder, network).keep_static()
    builder.promise(network.view.output_names)
    folding = _Folding(builder, network, plan, membranes, batched_tensors(network))
    for node in network.view.nodes:
        folding.visit(node)
    readouts = [folding.readout(name) for name in network.view.output_names if name in network.temporal]
    for readout in readouts:
        with builder.scope(f"{readout.output}/out"):
            kind = network.view.elem_type(readout.output)
            (made,) = emit_means(builder, readout, [plan.steps - 1], kind)
        builder.alias(made, readout.output)
    model = builder.to_model(
        network.view.graph.name or "snn",
        network.view.inputs,
        network.view.graph.output,
        network.view.model.opset_import,
    )
    return Emitted(model, tuple(readouts), "folded")


@dataclass
class _Folding:
    """What was written of a tensor: its T parts [B, ...], and all in one, [T*B, ...]; as currents and as means."""

    builder: GraphBuilder
    network: Network
    plan: SpikingPlan
    membranes: Membranes
    batched: set[str]
    parts: dict[str, list[str]] = field(default_factory=dict)
    whole: dict[str, str] = field(default_factory=dict)
    mean_parts: dict[str, list[str]] = field(default_factory=dict)
    mean_whole: dict[str, str] = field(default_factory=dict)
    sums: dict[str, list[str]] = field(default_factory=dict)
    repeated: dict[str, str] = field(default_factory=dict)

    def visit(self, node: onnx.NodeProto) -> None:
        """Write a node, once for all steps."""
        kind = self.network.classes[node.name]
        if kind is NodeClass.SITE:
            self._fire(node)
        elif kind is not NodeClass.STATIC:
            outputs = [name for name in node.output if name]
            in_mean = outputs[0] in self.network.mean_form
            read = self._mean if in_mean else self._current
            made = self.builder.copy(node, {name: read(name) for name in node_inputs(node)}, "/folded")
            (self.mean_whole if in_mean else self.whole).update(made)

    def readout(self, output: str) -> Readout:
        """Where an output is found after every step."""
        is_mean = output in self.network.mean_form
        tensors = self._parts_of_mean(output) if is_mean else self._sums(output)
        return Readout(output, is_mean, tuple(tensors), self.plan.readout)

    def _fire(self, node: onnx.NodeProto) -> None:
        for site in self.plan.sites:
            if site.spikes in node.output:
                currents = self._parts_of_current(site.current)
                if self.plan.synchronous:
                    spikes = self.membranes.fire_all(site, currents)
                else:
                    spikes = [self.membranes.fire(site, t, current) for t, current in enumerate(currents)]
                self.parts[site.spikes] = spikes

    def _current(self, tensor: str) -> str:
        """A tensor at all steps, as a current."""
        if tensor not in self.network.temporal:
            return self._repeat(tensor)
        if tensor not in self.whole:
            self.whole[tensor] = self._join(tensor, self._parts_of_current(tensor), "folded")
        return self.whole[tensor]

    def _mean(self, tensor: str) -> str:
        """Running means of a tensor after all steps."""
        if tensor not in self.network.temporal:
            return self._repeat(tensor)
        if tensor not in self.mean_whole:
            self.mean_whole[tensor] = self._join(tensor, self._parts_of_mean(tensor), "means")
        return self.mean_whole[tensor]

    def _parts_of_current(self, tensor: str) -> list[str]:
        if tensor not in self.network.temporal:
            return [tensor] * self.plan.steps
        if tensor not in self.parts:
            if tensor in self.whole:
                self.parts[tensor] = self._split(tensor, self.whole[tensor], "part")
            else:
                self.parts[tensor] = self._differences(tensor)
        return self.parts[tensor]

    def _parts_of_mean(self, tensor: str) -> list[str]:
        if tensor not in self.mean_parts:
            if tensor in self.mean_whole:
                self.mean_parts[tensor] = self._split(tensor, self.mean_whole[tensor], "mean")
            else:
                totals = self._sums(tensor)
                self.mean_parts[tensor] = [totals[0]] + [
                    self.builder.op("Div", total, self._count(t, tensor), out=f"{tensor}/t{t}/mean")
                    for t, total in enumerate(totals[1:], 1)
                ]
        return self.mean_parts[tensor]

    def _sums(self, tensor: str) -> list[str]:
        """cum[t] = cum[t-1] + x[t]."""
        if tensor not in self.sums:
            first, *rest = self._parts_of_current(tensor)
            totals = [first]
            for t, part in enumerate(rest, 1):
                totals.append(self.builder.op("Add", totals[-1], part, out=f"{tensor}/t{t}/sum"))
            self.sums[tensor] = totals
        return self.sums[tensor]

    def _differences(self, tensor: str) -> list[str]:
        """x[t] = total[t] - total[t-1] with total[t] = (t+1) * mean[t]."""
        means = self._parts_of_mean(tensor)
        totals = [means[0]] + [
            self.builder.op("Mul", mean, self._count(t, tensor), out=f"{tensor}/t{t}/total")
            for t, mean in enumerate(means[1:], 1)
        ]
        return [means[0]] + [
            self.builder.op("Sub", totals[t], totals[t - 1], out=f"{tensor}/t{t}/current")
            for t in range(1, self.plan.steps)
        ]

    def _count(self, t: int, tensor: str) -> str:
        kind = self.network.view.elem_type(tensor) or onnx.TensorProto.FLOAT
        return self.builder.constant(np.array(t + 1, onnx.helper.tensor_dtype_to_np_dtype(kind)))

    def _split(self, tensor: str, whole: str, label: str) -> list[str]:
        if self.plan.steps == 1:
            return [whole]
        return self.builder.split(whole, self.plan.steps, [f"{tensor}/t{t}/{label}" for t in range(self.plan.steps)])

    def _join(self, tensor: str, parts: Sequence[str], label: str) -> str:
        return parts[0] if len(parts) == 1 else self.builder.op("Concat", *parts, out=f"{tensor}/{label}", axis=0)

    def _repeat(self, tensor: str) -> str:
        """A static tensor for all steps: once per step if it has one row per sample, else as it is."""
        if tensor not in self.batched:
            return tensor
        if tensor not in self.repeated:
            self.repeated[tensor] = self._join(tensor, [tensor] * self.plan.steps, "repeated")
        return self.repeated[tensor]
