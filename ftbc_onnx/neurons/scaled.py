"""A gain per channel on the spikes of any neuron: what travels on is s' = g * s, what is taken from the membrane is s.

    s[t], state = step of the neuron inside
    s'[t] = g * s[t]                                                      what travels on

A binary neuron stays binary, with spikes of height g*theta: the gain is a scale of the weights behind it. It makes good
what no bias can, a rate that varies more, or less, than the activation does.
"""

from __future__ import annotations

import numpy as np

from ftbc_onnx.neurons.protocol import Neuron, State, StateNames
from ftbc_onnx.sink import Sink


class Scaled:
    """The state is the inner neuron's."""

    events = "events"

    def __init__(self, inner: Neuron, gain: np.ndarray) -> None:
        """Wrap a neuron; the gain broadcasts against the site's tensor, [1, C, 1, 1] say."""
        self.inner = inner
        self.gain = np.asarray(gain, np.float32)
        self.name = inner.name
        self.levels = inner.levels
        self.lowest = inner.lowest

    def unit(self, threshold: np.ndarray) -> np.ndarray:
        """The inner neuron's."""
        return self.inner.unit(threshold)

    def emit_unit(self, sink: Sink, threshold: str) -> str:
        """The inner neuron's."""
        return self.inner.emit_unit(sink, threshold)

    def initial_state(self, unit: np.ndarray) -> State:
        """The inner neuron's."""
        return self.inner.initial_state(unit)

    def emit_initial_state(self, sink: Sink, unit: str) -> StateNames:
        """The inner neuron's."""
        return self.inner.emit_initial_state(sink, unit)

    def step(self, current: np.ndarray, state: State, unit: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, State]:
        """The equations above."""
        spikes, state = self.inner.step(current, state, unit, bias)
        return spikes * self.gain, state

    def emit_step(
        self, sink: Sink, current: str, state: StateNames, unit: str, bias: str, *, out: str = "spikes"
    ) -> tuple[str, StateNames]:
        """The same as operators; what is sent is called ``events`` (of differential coding, as it is there)."""
        inside = "unscaled" if self.inner.events == self.events else self.events
        spikes, state = self.inner.emit_step(sink, current, state, unit, bias, out=inside)
        return sink.op("Mul", spikes, sink.constant(self.gain), out=out), state

    def emit_hold(self, sink: Sink, current: str, state: StateNames, unit: str) -> StateNames:
        """The inner neuron's."""
        return self.inner.emit_hold(sink, current, state, unit)

    def emit_events(self, sink: Sink, held: StateNames, unit: str, bias: str) -> str:
        """The inner neuron's."""
        return self.inner.emit_events(sink, held, unit, bias)

    def emit_height(self, sink: Sink, unit: str) -> str:
        """G * lambda."""
        return sink.op("Mul", self.inner.emit_height(sink, unit), sink.constant(self.gain))

    def emit_base(self, sink: Sink, held: StateNames) -> str | None:
        """The inner neuron's, times g."""
        base = self.inner.emit_base(sink, held)
        return None if base is None else sink.op("Mul", base, sink.constant(self.gain))
