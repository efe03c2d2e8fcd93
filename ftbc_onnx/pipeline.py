"""The whole conversion, in the order in which things happen. Read this first.

    load -> normalise -> find sites -> thresholds -> plan -> calibrate -> emit -> verify -> evaluate -> save

Every stage takes frozen values and gives frozen values; only loading, data and saving touch the disk.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ftbc_onnx.batching import Batching, choose_batching
from ftbc_onnx.calibrate import calibrate
from ftbc_onnx.config import ConvertConfig
from ftbc_onnx.data import DataSource, open_data, random_source
from ftbc_onnx.errors import DataError, ModelError
from ftbc_onnx.evaluate import evaluate, run_ann
from ftbc_onnx.graph.emit.unrolled import Emitted, emit_unrolled
from ftbc_onnx.graph.files import SourceModel, input_specs, load, save
from ftbc_onnx.graph.normalise import Normalised, normalise
from ftbc_onnx.graph.provenance import replace_biases, stamp
from ftbc_onnx.graph.sites import Network, find_network
from ftbc_onnx.images import Preprocessing
from ftbc_onnx.plan import SpikingPlan
from ftbc_onnx.results import CalibrationResult, EvaluationResult, VerificationResult
from ftbc_onnx.rules import make_rule
from ftbc_onnx.runtime import Device, choose_device, runtime_version
from ftbc_onnx.thresholds import ActivationStatistics, collect_statistics, estimate_thresholds
from ftbc_onnx.verify import verify

Progress = Callable[[str, int, int], None]
"""Called with (stage, samples done, samples in all)."""

_VERIFY_SAMPLES = 2


@dataclass(frozen=True)
class ConversionResult:
    """A converted network and everything that is known about it.

    Attributes:
        model: the spiking network, an ``onnx.ModelProto``.
        plan: where its neurons stand and with which numbers.
        report: what happened, as plain JSON types.
        source: the ANN as it was read.
        evaluation: on the evaluation data, or None.
    """

    model: Any
    plan: SpikingPlan
    report: dict[str, Any]
    source: SourceModel
    evaluation: EvaluationResult | None

    def save(self, path: str | os.PathLike[str] | None = None) -> Path:
        """Write the model; without a path, beside the ANN as ``NAME.snn_T8.onnx``. Returns the path.

        Raises:
            ModelError: the path is the ANN's own, or cannot be written.
        """
        target = default_output(self.source, self.plan.steps) if path is None else Path(path)
        if self.source.path is not None and target.exists() and target.samefile(self.source.path):
            raise ModelError(f"'{target}' is the input itself: choose another --output")
        save(self.model, target)
        return target


def default_output(source: SourceModel, steps: int) -> Path:
    """Where a converted model goes if nobody says where."""
    path = source.path or Path(f"{Path(source.name).name}.onnx")
    return path.with_name(f"{path.stem}.snn_T{steps}.onnx")


def convert(
    model: Any,
    data: Any = None,
    *,
    eval_data: Any = None,
    preprocessing: Preprocessing | None = None,
    config: ConvertConfig | None = None,
    progress: Progress = lambda *_: None,
    label_offset: int = 0,
    **options: Any,
) -> ConversionResult:
    """Convert a trained ANN in ONNX into a spiking network in ONNX.

    Args:
        model: path, bytes or ``onnx.ModelProto`` of the ANN.
        data: calibration data, anything that `ftbc_onnx.data.open_data` takes; None for a QCFS model.
        eval_data: evaluation data with labels, or None.
        preprocessing: applied to calibration and evaluation data.
        config: options; or give them by name in `options`.
        progress: called as work goes on.
        label_offset: added to every label (1 for networks with a background class at 0).
        **options: fields of `ConvertConfig`, such as ``steps=8`` or ``rule="solve"``.

    Returns:
        The converted network with its report; `ConversionResult.save` writes it.

    Raises:
        FtbcError: of the kind that fits (see `ftbc_onnx.errors`); one line that says what to do.
    """
    config = config or ConvertConfig.from_options(options)
    source = load(model)
    normalised = normalise(source.model)
    network = find_network(normalised.model)
    refuse(source, network)
    device = choose_device(config.device)
    specs = input_specs(source.model)
    calibration = _calibration_data(data, specs, preprocessing, config, network, source)
    judged = None if eval_data is None else open_data(eval_data, specs, preprocessing, purpose="evaluation")

    plan, statistics = _plan(source, network, calibration, config, device, progress)
    calibrated = _calibrate(network, plan, calibration, config, device, progress)
    plan = plan if calibrated is None else plan.with_biases(calibrated.biases)
    emitted = emit_unrolled(network, plan)
    checked = _verify(emitted, network, plan, calibration or judged, config, progress)
    evaluation, before = _evaluate(emitted, network, plan, judged, config, device, label_offset, progress)

    record = _record(source, plan, emitted, config, device, calibration, calibrated)
    stamped = stamp(emitted.model, source.model, record)
    report = _report(
        record, source, normalised, network, plan, statistics, config, calibrated, checked, evaluation, before, stamped
    )
    return ConversionResult(stamped, plan, report, source, evaluation)


def refuse(source: SourceModel, network: Network) -> None:
    """Stop before any long work if something cannot be converted.

    Raises:
        ModelError: all refusals, or that there is nothing to convert.
    """
    if network.refusals:
        listed = "; ".join(map(str, network.refusals))
        raise ModelError(f"'{source.name}' cannot be converted, {len(network.refusals)} node(s) refused: {listed}")
    if not network.sites:
        raise ModelError(f"'{source.name}' has no activation to convert (Relu, Clip from 0, Max with 0 or QCFS)")
    if not any(name in network.temporal for name in network.view.output_names):
        raise ModelError(f"no output of '{source.name}' depends on an activation: there is nothing to convert")


def _calibration_data(
    data: Any,
    specs: Any,
    preprocessing: Preprocessing | None,
    config: ConvertConfig,
    network: Network,
    source: SourceModel,
) -> DataSource | None:
    """The calibration data; None if there are none and the model states all its thresholds."""
    if data is not None:
        return open_data(data, specs, preprocessing, purpose="calibration", limit=config.calib_samples)
    if config.random_data:
        return random_source(specs, config.calib_samples, config.seed)
    missing = [site.name for site in network.sites if site.threshold is None]
    if missing:
        raise DataError(
            f"'{source.name}' states no threshold for {len(missing)} of {len(network.sites)} activations ('{missing[0]}' first), so "
            "calibration data are needed: ftbc-onnx convert MODEL --calib-data IMAGES_OR_NPZ (or --random-data, for a dry run)"
        )
    return None


def _plan(
    source: SourceModel,
    network: Network,
    data: DataSource | None,
    config: ConvertConfig,
    device: Device,
    progress: Progress,
) -> tuple[SpikingPlan, Mapping[str, ActivationStatistics]]:
    statistics: Mapping[str, ActivationStatistics] = {}
    if data is not None:
        batching = _calibration_batching(data, network, config)
        samples = min(config.calib_samples, len(data))
        statistics = collect_statistics(
            network, data, samples, batching, device, lambda done: progress("thresholds", done, 2 * samples)
        )
    thresholds = estimate_thresholds(network, statistics, config)
    return SpikingPlan(source.digest, network.sites, config.steps, config.neuron, thresholds), statistics


def _calibration_batching(data: DataSource, network: Network, config: ConvertConfig) -> Batching:
    return choose_batching(config.batch_size, network.static_batch, data, config.calib_samples, "calibration")


def _calibrate(
    network: Network,
    plan: SpikingPlan,
    data: DataSource | None,
    config: ConvertConfig,
    device: Device,
    progress: Progress,
) -> CalibrationResult | None:
    rule = make_rule(config.rule, config.alpha)
    if rule is None or data is None:
        return None
    batching = _calibration_batching(data, network, config)
    samples = min(config.calib_samples, len(data))
    return calibrate(
        network, plan, rule, data, batching, samples, device, lambda done: progress("biases", done, samples)
    )


def _verify(
    emitted: Emitted,
    network: Network,
    plan: SpikingPlan,
    data: DataSource | None,
    config: ConvertConfig,
    progress: Progress,
) -> VerificationResult | None:
    if not config.verify:
        return None
    source = data or random_source(input_specs(network.view.model), _VERIFY_SAMPLES, config.seed)
    batching = Batching(network.static_batch or min(_VERIFY_SAMPLES, len(source)), network.static_batch is not None)
    progress("verification", 0, 1)
    batch, _ = next(batching.padded(source))
    result = verify(emitted.model, emitted.readouts, network, plan, batch.feeds)
    progress("verification", 1, 1)
    return result


def _evaluate(
    emitted: Emitted,
    network: Network,
    plan: SpikingPlan,
    data: DataSource | None,
    config: ConvertConfig,
    device: Device,
    label_offset: int,
    progress: Progress,
) -> tuple[EvaluationResult | None, EvaluationResult | None]:
    """The calibrated network, and the same one with every bias zero."""
    if data is None:
        return None, None
    batching = choose_batching(config.batch_size, network.static_batch, data, None, "evaluation")
    ann = run_ann(network, plan.sites, emitted.readouts[0].output, data, batching, None, device)

    def judge(stage: str, biased: SpikingPlan) -> EvaluationResult:
        return evaluate(
            replace_biases(emitted.model, biased),
            emitted.readouts,
            biased,
            data,
            batching,
            device,
            ann=ann,
            label_offset=label_offset,
            progress=lambda done: progress(stage, done, len(data)),
        )

    evaluation = judge("evaluation", plan)
    return evaluation, judge("evaluation without bias", plan.without_biases()) if config.rule != "none" else None


def _record(
    source: SourceModel,
    plan: SpikingPlan,
    emitted: Emitted,
    config: ConvertConfig,
    device: Device,
    data: DataSource | None,
    calibrated: CalibrationResult | None,
) -> dict[str, Any]:
    """What the emitted model remembers of where it comes from."""
    options = config.as_dict()
    return {
        "version": version("ftbc-onnx"),
        "runtime": runtime_version(),
        "form": "unrolled",
        "source": Path(source.name).name,
        "source_digest": source.digest,
        "plan": plan.describe(),
        "readout": [
            {"output": r.output, "is_mean": r.is_mean, "tensors": list(r.tensors)} for r in emitted.readouts
        ],
        "options": options,
        "device": device.name,
        "rule": "none" if calibrated is None else calibrated.rule,
        "samples": 0 if calibrated is None else calibrated.samples,
        "data": "none" if data is None else data.description,
        "data_digest": "" if data is None else data.digest(),
        "preprocessing": {} if data is None else data.preprocessing.as_dict(),
    }


def _report(
    record: dict[str, Any],
    source: SourceModel,
    normalised: Normalised,
    network: Network,
    plan: SpikingPlan,
    statistics: Mapping[str, ActivationStatistics],
    config: ConvertConfig,
    calibrated: CalibrationResult | None,
    checked: VerificationResult | None,
    evaluation: EvaluationResult | None,
    before: EvaluationResult | None,
    model: Any,
) -> dict[str, Any]:
    """What happened, as plain JSON types."""
    counts: dict[str, int] = {}
    for kind in network.classes.values():
        counts[kind.value] = counts.get(kind.value, 0) + 1
    return {
        **{key: value for key, value in record.items() if key not in ("plan", "readout")},
        "steps": plan.steps,
        "neuron": plan.neuron,
        "normalisation": normalised.changes,
        "node_classes": counts,
        "emitted_nodes": len(model.graph.node),
        "opset": network.view.opset,
        "random_data": bool(config.random_data and record["data"].startswith("random")),
        "sites": [
            {
                "name": site.name,
                "op_type": site.op_type,
                "channels": site.channels,
                "channel_axis": site.channel_axis,
                "levels": site.levels,
                "threshold": [float(plan.thresholds[site.name].min()), float(plan.thresholds[site.name].max())],
                "dead_channels": int(statistics[site.name].dead.sum()) if site.name in statistics else None,
                "upstream": list(site.upstream),
            }
            for site in plan.sites
        ],
        "calibration": None if calibrated is None else calibrated.as_dict(),
        "verification": None if checked is None else checked.as_dict(),
        "evaluation": None if evaluation is None else evaluation.as_dict(),
        "evaluation_without_bias": None if before is None else before.as_dict(),
    }

