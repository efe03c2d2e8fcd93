"""Bipolar integrate-and-fire for y = x: spikes of both signs, soft reset.

    u[t] = (v[t-1] + x[t]) + b[t]
    s[t] = theta * ([u[t] >= theta] - [u[t] < 0])
    v[t] = u[t] - s[t],      v[-1] = theta/2

One step from rest rounds x to the nearest of -theta, 0, theta: the member K = 1, lo = -K of the family
k = clip(floor(u/theta), lo, K). It stands behind functions that are no rectifiers, where what travels on has both
signs.
"""

from __future__ import annotations

import numpy as np

from ftbc_onnx.neurons.soft_reset import SoftReset
from ftbc_onnx.sink import Sink


class Bipolar(SoftReset):
    """Spikes {-theta, 0, theta}; the state is the membrane potential v."""

    name = "bipolar"
    lowest = -1.0

    def spikes(self, u: np.ndarray, threshold: np.ndarray) -> np.ndarray:
        """Theta where u >= theta, -theta where u < 0."""
        return np.where(u >= threshold, threshold, np.where(u < 0, -threshold, np.float32(0)))

    def emit_spikes(self, sink: Sink, u: str, threshold: str, out: str | None = None) -> str:
        """The same: Less, Neg, Where, GreaterOrEqual, Where."""
        zero = sink.constant(0.0)
        below = sink.op("Where", sink.op("Less", u, zero), sink.op("Neg", threshold), zero)
        return sink.op("Where", sink.op("GreaterOrEqual", u, threshold), threshold, below, out=out)
