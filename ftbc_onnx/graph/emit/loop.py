"""The loop form: one step as the body of a Loop, so that the graph does not grow with T.

Weights, thresholds [C], biases [T, C] and everything that does not depend on t stand outside, once. The body is
`ftbc_onnx.graph.emit.carried`'s step; bias row t is gathered by the number of the turn. What is carried has its
full shape from the start, where that is known (`ftbc_onnx.graph.emit.full_start`). The output is the mean over t
(`ftbc_onnx.window`), under the ANN's own name. What is observed of a step is added by `ftbc_onnx.graph.recorder`.

The number of turns may be an input, `STEPS`, which is T where nobody feeds it. The output after fewer steps is what the
running mean is then, with the same biases. There are none for more: the first row that is missing is asked for by the
node `BEYOND`, and its name is in the runtime's error.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx

from ftbc_onnx.errors import ModelError
from ftbc_onnx.graph.builder import GraphBuilder, LoopBody
from ftbc_onnx.graph.emit.carried import CarriedStep
from ftbc_onnx.graph.emit.full_start import FullStart
from ftbc_onnx.graph.emit.step import StepEmitter
from ftbc_onnx.graph.emit.unrolled import (
    Emitted,
    Readout,
    check_convertible,
    emit_biases,
    emit_populations,
    emit_unrolled,
    finish,
)
from ftbc_onnx.graph.recorder import TIME
from ftbc_onnx.graph.sites import Network
from ftbc_onnx.plan import SpikingPlan, SpikingSite

STEPS = "ftbc/steps"
"""Input that says how many steps to run, int64, []; T if it is not fed."""

BEYOND = "ftbc/more_steps_than_were_calibrated"
"""Node that fails if more steps are asked for than there are biases."""


def emit_loop(network: Network, plan: SpikingPlan, steps_input: bool = False) -> Emitted:
    """The spiking network of a plan with one Loop over time, bit for bit what the unrolled form gives.

    Args:
        network: the normalised ANN that the plan was made for.
        plan: sites, thresholds [C] and biases [T, C]; asynchronous.
        steps_input: whether the number of steps is an input with the default T.

    Raises:
        ModelError: the network has refusals, or tensors named as the emitted ones are, or no such readout; or the plan
            is synchronous, where a site fires once and there is no step to repeat.
    """
    check_convertible(network, plan.readout)
    if plan.synchronous:
        raise ModelError("a synchronous network has no loop form: its layers fire one after another")
    if not network.temporal:  # no activation: nothing takes time
        return emit_unrolled(network, plan)
    builder = GraphBuilder(network.view.opset)
    builder.reserve(value.name for value in network.view.inputs)
    StepEmitter(builder, network).keep_static()
    builder.promise(network.view.output_names)
    turn = Turn(builder, network, plan)
    carried: dict[str, str] = {}

    def write(body: LoopBody) -> None:
        step = CarriedStep(builder, network, body)
        for output, value in turn.write(step).items():
            carried[output] = step.carry(f"{output}/output", step.kind(output), network.view.shape(output))
            step.pass_on((carried[output],), (value,))

    count = _checked_steps(builder, plan.steps) if steps_input else plan.steps
    last, _ = builder.loop(count, write, TIME, FullStart(builder, network))
    for output, inside in carried.items():
        builder.alias(last[inside], output)
    asked = [onnx.helper.make_tensor_value_info(STEPS, onnx.TensorProto.INT64, [])] if steps_input else []
    return Emitted(finish(builder, network, asked), tuple(turn.readouts), "loop")


def _checked_steps(builder: GraphBuilder, most: int) -> str:
    """The number of steps that was asked for, from 1 to `most`: looked up in a table of just those."""
    steps = builder.initializer(STEPS, np.array(most, np.int64))
    row = builder.op("Sub", steps, builder.constant(np.array(1, np.int64)), out="ftbc/time/last")
    row = builder.op("Max", row, builder.constant(np.array(0, np.int64)), out="ftbc/time/last")
    return builder.op("Gather", builder.integers(*range(1, most + 1)), row, out=BEYOND, axis=0)


@dataclass
class Turn:
    """What one turn makes.

    Attributes:
        readouts: where the outputs that depend on spikes are found.
        beyond: whether there is a row of zero biases behind the last.
    """

    builder: GraphBuilder
    network: Network
    plan: SpikingPlan
    beyond: bool = False
    readouts: list[Readout] = field(default_factory=list)

    def __post_init__(self) -> None:
        builder, plan = self.builder, self.plan
        self.populations = emit_populations(builder, plan)
        self.tables = {site.name: self._table(site) for site in plan.sites}

    def _table(self, site: SpikingSite) -> str:
        """The biases of a site, with a row that broadcasts per step."""
        table, rows = emit_biases(self.builder, self.plan, site), self.plan.steps
        if self.beyond:
            zero = self.builder.constant(np.zeros((1, site.channels), np.float32))
            table, rows = self.builder.op("Concat", table, zero, out=f"{site.name}/b/all", axis=0), rows + 1
        return self.builder.reshape(table, (rows, *site.channel_shape[1:]), out=f"{site.name}/b")

    def write(self, step: CarriedStep) -> dict[str, str]:
        """Write the body; returns the outputs that are made in it, and what they are after this step."""
        made = {}
        step.step(0, lambda site, _, current: self.fire(step, site, current))
        for output in self.network.view.output_names:
            if output in self.network.temporal:
                value = self._mean(step, output)
                self.readouts.append(Readout(output, True, (value,) * self.plan.steps, self.plan.readout))
            else:
                value = step.current(output, 0)
            if value != output:
                made[output] = value
        return made

    def fire(self, step: CarriedStep, site: SpikingSite, current: str) -> str:
        """The site's spikes in this turn; its state moves on."""
        start, view = self.populations[site.name], self.network.view
        state = step.carry_state(site.name, start.state, view.shape(site.spikes) or view.shape(site.current))
        bias = step.row(self.tables[site.name])
        with self.builder.scope(f"{site.name}/step"):
            neuron = self.plan.neuron_of(site)
            spikes, after = neuron.emit_step(self.builder, current, state, start.unit, bias)
        step.pass_on(state, after)
        return spikes

    def _mean(self, step: CarriedStep, output: str) -> str:
        """The mean of an output after this step, over the readout's window.

        With t0 = start: dropped = sum[t0-1] once it is known, and count = t + 1 - t0 from then on. Sums of means in
        float16 are in float32.
        """
        builder, start = self.builder, self.plan.readout.start
        mean = step.mean(output, 0)
        if not start:
            return mean
        kind, of_means = step.kind(output), output in self.network.mean_form
        narrow = of_means and kind == onnx.TensorProto.FLOAT16
        kind = onnx.TensorProto.FLOAT if narrow else kind
        number = onnx.helper.tensor_dtype_to_np_dtype(kind)
        first = builder.constant(np.array(start, number))
        steps = step.steps(kind)
        with builder.scope(f"{output}/delayed"):
            wide = builder.op("Cast", mean, to=kind) if narrow else mean
            total = builder.op("Mul", wide, steps) if of_means else step.sum(output, 0)
            before = step.carry(f"{output}/dropped", kind, self.network.view.shape(output))
            after = builder.op("Where", builder.op("Equal", steps, first), total, before)
            step.pass_on((before,), (after,))
            count = builder.op("Max", builder.op("Sub", steps, first), builder.constant(np.array(1, number)))
            late = builder.op("Div", builder.op("Sub", total, before), count)
            late = builder.op("Cast", late, to=onnx.TensorProto.FLOAT16) if narrow else late
            return builder.op("Where", builder.op("Greater", steps, first), late, mean)
