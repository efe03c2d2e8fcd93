"""Emitters: one plan laid out in time.

The unrolled form has a copy of the network per step: no control flow, and the shortest time to run. But onnxruntime
takes longer than proportionally to open many nodes, so beyond `LARGEST` of them a Loop over time is the better file.
The step form is for a caller who keeps the state. A synchronous plan has the unrolled form only.
"""

from __future__ import annotations

import numpy as np

from ftbc_onnx.graph.builder import GraphBuilder
from ftbc_onnx.graph.classes import NodeClass
from ftbc_onnx.graph.emit.folded import emit_folded
from ftbc_onnx.graph.emit.loop import emit_loop
from ftbc_onnx.graph.emit.one_step import emit_step
from ftbc_onnx.graph.emit.unrolled import Emitted, emit_unrolled
from ftbc_onnx.graph.sites import Network
from ftbc_onnx.plan import SpikingPlan

_FORMS = {"unrolled": emit_unrolled, "folded": emit_folded, "loop": emit_loop, "step": emit_step}

LARGEST = 4000
"""Nodes of an unrolled network beyond which ``auto`` takes the loop form."""


def emit(network: Network, plan: SpikingPlan, form: str = "auto") -> Emitted:
    """A plan as a standard ONNX model.

    Args:
        network: the normalised ANN that the plan was made for.
        plan: the plan.
        form: ``unrolled``, ``loop``, ``step``, or ``auto``: unrolled or loop, by the number of nodes.

    Raises:
        ModelError: it cannot be emitted, or not in this form.
    """
    if form == "auto":
        form = "unrolled" if plan.synchronous or unrolled_nodes(network, plan) <= LARGEST else "loop"
    return _FORMS[form](network, plan)


def emit_quick(network: Network, plan: SpikingPlan) -> Emitted:
    """A plan in the form that is open at once, to be judged: a loop, where it can be one."""
    return emit(network, plan, "unrolled" if plan.synchronous else "loop")


def unrolled_nodes(network: Network, plan: SpikingPlan) -> int:
    """About how many nodes the unrolled form has: those of the network, and those of its neurons, at every step."""
    repeated = sum(kind not in (NodeClass.STATIC, NodeClass.SITE) for kind in network.classes.values())
    scratch = GraphBuilder(network.view.opset)
    for site in plan.sites:
        neuron = plan.neuron_of(site)
        state = tuple(f"state{i}" for i, _ in enumerate(neuron.initial_state(np.ones(1, np.float32))))
        neuron.emit_step(scratch, "current", state, "unit", "bias")
    return plan.steps * (repeated + len(scratch.take_nodes()))
