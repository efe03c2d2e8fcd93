"""The whole conversion, in the order in which things happen. Read this first.

    load -> normalise -> find sites -> thresholds -> plan -> calibrate -> emit -> verify -> evaluate -> save

Every stage takes frozen values and gives frozen values; only loading, data and saving touch the disk.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ftbc_onnx.config import ConvertConfig, check_whole
from ftbc_onnx.data import DataSource, open_data, random_source
from ftbc_onnx.energy import Constants, energy_of
from ftbc_onnx.errors import ConfigError, DataError, ModelError, OutOfMemoryError
from ftbc_onnx.evaluate import AnnRun, check_early_exit, evaluate, run_ann
from ftbc_onnx.graph.emit import choose_form, emit, emit_quick
from ftbc_onnx.graph.emit.unrolled import Emitted, check_convertible
from ftbc_onnx.graph.files import SourceModel, input_specs, load, save
from ftbc_onnx.graph.free_batch import free_batch
from ftbc_onnx.graph.observe import expose_running_means
from ftbc_onnx.graph.prepare import prepare
from ftbc_onnx.graph.provenance import stamp
from ftbc_onnx.graph.sites import Network
from ftbc_onnx.graph.view import GraphView, count_nodes
from ftbc_onnx.image_list import holds_images
from ftbc_onnx.job import Job, Progress
from ftbc_onnx.likeness import Moments, Unlike, compare, moments
from ftbc_onnx.network_size import count_neurons
from ftbc_onnx.plan import SpikingPlan
from ftbc_onnx.planning import calibration_batching, make_plan
from ftbc_onnx.preprocessing import Preprocessing
from ftbc_onnx.record import describe, record_of
from ftbc_onnx.results import EvaluationResult, VerificationResult
from ftbc_onnx.runtime import Device, Session, choose_device
from ftbc_onnx.summary import summarise
from ftbc_onnx.verify import SAMPLES, check_same_function, check_samples_apart, few_samples, verify

_GLANCE = 128  # calibration samples on which a network without evaluation data is evaluated


@dataclass(frozen=True)
class ConversionResult:
    """A converted network and everything that is known about it.

    Attributes:
        model: the spiking network, an ``onnx.ModelProto``.
        plan: where its neurons stand and with which numbers.
        report: what happened, as plain JSON types.
        source: the ANN as it was read.
        evaluation: on the evaluation data, else on a few of the calibration data, or None.
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
        beside = self.source.path or Path(f"{Path(self.source.name).name}.onnx")
        target = default_output(beside, self.plan.steps) if path is None else Path(path)
        if self.source.path is not None and beside.exists() and target.exists() and target.samefile(beside):
            raise ModelError(f"'{target}' is the input itself: choose another --output")
        save(self.model, target)
        return target


def default_output(path: Path, steps: int) -> Path:
    """Where the spiking network made from the ANN at `path` goes if nobody says where."""
    return path.parent / f"{path.stem}.snn_T{steps}.onnx"


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
    if config is not None and options:
        raise ConfigError(f"option '{next(iter(options))}' is given beside a config: put it into the ConvertConfig")
    config = ConvertConfig.from_options(options) if config is None else config
    if not isinstance(config, ConvertConfig):
        raise ConfigError(f"config is {config!r}: it must be an ftbc_onnx.ConvertConfig, or give the options by name")
    job = open_job(
        model,
        data,
        config,
        eval_data=eval_data,
        preprocessing=preprocessing,
        label_offset=label_offset,
        progress=progress,
    )
    source, network = job.source, job.network
    if job.calibration is not None:
        calibration_batching(job, job.calibration)  # refuses too few samples
    elif config.gain or config.shrink or config.compress_bias:
        raise DataError(
            "gain, shrink and compress_bias are about biases, which take calibration data: add --calib-data"
        )
    elif config.refit:
        raise DataError("refit fits layers to calibration data: add --calib-data")
    few = _few_samples(job) if config.verify else None
    if few is not None:
        check_samples_apart(network, few)
        check_same_function(source.model, job.normalised, network, few)
    ann = _run_ann(job)
    planned = make_plan(job)
    plan = planned.plan
    form, why = choose_form(network, plan, job.device.on_gpu) if config.form == "auto" else (config.form, "as asked")
    emitted = emit(network, plan, form, steps_input=config.steps_input, passes=config.fuse)
    checked = None if few is None else _verify(job, plan, emitted, few)
    inputs, judged_on = _inputs(job)
    evaluation, before = _evaluate(job, plan, emitted, ann, compare(inputs, judged_on))
    model_out = expose_running_means(emitted.model, emitted.readouts) if config.running_mean else emitted.model
    record = record_of(job, planned, emitted, inputs)
    report = {
        **describe(job, planned, record),
        "form_because": why,
        "emitted_nodes": count_nodes(model_out.graph),
        "calibration": planned.calibration_record(),
        "verification": None if checked is None else checked.as_dict(),
        "evaluated_on": "nothing"
        if evaluation is None
        else "calibration data"
        if job.judged is None
        else "evaluation data",
        "evaluation": None if evaluation is None else evaluation.as_dict(),
        "energy": None
        if evaluation is None or evaluation.counts is None
        else energy_of(evaluation.counts, Constants(config.energy_mac, config.energy_ac)).as_dict(),
        "evaluation_without_bias": None if before is None else before.as_dict(),
    }
    report["summary"] = summarise(report)
    return ConversionResult(stamp(model_out, source.model, record), plan, report, source, evaluation)


