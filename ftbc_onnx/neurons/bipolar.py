"""Bipolar integrate-and-fire for y = x: spikes of both signs, soft reset, K levels.

    lambda = theta/K
    u[t] = (v[t-1] + x[t]) + b[t]
    k[t] = min(max(floor(u[t]/lambda), -K), K)
    s[t] = lambda * k[t],   v[t] = u[t] - s[t],   v[-1] = lambda/2

One step from rest rounds x to the nearest multiple of lambda within -theta and theta: the member lo = -K of the family.
It stands behind functions that are no rectifiers, where what travels on has both signs, and so nothing has to be
remembered.
"""

from __future__ import annotations

import numpy as np

from ftbc_onnx.neurons.soft_reset import SoftReset
from ftbc_onnx.sink import Sink


class Bipolar(SoftReset):
    """Spikes of -K to K units; the state is the membrane potential v."""

    name = "bipolar"
    lowest = -1.0

    def __init__(self, levels: int = 1) -> None:
        """Give it its levels."""
        self.levels = levels

    def count(self, u: np.ndarray, unit: np.ndarray, sent: np.ndarray | None) -> np.ndarray:  # noqa: ARG002
        """Whole units in u, between -K and K."""
        most = np.float32(self.levels)
        return np.asarray(np.minimum(np.maximum(np.floor(u / unit), -most), most))

    def emit_count(self, sink: Sink, u: str, unit: str, memory: str | None) -> str:  # noqa: ARG002
        """The same: Div, Floor, Clip."""
        most, least = sink.constant(float(self.levels)), sink.constant(float(-self.levels))
        return sink.op("Clip", sink.op("Floor", sink.op("Div", u, unit)), least, most)
