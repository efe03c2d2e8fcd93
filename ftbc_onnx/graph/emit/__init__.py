"""Emitters: one plan laid out in time.

The unrolled form has a copy of the network per step: no control flow, and the shortest time to run on a CPU. But
onnxruntime takes longer than proportionally to open many nodes, so beyond `LARGEST` of them a Loop over time is the
better file. Fused is the same with the numbers of the neurons in the layers (`ftbc_onnx.graph.fuse`), and takes less
time where most sites stand behind layers. On a GPU the folded form runs fastest, where it is possible (decision 29).
The step form is for a caller who keeps the state. A synchronous plan has no loop and no step form.
"""

from __future__ import annotations

from collections.abc import Iterable

from ftbc_onnx.config import FUSE
from ftbc_onnx.graph.classes import NodeClass
from ftbc_onnx.graph.emit.folded import emit_folded, why_not_folded
from ftbc_onnx.graph.emit.fused import emit_fused
from ftbc_onnx.graph.emit.loop import emit_loop
from ftbc_onnx.graph.emit.one_step import emit_step
from ftbc_onnx.graph.emit.step import neuron_nodes
from ftbc_onnx.graph.emit.unrolled import Emitted, emit_unrolled
from ftbc_onnx.graph.fuse import share
from ftbc_onnx.graph.refitted import refitted
from ftbc_onnx.graph.sites import Network
from ftbc_onnx.plan import SpikingPlan

_FORMS = {"unrolled": emit_unrolled, "folded": emit_folded, "loop": emit_loop, "step": emit_step}

LARGEST = 4000
"""Nodes of an unrolled network beyond which ``auto`` takes the loop form."""


def emit(
    network: Network,
    plan: SpikingPlan,
    form: str = "auto",
    *,
    on_gpu: bool = False,
    steps_input: bool = False,
    passes: Iterable[str] = FUSE,
) -> Emitted:
    """A plan as a standard ONNX model.

    Args:
        network: the normalised ANN that the plan was made for.
        plan: the plan.
        form: ``unrolled``, ``fused``, ``folded``, ``loop``, ``step``, or ``auto``: see `choose_form`.
        on_gpu: where it is to run, for ``auto``.
        steps_input: whether the number of steps is an input of the loop form; no other form can.
        passes: what the fused form puts into the layers (`ftbc_onnx.config.FUSE`).

    Raises:
        ModelError: it cannot be emitted, or not in this form.
    """
    network, plan = refitted(network, plan)
    if steps_input:
        return emit_loop(network, plan, steps_input)
    form = choose_form(network, plan, on_gpu)[0] if form == "auto" else form
    return emit_fused(network, plan, passes) if form == "fused" else _FORMS[form](network, plan)


def choose_form(network: Network, plan: SpikingPlan, on_gpu: bool) -> tuple[str, str]:
    """The form that runs fastest and is open in time, and why, in words."""
    nodes = unrolled_nodes(network, plan)
    if on_gpu and nodes <= LARGEST:
        mixing = why_not_folded(network)
        if mixing is None:
            return "folded", "time in the batch keeps a GPU busy"
        return "unrolled", f"time cannot be folded into the batch: {mixing}"
    if nodes <= LARGEST and share(network, plan) >= 0.5:
        return "fused", "one copy per time step, with thresholds and biases in the layers, runs fastest"
    if plan.synchronous or nodes <= LARGEST:
        return "unrolled", "one copy of the network per time step runs fastest"
    return "loop", f"unrolled it would have about {nodes} nodes, which onnxruntime is slow to open"


def emit_quick(network: Network, plan: SpikingPlan) -> Emitted:
    """A plan in the form that is open at once, to be judged: a loop, where it can be one."""
    return emit(network, plan, "unrolled" if plan.synchronous else "loop")


def unrolled_nodes(network: Network, plan: SpikingPlan) -> int:
    """About how many nodes the unrolled form has: those of the network, and those of its neurons, at every step."""
    repeated = sum(kind not in (NodeClass.STATIC, NodeClass.SITE) for kind in network.classes.values())
    neurons = sum(len(neuron_nodes(plan, site, network.view.opset)) for site in plan.sites)
    return plan.steps * (repeated + neurons)