def open_job(
    model: Any,
    data: Any,
    config: ConvertConfig,
    *,
    eval_data: Any = None,
    preprocessing: Preprocessing | None = None,
    label_offset: int = 0,
    progress: Progress = lambda *_: None,
) -> Job:
    """Load, normalise and class the ANN, and open its data: what a conversion starts from. As `convert`."""
    label_offset = check_whole("label_offset", label_offset)
    source = load(model)
    normalised, network = prepare(source.model, config)
    refuse(source, network, config.strict)
    check_convertible(network, config.window)
    device = choose_device(config.device, config.threads)
    calibration = _calibration_data(source, network, config, data, preprocessing, shared=holds_images(eval_data))
    judged = None
    if eval_data is not None:
        specs, shared = input_specs(source.model), holds_images(data)
        judged = open_data(eval_data, specs, preprocessing, purpose="evaluation", shared=shared)
    free = _with_free_batch(network, calibration)
    return Job(
        source,
        normalised,
        network,
        free,
        _count_neurons(free, calibration or judged, device, config.seed),
        config,
        device,
        calibration,
        data is None and config.random_data,
        judged,
        label_offset,
        progress,
    )


def _count_neurons(network: Network, data: DataSource | None, device: Device, seed: int) -> dict[str, int]:
    """Neurons of every site, per sample; without data on random numbers, empty if they do not do."""
    if data is not None:
        return count_neurons(network, data, device)
    try:
        return count_neurons(network, random_source(input_specs(network.view.model), 1, seed), device)
    except (DataError, ModelError, OutOfMemoryError):  # an axis is open, or an input takes no numbers but some
        return {}


def refuse(source: SourceModel, network: Network, strict: bool = False) -> None:
    """Stop before any long work if something cannot be converted.

    Raises:
        ModelError: all refusals, or that there is nothing to convert.
    """
    if network.refusals:
        listed = "; ".join(map(str, network.refusals))
        raise ModelError(f"'{source.name}' cannot be converted, {len(network.refusals)} node(s) refused: {listed}")
    mixed = network.not_spiking
    if strict and mixed:
        listed = ", ".join(f"{node.op_type} '{node.name}'" for node in mixed)
        raise ModelError(f"--strict: {len(mixed)} node(s) of '{source.name}' are no spike arithmetic: {listed}")
    if network.why_nothing is not None:
        kind = ConfigError if network.analog and not network.sites else ModelError
        raise kind(f"'{source.name}' cannot be converted: {network.why_nothing}")


def _calibration_data(
    source: SourceModel,
    network: Network,
    config: ConvertConfig,
    data: Any,
    preprocessing: Preprocessing | None,
    *,
    shared: bool,
) -> DataSource | None:
    """The calibration data; None if there are none and the model states all its thresholds."""
    specs = input_specs(source.model)
    if data is not None:
        return open_data(data, specs, preprocessing, purpose="calibration", limit=config.calib_samples, shared=shared)
    if config.random_data:
        return random_source(specs, config.calib_samples, config.seed)
    missing = [site.name for site in network.sites if site.threshold is None]
    if missing:
        raise DataError(
            f"'{source.name}' states no threshold for {len(missing)} of {len(network.sites)} activations "
            f"('{missing[0]}' first), so calibration data are needed: ftbc-onnx convert {source.name} "
            "--calib-data IMAGES_OR_NPZ (or --random-data, for a dry run)"
        )
    return None


