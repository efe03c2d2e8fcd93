"""A dry run: every node's class, every site, every refusal, and how large each form would be. No data, no long work."""

from __future__ import annotations

from typing import Any

import numpy as np

from ftbc_onnx.config import ConvertConfig
from ftbc_onnx.graph.emit import emit
from ftbc_onnx.graph.emit.folded import why_not_folded
from ftbc_onnx.graph.files import input_specs, load
from ftbc_onnx.graph.prepare import prepare
from ftbc_onnx.graph.view import count_nodes
from ftbc_onnx.plan import SpikingPlan


def inspect_model(model: Any, config: ConvertConfig | None = None) -> dict[str, Any]:
    """What a conversion would do with a model, as plain JSON types.

    Args:
        model: path, bytes or ``onnx.ModelProto``.
        config: options: T for the node count, and the scope.

    Raises:
        ModelError: the model cannot be read or normalised (refusals do not raise here: they are listed).
    """
    config = config or ConvertConfig()
    source = load(model)
    normalised, network = prepare(source.model, config)
    possible = ("unrolled",) if config.schedule == "synchronous" else ("unrolled", "fused", "loop", "step")
    if why_not_folded(network) is None:
        possible = (*possible, "folded")
    forms: dict[str, int | None] = dict.fromkeys(possible)
    if network.sites and not network.refusals:
        plan = SpikingPlan(
            source.digest,
            network.sites,
            config.steps,
            config.neuron_spec,  # of ``auto``, the smallest
            {s.name: np.ones(s.channels) for s in network.sites},
            schedule=config.schedule,
        )
        forms = {form: count_nodes(emit(network, plan, form).model.graph) for form in possible}
    return {
        "source": source.name,
        "source_digest": source.digest,
        "opset": network.view.opset,
        "inputs": {spec.name: [str(spec.dtype), list(spec.shape)] for spec in input_specs(source.model)},
        "outputs": network.view.output_names,
        "nodes_before": len(source.model.graph.node),
        "normalisation": normalised.changes,
        "nodes": [
            {"name": node.name, "op_type": node.op_type, "class": network.classes[node.name].value}
            for node in network.view.nodes
        ],
        "sites": [
            {
                "name": site.name,
                "op_type": site.op_type,
                "channels": site.channels,
                "channel_axis": site.channel_axis,
                "ceiling": site.ceiling,
                "threshold": None if site.threshold is None else list(site.threshold),
                "levels": site.levels,
                "signed": site.signed,
                "upstream": list(site.upstream),
            }
            for site in network.sites
        ],
        "refusals": [{"node": r.node, "op_type": r.op_type, "reason": r.reason} for r in network.refusals],
        "analog": [{"node": r.node, "op_type": r.op_type, "reason": r.reason} for r in network.analog],
        "nothing_to_convert": network.why_nothing,
        "steps": config.steps,
        "emitted_nodes": forms,
    }
