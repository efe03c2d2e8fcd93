"""Multi-threshold neuron: n levels theta/2^j, one spike a step, of either sign.

    lambda = theta / 2^(n-1)                                             the lowest level
    u[t] = (v[t-1] + x[t]) + b[t]
    k[t] = +-2^i, the largest with |u[t]| >= (3/4 * 2^i) * lambda,  i = 0 .. n-1;  else 0
    s[t] = lambda * k[t],   v[t] = u[t] - s[t],   v[-1] = 0
    sent[t] = sent[t-1] + k[t]

3/4 is the middle between a level and the next lower one, so a level is the nearest one; nothing has to be added at the
start. Behind a rectifier a negative spike is at most what was sent (2^i <= sent), behind other functions it is free.

Source: differential coding (arXiv 2503.00301), multi-threshold quantiser.
"""

from __future__ import annotations

import numpy as np

from ftbc_onnx.neurons.soft_reset import SoftReset
from ftbc_onnx.sink import Sink

MIDDLE = 0.75


class MultiThreshold(SoftReset):
    """One of n powers of two, or nothing, in either sign."""

    name = "multi-threshold"
    lowest = -1.0
    start = 0.0

    def __init__(self, thresholds: int, rectifies: bool = True) -> None:
        """Give it n, and whether its total stays at or above 0."""
        self.levels = 2 ** (thresholds - 1)
        self.thresholds = thresholds
        self.remembers = rectifies

    def count(self, u: np.ndarray, unit: np.ndarray, sent: np.ndarray | None) -> np.ndarray:
        """The nearest level, and its sign."""
        negative = u < 0
        size = np.abs(u)
        if sent is not None:
            size = np.where(negative, np.minimum(size, (np.float32(MIDDLE) * sent) * unit), size)
        k = np.zeros_like(size)
        for i in range(self.thresholds):
            k = np.where(size >= np.float32(MIDDLE * 2**i) * unit, np.float32(2**i), k)
        return np.asarray(np.where(negative, -k, k))

    def emit_memory(self, sink: Sink, sent: str, unit: str) -> str:
        """-3/4 * sent units: as low as u counts."""
        return sink.op("Mul", sink.op("Mul", sink.constant(-MIDDLE), sent), unit)

    def emit_count(self, sink: Sink, u: str, unit: str, memory: str | None) -> str:
        """The same, with z = u / (3/4 lambda): k is the largest power of two in |z|, and clip(z, -1, 1) its sign.

            k = max over i = 0, 2, 4, ..  of  2^i * floor(clip(|z| / 2^i, 0, 2))

        is two levels at a time: from 3 times 2^i on, where the floor is not a level, the next pair is larger. At the
        top it is clipped to 1 if n is odd. |z| >= 2^i wherever |u| >= 2^i * (3/4 lambda), and nowhere else: a quotient
        that is rounded up to a power of two would have to be closer to it than two floats are.
        """
        seen = u if memory is None else sink.op("Max", u, memory)
        z = sink.op("Div", seen, sink.op("Mul", sink.constant(MIDDLE), unit))
        size = sink.op("Abs", z)
        k = ""
        for i in range(0, self.thresholds, 2):
            most = min(2, self.thresholds - i)
            part = sink.op("Mul", size, sink.constant(0.5**i)) if i else size
            whole = sink.op("Floor", sink.op("Clip", part, sink.constant(0.0), sink.constant(float(most))))
            levels = sink.op("Mul", whole, sink.constant(2.0**i)) if i else whole
            k = sink.op("Max", k, levels) if k else levels
        return sink.op("Mul", k, sink.op("Clip", z, sink.constant(-1.0), sink.constant(1.0)))
