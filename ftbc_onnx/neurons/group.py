"""Group neuron: K members behind one membrane, so up to K spikes of height theta/K in one step.

    lambda = theta/K
    u[t] = (v[t-1] + x[t]) + b[t]
    k[t] = min(max(floor(u[t]/lambda), lo), K)
    s[t] = lambda * k[t],   v[t] = u[t] - s[t],   v[-1] = lambda/2

1. ``group``: lo = 0. Source: group neurons (arXiv 2402.19061), whose members have the thresholds i*theta/K; a burst
   neuron, and n binary wires with K = 2^n - 1, fire the same numbers.
2. ``signed-group``: lo = -min(sent, K), sent[t] = sum of k up to t: it takes back what was sent too much.
"""

from __future__ import annotations

import numpy as np

from ftbc_onnx.neurons.soft_reset import ZERO, SoftReset
from ftbc_onnx.sink import Sink


class Group(SoftReset):
    """K levels per step; the state is v, and the net number of units sent if it may take back."""

    def __init__(self, levels: int, signed: bool = False) -> None:
        """Give it its members, and whether it takes back."""
        self.name = "signed-group" if signed else "group"
        self.levels = levels
        self.remembers = signed
        self.lowest = -1.0 if signed else 0.0

    def count(self, u: np.ndarray, unit: np.ndarray, sent: np.ndarray | None) -> np.ndarray:
        """Whole units in u, between lo and K."""
        most = np.float32(self.levels)
        low = ZERO if sent is None else -np.minimum(sent, most)
        return np.asarray(np.minimum(np.maximum(np.floor(u / unit), low), most))

    def emit_memory(self, sink: Sink, sent: str, unit: str) -> str:  # noqa: ARG002
        """-sent; the Clip to come bounds it by -K."""
        return sink.op("Neg", sent)

    def emit_count(self, sink: Sink, u: str, unit: str, memory: str | None) -> str:
        """The same: Div, Floor, Clip (in onnxruntime on a CPU as fast as Max, and Min takes twice as long)."""
        most = sink.constant(float(self.levels))
        whole = sink.op("Floor", sink.op("Div", u, unit))
        if memory is None:
            return sink.op("Clip", whole, sink.constant(0.0), most)
        return sink.op("Clip", sink.op("Max", whole, memory), sink.constant(float(-self.levels)), most)
