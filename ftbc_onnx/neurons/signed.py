"""Signed integrate-and-fire with memory: binary spikes, and spikes of the other sign that take back what was sent.

    u[t] = (v[t-1] + x[t]) + b[t]
    k[t] = 1 if u[t] >= theta,  -1 if u[t] below the negative threshold and sent[t-1] > 0,  else 0
    s[t] = theta * k[t],   v[t] = u[t] - s[t],   v[-1] = theta/2
    sent[t] = sent[t-1] + k[t]

Two variants, which differ in the negative threshold:

1. ``signed``: u <= -theta. Source: signed neuron with memory (Wang et al., IJCAI 2022); the dual threshold of error
   compensation learning (arXiv 2506.01968) with its half-threshold start is the same step.
2. ``signed-st``: u < 0, so that a spike is taken back as soon as it was one too many. Source: ST-BIF (bipolar
   integrate-and-fire with a spike tracer).

A rectifier never has to send less than nothing, which is why `sent` gates the negative spikes.
"""

from __future__ import annotations

import numpy as np

from ftbc_onnx.neurons.soft_reset import ONE, ZERO, SoftReset, emit_truth
from ftbc_onnx.sink import Sink


class Signed(SoftReset):
    """Spikes {-theta, 0, theta}; the state is v and the net number of spikes sent."""

    lowest = -1.0
    remembers = True

    def __init__(self, name: str = "signed", negative: float = 1.0) -> None:
        """Give the neuron its name and its negative threshold, in units of theta (0: as in ST-BIF)."""
        self.name = name
        self.negative = negative

    def count(self, u: np.ndarray, unit: np.ndarray, sent: np.ndarray | None) -> np.ndarray:
        """1, -1 or 0."""
        assert sent is not None
        low = u <= unit * np.float32(-self.negative) if self.negative else u < 0
        return np.where(u >= unit, ONE, np.where(low & (sent > 0), -ONE, ZERO))

    def emit_memory(self, sink: Sink, sent: str, unit: str) -> str:  # noqa: ARG002
        """Whether something may be taken back."""
        return sink.op("Greater", sent, sink.constant(0.0))

    def emit_count(self, sink: Sink, u: str, unit: str, memory: str | None) -> str:
        """The same, as 1 - 0, 0 - 1 or 0 - 0."""
        assert memory is not None
        low = (
            sink.op("LessOrEqual", u, sink.op("Mul", unit, sink.constant(-self.negative)))
            if self.negative
            else sink.op("Less", u, sink.constant(0.0))
        )
        forth = emit_truth(sink, sink.op("GreaterOrEqual", u, unit))
        return sink.op("Sub", forth, emit_truth(sink, sink.op("And", low, memory)))
