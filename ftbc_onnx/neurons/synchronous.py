"""Layer-synchronous firing: a site waits for its currents of all T steps, counts once, and spreads its spikes over T.

    lambda = theta/K
    X = (x[0] + x[1]) + ... + x[T-1],   b = (b[0] + b[1]) + ... + b[T-1]
    n = min(max(floor((X + b)/lambda + 1/2), lo), T*K)
    c[0] = 0,   c[t] = floor(t*n / T),   c[T] = n
    k[t] = c[t+1] - c[t],   s[t] = lambda * k[t]

1. Behind a rectifier lo = 0.
2. At a signed site lo = -T*K.

With N = T*K and x the mean current, the mean of s is theta/N * min(max(floor(x*N/theta + 1/2), lo), N). So the network
is the ANN with activations of N levels, and nothing is left of time but the order of the spikes. A layer fires when the
one before it has sent all its spikes: T steps per layer.

t*n is a whole number below 2^24 (`neurons.check_schedule`), so its quotient by T has the right floor although it is
rounded, and -K <= k <= K.
The order of the operations is as written, in NumPy and in ONNX.

Source: parallel conversion and PASCAL, which make a spiking network the quantised one exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from ftbc_onnx.neurons.soft_reset import ZERO
from ftbc_onnx.sink import Sink

HALF = np.float32(0.5)


@dataclass(frozen=True)
class Synchronous:
    """All T steps of a population at once; there is no state.

    Attributes:
        levels: K levels per step.
        steps: T.
        signed: whether spikes of both signs are sent (y = x) or none below 0 (rectifier).
    """

    levels: int
    steps: int
    signed: bool = False

    @property
    def lowest(self) -> float:
        """The lowest sum of spikes, in units of T*theta."""
        return -1.0 if self.signed else 0.0

    @property
    def most(self) -> int:
        """T*K, the largest n."""
        return self.levels * self.steps

    def fire(self, currents: Sequence[np.ndarray], unit: np.ndarray, biases: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Spikes of every step from currents and biases of every step."""
        n = self.count(_sum(currents) + _sum(biases), unit)
        steps = np.float32(self.steps)
        sent = [ZERO, *(np.floor((n * np.float32(t)) / steps) for t in range(1, self.steps)), n]
        return [(after - before) * unit for before, after in pairwise(sent)]

    def count(self, total: np.ndarray, unit: np.ndarray) -> np.ndarray:
        """The whole numbers n for X + b, in float32."""
        low = np.float32(-self.most if self.signed else 0)
        n: np.ndarray = np.minimum(np.maximum(np.floor(total / unit + HALF), low), np.float32(self.most))
        return n

    def emit(self, sink: Sink, currents: Sequence[str], unit: str, biases: Sequence[str]) -> list[str]:
        """The same as operators; the spikes are called ``t0/spikes`` and so on."""
        drive, bias = self.emit_total(sink, currents), self.emit_total(sink, biases, "bias_total")
        return self.emit_spread(sink, self.emit_count(sink, sink.op("Add", drive, bias, out="u"), unit), unit)

    def emit_total(self, sink: Sink, values: Sequence[str], out: str = "drive") -> str:
        """The sum over the steps, from the first on."""
        total = values[0]
        for value in values[1:]:
            total = sink.op("Add", total, value, out=out)
        return total

    def emit_count(self, sink: Sink, total: str, unit: str) -> str:
        """The same."""
        low = sink.constant(float(-self.most if self.signed else 0))
        nearest = sink.op("Floor", sink.op("Add", sink.op("Div", total, unit), sink.constant(0.5)))
        return sink.op("Clip", nearest, low, sink.constant(float(self.most)), out="count")

    def emit_spread(self, sink: Sink, count: str, unit: str) -> list[str]:
        """Spikes of every step for n."""
        steps = sink.constant(float(self.steps))
        sent = [
            sink.op("Floor", sink.op("Div", sink.op("Mul", count, sink.constant(float(t))), steps), out=f"t{t}/sent")
            for t in range(1, self.steps)
        ]
        units = [
            after if before is None else sink.op("Sub", after, before, out=f"t{t}/count")
            for t, (before, after) in enumerate(zip([None, *sent], [*sent, count], strict=True))
        ]
        return [sink.op("Mul", k, unit, out=f"t{t}/spikes") for t, k in enumerate(units)]

    def emit_events(self, sink: Sink, held: tuple[str, ...], unit: str, bias: str) -> str:
        """The number n that X = held[0] gives with the sum of biases `bias`: what a rule may try."""
        return self.emit_count(sink, sink.op("Add", held[0], bias), unit)

    def emit_height(self, sink: Sink, unit: str) -> str:  # noqa: ARG002
        """Lambda."""
        return unit

    def emit_base(self, sink: Sink, held: tuple[str, ...]) -> str | None:  # noqa: ARG002
        """None: what travels on is the events."""
        return None


def _sum(values: Sequence[np.ndarray]) -> np.ndarray:
    """From the first on."""
    total = values[0]
    for value in values[1:]:
        total = total + value
    return total
