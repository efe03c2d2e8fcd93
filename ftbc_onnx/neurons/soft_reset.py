"""What neurons with a soft reset share: everything but which spikes a drive gives.

    u[t] = (v[t-1] + x[t]) + b[t]
    s[t] = S(u[t])
    v[t] = u[t] - s[t],      v[-1] = theta/2

The order of the additions is as written, in NumPy and in ONNX.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np

from ftbc_onnx.neurons.protocol import State, StateNames
from ftbc_onnx.sink import Sink


class SoftReset(ABC):
    """A neuron given by S; its state is the membrane potential v."""

    name: str
    lowest: float

    @abstractmethod
    def spikes(self, u: np.ndarray, threshold: np.ndarray) -> np.ndarray:
        """S(u) in NumPy."""

    @abstractmethod
    def emit_spikes(self, sink: Sink, u: str, threshold: str, out: str | None = None) -> str:
        """S(u) as operators."""

    def initial_state(self, threshold: np.ndarray) -> State:
        """v[-1] = theta/2, of the threshold's shape."""
        return (threshold * np.float32(0.5),)

    def step(
        self, current: np.ndarray, state: State, threshold: np.ndarray, bias: np.ndarray
    ) -> tuple[np.ndarray, State]:
        """The equations above, in their order."""
        (v,) = state
        u = (v + current) + bias
        s = self.spikes(u, threshold)
        return s, (u - s,)

    def emit_step(
        self, sink: Sink, current: str, state: StateNames, threshold: str, bias: str
    ) -> tuple[str, StateNames]:
        """The same as operators."""
        u = sink.op("Add", self.emit_drive(sink, current, state), bias, out="u")
        s = self.emit_spikes(sink, u, threshold, out="spikes")
        return s, (sink.op("Sub", u, s, out="membrane"),)

    def emit_drive(self, sink: Sink, current: str, state: StateNames) -> str:
        """v[t-1] + x[t]."""
        (v,) = state
        return sink.op("Add", v, current, out="drive")

    def emit_fire(self, sink: Sink, drive: str, state: StateNames, threshold: str, bias: str) -> str:  # noqa: ARG002
        """S(drive + b)."""
        return self.emit_spikes(sink, sink.op("Add", drive, bias), threshold)
