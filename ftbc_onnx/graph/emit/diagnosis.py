"""The diagnosis graph: where ANN and SNN part, site by site and step by step, in one run.

ANN and SNN stand side by side, the SNN in a Loop over time with the weights that its file really holds. With a the
ANN's activation, and means over everything but the channel axis, after each step t

1. ``real``: mean of |r[t] - a|, r the running mean of the spikes: the site in the network, upstream as it is;
2. ``alone``: the same of neurons that get, at every step, the current that the exact activations upstream make: what
   the site does by itself;
3. ``unbiased``: as 1, of neurons without temporal biases on the same currents (they send nothing on).

After T steps, with x' the current that the ANN's layers make of the rates upstream, and f the site's function,

    e = r*[T] - a                        r*: the rate of 2; the error of the site by itself
    d = r[T] - f(x')                     what the site adds to what reaches it
    d = (f(x) - f(x')) + (r[T] - f(x))   x: mean of the currents that the file's layers made

What a site costs is seen at the output, in a second Loop, whose turn s is two passes of the ANN:

1. with e added at site s alone: all other sites are exact;
2. with d added at every site but s. Linear nodes of means are means of linear nodes, and rate-exact ones are applied to
   means, so the ANN with d added at every site IS the SNN after T steps; and what is missing is what s costs in it.

``SITE/curves`` [T, 3, C]: real, alone, unbiased
``SITE/parts`` [7, C]: means of |a|, |r|, |d|, min(|d|, max(|f(x')| - reach, 0)), |f(x) - f(x')|, |r - f(x)|, and the
    largest |a|; reach is the largest rate that the neurons can have
``ftbc/costs`` [S + 1, 4]: mean |y' - y| of the output, and the share of samples that decide as the ANN does (0 where
    the output is no row of scores), of 1 and of 2; the last row is without any e, and with every d
``ftbc/output_errors`` [T, 1]: mean |y[t] - y| of the output after each step
``ftbc/output`` the output after T steps; ``ftbc/output_size`` [1]: mean |y|; ``ftbc/tail`` [1]: mean |y[T] - y'|, what
    layers behind the last site add
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx

from ftbc_onnx.graph.builder import GraphBuilder, LoopBody
from ftbc_onnx.graph.emit.again import apply_site, write_again
from ftbc_onnx.graph.emit.calibration import emit_ann
from ftbc_onnx.graph.emit.carried import CarriedStep
from ftbc_onnx.graph.emit.loop import Turn
from ftbc_onnx.graph.sites import Network
from ftbc_onnx.plan import SpikingPlan, SpikingSite

COSTS, CURVE, OUTPUT = "ftbc/costs", "ftbc/output_errors", "ftbc/output"
SIZE, TAIL = "ftbc/output_size", "ftbc/tail"

_FLOAT = onnx.TensorProto.FLOAT


def curves_name(site: str) -> str:
    """Output that holds the errors of a site after each step, [T, 3, C]."""
    return f"{site}/curves"


def parts_name(site: str) -> str:
    """Output that holds what the error of a site after T steps is made of, [7, C]."""
    return f"{site}/parts"


def emit_diagnosis(
    network: Network, plan: SpikingPlan, output: str, weights: Mapping[str, np.ndarray] | None = None
) -> onnx.ModelProto:
    """The diagnosis graph of an asynchronous plan; its inputs are the ANN's.

    Args:
        network: the normalised ANN.
        plan: the plan.
        output: the output that is judged, which depends on spikes.
        weights: initializers of the ANN that are others in the SNN's file, and what they are there.
    """
    builder = GraphBuilder(network.view.opset)
    builder.reserve(value.name for value in network.view.inputs)
    network, plan = emit_ann(builder, network, plan)
    return _Diagnosis(builder, network, plan, output, weights or {}).write()


@dataclass
class _Diagnosis:
    """The parts of the graph, in the order in which they are written.

    Attributes:
        exact: tensors that the file's layers make of the exact activations, where its weights are others.
        sums: what the loop over time carries of the spikes, by site.
        alone: the same of neurons that get exact currents.
        drives: the same of the currents, where the file's weights are others.
        errors: rows that it collects, by site; of the output under `CURVE`.
        spiking: what it carries of the output.
        turn: how the sites of the SNN itself fire.
    """

    builder: GraphBuilder
    network: Network
    plan: SpikingPlan
    output: str
    weights: Mapping[str, np.ndarray]
    exact: dict[str, str] = field(default_factory=dict)
    sums: dict[str, str] = field(default_factory=dict)
    alone: dict[str, str] = field(default_factory=dict)
    drives: dict[str, str] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    spiking: str = ""
    turn: Turn = field(init=False)

    def write(self) -> onnx.ModelProto:
        builder, plan, network, judged = self.builder, self.plan, self.network, self.output
        if self.weights:
            held = {name: builder.constant(value, f"{name}/in_file") for name, value in self.weights.items()}
            self.exact = write_again(builder, network, "/in_file", lambda site, _: site.spikes, held)
        self.turn = Turn(builder, network, plan)
        last, rows = builder.loop(plan.steps, self._time)
        steps = builder.constant(float(plan.steps))
        rates = {n: builder.op("Div", last[total], steps, out=f"{n}/rate") for n, total in self.sums.items()}
        drives = {n: builder.op("Div", last[total], steps, out=f"{n}/drive") for n, total in self.drives.items()}
        functions: dict[str, str] = {}

        def force(site: SpikingSite, made: str) -> str:
            functions[site.name] = made
            return rates[site.name]

        forced = write_again(builder, network, "/forced", force)
        added = {name: builder.op("Sub", rate, functions[name], out=f"{name}/added") for name, rate in rates.items()}
        outputs = []

        def give(name: str, tensor: str, *shape: int) -> None:
            builder.alias(tensor, name)
            outputs.append(onnx.helper.make_tensor_value_info(name, _FLOAT, shape))

        for site in plan.sites:
            name = site.name
            with builder.scope(f"{name}/part"):
                parts = self._parts(site, rates[name], functions[name], added[name], drives.get(name))
            give(curves_name(name), rows[self.errors[name]], plan.steps, 3, site.channels)
            give(parts_name(name), parts, 7, site.channels)
        own = {site.name: self._own_error(site, last[self.alone[site.name]], steps) for site in plan.sites}
        give(COSTS, self._costs(own, added), len(plan.sites) + 1, 4)
        give(CURVE, rows[self.errors[CURVE]], plan.steps, 1)
        give(SIZE, self._size(self._float(judged)), 1)
        spiking = last[self.spiking]
        give(TAIL, self._distance(spiking, forced[judged]), 1)
        builder.alias(spiking, OUTPUT)
        kind = network.view.elem_type(judged) or _FLOAT
        outputs.append(onnx.helper.make_tensor_value_info(OUTPUT, kind, network.view.shape(judged)))
        return builder.to_model("diagnosis", network.view.inputs, outputs, network.view.model.opset_import)

    # the loop over time

    def _time(self, body: LoopBody) -> None:
        step = CarriedStep(self.builder, self.network, body)
        step.read_instead({old: new for old, new in self.exact.items() if old not in self.network.temporal})

        def fire(site: SpikingSite, _t: int, current: str) -> str:
            spikes = self.turn.fire(step, site, current)
            self.sums[site.name], rate = self._mean_so_far(step, f"{site.name}/sent", spikes)
            if self.weights:
                self.drives[site.name], _ = self._mean_so_far(step, f"{site.name}/driven", current)
            bias = step.row(self.turn.tables[site.name])
            exact = self.exact.get(site.current, site.current)
            self.alone[site.name], alone = self._beside(step, site, f"{site.name}/alone", exact, bias)
            unbiased = rate
            if self.plan.biases[site.name].any():
                none = self.builder.constant(np.zeros(site.channel_shape, np.float32))
                _, unbiased = self._beside(step, site, f"{site.name}/unbiased", current, none)
            rows = [self._row(site, self._gap(r, site.spikes)) for r in (rate, alone, unbiased)]
            self.errors[site.name] = self.builder.op("Concat", *rows, out=f"{site.name}/errors", axis=0)
            body.collect(self.errors[site.name])
            return spikes

        step.step(0, fire)
        mean = step.mean(self.output, 0)
        self.spiking = step.carry(OUTPUT, step.kind(self.output))
        step.pass_on((self.spiking,), (mean,))
        self.errors[CURVE] = self._distance(mean, self.output)
        body.collect(self.errors[CURVE])

    def _beside(self, step: CarriedStep, site: SpikingSite, name: str, current: str, bias: str) -> tuple[str, str]:
        """More neurons of a site, which send nothing on: what is carried of their spikes, and their rate so far."""
        start = self.turn.populations[site.name]
        state = step.carry_state(name, start.state)
        with self.builder.scope(f"{name}/step"):
            neuron = self.plan.neuron_of(site)
            spikes, after = neuron.emit_step(self.builder, current, state, start.unit, bias)
        step.pass_on(state, after)
        return self._mean_so_far(step, name, spikes)

    def _mean_so_far(self, step: CarriedStep, name: str, x: str) -> tuple[str, str]:
        """What is carried of a sum, and the mean with this step."""
        before = step.carry(f"{name}/sum")
        after = self.builder.op("Add", before, x, out=f"{name}/sum")
        step.pass_on((before,), (after,))
        return before, self.builder.op("Div", after, step.steps(_FLOAT), out=f"{name}/mean")

    # after it

    def _parts(self, site: SpikingSite, rate: str, function: str, added: str, drive: str | None) -> str:
        """The means of a site, one row each."""
        builder = self.builder
        reach = builder.constant(_reach(self.plan, site).reshape(site.channel_shape))
        beyond = builder.op("Relu", builder.op("Sub", builder.op("Abs", function), reach))
        local = builder.op("Abs", added)
        real = function if drive is None else apply_site(builder, self.network, site, drive, "/driven")
        size = builder.op("Abs", site.spikes)
        means = (
            size,
            builder.op("Abs", rate),
            local,
            builder.op("Min", local, beyond),
            self._gap(real, function),
            self._gap(rate, real),
        )
        largest = builder.reduce("ReduceMax", size, site.mean_axes)
        rows = [*(self._row(site, x) for x in means), builder.reshape(largest, (1, site.channels))]
        return builder.op("Concat", *rows, axis=0)

    def _own_error(self, site: SpikingSite, total: str, steps: str) -> str:
        with self.builder.scope(f"{site.name}/own"):
            return self.builder.op("Sub", self.builder.op("Div", total, steps), site.spikes)

    def _costs(self, own: Mapping[str, str], added: Mapping[str, str]) -> str:
        """The second loop: turn s is the ANN with the error of s alone, and with what every site but s adds."""
        builder, judged = self.builder, self.output
        numbers = {name: i for i, name in enumerate(added)}
        collected = ""

        def write(body: LoopBody) -> None:
            nonlocal collected
            chosen = {}
            for name, number in numbers.items():
                same = builder.op("Equal", body.turn, builder.constant(np.array(number, np.int64)))
                chosen[name] = builder.op("Cast", same, to=_FLOAT)

            def only(site: SpikingSite, made: str) -> str:
                return builder.op("Add", made, builder.op("Mul", own[site.name], chosen[site.name]))

            def all_but(site: SpikingSite, made: str) -> str:
                kept = builder.op("Sub", builder.constant(1.0), chosen[site.name])
                return builder.op("Add", made, builder.op("Mul", added[site.name], kept))

            rows = []
            for suffix, replace in (("/only", only), ("/without", all_but)):
                made = write_again(builder, self.network, suffix, replace)[judged]
                rows += [self._distance(made, judged), self._agreement(made, judged)]
            collected = builder.op("Concat", *rows, axis=0)
            body.collect(collected)

        _, rows = builder.loop(len(added) + 1, write)
        return rows[collected]

    def _agreement(self, one: str, other: str) -> str:
        """Share of samples with the same decision, [1]."""
        shape = self.network.view.shape(self.output)
        if shape is None or len(shape) != 2 or shape[1] == 1:
            return self.builder.constant(np.zeros(1, np.float32))
        decided = [self.builder.op("ArgMax", self._float(x), axis=1) for x in (one, other)]
        return self.builder.mean(self.builder.op("Cast", self.builder.op("Equal", *decided), to=_FLOAT), None)

    def _distance(self, one: str, other: str) -> str:
        """Mean |one - other|, [1]."""
        return self._size(self.builder.op("Sub", self._float(one), self._float(other)))

    def _size(self, x: str) -> str:
        """Mean |x|, [1]."""
        return self.builder.mean(self.builder.op("Abs", x), None)

    def _float(self, x: str) -> str:
        """A tensor of the output's type in float32."""
        kind = self.network.view.elem_type(self.output) or _FLOAT
        return x if kind == _FLOAT else self.builder.op("Cast", x, to=_FLOAT)

    def _gap(self, one: str, other: str) -> str:
        return self.builder.op("Abs", self.builder.op("Sub", one, other))

    def _row(self, site: SpikingSite, x: str) -> str:
        """Means per channel, [1, C]."""
        return self.builder.reshape(self.builder.mean(x, site.mean_axes), (1, site.channels))


def _reach(plan: SpikingPlan, site: SpikingSite) -> np.ndarray:
    """The largest rate after T steps, [C]: theta, times the gain.

    With differential coding events add up, theta/n in step n.
    """
    steps = sum(1 / n for n in range(1, plan.steps + 1)) if plan.neuron.coding == "differential" else 1.0
    return np.asarray(plan.thresholds[site.name] * plan.gains.get(site.name, 1.0) * steps, np.float32)
