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

from ftbc_onnx.neurons.protocol import State, StateNames
from ftbc_onnx.sink import Sink


class Bipolar:
    """Spikes {-theta, 0, theta}; the state is the membrane potential v."""

    name = "bipolar"
    lowest = -1.0

    def initial_state(self, threshold: np.ndarray) -> State:
        """v[-1] = theta/2, of the threshold's shape."""
        return (threshold * np.float32(0.5),)

    def step(
        self, current: np.ndarray, state: State, threshold: np.ndarray, bias: np.ndarray
    ) -> tuple[np.ndarray, State]:
        """The equations above, in their order."""
        (v,) = state
        u = (v + current) + bias
        s = np.where(u >= threshold, threshold, np.where(u < 0, -threshold, np.float32(0)))
        return s, (u - s,)

    def emit_step(
        self, sink: Sink, current: str, state: StateNames, threshold: str, bias: str
    ) -> tuple[str, StateNames]:
        """The same as operators."""
        u = sink.op("Add", self.emit_drive(sink, current, state), bias, out="u")
        s = self._emit_spikes(sink, u, threshold, out="spikes")
        return s, (sink.op("Sub", u, s, out="membrane"),)

    def emit_drive(self, sink: Sink, current: str, state: StateNames) -> str:
        """v[t-1] + x[t]."""
        (v,) = state
        return sink.op("Add", v, current, out="drive")

    def emit_fire(self, sink: Sink, drive: str, state: StateNames, threshold: str, bias: str) -> str:  # noqa: ARG002
        """Spikes where drive + b is at or above theta, or below 0."""
        return self._emit_spikes(sink, sink.op("Add", drive, bias), threshold)

    @staticmethod
    def _emit_spikes(sink: Sink, u: str, threshold: str, out: str | None = None) -> str:
        zero = sink.constant(0.0)
        below = sink.op("Where", sink.op("Less", u, zero), sink.op("Neg", threshold), zero)
        return sink.op("Where", sink.op("GreaterOrEqual", u, threshold), threshold, below, out=out)
