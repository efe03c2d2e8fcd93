"""Evaluate: the ANN first, then the SNN after every step of one run, with firing rates and gaps per site."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ftbc_onnx.batching import Batching, choose_batching, rows_of, static_batch
from ftbc_onnx.config import check_margin, check_positive, check_whole
from ftbc_onnx.counting import count, counted_names, site_counts, total_counts
from ftbc_onnx.data import DataSource, spread
from ftbc_onnx.early_exit import decisions, steps_used
from ftbc_onnx.errors import ConfigError, DataError, ModelError
from ftbc_onnx.graph.emit.unrolled import Readout
from ftbc_onnx.graph.files import input_specs
from ftbc_onnx.graph.observe import (
    expose_running_means,
    mean_activation_name,
    mean_spikes_name,
    observe_ann,
    observe_snn,
    running_mean_name,
)
from ftbc_onnx.graph.sites import Network
from ftbc_onnx.labels import check_labels, warn_of_folders
from ftbc_onnx.per_sample import per_sample
from ftbc_onnx.plan import SpikingPlan
from ftbc_onnx.preprocessing import Preprocessing
from ftbc_onnx.results import EarlyExit, EvaluationResult, SiteActivity
from ftbc_onnx.runtime import Device, Session, choose_device
from ftbc_onnx.shards import KEPT
from ftbc_onnx.spiking_file import read_spiking

Progress = Callable[[int], None]


@dataclass
class AnnRun:
    """The ANN on some data: outputs [n, ...], mean activations [C] per site."""

    outputs: np.ndarray
    labels: np.ndarray | None
    activations: dict[str, np.ndarray]
    seconds: float

    def accuracy(self, offset: int = 0) -> float | None:
        """Share of right decisions in percent; None without labels or if the output is no row of scores."""
        if self.labels is None or not are_scores(self.outputs):
            return None
        return float((self.outputs.argmax(1) == self.labels + offset).mean() * 100)


def run_ann(
    original: Any,
    network: Network,
    output: str,
    source: DataSource,
    batching: Batching,
    *,
    device: Device,
    samples: int | None = None,
    label_offset: int | None = 0,
    progress: Progress = lambda _: None,
) -> AnnRun:
    """Run the ANN over some data; one output and the mean activations of its sites are kept.

    Args:
        original: the ANN as it was read: the output is its own, so that nothing done to it goes unnoticed.
        network: the same network, normalised: its sites' activations.
        output: which output.
        source: the data.
        batching: samples per run.
        device: where to run.
        samples: samples to use, at most.
        label_offset: added to every label.
        progress: called after each batch with the samples done.

    Raises:
        DataError: a label is no class of the output (with `label_offset` None, labels are not looked at).
    """
    sites = network.sites
    session = Session(original, device)
    observed = Session(observe_ann(network.view.model, sites), device)
    names = [mean_activation_name(site.name) for site in sites]
    means, axis = _Means(), session.axis_of_samples(output)
    outputs, labels, seconds, done = np.zeros(0), [], 0.0, 0
    count = min(len(source), samples or len(source))
    for batch, rows in batching.padded(source, samples):
        start = time.perf_counter()
        found = session.run(batch.feeds, [output])[output]
        seconds += time.perf_counter() - start
        found = per_sample(found, rows_of(batch), axis)[:rows]
        if not done:
            outputs = _room((count, *found.shape[1:]), found.dtype)
        outputs[done : done + rows] = found
        if batch.labels is not None and label_offset is not None:
            labels.append(batch.labels[:rows])
            if are_scores(found):
                check_labels(labels[-1] + label_offset, found.shape[1], output)
                if not done:
                    warn_of_folders(source.class_folders, label_offset, found.shape[1], output)
        values = observed.run(batch.feeds, names)
        for site in sites:
            means.add(
                site.name, values[mean_activation_name(site.name)], rows, padded=batching.fixed and rows < batching.size
            )
        done += rows
        progress(done)
    return AnnRun(outputs, np.concatenate(labels) if labels else None, means.result(), seconds)


def _room(shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
    """Room for the outputs of all samples: in memory up to `KEPT` bytes, else in a temporary file."""
    if int(np.prod(shape, dtype=np.int64)) * dtype.itemsize <= KEPT:
        return np.empty(shape, dtype)
    with tempfile.TemporaryFile(prefix="ftbc-onnx-") as file:  # it is there as long as the array is
        return np.memmap(file, dtype, "w+", shape=shape)


def evaluate(
    model: Any,
    readouts: Sequence[Readout],
    plan: SpikingPlan,
    source: DataSource,
    batching: Batching,
    *,
    device: Device,
    ann: AnnRun | None = None,
    samples: int | None = None,
    label_offset: int | None = 0,
    counting: bool = True,
    early_exit: float | None = None,
    progress: Progress = lambda _: None,
) -> EvaluationResult:
    """Accuracy at each t, agreement with the ANN, rates and gaps, from one run of an emitted model per batch.

    Args:
        model: the emitted model.
        readouts: where its outputs are found after every step; the first is judged.
        plan: its plan.
        source: evaluation data, with labels for accuracy.
        batching: samples per run.
        device: where to run.
        ann: the ANN's run over the same data, for agreement and gaps.
        samples: samples to use, at most.
        label_offset: added to every label (1 for networks with a background class at 0); None: labels do not count.
        counting: whether events and synaptic operations are counted too.
        early_exit: margin at which a sample stops early (`ftbc_onnx.early_exit`); None: not looked at.
        progress: called after each batch with the samples done.

    Raises:
        DataError: a label is no class of the output.
        ConfigError: an early exit from an output that is no row of scores, or of a synchronous plan.
    """
    if early_exit is not None and plan.synchronous:
        raise ConfigError("early_exit goes with schedule asynchronous: a synchronous network has no early output")
    if not readouts:
        raise DataError("no output of the model depends on spikes: there is nothing to evaluate")
    output = readouts[0].output
    observed = observe_snn(expose_running_means(model, readouts[:1]), plan)
    session = Session(count(observed, plan) if counting else observed, device)
    names = [running_mean_name(output), *(mean_spikes_name(site.name) for site in plan.sites)]
    counted = counted_names(plan) if counting else []
    means, right, agree, early = _Means(), _Means(), _Means(), _Means()
    axis = session.axis_of_samples(output)
    gap, scale = np.zeros(plan.steps), 0.0
    done, seconds = 0, 0.0
    for batch, rows in batching.padded(source, samples):
        start = time.perf_counter()
        values = session.run(batch.feeds, [*names, *counted])
        seconds += time.perf_counter() - start
        fed = rows_of(batch)
        curve = np.stack([per_sample(value, fed, axis)[:rows] for value in values[running_mean_name(output)]])
        if early_exit is not None:
            check_early_exit(curve[0], output)
            used = steps_used(curve, early_exit, plan.readout)
            early.add("steps", used.mean(), rows)
        if are_scores(curve[0]) and batch.labels is not None and label_offset is not None:
            labels = batch.labels[:rows] + label_offset
            check_labels(labels, curve.shape[2], output)
            if ann is None and not done:
                warn_of_folders(source.class_folders, label_offset, curve.shape[2], output)
            right.add("all", (curve.argmax(2) == labels).mean(1), rows)
            if early_exit is not None:
                early.add("right", (decisions(curve, used) == labels).mean(), rows)
        if ann is not None:
            expected = ann.outputs[done : done + rows]
            with np.errstate(invalid="ignore"):  # of infinite outputs
                gap += np.abs(curve.astype(np.float64) - expected).reshape(plan.steps, -1).sum(1)
            scale += float(np.abs(expected.astype(np.float64)).sum())
            if are_scores(expected):
                agree.add("all", (curve.argmax(2) == expected.argmax(1)).mean(1), rows)
        for site in plan.sites:
            means.add(
                site.name, values[mean_spikes_name(site.name)], rows, padded=batching.fixed and rows < batching.size
            )
        for name in counted:
            means.add(name, values[name], rows, padded=batching.fixed and rows < batching.size)
        done += rows
        progress(done)
    spikes = means.result()
    output_gap = None if ann is None else _relative(gap, scale)
    activity = tuple(
        SiteActivity(
            site,
            spikes[site.name],
            plan.height(site),
            None if ann is None else ann.activations[site.name],
            *(site_counts(site, spikes) if counting else ()),
        )
        for site in plan.sites
    )
    return EvaluationResult(
        samples=done,
        data=source.description,
        output=output,
        ann_accuracy=None if ann is None else ann.accuracy(label_offset or 0),
        accuracy=_percent(right),
        agreement=_percent(agree),
        output_gap=output_gap,
        activity=activity,
        seconds=seconds,
        ann_seconds=0.0 if ann is None else ann.seconds,
        counts=total_counts(model, plan, spikes) if counting else None,
        readout=str(plan.readout),
        early_exit=None if early_exit is None else _early_exit(early_exit, early),
        finite=ann is None or output_gap is not None,
    )


def _relative(gap: np.ndarray, scale: float) -> tuple[float, ...] | None:
    """Gaps over the ANN's size; None if outputs were not finite."""
    errors = gap / max(scale, np.finfo(float).tiny)
    return tuple(map(float, errors)) if np.all(np.isfinite(errors)) else None


