"""Differential coding around any neuron: events say how a rate changes, and silence says that it stays.

With r the running mean of what was sent (r = 0 at first) and n = t + 1 the number of the step,

    u[t] = (v[t-1] + x[t]) + b[t]
    k[t] = Q(u[t] - r, sent[t-1]),   q[t] = lambda * k[t]       the events
    s[t] = q[t] + r                                                       what travels on
    v[t] = u[t] - s[t]
    r <- r + q[t]/n

s is a plain current to every other node, so none of them changes; r after step t is the mean of s up to t. Once r is
right the neuron is silent. Q is the count of the neuron inside, with n*r, the sum of s so far, as what may be taken
back: max(floor(n*r / lambda), 0), since a rounded r may be a little below 0. v[-1] is the inner neuron's.

Source: differential coding (arXiv 2503.00301), section on the decoded output.
"""

from __future__ import annotations

import numpy as np

from ftbc_onnx.neurons.protocol import State, StateNames
from ftbc_onnx.neurons.soft_reset import ONE, ZERO, SoftReset
from ftbc_onnx.sink import Sink


class Differential:
    """The state is v, r, and n."""

    events = "events"
    lowest = -1.0

    def __init__(self, inner: SoftReset) -> None:
        """Wrap a neuron."""
        self.inner = inner
        self.name = f"differential {inner.name}"
        self.levels = inner.levels

    def unit(self, threshold: np.ndarray) -> np.ndarray:
        """The inner neuron's."""
        return self.inner.unit(threshold)

    def emit_unit(self, sink: Sink, threshold: str) -> str:
        """The inner neuron's."""
        return self.inner.emit_unit(sink, threshold)

    def initial_state(self, unit: np.ndarray) -> State:
        """The inner v[-1], r = 0, n = 1."""
        return self.inner.initial_state(unit)[0], np.zeros_like(unit), np.ones(1, np.float32)

    def emit_initial_state(self, sink: Sink, unit: str) -> StateNames:
        """The same."""
        v = self.inner.emit_initial_state(sink, unit)[0]
        return v, sink.op("Mul", unit, sink.constant(0.0)), sink.constant(np.ones(1, np.float32))

    def step(self, current: np.ndarray, state: State, unit: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, State]:
        """The equations above, in their order."""
        v, r, n = state
        u = (v + current) + bias
        sent = np.maximum(np.floor((n * r) / unit), ZERO) if self.inner.remembers else None
        q = self.inner.fire(u - r, unit, sent)[0]
        s = q + r
        return s, (u - s, r + q / n, n + ONE)

    def emit_step(
        self, sink: Sink, current: str, state: StateNames, unit: str, bias: str, *, out: str = "spikes"
    ) -> tuple[str, StateNames]:
        """The same as operators."""
        _, r, n = state
        drive, _, *memory = self.emit_hold(sink, current, state, unit)
        u = sink.op("Add", drive, bias, out="u")
        k = self.inner.emit_count(sink, sink.op("Sub", u, r), unit, memory[0] if memory else None)
        q = sink.op("Mul", k, unit, out="events")
        s = sink.op("Add", q, r, out=out)
        v = sink.op("Sub", u, s, out="membrane")
        mean = sink.op("Add", r, sink.op("Div", q, n), out="decoded")
        return s, (v, mean, sink.op("Add", n, sink.constant(1.0), out="step"))

    def emit_hold(self, sink: Sink, current: str, state: StateNames, unit: str) -> StateNames:
        """v[t-1] + x[t], r, and what counts of the sum so far."""
        v, r, n = state
        drive = sink.op("Add", v, current, out="drive")
        if not self.inner.remembers:
            return drive, r
        sent = sink.op("Floor", sink.op("Div", sink.op("Mul", n, r), unit))
        sent = sink.op("Max", sent, sink.constant(0.0), out="sent")
        return drive, r, self.inner.emit_memory(sink, sent, unit)

    def emit_events(self, sink: Sink, held: StateNames, unit: str, bias: str) -> str:
        """Q of drive + b - r."""
        drive, r, *memory = held
        u = sink.op("Sub", sink.op("Add", drive, bias), r)
        return self.inner.emit_count(sink, u, unit, memory[0] if memory else None)

    def emit_height(self, sink: Sink, unit: str) -> str:  # noqa: ARG002
        """Lambda."""
        return unit

    def emit_base(self, sink: Sink, held: StateNames) -> str | None:  # noqa: ARG002
        """The running mean r."""
        return held[1]
