"""Integrate-and-fire without leak, soft reset, spikes of height theta.

    u[t] = (v[t-1] + x[t]) + b[t]
    s[t] = theta * [u[t] >= theta]
    v[t] = u[t] - s[t],      v[-1] = theta/2

Sources: QCFS (Bu et al., ICLR 2022, arXiv 2303.04347) for the soft reset and the half-threshold start; FTBC
(arXiv 2403.18388) for b, which we add. It fires on ``>=``, everywhere. The order of the additions is as written.
"""

from __future__ import annotations

import numpy as np

from ftbc_onnx.neurons.protocol import State, StateNames
from ftbc_onnx.sink import Sink


class IntegrateAndFire:
    """Binary spikes {0, theta}; the state is the membrane potential v."""

    name = "if"
    lowest = 0.0

    def initial_state(self, threshold: np.ndarray) -> State:
        """v[-1] = theta/2, of the threshold's shape."""
        return (threshold * np.float32(0.5),)

    def step(
        self, current: np.ndarray, state: State, threshold: np.ndarray, bias: np.ndarray
    ) -> tuple[np.ndarray, State]:
        """The equations above, in their order."""
        (v,) = state
        u = (v + current) + bias
        s = np.where(u >= threshold, threshold, np.float32(0))
        return s, (u - s,)

    def emit_step(
        self, sink: Sink, current: str, state: StateNames, threshold: str, bias: str
    ) -> tuple[str, StateNames]:
        """The same as operators: Add, Add, GreaterOrEqual, Where, Sub."""
        u = sink.op("Add", self.emit_drive(sink, current, state), bias, out="u")
        s = self._emit_spikes(sink, u, threshold, out="spikes")
        return s, (sink.op("Sub", u, s, out="membrane"),)

    def emit_drive(self, sink: Sink, current: str, state: StateNames) -> str:
        """v[t-1] + x[t]."""
        (v,) = state
        return sink.op("Add", v, current, out="drive")

    def emit_fire(self, sink: Sink, drive: str, state: StateNames, threshold: str, bias: str) -> str:  # noqa: ARG002
        """Theta where drive + b >= theta."""
        return self._emit_spikes(sink, sink.op("Add", drive, bias), threshold)

    @staticmethod
    def _emit_spikes(sink: Sink, u: str, threshold: str, out: str | None = None) -> str:
        fires = sink.op("GreaterOrEqual", u, threshold)
        return sink.op("Where", fires, threshold, sink.constant(0.0), out=out)
