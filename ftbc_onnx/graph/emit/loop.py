"""The loop form: one step as the body of a Loop, so that the graph does not grow with T.

Weights, thresholds [C], biases [T, C] and everything that does not depend on t stand outside, once. The body is
`ftbc_onnx.graph.emit.carried`'s step; bias row t is gathered by the number of the turn. The output is the mean over t
(`ftbc_onnx.window`), under the ANN's own name; what is *observed* besides is collected, one row per step:

* ``OUTPUT/running_mean`` [T, ...]: the output as it would be if the run ended there.
* ``SITE/mean_spikes`` [T, C].
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx

from ftbc_onnx.errors import ModelError
from ftbc_onnx.graph.builder import GraphBuilder, LoopBody
from ftbc_onnx.graph.emit.carried import CarriedStep
from ftbc_onnx.graph.emit.step import StepEmitter
from ftbc_onnx.graph.emit.unrolled import Emitted, Readout, bias_name, check_convertible, emit_populations
from ftbc_onnx.graph.observe import mean_spikes_name, running_mean_name
from ftbc_onnx.graph.sites import Network
from ftbc_onnx.plan import SpikingPlan, SpikingSite


def emit_loop(network: Network, plan: SpikingPlan, observed: str | None = None) -> Emitted:
    """The spiking network of a plan with one Loop over time, bit for bit what the unrolled form gives.

    Args:
        network: the normalised ANN that the plan was made for.
        plan: sites, thresholds [C] and biases [T, C]; asynchronous.
        observed: an output whose running mean is given too, and the mean spikes of every site; None: nothing is.

    Returns:
        The model, and the output that is observed.

    Raises:
        ModelError: the network has refusals, or tensors named as the emitted ones are, or no such readout; or the plan
            is synchronous, where a site fires once and there is no step to repeat.
    """
    check_convertible(network, plan.readout)
    if plan.synchronous:
        raise ModelError("a synchronous network has no loop form: its layers fire one after another")
    builder = GraphBuilder(network.view.opset)
    builder.reserve(value.name for value in network.view.inputs)
    turn = _Turn(builder, network, plan, observed)
    model = builder.to_model(
        network.view.graph.name or "snn",
        network.view.inputs,
        [*network.view.graph.output, *turn.emit()],
        network.view.model.opset_import,
    )
    return Emitted(model, () if observed is None else (Readout(observed, True, (), plan.readout),))


@dataclass
class _Turn:
    """What one turn makes, and what becomes of it."""

    builder: GraphBuilder
    network: Network
    plan: SpikingPlan
    observed: str | None

    def emit(self) -> list[onnx.ValueInfoProto]:
        """Write everything; returns the outputs besides the ANN's own."""
        builder, plan = self.builder, self.plan
        StepEmitter(builder, self.network).keep_static()
        self.populations = emit_populations(builder, plan)
        self.tables = {
            site.name: builder.reshape(
                builder.initializer(bias_name(site.name), plan.biases[site.name]),
                (plan.steps, *site.channel_shape[1:]),
                out=f"{site.name}/b",
            )
            for site in plan.sites
        }
        self.outputs: dict[str, str] = {}  # output -> what is carried of it
        self.collected: dict[str, str] = {}  # observed output -> its rows' name in a turn
        self.order: list[str] = []
        last, rows = builder.loop(plan.steps, self._write)
        final = dict(zip(self.order, last, strict=True))
        for output in self.network.view.output_names:
            made = final[self.outputs[output]] if output in self.outputs else output
            if made != output:
                builder.alias(made, output)
        return [self._observed(name, rows[inside]) for name, inside in self.collected.items()]

    def _write(self, body: LoopBody) -> None:
        step = CarriedStep(self.builder, self.network, body)
        step.step(0, lambda site, _, current: self._fire(step, body, site, current))
        for output in self.network.view.output_names:
            if output in self.network.temporal:
                mean = self._mean(step, output)
                self._keep(step, body, output, mean)
                if output == self.observed:
                    body.collect(mean, step.kind(output))
                    self.collected[running_mean_name(output)] = mean
            elif step.current(output, 0) != output:
                self._keep(step, body, output, step.current(output, 0))
        self.order = [carried.inside for carried in body.carried]

    def _fire(self, step: CarriedStep, body: LoopBody, site: SpikingSite, current: str) -> str:
        start = self.populations[site.name]
        state = step.carry_state(site.name, start.state)
        bias = step.row(self.tables[site.name])
        with self.builder.scope(f"{site.name}/step"):
            neuron = self.plan.neuron_of(site)
            spikes, after = neuron.emit_step(self.builder, current, state, start.unit, bias)
            if self.observed is not None:
                mean = self.builder.mean(spikes, site.mean_axes, out="mean")
                body.collect(mean)
                self.collected[mean_spikes_name(site.name)] = mean
        step.pass_on(state, after)
        return spikes

    def _keep(self, step: CarriedStep, body: LoopBody, output: str, value: str) -> None:
        """Carry what an output is after this step."""
        self.outputs[output] = step.carry(f"{output}/output", step.kind(output))
        body.pass_on(self.outputs[output], value)

    def _mean(self, step: CarriedStep, output: str) -> str:
        """The mean of an output after this step, over the readout's window.

        With t0 = start: dropped = sum[t0-1] once it is known, and count = t + 1 - t0 from then on.
        """
        builder, start = self.builder, self.plan.readout.start
        mean = step.mean(output, 0)
        if not start:
            return mean
        kind = step.kind(output)
        number = onnx.helper.tensor_dtype_to_np_dtype(kind)
        first = builder.constant(np.array(start, number))
        steps = step.steps(kind)
        with builder.scope(f"{output}/delayed"):
            total = builder.op("Mul", mean, steps) if output in self.network.mean_form else step.sum(output, 0)
            before = step.carry(f"{output}/dropped", kind)
            after = builder.op("Where", builder.op("Equal", steps, first), total, before)
            step.pass_on((before,), (after,))
            count = builder.op("Max", builder.op("Sub", steps, first), builder.constant(np.array(1, number)))
            late = builder.op("Div", builder.op("Sub", total, before), count)
            return builder.op("Where", builder.op("Greater", steps, first), late, mean)

    def _observed(self, name: str, rows: str) -> onnx.ValueInfoProto:
        """An observed output, from the rows of all turns."""
        plan = self.plan
        site = next((site for site in plan.sites if mean_spikes_name(site.name) == name), None)
        if site is not None:
            self.builder.reshape(rows, (plan.steps, site.channels), out=name)
            return onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [plan.steps, site.channels])
        assert self.observed is not None
        self.builder.alias(rows, name)
        shape = self.network.view.shape(self.observed)
        dims = None if shape is None else [plan.steps, *shape]
        return onnx.helper.make_tensor_value_info(name, self.network.view.elem_type(self.observed), dims)