def evaluate_file(
    model: str | os.PathLike[str] | bytes,
    data: Any,
    *,
    ann: str | os.PathLike[str] | bytes | None = None,
    preprocessing: Preprocessing | None = None,
    batch_size: int | None = None,
    samples: int | None = None,
    device: str = "auto",
    threads: int | None = None,
    label_offset: int | None = None,
    early_exit: float | None = None,
    counting: bool = True,
    progress: Callable[[str, int, int], None] = lambda *_: None,
) -> tuple[EvaluationResult, str]:
    """Evaluate a file that `convert` wrote; returns the result and the device used.

    Args:
        model: path of the spiking network, or its bytes.
        data: evaluation data, anything that `ftbc_onnx.data.open_data` takes.
        ann: path of the ANN it was made from, or its bytes, for agreement and gaps.
        preprocessing: what it sets goes before what the network was calibrated with (`SpikingFile.open`).
        batch_size: samples per run; None: so many that a run is fast, 128 at most.
        samples: samples to use, at most; spread over the data.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        threads: of onnxruntime, per session; None: as many as there are cores.
        label_offset: added to every label; None: what was added in the conversion.
        early_exit: margin at which a sample stops early; None: not looked at.
        counting: whether events and synaptic operations are counted too.
        progress: called after each batch with the stage, the samples done and all samples.

    Raises:
        FtbcError: of the kind that fits; `ModelError` if the ANN is not the one it was made from.
    """
    for option, value in (("batch_size", batch_size), ("samples", samples), ("threads", threads)):
        if value is not None:
            check_positive(option, value)
    if early_exit is not None:
        check_margin(early_exit)
    file = read_spiking(model)
    label_offset = file.label_offset if label_offset is None else check_whole("label_offset", label_offset)
    if file.form == "step":
        raise ModelError(
            f"{file.called} is in the step form, whose state the caller keeps: evaluate one in another form "
            "(it gives the same outputs), or run it with ftbc_onnx.StepRunner"
        )
    where = choose_device(device, threads)
    source = spread(file.open(data, preprocessing), samples)
    static = static_batch(input_specs(file.model))
    batching = choose_batching(
        batch_size, static, source, samples, "evaluation", neurons=file.neurons, cores=where.cores
    )
    run = None
    count = min(len(source), samples or len(source))
    if ann is not None:
        original, network = file.ann(ann)
        output = file.readouts[0].output
        run = run_ann(
            original.model,
            network,
            output,
            source,
            batching,
            device=where,
            samples=samples,
            label_offset=label_offset,
            progress=lambda done: progress("ANN", done, count),
        )
    result = evaluate(
        file.model,
        file.readouts,
        file.plan,
        source,
        batching,
        device=where,
        ann=run,
        samples=samples,
        label_offset=label_offset,
        counting=counting and file.form != "folded",  # there a layer reads all steps at once
        early_exit=early_exit,
        progress=lambda done: progress("evaluation", done, count),
    )
    return replace(result, unlike=file.unlike(source)), where.name


