"""The search graph: every site tries candidates on the currents that really reach it.

A quantiser's error says what a threshold costs if the current is the same at every step. It is not: upstream spikes
come when they come. And a bias found on some samples need not hold on others. So at every site J populations of neurons
run side by side on the same currents, with thresholds theta_j [C] and biases b_j [T, C] (given, or found by a rule on
the way). The spikes of the first one travel on. The errors that are compared:

1. ``squares``: mean over everything of ((1/T) * sum over t of s[t] - a)^2
2. ``gaps``: mean over steps t and channels of (mean of s up to t - mean of a)^2

ANN, SNN, rule and errors are one graph, the steps are the turns of one Loop; J numbers per site leave the runtime.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx

from ftbc_onnx.graph.builder import GraphBuilder, LoopBody
from ftbc_onnx.graph.emit.calibration import Calibrated, Rule, emit_ann
from ftbc_onnx.graph.emit.carried import CarriedStep
from ftbc_onnx.graph.sites import Network
from ftbc_onnx.plan import SpikingPlan, SpikingSite


@dataclass(frozen=True, eq=False)
class Candidate:
    """What a site may try.

    Attributes:
        threshold: theta, [C].
        bias: b, [T, C]; None: the rule finds it.
    """

    threshold: np.ndarray
    bias: np.ndarray | None = None


def errors_name(site: str) -> str:
    """Output of the search graph: the error of every candidate of a site, [J]."""
    return f"{site}/candidate_errors"


def emit_search(
    network: Network,
    plan: SpikingPlan,
    candidates: Mapping[str, Sequence[Candidate]],
    rule: Rule | None = None,
    error: str = "squares",
) -> onnx.ModelProto:
    """The search graph of a plan (its sites, steps and neurons are used, its numbers are not).

    Args:
        network: the normalised ANN.
        plan: the plan.
        candidates: what to try per site; a site with one has nothing to try, and fires it.
        rule: finds the biases of candidates that have none.
        error: ``squares`` or ``gaps``.

    Inputs: the ANN's own. Outputs: ``SITE/candidate_errors`` [J] per site with several candidates.
    """
    builder = GraphBuilder(network.view.opset)
    builder.reserve(value.name for value in network.view.inputs)
    network, plan = emit_ann(builder, network, plan)
    trials: dict[str, list[_Trial]] = {}
    for site in plan.sites:
        activation = builder.mean(site.spikes, site.mean_axes, out=f"{site.name}/activation")
        compared = error if len(candidates[site.name]) > 1 else ""
        trials[site.name] = [
            _Trial(builder, plan, site, activation, rule, compared, f"{site.name}/candidate{j}", candidate)
            for j, candidate in enumerate(candidates[site.name])
        ]

    def write(body: LoopBody) -> None:
        step = CarriedStep(builder, network, body)

        def fire(site: SpikingSite, _t: int, current: str) -> str:
            first, *_ = [trial.step(step, current) for trial in trials[site.name]]
            return first

        step.step(0, fire)

    final, _ = builder.loop(plan.steps, write)
    outputs = []
    for site in plan.sites:
        tried = trials[site.name]
        if len(tried) == 1:
            continue
        name = builder.op("Concat", *(trial.result(final) for trial in tried), out=errors_name(site.name), axis=0)
        outputs.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [len(tried)]))
    return builder.to_model("search", network.view.inputs, outputs, network.view.model.opset_import)


@dataclass
class _Trial:
    """One candidate of a site: its numbers outside the loop, its neurons in it; without `error` it only fires."""

    builder: GraphBuilder
    plan: SpikingPlan
    site: SpikingSite
    activation: str
    rule: Rule | None
    error: str
    name: str
    candidate: Candidate
    total: str = field(init=False, default="")
    """What is carried of the error: the sum of the spikes, or of the squared gaps."""

    def __post_init__(self) -> None:
        builder, site = self.builder, self.site
        self.neuron = self.plan.neuron_of(site)
        shape, rows = site.channel_shape, (self.plan.steps, *site.channel_shape[1:])
        given = self.candidate.bias
        table = np.zeros((self.plan.steps, site.channels)) if given is None else given
        with builder.scope(self.name):
            self.theta = builder.constant(np.asarray(self.candidate.threshold, np.float32).reshape(shape))
            self.unit = self.neuron.emit_unit(builder, self.theta)
            self.start = self.neuron.emit_initial_state(builder, self.unit)
            self.biases = builder.constant(np.asarray(table, np.float32).reshape(rows))

    def step(self, step: CarriedStep, current: str) -> str:
        """One turn: spikes, and the error so far."""
        builder = self.builder
        bias = step.row(self.biases)
        if self.candidate.bias is None:
            assert self.rule is not None
            calibrated = Calibrated(
                step,
                builder,
                self.site,
                self.neuron,
                self.rule,
                self.name,
                self.activation,
                self.theta,
                self.unit,
                self.start,
                bias,
            )
            fired = calibrated.fire(current)
            spikes, sent = fired.spikes, fired.total
        else:
            before = step.carry_state(self.name, self.start)
            with builder.scope(f"{self.name}/step"):
                spikes, after = self.neuron.emit_step(builder, current, before, self.unit, bias)
            step.pass_on(before, after)
            sent = ""
        if self.error:
            with builder.scope(f"{self.name}/error"):
                self._add_error(step, spikes, sent)
        return spikes

    def _add_error(self, step: CarriedStep, spikes: str, sent: str) -> None:
        builder = self.builder
        if self.error == "squares":
            more = spikes
        else:
            mean = builder.op("Div", sent or self._sent(step, spikes), step.steps(onnx.TensorProto.FLOAT))
            gap = builder.op("Sub", mean, self.activation)
            more = builder.mean(builder.op("Mul", gap, gap), None)
        self.total = step.carry(f"{self.name}/total")
        step.pass_on((self.total,), (builder.op("Add", self.total, more),))

    def _sent(self, step: CarriedStep, spikes: str) -> str:
        """The sum of the mean spikes so far."""
        sent = step.carry(f"{self.name}/sent_mean")
        total = self.builder.op("Add", sent, self.builder.mean(spikes, self.site.mean_axes))
        step.pass_on((sent,), (total,))
        return total

    def result(self, final: Mapping[str, str]) -> str:
        """The error, [1]."""
        builder = self.builder
        with builder.scope(self.name):
            mean = builder.op("Div", final[self.total], builder.constant(float(self.plan.steps)))
            if self.error == "gaps":
                return mean
            gap = builder.op("Sub", mean, self.site.spikes)
            return builder.mean(builder.op("Mul", gap, gap), None)
