"""What the mean spikes of a plan and the activations of its ANN have in common: moments per channel, in one run.

ANN and SNN run side by side on shared weights, the steps are the turns of one Loop. With a the activation and r the
mean spike after T steps, means over everything but the channel axis:

``SITE/moments`` [5, C]: mean of a, of r, of a*a, of r*r, of a*r
"""

from __future__ import annotations

import onnx

from ftbc_onnx.graph.builder import GraphBuilder, LoopBody
from ftbc_onnx.graph.emit.calibration import emit_ann
from ftbc_onnx.graph.emit.carried import CarriedStep
from ftbc_onnx.graph.emit.loop import Turn
from ftbc_onnx.graph.sites import Network
from ftbc_onnx.plan import SpikingPlan, SpikingSite


def moments_name(site: str) -> str:
    """Output that holds the moments of a site, [5, C]."""
    return f"{site}/moments"


def emit_moments(network: Network, plan: SpikingPlan) -> onnx.ModelProto:
    """The graph that gives the moments of every site of an asynchronous plan; its inputs are the ANN's."""
    builder = GraphBuilder(network.view.opset)
    builder.reserve(value.name for value in network.view.inputs)
    network, plan = emit_ann(builder, network, plan)
    turn = Turn(builder, network, plan)
    totals: dict[str, str] = {}

    def write(body: LoopBody) -> None:
        step = CarriedStep(builder, network, body)

        def fire(site: SpikingSite, _t: int, current: str) -> str:
            spikes = turn.fire(step, site, current)
            totals[site.name] = total = step.carry(f"{site.name}/total")
            step.pass_on((total,), (builder.op("Add", total, spikes),))
            return spikes

        step.step(0, fire)

    last, _ = builder.loop(plan.steps, write)
    outputs = []
    for site in plan.sites:
        a = site.spikes
        with builder.scope(f"{site.name}/moment"):
            r = builder.op("Div", last[totals[site.name]], builder.constant(float(plan.steps)))
            products = (a, r, builder.op("Mul", a, a), builder.op("Mul", r, r), builder.op("Mul", a, r))
            rows = [builder.reshape(builder.mean(x, site.mean_axes), (1, site.channels)) for x in products]
        name = builder.op("Concat", *rows, out=moments_name(site.name), axis=0)
        outputs.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [5, site.channels]))
    return builder.to_model("moments", network.view.inputs, outputs, network.view.model.opset_import)
