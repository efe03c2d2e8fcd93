"""The folded form: time in the batch. Layers run once, on all time steps of all samples, [T*B, ...], time-major.

Row t*B + b is sample b at step t. Between the layers a site's currents are split into T parts, its neurons go through
the steps, and their spikes are joined again. The conversions between currents and means (`ftbc_onnx.graph.emit.step`)
are made on such parts too. A static tensor that a temporal node reads is repeated T times.

This is right only where every node keeps the rows of its batch apart (`ftbc_onnx.graph.rowwise`). Large layers keep a
GPU busy; on a CPU the copies of splitting and joining cost more than they bring.
"""

from __future__ import annotations

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
    finish,
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
    first = {name: shape[0] for name in depends if (shape := network.view.shape(name))}
    free = [name for name, side in first.items() if not isinstance(side, int)]
    batched = set(free or first)  # beside inputs of a free batch, one of a fixed length has no rows of samples
    reason = None
    for node in network.view.nodes:
        reads = depends & set(node_inputs(node))
        if node.op_type in SHAPE_ONLY or not reads:
            if network.temporal & reads:
                reason = reason or f"{node.op_type} '{node.name}' reads the size of the batch"
            elif network.temporal & set(node.output):
                reason = reason or f"{node.op_type} '{node.name}' is the same for all samples"
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
    batched, reason = _walk(network)
    if reason is not None:
        raise ModelError(f"time cannot be folded into the batch: {reason}; use form unrolled or loop")
    builder = GraphBuilder(network.view.opset)
    builder.reserve(value.name for value in network.view.inputs)
    folding = _Folding(builder, network, emit_membranes(builder, plan), batched)
    folding.keep_static()
    builder.promise(network.view.output_names)
    for node in network.view.nodes:
        folding.fold(node)
    readouts = [folding.readout(name) for name in network.view.output_names if name in network.temporal]
    for readout in readouts:
        with builder.scope(f"{readout.output}/out"):
            kind = network.view.elem_type(readout.output)
            (made,) = emit_means(builder, readout, [plan.steps - 1], kind)
        builder.alias(made, readout.output)
    return Emitted(finish(builder, network), tuple(readouts), "folded")


class _Folding(StepEmitter):
    """Writes a node once for all steps, [T*B, ...]; what is wanted of one step is split off, [B, ...].

    Currents and means are converted as in every form, step by step.
    """

    def __init__(self, builder: GraphBuilder, network: Network, membranes: Membranes, batched: set[str]) -> None:
        super().__init__(builder, network)
        self._membranes = membranes
        self._plan = membranes.plan
        self._batched = batched
        self._whole_currents: dict[str, str] = {}
        self._whole_means: dict[str, str] = {}
        self._repeated: dict[str, str] = {}

    def fold(self, node: onnx.NodeProto) -> None:
        """Write a node."""
        kind = self._network.classes[node.name]
        if kind is NodeClass.SITE:
            self._fire(node)
        elif kind is not NodeClass.STATIC:
            in_mean = next(name for name in node.output if name) in self._network.mean_form
            made = self._whole_means if in_mean else self._whole_currents
            made.update(self._builder.copy(node, {n: self._whole(n, in_mean) for n in node_inputs(node)}, "/folded"))

    def readout(self, output: str) -> Readout:
        """Where an output is found after every step."""
        is_mean = output in self._network.mean_form
        read = self.mean if is_mean else self.sum
        return Readout(output, is_mean, tuple(read(output, t) for t in range(self._plan.steps)), self._plan.readout)

    def current(self, tensor: str, t: int) -> str:
        """Name of the value of `tensor` at step t."""
        self._split(tensor)
        return super().current(tensor, t)

    def mean(self, tensor: str, t: int) -> str:
        """Name of the running mean of `tensor` after step t."""
        self._split(tensor)
        return super().mean(tensor, t)

    def sum(self, tensor: str, t: int) -> str:
        """Name of the sum of a tensor's currents up to step t."""
        self._split(tensor)
        return super().sum(tensor, t)

    def _fire(self, node: onnx.NodeProto) -> None:
        for site in self._sites_of(node):
            currents = [self.current(site.current, t) for t in range(self._plan.steps)]
            if self._plan.synchronous:
                spikes = self._membranes.fire_all(site, currents)
            else:
                spikes = [self._membranes.fire(site, t, current) for t, current in enumerate(currents)]
            self._currents.update({(site.spikes, t): name for t, name in enumerate(spikes)})

    def _whole(self, tensor: str, in_mean: bool) -> str:
        """A tensor at all steps, as a current or as a mean; a static one once per step if it has one row per sample."""
        temporal, steps = tensor in self._network.temporal, self._plan.steps
        if not temporal and tensor not in self._batched:
            return tensor
        held, label = self._repeated, "repeated"
        if temporal:
            held, label = (self._whole_means, "means") if in_mean else (self._whole_currents, "folded")
        if tensor not in held:
            read = self.mean if in_mean else self.current
            parts = [read(tensor, t) for t in range(steps)] if temporal else [tensor] * steps
            joined = self._builder.op("Concat", *parts, out=f"{tensor}/{label}", axis=0) if steps > 1 else parts[0]
            held[tensor] = joined
        return held[tensor]

    def _split(self, tensor: str) -> None:
        """Make the parts of a tensor that was written for all steps, if nobody has."""
        steps = range(self._plan.steps)
        for whole, parts, label in (
            (self._whole_currents, self._currents, "part"),
            (self._whole_means, self._means, "part_of_means"),
        ):
            if tensor in whole and (tensor, 0) not in parts:
                names = [whole[tensor]]
                if len(steps) > 1:
                    names = self._builder.split(whole[tensor], len(steps), [f"{tensor}/t{t}/{label}" for t in steps])
                parts.update({(tensor, t): name for t, name in zip(steps, names, strict=True)})
