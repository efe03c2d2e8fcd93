"""Events and synaptic operations of an emitted model: what is added to its graph, and what is made of the outputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ftbc_onnx.graph.events import binary_count_name, count_events, events_count_name, neurons_name
from ftbc_onnx.graph.synops import DENSE, SYNOPS, count_synops
from ftbc_onnx.plan import SpikingPlan, SpikingSite
from ftbc_onnx.results import Counts

Means = Mapping[str, np.ndarray]
"""Means over samples of the outputs named by `counted_names`."""


def count(model: Any, plan: SpikingPlan) -> Any:
    """A copy of an emitted model that also counts."""
    return count_synops(count_events(model, plan), plan)


def counted_names(plan: SpikingPlan) -> list[str]:
    """Outputs that `count` adds."""
    kinds = (events_count_name, binary_count_name, neurons_name)
    return [kind(site.name) for site in plan.sites for kind in kinds] + [SYNOPS, DENSE]


def site_counts(site: SpikingSite, means: Means) -> tuple[np.ndarray, np.ndarray]:
    """Events and binary spikes per neuron of a site at each step, [T] both."""
    return means[events_count_name(site.name)], means[binary_count_name(site.name)]


def total_counts(plan: SpikingPlan, means: Means) -> Counts:
    """The whole network, summed up to each step: sites weighted by their neurons."""
    neurons = np.array([float(means[neurons_name(site.name)][0]) for site in plan.sites])
    curves = [site_counts(site, means) for site in plan.sites]
    events, binary = (
        np.cumsum(neurons @ np.array([curve[i] for curve in curves])) / max(neurons.sum(), 1) for i in (0, 1)
    )
    return Counts(
        float(neurons.sum()),
        tuple(map(float, events)),
        tuple(map(float, binary)),
        tuple(map(float, np.cumsum(means[SYNOPS]))),
        float(means[DENSE][0]),
    )
