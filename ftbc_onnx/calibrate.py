"""Calibrate temporal biases: one session, one run per batch, only [T, C] tables leave the runtime."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from ftbc_onnx.batching import Batching, rows_of
from ftbc_onnx.data import DataSource
from ftbc_onnx.errors import CalibrationError
from ftbc_onnx.graph.emit.calibration import emit_calibration, new_bias_name, old_bias_name
from ftbc_onnx.graph.sites import Network
from ftbc_onnx.plan import SpikingPlan
from ftbc_onnx.results import CalibrationResult
from ftbc_onnx.rules import CalibrationRule
from ftbc_onnx.runtime import Device, Session
from ftbc_onnx.shrinkage import shrink as shrunk


def calibrate(
    network: Network,
    plan: SpikingPlan,
    rule: CalibrationRule,
    source: DataSource,
    *,
    batching: Batching,
    samples: int,
    device: Device,
    shrink: float = 0.0,
    progress: Callable[[int], None] = lambda _: None,
) -> CalibrationResult:
    """Biases of every site, [T, C], starting from the plan's.

    Args:
        network: the normalised ANN.
        plan: sites and thresholds; T steps.
        rule: how a gap becomes a bias.
        source: calibration data.
        batching: samples per run.
        samples: samples to use, at most.
        device: where to run.
        shrink: put biases below so many standard errors to zero (of a rule whose batches are independent).
        progress: called after each batch with the samples done.

    Raises:
        CalibrationError: a bias came out that is not finite.
        DataError: too few batches for a standard error.
    """
    start = time.perf_counter()
    session = Session(emit_calibration(network, plan, rule), device)
    biases = {site.name: np.asarray(plan.biases[site.name]) for site in plan.sites}
    seen, found, counts = 0, {name: list[np.ndarray]() for name in biases}, list[int]()
    for batch in batching.whole(source, samples):
        rows = rows_of(batch)
        old = {old_bias_name(name): bias for name, bias in biases.items()}
        new = session.run({**batch.feeds, **old}, [new_bias_name(name) for name in biases])
        for name, tables in found.items() if shrink else ():
            tables.append(new[new_bias_name(name)])
        biases = {name: rule.combine(bias, new[new_bias_name(name)], seen, rows) for name, bias in biases.items()}
        seen = seen + rows
        counts.append(rows)
        progress(seen)
    dropped = None
    if shrink:
        kept = {name: shrunk(tables, counts, shrink) for name, tables in found.items()}
        biases = {name: bias for name, (bias, _) in kept.items()}
        dropped = float(np.mean([share for _, share in kept.values()]))
    for name, bias in biases.items():
        if not np.all(np.isfinite(bias)):
            raise CalibrationError(
                f"the biases of site '{name}' are not finite: check the calibration data's scale, "
                "or use a smaller --alpha"
            )
    return CalibrationResult(rule.name, biases, seen, len(counts), time.perf_counter() - start, dropped)