def check_early_exit(output: np.ndarray, name: str) -> None:
    """Refuse an early exit from what is no row of scores.

    Raises:
        ConfigError: the output is something else.
    """
    if not are_scores(output):
        raise ConfigError(
            f"an early exit compares the scores of classes: output '{name}' of shape {output.shape} has none, "
            "leave out --early-exit"
        )


def _early_exit(margin: float, means: _Means) -> EarlyExit:
    found = {name: float(value) for name, value in means.result().items()}
    return EarlyExit(margin, found["right"] * 100 if "right" in found else None, found["steps"])


@dataclass
class _Means:
    """Means over samples, weighted by the rows of each batch; a padded batch counts only if there is no other."""

    sums: dict[str, np.ndarray] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)

    def add(self, name: str, mean: np.ndarray, rows: int, padded: bool = False) -> None:
        if padded and name in self.sums:
            return
        value = mean.astype(np.float64) * rows
        self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.rows[name] = self.rows.get(name, 0) + rows

    def result(self) -> dict[str, np.ndarray]:
        return {name: total / self.rows[name] for name, total in self.sums.items()}


def are_scores(output: np.ndarray) -> bool:
    """Whether an output is a row of scores per sample, of which the largest is the decision: [n, classes] floats."""
    return output.ndim == 2 and output.shape[1] > 1 and output.dtype.kind == "f"


def _percent(means: _Means) -> tuple[float, ...] | None:
    values = means.result().get("all")
    return None if values is None else tuple(float(v) * 100 for v in values)
