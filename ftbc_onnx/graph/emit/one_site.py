"""The neurons of one site by themselves: currents of all T steps go in, a rule finds biases, spikes come out."""

from __future__ import annotations

from dataclasses import replace

import onnx

from ftbc_onnx.graph.builder import GraphBuilder, LoopBody
from ftbc_onnx.graph.emit.calibration import Calibrated, Probe, Rule
from ftbc_onnx.graph.emit.carried import CarriedStep
from ftbc_onnx.graph.emit.unrolled import emit_populations
from ftbc_onnx.graph.sites import Network
from ftbc_onnx.plan import SpikingPlan, SpikingSite

CURRENTS = "ftbc/currents"
"""Input: the currents, [T, B, ...]."""

ACTIVATION = "ftbc/activation"
"""Input: the mean activation of the ANN, per channel, in the shape of `SpikingSite.channel_shape`."""

SPIKES = "ftbc/spikes"
"""Output: the spikes, [T, B, ...]."""


class _NoBias:
    """The rule that leaves every bias as it is."""

    name = "none"

    def emit(self, probe: Probe) -> str:
        return probe.bias


def emit_one_site(network: Network, plan: SpikingPlan, site: SpikingSite, rule: Rule | None) -> onnx.ModelProto:
    """The model of one site of an asynchronous plan, with the biases that the rule finds from none; None: without."""
    thresholds = {site.name: plan.thresholds[site.name]}
    gains = {name: gain for name, gain in plan.gains.items() if name == site.name}
    alone = replace(plan, sites=(site,), thresholds=thresholds, gains=gains, biases={}, factors={}, layers={})
    builder = GraphBuilder(network.view.opset)
    builder.reserve([CURRENTS, ACTIVATION])
    start = emit_populations(builder, alone)[site.name]

    def write(body: LoopBody) -> None:
        step = CarriedStep(builder, network, body)
        calibrated = Calibrated(
            step,
            builder,
            site,
            alone.neuron_of(site),
            rule or _NoBias(),
            site.name,
            ACTIVATION,
            start.threshold,
            start.unit,
            start.state,
            builder.constant(0.0),
        )
        body.collect(calibrated.fire(builder.op("Gather", CURRENTS, body.turn, axis=0)).spikes)

    (spikes,) = builder.loop(plan.steps, write)[1].values()
    builder.alias(spikes, SPIKES)
    float32 = onnx.TensorProto.FLOAT
    *inputs, output = (
        onnx.helper.make_tensor_value_info(name, float32, None) for name in (CURRENTS, ACTIVATION, SPIKES)
    )
    return builder.to_model("one_site", inputs, [output], network.view.model.opset_import)
