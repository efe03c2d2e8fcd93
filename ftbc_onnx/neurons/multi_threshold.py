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

from ftbc_onnx.neurons.soft_reset import SoftReset, emit_truth
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
        most = sink.op("Mul", sink.op("Mul", sink.constant(MIDDLE), sent), unit)
        return sink.op("Neg", most)

    def emit_count(self, sink: Sink, u: str, unit: str, memory: str | None) -> str:
        """The same: every level that is reached adds what it has more than the one below.

        Where one is, u in halves of the lowest is 2 or more, of either sign: clipped it is 1 or -1, also in runtimes
        that multiply by a reciprocal (in onnxruntime on a CPU in half the time of Sign).
        """
        seen = u if memory is None else sink.op("Max", u, memory)
        size = sink.op("Abs", seen)
        levels = [sink.op("Mul", sink.constant(MIDDLE * 2**i), unit) for i in range(self.thresholds)]
        k = ""
        for i, level in enumerate(levels):
            reached = emit_truth(sink, sink.op("GreaterOrEqual", size, level))
            more = reached if i < 2 else sink.op("Mul", reached, sink.constant(float(2 ** (i - 1))))
            k = sink.op("Add", k, more) if k else more
        half = sink.op("Mul", sink.constant(MIDDLE / 2), unit)
        sign = sink.op("Clip", sink.op("Div", seen, half), sink.constant(-1.0), sink.constant(1.0))
        return sink.op("Mul", k, sign)
