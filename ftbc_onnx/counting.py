"""Events and synaptic operations of an emitted model: what is added to its graph, and what is made of the outputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ftbc_onnx.graph.builder import GraphBuilder
from ftbc_onnx.graph.emit.step import neuron_nodes
from ftbc_onnx.graph.events import Events, binary_count_name, count_events, events_count_name, neurons_name
from ftbc_onnx.graph.layers import uncounted
from ftbc_onnx.graph.recorder import Recorder
from ftbc_onnx.graph.synops import ANALOG, BINARY, DENSE, EVERY_STEP, ONCE, SYNOPS, count_synops
from ftbc_onnx.graph.tally import Tallies
from ftbc_onnx.plan import SpikingPlan, SpikingSite
from ftbc_onnx.results import Counts

_OPSET = 17  # of what is only counted
_TOTALS = (SYNOPS, BINARY, ANALOG, DENSE, ONCE, EVERY_STEP)

Means = Mapping[str, np.ndarray]
"""Means over samples of the outputs named by `counted_names`."""


def count(model: Any, plan: SpikingPlan) -> Any:
    """A copy of an emitted model that also counts."""
    recorder = Recorder(model, plan.steps)
    tallies = Tallies(recorder.builder)
    events = Events(recorder, plan, tallies)
    count_events(recorder, plan, events, tallies)
    count_synops(recorder, plan, events, tallies)
    return recorder.result()


def counted_names(plan: SpikingPlan) -> list[str]:
    """Outputs that `count` adds."""
    kinds = (events_count_name, binary_count_name, neurons_name)
    return [kind(site.name) for site in plan.sites for kind in kinds] + [*_TOTALS]


def site_counts(site: SpikingSite, means: Means) -> tuple[np.ndarray, np.ndarray]:
    """Events and binary spikes per neuron of a site at each step, [T] both."""
    return means[events_count_name(site.name)], means[binary_count_name(site.name)]


def additions(plan: SpikingPlan, site: SpikingSite) -> float:
    """Additions and subtractions that a neuron of a site does in a step: those of its equations, as they are emitted.

    Comparisons, roundings and products with its own constants are not counted. Of a synchronous site: per step, on
    average.
    """
    if plan.synchronous:
        scratch = GraphBuilder(_OPSET)
        names = [f"x{t}" for t in range(plan.steps)]
        plan.layer_of(site).emit(scratch, names, "unit", [f"b{t}" for t in range(plan.steps)])
        nodes = scratch.take_nodes()
    else:
        nodes = neuron_nodes(plan, site, _OPSET)
    found = sum(node.op_type in ("Add", "Sub") for node in nodes)
    return found / plan.steps if plan.synchronous else float(found)


def total_counts(model: Any, plan: SpikingPlan, means: Means) -> Counts:
    """The whole network, summed up to each step: sites weighted by their neurons.

    Args:
        model: the emitted model.
        plan: its plan.
        means: means over samples of what was counted.
    """
    neurons = np.array([float(means[neurons_name(site.name)][0]) for site in plan.sites])
    curves = [site_counts(site, means) for site in plan.sites]
    events, binary = (
        np.cumsum(neurons @ np.array([curve[i] for curve in curves])) / max(neurons.sum(), 1) for i in (0, 1)
    )
    synops, binary_synops, analog = (np.cumsum(means[name]) for name in (SYNOPS, BINARY, ANALOG))
    dense, once, every_step = (float(means[name][0]) for name in (DENSE, ONCE, EVERY_STEP))
    return Counts(
        neurons=float(neurons.sum()),
        events=_curve(events),
        binary_spikes=_curve(binary),
        synops=_curve(synops),
        dense_synops=dense,
        binary_synops=_curve(binary_synops),
        analog_synops=_curve(analog),
        macs_once=once,
        macs_every_step=every_step,
        neuron_additions=float(sum(n * additions(plan, site) for n, site in zip(neurons, plan.sites, strict=True))),
        levels=plan.neuron.most,
        uncounted=uncounted(model),
    )


def _curve(values: np.ndarray) -> tuple[float, ...]:
    return tuple(map(float, values))
