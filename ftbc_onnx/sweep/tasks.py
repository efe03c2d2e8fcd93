"""What a worker does: convert one point, or evaluate a converted network on a shard of the evaluation data.

Everything here goes through pickle. Workers open network and data themselves, and say so if they are not the same.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ftbc_onnx.batching import static_batch
from ftbc_onnx.config import ConvertConfig
from ftbc_onnx.data import DataSource, open_data
from ftbc_onnx.errors import DataError, ModelError
from ftbc_onnx.evaluate import evaluate_file
from ftbc_onnx.graph.files import input_specs, load
from ftbc_onnx.graph.weights import exceeds
from ftbc_onnx.image_list import holds_images
from ftbc_onnx.pipeline import ConversionResult, convert
from ftbc_onnx.preprocessing import Preprocessing
from ftbc_onnx.selection import FEWEST, split

SHARD = 1024
"""Samples of a shard of evaluation data, about; whatever the number of workers."""


@dataclass(frozen=True)
class Material:
    """What all tasks of a sweep work on.

    Attributes:
        model: path or bytes of the ANN.
        calibration: calibration data, as they were given.
        evaluation: evaluation data, as they were given, or None.
        preprocessing: of both.
        samples: calibration samples used, at most, those held back included.
        label_offset: added to every label.
    """

    model: str | bytes
    calibration: Any
    evaluation: Any
    preprocessing: Preprocessing | None
    samples: int
    label_offset: int

    def calibration_parts(self) -> tuple[DataSource, DataSource]:
        """The samples that conversions see, and those held back from all of them, always the same.

        Raises:
            DataError: there are too few.
        """
        specs = input_specs(load(self.model).model)
        shared = holds_images(self.evaluation)
        source = open_data(self.calibration, specs, self.preprocessing, limit=self.samples, shared=shared)
        static = static_batch(specs) or 1
        seen, held = split(source, len(source), static)
        if held is None:
            raise DataError(
                f"the calibration data ({source.description}) give {len(source)} samples: a sweep holds back a quarter "
                f"of them to judge, and takes at least {max(FEWEST, 2 * static)}"
            )
        return seen, held

    def evaluation_source(self) -> DataSource:
        """The evaluation data."""
        specs, shared = input_specs(load(self.model).model), holds_images(self.calibration)
        return open_data(self.evaluation, specs, self.preprocessing, purpose="evaluation", shared=shared)


@dataclass(frozen=True)
class Converted:
    """A point: what is remembered of it, and the bytes of the network if it is to be evaluated."""

    record: dict[str, Any]
    model: bytes | None


def convert_point(material: Material, config: ConvertConfig, digests: Mapping[str, str | None]) -> Converted:
    """Convert on the samples that conversions see, judge on those held back.

    Args:
        material: the network and the data.
        config: options.
        digests: of the network and of the data as the sweep found them.

    Raises:
        FtbcError: of the kind that fits.
    """
    seen, held = material.calibration_parts()
    start = time.perf_counter()
    result = convert(material.model, seen, eval_data=held, config=config, label_offset=material.label_offset)
    seconds = time.perf_counter() - start
    found = {"model": result.report["source_digest"], "seen": result.report["data_digest"], "held": held.digest()}
    for name, digest in found.items():
        if digest != digests[name]:
            raise DataError(
                "network and calibration data are not what they were when the sweep began, or not the same on every "
                "machine: leave the files alone while it runs, and give data without chance"
            )
    model = None
    if material.evaluation is not None:
        if exceeds(result.model):
            raise ModelError("networks over 2 GB are not evaluated in a sweep: leave out --eval-data")
        model = result.model.SerializeToString()
    return Converted({**_judgement(result), "seconds": round(seconds, 3)}, model)


def _judgement(result: ConversionResult) -> dict[str, Any]:
    """What is remembered of a conversion, as plain JSON types."""
    judged, energy = result.evaluation, result.report["energy"]
    assert judged is not None
    assert judged.counts is not None
    last = {name: None if curve is None else curve[-1] for name, curve in judged.as_dict().items() if _is_curve(curve)}
    counts = judged.counts
    return {
        "chosen": {name: result.report[name] for name in ("neuron", "threshold", "rule")},
        "held_back": {
            "samples": judged.samples,
            "accuracy": last.get("accuracy"),
            "agreement": last.get("agreement"),
            "output_error": last.get("output_gap"),
            "ann_accuracy": judged.ann_accuracy,
            "events": counts.events[-1],
            "binary_spikes": counts.binary_spikes[-1],
            "synops": counts.synops[-1],
            "binary_synops": counts.binary_synops[-1],
            "energy_pj": energy["snn_pj"][-1],
            "binary_energy_pj": energy["binary_pj"][-1],
            "ann_energy_pj": energy["ann_pj"],
        },
        "seconds_per_sample": judged.seconds / judged.samples,
    }


def _is_curve(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 0


@dataclass(frozen=True)
class Score:
    """Whole numbers, so that shards add up exactly; None where there are no labels, or no classes.

    Attributes:
        samples: in the shard.
        right: right decisions at T.
        agreeing: decisions at T that are the ANN's.
        ann_right: right decisions of the ANN.
    """

    samples: int
    right: int | None
    agreeing: int | None
    ann_right: int | None


def evaluate_shard(material: Material, model: bytes, config: ConvertConfig, start: int, stop: int) -> Score:
    """Evaluate a converted network on the samples from `start` to `stop` of the evaluation data."""
    source = material.evaluation_source().subset(np.arange(start, stop))
    result, _ = evaluate_file(
        model,
        source,
        ann=material.model,
        batch_size=config.batch_size,
        device=config.device,
        threads=config.threads,
        label_offset=material.label_offset,
        counting=False,
    )
    n = result.samples

    def counted(percent: float | None) -> int | None:
        return None if percent is None else round(percent / 100 * n)

    right = None if result.accuracy is None else result.accuracy[-1]
    agreeing = None if result.agreement is None else result.agreement[-1]
    return Score(n, counted(right), counted(agreeing), counted(result.ann_accuracy))


def shards(samples: int, static: int) -> list[tuple[int, int]]:
    """(Start, stop) of every shard; each but the last a multiple of a fixed batch."""
    size = max(SHARD // static, 1) * static
    return [(start, min(start + size, samples)) for start in range(0, samples, size)]


def merged(scores: Iterable[Score]) -> dict[str, Any]:
    """All shards together, as plain JSON types."""
    every = list(scores)
    samples = sum(score.samples for score in every)

    def percent(counts: list[int | None]) -> float | None:
        known = [count for count in counts if count is not None]
        return 100 * sum(known) / samples if len(known) == len(counts) else None

    return {
        "samples": samples,
        "accuracy": percent([score.right for score in every]),
        "agreement": percent([score.agreeing for score in every]),
        "ann_accuracy": percent([score.ann_right for score in every]),
    }
