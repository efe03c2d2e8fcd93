"""The search graph: every site tries several thresholds on the currents that really reach it, and keeps the best.

A quantiser's error says what a threshold costs if the current is the same at every step. It is not: upstream spikes
come when they come. So the sites are gone through one after another, all T steps of a site at once, with every site
upstream on the threshold and biases that it chose. Candidate j of a site, with thresholds theta_j [C], runs the T steps
with the calibration rule, and the squared error of what it sent on the whole,

    error_j = mean over everything of ( (1/T) * sum over t of s_j[t]  -  a )^2

is compared. The thresholds with the least error stay, and the site fires again with them for the sites behind it. ANN,
SNN, rule and choice are one graph: only the choice of every site, a number, leaves the runtime.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx

from ftbc_onnx.graph.builder import GraphBuilder
from ftbc_onnx.graph.emit.calibration import Calibrated, Rule
from ftbc_onnx.graph.emit.step import StepEmitter
from ftbc_onnx.graph.sites import Network
from ftbc_onnx.plan import SpikingPlan, SpikingSite


def errors_name(site: str) -> str:
    """Output of the search graph: the error of every candidate of a site, [J]."""
    return f"{site}/candidate_errors"


def emit_search(
    network: Network, plan: SpikingPlan, candidates: Mapping[str, Sequence[np.ndarray]], rule: Rule
) -> onnx.ModelProto:
    """The search graph of a plan (of which sites, steps and neurons are used).

    Args:
        network: the normalised ANN.
        plan: the plan.
        candidates: thresholds to try per site, [C] each; a site with one keeps it.
        rule: how biases are found on the way.

    Inputs: the ANN's own. Outputs: ``SITE/candidate_errors`` [J] per site with several candidates.
    """
    builder = GraphBuilder(network.view.opset)
    builder.reserve(value.name for value in network.view.inputs)
    outputs: list[onnx.ValueInfoProto] = []

    def fire(site: SpikingSite, currents: list[str]) -> list[str]:
        activation = builder.mean(site.spikes, site.mean_axes, out=f"{site.name}/activation")
        best: list[str] = []  # error, then theta
        errors = []
        tried = candidates[site.name]
        for j, theta in enumerate(tried):
            with builder.scope(f"{site.name}/candidate{j}"):
                shaped = builder.constant(theta.astype(np.float32).reshape(site.channel_shape), name="theta")
                if len(tried) == 1:
                    best = ["", shaped]
                    break
                spikes, _ = _run(builder, plan, site, rule, activation, shaped, currents)
                total = builder.op("Sum", *spikes) if len(spikes) > 1 else spikes[0]
                gap = builder.op("Sub", builder.op("Div", total, builder.constant(float(plan.steps))), site.spikes)
                error = builder.mean(builder.op("Mul", gap, gap), None, out="error")
                errors.append(error)
                best = _better(builder, [error, shaped], best)
        if errors:
            name = builder.op("Concat", *errors, out=errors_name(site.name), axis=0)
            outputs.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [len(errors)]))
        with builder.scope(f"{site.name}/chosen"):
            return _run(builder, plan, site, rule, activation, best[1], currents)[0]

    emitter = StepEmitter(builder, network)
    emitter.keep_static()
    emitter.keep_ann()
    emitter.all_steps(plan.steps, fire)
    return builder.to_model("search", network.view.inputs, outputs, network.view.model.opset_import)


def _better(builder: GraphBuilder, new: list[str], best: list[str]) -> list[str]:
    if not best:
        return new
    better = builder.op("Less", new[0], best[0])
    return [builder.op("Where", better, mine, theirs) for mine, theirs in zip(new, best, strict=True)]


def _run(
    builder: GraphBuilder,
    plan: SpikingPlan,
    site: SpikingSite,
    rule: Rule,
    activation: str,
    threshold: str,
    currents: list[str],
) -> tuple[list[str], list[str]]:
    """All steps of a site with these thresholds: (spikes, biases), T of each."""
    neuron = plan.neuron_of(site)
    unit = neuron.emit_unit(builder, threshold)
    state = neuron.emit_initial_state(builder, unit)
    zero = builder.op("Mul", threshold, builder.constant(0.0))
    running = Calibrated(
        builder, site, neuron, rule, activation, threshold, unit, state, [zero] * plan.steps
    )
    spikes, biases = [], []
    for t, current in enumerate(currents):
        with builder.scope(f"{site.name}/t{t}"):
            fired, bias = running.fire(t, current)
        spikes.append(fired)
        biases.append(bias)
    return spikes, biases
