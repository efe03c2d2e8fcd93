"""Emitters: one plan laid out in time."""

from __future__ import annotations

from ftbc_onnx.graph.emit.loop import emit_loop
from ftbc_onnx.graph.emit.unrolled import Emitted, emit_unrolled
from ftbc_onnx.graph.sites import Network
from ftbc_onnx.plan import SpikingPlan


def emit_quick(network: Network, plan: SpikingPlan) -> Emitted:
    """A plan in the form that is open at once, to be judged: a loop, where it can be one."""
    return emit_unrolled(network, plan) if plan.synchronous else emit_loop(network, plan)
