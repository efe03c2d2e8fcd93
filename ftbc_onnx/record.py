"""What is said of a conversion in the report and in the emitted file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ftbc_onnx.distribution import distribution
from ftbc_onnx.graph.emit.unrolled import Emitted
from ftbc_onnx.graph.fittable import fittable_layers
from ftbc_onnx.job import Job
from ftbc_onnx.likeness import Moments
from ftbc_onnx.planning import Planned
from ftbc_onnx.runtime import package_version, runtime_version


def record_of(job: Job, planned: Planned, emitted: Emitted, inputs: Mapping[str, Moments]) -> dict[str, Any]:
    """What the emitted model remembers of where it comes from; `inputs` are the numbers that it got."""
    data, plan, calibrated = job.calibration, planned.plan, planned.calibrated
    read = [source for source in (None if job.random else data, job.judged) if source is not None]
    prepared = next((source for source in read if source.of_images), read[0] if read else None)
    return {
        "version": package_version(),
        "runtime": runtime_version(),
        "form": emitted.form,
        "source": Path(job.source.name).name,
        "source_digest": job.source.digest,
        "plan": plan.describe(),
        "plan_digest": plan.digest,
        "readout": [{"output": r.output, "is_mean": r.is_mean, "tensors": list(r.tensors)} for r in emitted.readouts],
        "options": job.config.as_dict(),
        "threshold": _threshold_method(job, planned),
        "device": job.device.name,
        "provider": job.device.expected,
        "neurons": job.size,
        "rule": "none" if calibrated is None else calibrated.rule,
        "samples": 0 if calibrated is None else calibrated.samples + planned.held_back,
        "data": "none" if data is None else data.description,
        "data_digest": "" if data is None else data.digest(),
        "random_data": job.random,
        "preprocessing": {} if prepared is None else prepared.preprocessing.as_dict(),
        "label_offset": job.label_offset,
        "inputs": {name: asdict(found) for name, found in inputs.items()},
    }


def _threshold_method(job: Job, planned: Planned) -> str:
    """How theta was found, in words."""
    stated = sum(site.threshold is not None for site in job.network.sites)
    if stated == len(job.network.sites):
        return "stated by the QCFS activations"
    config = job.config
    method = f"percentile {config.percentile:g}" if config.threshold == "percentile" else config.threshold
    for selection in planned.selections:
        if selection.question == "threshold":
            method = f"auto ({selection.trials[selection.chosen].what})"
    scope = "per channel" if config.per_channel else "per tensor"
    return f"{method} {scope}" + (f", {stated} stated by QCFS activations" if stated else "")


def describe(job: Job, planned: Planned, record: Mapping[str, Any]) -> dict[str, Any]:
    """The part of the report that says what the network is and how it was converted."""
    plan, statistics = planned.plan, planned.statistics
    return {
        **{key: value for key, value in record.items() if key not in ("plan", "readout")},
        "steps": plan.steps,
        "neuron": str(plan.neuron),
        "schedule": plan.schedule,
        "readout": str(plan.readout),
        "synchronous": {
            "levels": plan.steps * plan.neuron.most,
            "depth": plan.depth,
            "latency": plan.depth * plan.steps,
        }
        if plan.synchronous
        else None,
        "layers": sorted(plan.layers),
        "fittable_layers": 0 if job.free.static_batch else len(fittable_layers(job.free)),
        "selections": [selection.as_dict() for selection in planned.selections],
        "opset": job.network.view.opset,
        "normalisation": job.normalised.changes,
        "rate_exact": [{"node": node.name, "op_type": node.op_type} for node in job.network.not_spiking],
        "analog": [{"node": r.node, "op_type": r.op_type, "reason": r.reason} for r in job.network.analog],
        "node_classes": dict(Counter(kind.value for kind in job.network.classes.values())),
        "sites": [
            {
                "name": site.name,
                "op_type": site.op_type,
                "channels": site.channels,
                "channel_axis": site.channel_axis,
                "levels": site.levels,
                "signed": site.signed,
                "threshold": [float(plan.thresholds[site.name].min()), float(plan.thresholds[site.name].max())],
                "dead_channels": int(statistics[site.name].dead.sum()) if site.name in statistics else None,
                "upstream": list(site.upstream),
                "activation": distribution(statistics[site.name], plan.height(site)).as_dict()
                if site.name in statistics
                else None,
            }
            for site in plan.sites
        ],
    }
