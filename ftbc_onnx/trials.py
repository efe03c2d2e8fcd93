"""``diagnose --try``: convert again with what was suggested, and see on samples held back what each gains.

Every fourth calibration sample is held back from all trials, the first of which changes nothing; each conversion
splits the rest once more for its own choices. So no trial has seen the samples that judge. The file itself is not
judged: it may have been calibrated on them.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ftbc_onnx.config import ConvertConfig
from ftbc_onnx.data import DataSource, spread
from ftbc_onnx.errors import DataError, FtbcError
from ftbc_onnx.evaluate import run_ann
from ftbc_onnx.job import Job, Progress
from ftbc_onnx.pipeline import open_job
from ftbc_onnx.plan import SpikingPlan
from ftbc_onnx.planning import JUDGING, make_plan
from ftbc_onnx.preprocessing import Preprocessing
from ftbc_onnx.remedies import Changes, spelled
from ftbc_onnx.sample_order import middles
from ftbc_onnx.selection import Judge, Trial, split

log = logging.getLogger("ftbc_onnx")

MOST = 6
"""Changes that are tried, at most: each is a conversion."""


def with_neuron(options: ConvertConfig, plan: SpikingPlan) -> ConvertConfig:
    """The options a network was converted with, its neuron by name, so that a trial does not choose it again."""
    neuron = plan.neuron
    return replace(
        options, neuron=neuron.name, levels=neuron.levels, coding=neuron.coding, budget="accuracy", binary=False
    )


def try_changes(
    tries: Sequence[Changes],
    options: ConvertConfig,
    ann: str | os.PathLike[str],
    data: Any,
    *,
    preprocessing: Preprocessing | None = None,
    progress: Progress = lambda *_: None,
) -> tuple[Trial, ...]:
    """Convert again as it was, and with every change; judged after T steps of its own.

    Args:
        tries: options to change; what fails is logged, and so is what asks for more samples than there are.
        options: of the conversion, with the neuron by name (`with_neuron`).
        ann: path of the ANN.
        data: calibration data.
        preprocessing: applied to them.
        progress: called as work goes on.

    Raises:
        DataError: too few calibration samples to hold any back.
        FtbcError: the conversion as it was failed.
    """
    largest = max([options.calib_samples, *(changes.get("calib_samples", 0) for changes in tries)])
    first = open_job(ann, data, replace(options, calib_samples=largest), preprocessing=preprocessing)
    assert first.calibration is not None
    static = first.network.static_batch or 1
    fit, held = split_off(first.calibration, static)
    count = min(len(held), max(JUDGING // static, 1) * static)
    held = held.subset(middles(len(held), count))
    if options.batch_size is not None:
        options = replace(options, batch_size=min(options.batch_size, options.calib_samples, len(fit)))
    trials = [_judge(replace(first, config=options), "as it was", fit, held)]
    for done, changes in enumerate(tries, 1):
        progress("trials", done, len(tries) + 1)
        try:
            if changes.get("calib_samples", 0) > options.calib_samples >= len(fit):
                raise DataError(f"there are only {len(fit)} calibration samples beside those that judge")
            job = open_job(ann, data, replace(options, **changes), preprocessing=preprocessing)
            trials.append(_judge(job, spelled(changes), fit, held))
        except FtbcError as error:
            log.warning("%s could not be tried: %s", spelled(changes), error)
    progress("trials", len(tries) + 1, len(tries) + 1)
    return tuple(trials)


def split_off(source: DataSource, static: int) -> tuple[DataSource, DataSource]:
    """The samples that trials are fitted to, and those that judge them.

    Raises:
        DataError: there are too few.
    """
    fit, held = split(source, len(source), static)
    if held is None:
        raise DataError(
            f"the calibration data ({source.description}) give {len(source)} samples, too few to hold some back, which "
            "judge what is tried: give more"
        )
    return fit, held


def _judge(job: Job, what: str, fit: DataSource, held: DataSource) -> Trial:
    """Convert on as many of the samples to fit to as the options say, judge on those held back."""
    part = spread(fit, job.config.calib_samples)
    plan = make_plan(replace(job, calibration=part)).plan
    batching = job.batching(held)
    output = next(name for name in job.network.view.output_names if name in job.network.temporal)
    reference = run_ann(job.source.model, job.network, output, held, batching, device=job.device, label_offset=None)
    return Judge(job.network, reference, held, batching, job.device)(what, plan)
