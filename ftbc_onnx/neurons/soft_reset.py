"""What neurons with a soft reset share: everything but how many units a membrane fires.

    lambda = theta / K                                    the height of the smallest spike, the *unit*
    u[t] = (v[t-1] + x[t]) + b[t]
    k[t] = Q(u[t], sent[t-1])                             a whole number of units
    s[t] = lambda * k[t]
    v[t] = u[t] - s[t],      v[-1] = lambda/2
    sent[t] = sent[t-1] + k[t],      sent[-1] = 0         kept where Q asks for it: what may be taken back

The order of the operations is as written, in NumPy and in ONNX. A neuron is a Q; the family of
k = clip(floor(u/lambda), lo, K) covers most of them:

| K, lo | neuron |
| --- | --- |
| 1, 0 | integrate-and-fire |
| 1, -[sent > 0] where u <= -lambda | signed, with memory |
| 1, -[sent > 0] where u < 0 | signed, as in ST-BIF |
| K, 0 | group |
| K, -min(sent, K) | signed group |
| K, -K | bipolar |
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np

from ftbc_onnx.neurons.protocol import State, StateNames
from ftbc_onnx.sink import Sink

ZERO, ONE = np.float32(0), np.float32(1)


class SoftReset(ABC):
    """A neuron given by Q; its state is the membrane potential v, and the units sent so far if `remembers`."""

    name: str
    levels: int = 1
    lowest: float = 0.0
    events: str = "spikes"
    remembers: bool = False
    start: float = 0.5
    """v[-1], in units."""

    @abstractmethod
    def count(self, u: np.ndarray, unit: np.ndarray, sent: np.ndarray | None) -> np.ndarray:
        """Q(u, sent) in NumPy: whole numbers in float32."""

    @abstractmethod
    def emit_count(self, sink: Sink, u: str, unit: str, memory: str | None) -> str:
        """Q(u, sent) as operators; `memory` is what `emit_memory` made of sent, None if nobody remembers."""

    def emit_memory(self, sink: Sink, sent: str, unit: str) -> str:  # noqa: ARG002
        """The part of Q that depends on sent alone."""
        return sent

    def fire(self, u: np.ndarray, unit: np.ndarray, sent: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
        """Spikes and the units in them (None if nobody remembers them)."""
        k = self.count(u, unit, sent)
        return k * unit, k

    def unit(self, threshold: np.ndarray) -> np.ndarray:
        """Theta / K."""
        return threshold if self.levels == 1 else threshold / np.float32(self.levels)

    def emit_unit(self, sink: Sink, threshold: str) -> str:
        """The same."""
        return threshold if self.levels == 1 else sink.op("Div", threshold, sink.constant(float(self.levels)))

    def initial_state(self, unit: np.ndarray) -> State:
        """v[-1], and sent[-1] = 0 where it is kept, of the unit's shape."""
        v = unit * np.float32(self.start)
        return (v, np.zeros_like(v)) if self.remembers else (v,)

    def emit_initial_state(self, sink: Sink, unit: str) -> StateNames:
        """The same."""
        v = sink.op("Mul", unit, sink.constant(self.start))
        return (v, sink.op("Mul", unit, sink.constant(0.0))) if self.remembers else (v,)

    def step(self, current: np.ndarray, state: State, unit: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, State]:
        """The equations above, in their order."""
        v, *memory = state
        u = (v + current) + bias
        s, k = self.fire(u, unit, memory[0] if memory else None)
        return s, (u - s, *(sent + k for sent in memory))

    def emit_step(
        self, sink: Sink, current: str, state: StateNames, unit: str, bias: str, *, out: str = "spikes"
    ) -> tuple[str, StateNames]:
        """The same as operators."""
        drive, *memory = self.emit_hold(sink, current, state, unit)
        u = sink.op("Add", drive, bias, out="u")
        k = self.emit_count(sink, u, unit, memory[0] if memory else None)
        s = sink.op("Mul", k, unit, out=out)
        v = sink.op("Sub", u, s, out="membrane")
        return s, (v, *(sink.op("Add", sent, k, out="sent") for sent in state[1:]))

    def emit_hold(self, sink: Sink, current: str, state: StateNames, unit: str) -> StateNames:
        """v[t-1] + x[t], and what counts of sent."""
        v, *memory = state
        drive = sink.op("Add", current, v, out="drive")
        return (drive, *(self.emit_memory(sink, sent, unit) for sent in memory))

    def emit_events(self, sink: Sink, held: StateNames, unit: str, bias: str) -> str:
        """Q of drive + b."""
        drive, *memory = held
        return self.emit_count(sink, sink.op("Add", drive, bias), unit, memory[0] if memory else None)

    def emit_height(self, sink: Sink, unit: str) -> str:  # noqa: ARG002
        """Lambda."""
        return unit

    def emit_base(self, sink: Sink, held: StateNames) -> str | None:  # noqa: ARG002
        """None: what travels on is the events."""
        return None


FLOAT = 1
"""float32 as ONNX numbers it."""


def emit_truth(sink: Sink, condition: str) -> str:
    """1 where a condition holds, else 0, in float32."""
    return sink.op("Cast", condition, to=FLOAT)
