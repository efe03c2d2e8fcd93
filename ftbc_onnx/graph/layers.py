"""The layers with weights of an emitted model, by what they read: spikes, or numbers that have to be multiplied.

A layer is a node that multiplies what it reads by weights: Conv, ConvTranspose, Gemm, MatMul.

1. It reads *inputs*: nothing that depends on spikes. It runs once per sample (the first layer, for a start).
2. It reads *spikes*: what neurons sent, perhaps moved, added up, averaged or scaled by constants on the way, all of
   which could be done to its weights instead. An input that is not 0 adds weights to what it reaches.
3. It reads *currents*: real numbers at every step, because another layer with weights stands between the neurons and
   this one, or a real number was added. An input that is not 0 has to be multiplied.
4. It reads *means*, or multiplies two tensors that depend on spikes: real numbers at every step.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import onnx

from ftbc_onnx.graph.classes import SHAPE_ONLY, WEIGHTED, NodeClass, classify
from ftbc_onnx.graph.emit.unrolled import spikes_name
from ftbc_onnx.graph.recorder import Step, flat, steps_of
from ftbc_onnx.graph.units import is_scale
from ftbc_onnx.graph.view import GraphView, all_nodes, node_inputs, subgraphs
from ftbc_onnx.plan import SpikingPlan

_OTHERS = """
    Attention ConvInteger DeformConv Einsum GRU LSTM LinearAttention MatMulInteger QLinearConv QLinearMatMul RNN
"""
OTHERS = frozenset(_OTHERS.split())
"""Operators that multiply by weights, too, and are not counted."""


class Reads(str, Enum):
    """What a layer reads."""

    INPUTS = "inputs"
    SPIKES = "spikes"
    CURRENTS = "currents"
    MEANS = "means"


@dataclass(frozen=True)
class Layer:
    """A layer with weights.

    Attributes:
        node: the node, as it stands in the emitted model.
        position: which input is read; the other is the weights.
        step: t; None in a loop; the first step, of a layer that runs once.
        reads: what is read.
    """

    node: onnx.NodeProto
    position: int
    step: Step
    reads: Reads


@dataclass(frozen=True)
class Layers:
    """The layers of every step, in order, and the tensors that are made of spikes only."""

    found: tuple[Layer, ...]
    spiking: frozenset[str]

    def reading(self, *kinds: Reads) -> list[Layer]:
        """Those that read one of these."""
        return [layer for layer in self.found if layer.reads in kinds]


def find_layers(model: onnx.ModelProto, plan: SpikingPlan) -> Layers:
    """The layers with weights of an emitted model."""
    view = GraphView(flat(model))
    steps = steps_of(model, plan.steps)
    fired = {spikes_name(site.name, t): place for site in plan.sites for place, t in enumerate(steps)}
    given = {tensor.name for tensor in model.graph.initializer}
    fed = {value.name for value in model.graph.input} - given  # what depends on the input, but on no spike
    step: dict[str, int] = {}  # temporal tensor -> the last step that it depends on
    temporal, means, spiking = set[str](), set[str](), set[str]()
    found = []
    for node in view.nodes:
        names = node_inputs(node)
        reads = [name for name in names if name in step]
        kind = classify(view, node, temporal) if reads else NodeClass.STATIC
        in_means = kind is NodeClass.RATE_EXACT or all(name in means for name in reads)
        weighted = node.op_type in WEIGHTED and not is_scale(node)
        of_spikes = kind is NodeClass.LINEAR and not weighted and not fed & set(names)
        of_spikes = of_spikes and all(name in spiking for name in reads)
        if kind is NodeClass.STATIC:
            if fed & set(names) and node.op_type not in SHAPE_ONLY:
                fed.update(node.output)
                if weighted:
                    found.append(Layer(node, 0 if node.input[0] in fed else 1, steps[0], Reads.INPUTS))
        else:
            place = max(step[name] for name in reads)
            step.update(dict.fromkeys(node.output, place))
            if weighted:
                places = [i for i in (0, 1) if node.input[i] in step]
                position = places[0] if places else 0
                what = Reads.SPIKES if node.input[position] in spiking else Reads.CURRENTS
                what = Reads.MEANS if in_means or len(places) != 1 else what
                found.append(Layer(node, position, steps[place], what))
        for name in node.output:
            if name in fired:
                step[name] = fired[name]
                means.discard(name)
                spiking.add(name)
                fed.discard(name)  # of the first neurons at the first step
            elif name in step:
                if name.endswith("/mean") or (in_means and not name.endswith("/current")):
                    means.add(name)
                elif of_spikes and not name.endswith("/current"):
                    spiking.add(name)
        temporal.update(name for name in node.output if name in step)
    return Layers(tuple(found), frozenset(spiking))


def uncounted(model: onnx.ModelProto) -> tuple[str, ...]:
    """Operators of an emitted model that multiply by weights and are no `Layer`: others, and those in bodies."""
    nodes = list(flat(model).graph.node)
    inner = [node for outer in nodes for body in subgraphs(outer) for node in all_nodes(body.node)]
    found = {node.op_type for node in nodes if node.op_type in OTHERS}
    return tuple(sorted(found | {node.op_type for node in inner if node.op_type in OTHERS | WEIGHTED}))
