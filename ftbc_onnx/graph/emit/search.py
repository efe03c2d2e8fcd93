"""The search graph: every site tries candidates on the currents that really reach it, and keeps the best.

A quantiser's error says what a threshold costs if the current is the same at every step. It is not: upstream spikes
come when they come. And a bias found on some samples need not hold on others. So the sites are gone through one after
another, all T steps of a site at once, with every site upstream on what it chose. Candidate j, thresholds theta_j [C]
with biases b_j [T, C] (given, or found by a rule on the way), runs the T steps, and its error is compared:

1. ``squares``: mean over everything of ((1/T) * sum over t of s[t] - a)^2
2. ``gaps``: mean over steps t and channels of (mean of s up to t - mean of a)^2

The first candidate with the least error stays, and the site fires again with it for the sites behind. ANN, SNN, rule
and choice are one graph; J numbers per site leave the runtime.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from ftbc_onnx.graph.builder import GraphBuilder
from ftbc_onnx.graph.emit.calibration import Calibrated, Rule
from ftbc_onnx.graph.emit.step import StepEmitter
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
        candidates: what to try per site; a site with one keeps it.
        rule: finds the biases of candidates that have none.
        error: ``squares`` or ``gaps``.

    Inputs: the ANN's own. Outputs: ``SITE/candidate_errors`` [J] per site with several candidates.
    """
    builder = GraphBuilder(network.view.opset)
    builder.reserve(value.name for value in network.view.inputs)
    outputs: list[onnx.ValueInfoProto] = []

    def fire(site: SpikingSite, currents: list[str]) -> list[str]:
        trial = _Trial(builder, plan, site, rule, builder.mean(site.spikes, site.mean_axes), currents)
        tried = candidates[site.name]
        if len(tried) == 1:
            with builder.scope(f"{site.name}/chosen"):
                return trial.run(*trial.numbers(tried[0]))[0]
        errors: list[str] = []
        best: list[str] = []  # its error, theta, and b[0] to b[T-1]
        for j, candidate in enumerate(tried):
            with builder.scope(f"{site.name}/candidate{j}"):
                theta, given = trial.numbers(candidate)
                spikes, biases = trial.run(theta, given)
                errors.append(trial.squares(spikes) if error == "squares" else trial.gaps(spikes))
                best = _better(builder, [errors[-1], theta, *biases], best)
        name = builder.op("Concat", *errors, out=errors_name(site.name), axis=0)
        outputs.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [len(errors)]))
        with builder.scope(f"{site.name}/chosen"):
            return trial.run(best[1], best[2:])[0]

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


@dataclass(frozen=True)
class _Trial:
    """All steps of one site."""

    builder: GraphBuilder
    plan: SpikingPlan
    site: SpikingSite
    rule: Rule | None
    activation: str
    currents: list[str]

    def numbers(self, candidate: Candidate) -> tuple[str, list[str] | None]:
        """Theta and the rows of b as constants that broadcast."""

        def shaped(values: np.ndarray) -> str:
            return self.builder.constant(np.asarray(values, np.float32).reshape(self.site.channel_shape))

        given = candidate.bias
        return shaped(candidate.threshold), None if given is None else [shaped(row) for row in given]

    def run(self, theta: str, given: Sequence[str] | None) -> tuple[list[str], list[str]]:
        """(Spikes, biases) of all steps, with the biases given or those that the rule finds."""
        neuron = self.plan.neuron_of(self.site)
        unit = neuron.emit_unit(self.builder, theta)
        state = neuron.emit_initial_state(self.builder, unit)
        spikes: list[str] = []
        if given is not None:
            for current, bias in zip(self.currents, given, strict=True):
                fired, state = neuron.emit_step(self.builder, current, state, unit, bias)
                spikes.append(fired)
            return spikes, list(given)
        assert self.rule is not None
        zero = self.builder.op("Mul", theta, self.builder.constant(0.0))
        old = [zero] * self.plan.steps
        running = Calibrated(self.builder, self.site, neuron, self.rule, self.activation, theta, unit, state, old)
        fired_with = [running.fire(t, current) for t, current in enumerate(self.currents)]
        return [fired for fired, _ in fired_with], [bias for _, bias in fired_with]

    def squares(self, spikes: list[str]) -> str:
        """Case 1, [1]."""
        total = self.builder.op("Sum", *spikes)
        mean = self.builder.op("Div", total, self.builder.constant(float(self.plan.steps)))
        gap = self.builder.op("Sub", mean, self.site.spikes)
        return self.builder.mean(self.builder.op("Mul", gap, gap), None)

    def gaps(self, spikes: list[str]) -> str:
        """Case 2, [1]."""
        total, errors = "", []
        for t, fired in enumerate(spikes):
            mean = self.builder.mean(fired, self.site.mean_axes)
            total = self.builder.op("Add", total, mean) if t else mean
            gap = self.builder.op(
                "Sub", self.builder.op("Div", total, self.builder.constant(float(t + 1))), self.activation
            )
            errors.append(self.builder.mean(self.builder.op("Mul", gap, gap), None))
        return self.builder.op("Sum", *errors)
