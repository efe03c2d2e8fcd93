"""Solve for the bias instead of stepping towards it.

After step t the sum of the mean spikes should be (t+1) * mean(a). The mean spike of a channel grows with its bias, so

    target[t] = clip((t+1) * mean(a) - sum over i < t of mean(s[i]),  lowest, most)
    b[t] = the bias with mean(s[t]) = target[t]

with most = theta (times the gain, if there is one) and lowest = 0, or -most for neurons that send both signs. It is
found by bisection of [-theta, theta], `HALVINGS` times, in the graph. So the expected error is zero *after each step*,
the condition of the paper's theorem, in one pass over one batch. If no bias (b = 0) comes as close, none is taken: a
channel that is silent in both networks keeps b = 0.

Several batches: each is solved on its own, and the biases are averaged, weighted by their samples.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ftbc_onnx.graph.emit.calibration import Probe

HALVINGS = 12
"""The bias is found to within 2 * theta / 2**12."""

REACH = 1.0
"""Half the width of the interval searched, in units of theta."""


class SolveRule:
    """Bisection for the cumulative mean."""

    name = "solve"

    def __init__(self, halvings: int = HALVINGS) -> None:
        """Give it its halvings: fewer are faster, and rougher."""
        self.halvings = halvings

    def emit(self, probe: Probe) -> str:
        """The bisection, and the comparison with no bias."""
        sink = probe.sink
        zero = sink.constant(0.0)
        target = sink.op("Sub", sink.op("Mul", probe.activation, probe.steps), probe.sent)
        lowest = probe.neuron.lowest
        floor = sink.op("Mul", probe.most, sink.constant(float(lowest))) if lowest else zero
        target = sink.op("Min", sink.op("Max", target, floor), probe.most, out="target")

        def halve(carried: Sequence[str]) -> tuple[str, str]:
            middle, reach = carried
            half = sink.op("Mul", reach, sink.constant(0.5))
            enough = sink.op("GreaterOrEqual", probe.mean_spikes(middle), target)
            return sink.op("Where", enough, sink.op("Sub", middle, half), sink.op("Add", middle, half)), half

        plain = probe.mean_spikes(zero)  # the middle of the interval: the first halving needs no other
        half = sink.op("Mul", probe.threshold, sink.constant(REACH / 2))
        first = sink.op("Where", sink.op("GreaterOrEqual", plain, target), sink.op("Neg", half), half)
        middle, _ = sink.repeat(self.halvings - 1, (first, half), halve)
        error = sink.op("Abs", sink.op("Sub", probe.mean_spikes(middle), target))
        without = sink.op("Abs", sink.op("Sub", plain, target))
        return sink.op("Where", sink.op("Less", error, without), middle, zero, out="bias")

    def combine(self, old: np.ndarray, new: np.ndarray, seen: int, samples: int) -> np.ndarray:
        """Mean over all samples seen."""
        total = seen + samples
        return np.asarray(old * np.float32(seen / total) + new * np.float32(samples / total), dtype=np.float32)


ROUGH = SolveRule(halvings=6)
"""To within theta/32, in half the time."""
