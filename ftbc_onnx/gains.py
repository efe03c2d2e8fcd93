"""Gains: a factor per channel on the spikes of a site, so that their mean varies as the activation does.

A bias makes the mean of the spikes right; how far they go up and down with the input it cannot change. With a the
activation, r the mean spike after T steps, and standard deviations over everything but the channel axis,

    g = sd(a) / sd(r),  limited to LOWEST .. HIGHEST;   1 where either is silent

All sites are measured in one run, with the biases found before; biases are then found again, for the gain moves means.
"""

from __future__ import annotations

import numpy as np

from ftbc_onnx.batching import Batching, rows_of
from ftbc_onnx.data import DataSource
from ftbc_onnx.errors import CalibrationError
from ftbc_onnx.graph.emit.moments import emit_moments, moments_name
from ftbc_onnx.graph.sites import Network
from ftbc_onnx.plan import SpikingPlan
from ftbc_onnx.runtime import Device, Session

LOWEST, HIGHEST = 0.5, 2.0

_SILENT = 1e-6  # of theta: a smaller standard deviation is none
_ROUNDING = 3e-3  # of the mean: below it, the difference of float32 means that a variance is says nothing


def find_gains(
    network: Network, plan: SpikingPlan, source: DataSource, *, batching: Batching, samples: int, device: Device
) -> dict[str, np.ndarray]:
    """The gains of every site of an asynchronous plan, [C].

    Raises:
        CalibrationError: activations are too large to be squared in float32.
    """
    session = Session(emit_moments(network, plan), device)
    totals = {site.name: np.zeros((5, site.channels)) for site in plan.sites}
    seen = 0
    for batch in batching.whole(source, samples):
        found, rows = session.run(batch.feeds), rows_of(batch)
        seen += rows
        for name, total in totals.items():
            totals[name] = total + found[moments_name(name)].astype(np.float64) * rows
    for name, total in totals.items():
        if not np.all(np.isfinite(total)):
            raise CalibrationError(
                f"the activations of site '{name}' are too large to be squared in float32: check the data's scale"
            )
    return {name: gain_of(total / seen, plan.thresholds[name]) for name, total in totals.items()}


def gain_of(moments: np.ndarray, threshold: np.ndarray) -> np.ndarray:
    """The gains from moments [5, C] and thresholds [C]."""
    a, r, aa, rr, _ = moments
    wanted, there = (np.sqrt(np.maximum(square - mean * mean, 0)) for mean, square in ((a, aa), (r, rr)))
    least = np.maximum(_SILENT * threshold, _ROUNDING * np.maximum(np.abs(a), np.abs(r)))
    silent = np.minimum(wanted, there) <= least
    gain = np.clip(wanted / np.where(silent, 1, there), LOWEST, HIGHEST)
    return np.where(silent, 1, gain).astype(np.float32)