def _with_free_batch(network: Network, data: DataSource | None) -> Network:
    """The network with its batch freed, if two batches in one run give the same outputs; else the network itself."""
    freed, size = free_batch(network), network.static_batch or 1
    if freed is None or data is None or len(data) < 2 * size:
        return network
    feeds = next(data.batches(2 * size)).feeds
    fixed = Session(network.view.model)
    halves = [fixed.run({name: value[i : i + size] for name, value in feeds.items()}) for i in (0, size)]
    try:
        whole = Session(freed).run(feeds)
    except (ModelError, OutOfMemoryError):
        return network
    for name, value in whole.items():
        expected = np.concatenate([np.atleast_1d(half[name]) for half in halves])
        if value.shape != expected.shape or not np.allclose(value, expected, rtol=1e-3, atol=1e-4):
            return network
    return replace(network, view=GraphView(freed))


def _few_samples(job: Job) -> Mapping[str, np.ndarray] | None:
    """What verification runs on; None if there are no data and none can be made up."""
    data = job.calibration or job.judged
    if data is None:
        try:
            data = random_source(input_specs(job.network.view.model), SAMPLES, job.config.seed)
        except DataError:  # no size can be made up for a dynamic axis
            return None
    return few_samples(data, job.network.static_batch)


def _verify(job: Job, plan: SpikingPlan, emitted: Emitted, feeds: Mapping[str, np.ndarray]) -> VerificationResult:
    job.progress("verification", 0, 1)
    result = verify(emitted, job.network, plan, feeds)
    job.progress("verification", 1, 1)
    return result


def _judging(job: Job) -> tuple[DataSource | None, int]:
    """The data that the network is judged on, and how many samples: without evaluation data, a few for calibration."""
    if job.judged is not None:
        return job.judged, len(job.judged)
    data = job.calibration
    return data, 0 if data is None else min(len(data), job.config.calib_samples, _GLANCE)


def _run_ann(job: Job) -> AnnRun | None:
    """The ANN on the data that the network is judged on, before any long work.

    Labels of calibration data do not count.
    """
    data, samples = _judging(job)
    if data is None:
        if job.config.early_exit is not None:
            raise ConfigError("early_exit is looked at in the evaluation, for which there are no data: add --eval-data")
        return None
    batching = job.batching(data, samples)
    output = next(name for name in job.network.view.output_names if name in job.network.temporal)
    offset = job.label_offset if job.judged is not None else None
    original = job.source.model
    ann = run_ann(
        original,
        job.network,
        output,
        data,
        batching,
        device=job.device,
        samples=samples,
        label_offset=offset,
        progress=job.stage("ANN", samples),
    )
    if job.config.early_exit is not None:
        check_early_exit(ann.outputs, output)
    return ann


def _inputs(job: Job) -> tuple[dict[str, Moments], dict[str, Moments]]:
    """The numbers that the network gets, for the file, and those that it is judged on; none beside random data.

    Without calibration data the file remembers those that it is judged on.
    """
    judged = {} if job.judged is None or job.random else moments(job.judged)
    return (judged if job.calibration is None else {} if job.random else moments(job.calibration)), judged


def _evaluate(
    job: Job, plan: SpikingPlan, emitted: Emitted, ann: AnnRun | None, unlike: tuple[Unlike, ...]
) -> tuple[EvaluationResult | None, EvaluationResult | None]:
    """The calibrated network, and if wanted the same one with neither biases nor gains, and the layers of the ANN."""
    data, samples = _judging(job)
    if data is None or ann is None:
        return None, None
    batching = job.batching(data, samples)

    def judge(stage: str, emission: Emitted, judged: SpikingPlan) -> EvaluationResult:
        found = evaluate(
            emission.model,
            emission.readouts,
            judged,
            data,
            batching,
            device=job.device,
            ann=ann,
            samples=samples,
            label_offset=job.label_offset if job.judged is not None else None,
            early_exit=job.config.early_exit,
            counting=job.config.counting and stage == "evaluation",  # once is enough
            progress=job.stage(stage, samples),
        )
        return replace(found, unlike=unlike)

    watched = emitted.form in ("unrolled", "fused", "loop")  # the other forms have no place per step for every counter
    evaluation = judge("evaluation", emitted if watched else emit_quick(job.network, plan), plan)
    if not job.config.compare:
        return evaluation, None
    if not plan.gains and not plan.layers and not any(bias.any() for bias in plan.biases.values()):
        return evaluation, evaluation
    none = plan.plain()
    form, passes = emitted.form, job.config.fuse
    plain = emit(job.network, none, form, passes=passes) if watched else emit_quick(job.network, none)
    return evaluation, judge("evaluation without bias", plain, none)
